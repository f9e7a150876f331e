"""Take the pictures of `docs/web` from the demo, in Debian's Chromium.

Run it as `python -m tools.screenshots` after the pages have changed. It needs the extras `web`,
`embedded` and `test`, and the program `chromium`.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any

from playwright.async_api import async_playwright

from graphile_worker_py.dev.demo_web import demonstrate_pages
from graphile_worker_py.dev.postgres import EmbeddedPostgres
from graphile_worker_py.worker_utils import WorkerUtils

FOLDER = Path(__file__).parent.parent / "docs" / "web"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
SIZE = {"width": 1160, "height": 720}
WAIT = 25.0
"""Seconds that the demo runs before the pictures are taken."""


async def take(dsn: str) -> None:
    """Take all pictures."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        demo = group.create_task(demonstrate_pages(dsn, port=0, show=ready.set_result, rate=12.0))
        link = await ready
        async with WorkerUtils(dsn) as utils:
            await utils.add_job("send_reciept", {"customer": "Ada", "api_token": "not shown"})
            # So that errors of jobs that were given up are there.
            jobs = await utils.list_jobs(task="call_flaky_api")
            await utils.permanently_fail_jobs(
                [job.id for job in jobs[:20]], "ConnectionError: api.example.com did not answer"
            )
        await asyncio.sleep(WAIT)
        await _pictures(link)
        demo.cancel()


async def _pictures(link: str) -> None:
    root = link.partition("?")[0].rstrip("/")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(FLAGS)
        )
        session = await browser.new_context()
        await (await session.new_page()).goto(link)
        state = await session.storage_state()
        for name, path, scheme in (
            ("overview", "/", "light"),
            ("jobs", "/jobs", "light"),
            ("job", "/jobs?q=task:send_reciept", "light"),
            ("errors", "/errors", "dark"),
            ("workers", "/workers", "dark"),
        ):
            options: dict[str, Any] = {"viewport": SIZE, "color_scheme": scheme}
            context = await browser.new_context(storage_state=state, **options)
            page = await context.new_page()
            await page.goto(root + path)
            if name == "job":
                await page.click("td.id a")
            await page.wait_for_timeout(1_500)
            await page.screenshot(path=FOLDER / f"{name}.png")
            await context.close()
        await browser.close()


def main() -> None:
    """Take the pictures with a server of their own."""
    FOLDER.mkdir(exist_ok=True)
    with EmbeddedPostgres() as server:
        try:
            asyncio.run(take(server.dsn))
        except asyncio.CancelledError:
            pass


if __name__ == "__main__":
    main()
