"""A real browser, and what pages may not do in it."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support import npm
from tests.support.missing import missing

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = "axe-core@4.10.3"
expect.set_options(timeout=30_000)


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """Debian's Chromium, with a user of its own."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        missing("chromium is not installed: no page can be looked at")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


class Watched:
    """A page that notes what it may not do: errors, and requests to elsewhere."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.faults: list[str] = []
        self._host = urlsplit(url).netloc
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._on_request)

    def _on_console(self, message: Any) -> None:
        if message.type == "error" or "Content Security Policy" in message.text:
            self.faults.append(message.text)

    def _on_request(self, request: Any) -> None:
        if urlsplit(request.url).netloc != self._host and not request.url.startswith("data:"):
            self.faults.append(f"request to {request.url}")


@asynccontextmanager
async def opened(browser: Browser, url: str, **options: Any) -> AsyncIterator[Watched]:
    """A page of an application; its end checks that it did nothing that it may not."""
    context = await browser.new_context(base_url=url, **options)
    try:
        watched = Watched(await context.new_page(), url)
        yield watched
        assert watched.faults == []
    finally:
        await context.close()


def axe_source() -> str:
    """The code of axe."""
    return (npm.install(AXE) / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


async def serious_faults(page: Page, source: str) -> list[str]:
    """What axe finds that keeps people from using a page."""
    # Through the debugger, which the content security policy does not restrict.
    await page.evaluate(source)
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {node['html'][:150]} {node.get('failureSummary', '')[:200]}"
        for each in found["violations"]
        if each["impact"] in {"serious", "critical"}
        for node in each["nodes"]
    ]
