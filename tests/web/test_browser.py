"""The pages in a real browser, also mounted as docs/web.md shows it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.async_api import expect

from graphile_worker_py import Runner, run_migrations
from graphile_worker_py.web import Access, create_app
from tests.support.jobs import Jobs
from tests.support.missing import missing
from tests.web.browser import Watched, axe_source, browsing, opened, serious_faults
from tests.web.serving import served

pytestmark = [
    pytest.mark.any_server,
    pytest.mark.timeout(120),  # a browser is slow on a busy machine
]
HOSTILE = "<script>alert(1)</script>\"'&" + "x" * 90
PAGES = (
    "/",
    "/jobs",
    "/jobs/new?task=send_mail",
    "/jobs/1",
    "/jobs/7",
    "/jobs/1/stack",
    "/jobs?q=state:running",
    "/tasks",
    "/tasks/send_mail?range=24h",
    "/queues",
    "/limits",
    "/workers",
    "/recurring",
    "/errors",
    "/maintenance",
    "/nothing",
)
COMBINATIONS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 360)]


def fill(stored: Jobs) -> None:
    """Jobs in all states, with hostile and long texts."""
    first = stored.add("send_mail", {"to": HOSTILE}, queue_name="mail", job_key="k" * 400)
    stored.exhaust(first)
    stored.change(first, "last_error = 'TimeoutError: no answer\nTraceback: …'")
    stored.add_many(5, "send_mail", queue_name="mail")
    running = stored.add("render", queue_name="q" * 128)
    stored.lock(running, pool_id="pool-of-node")
    stored.add(HOSTILE, {"a": HOSTILE}, queue_name=HOSTILE, flags=["f" * 100])
    stored.add("later", run_at="2090-01-01")
    hostile = stored.add("n" * 128)
    stored.exhaust(hostile)
    stored.query(
        "update graphile_worker._private_jobs set last_error = %s where id = %s",
        HOSTILE * 20,
        hostile,
    )
    stored.query(
        "insert into graphile_worker._private_known_crontabs values ('nightly', now(), now())"
    )


RECORDED = (
    (
        "insert into graphile_worker_py.job_state (worker_schema, job_id, job_created_at, progress,"
        " total, message) select 'graphile_worker', id, created_at, 3, 9, repeat('m', 400)"
        " from graphile_worker.jobs where locked_at is not null"
    ),
    (
        "insert into graphile_worker_py.task_minutes (worker_schema, task, minute, completed,"
        " failed, wait, run) select 'graphile_worker', 'send_mail', date_trunc('minute', now()),"
        """ 7, 2, '{"1": 4, "40": 5}', '{"30": 9}'"""
    ),
    (
        "insert into graphile_worker_py.runs_failed (worker_schema, job_id, job_created_at, task,"
        " attempt, outcome, run_at, finished_at, error, error_group) select 'graphile_worker', id,"
        " created_at, 'send_mail', 1, 'failed', now(), now(), repeat('e', 400), repeat('g', 200)"
        " from graphile_worker.jobs"
    ),
    (
        "insert into graphile_worker_py.crontab_items values ('graphile_worker', repeat('c', 400),"
        """ '{"task": "send_mail", "pattern": [[0], [4], [1], [1], [1]], "options": {}}', now())"""
    ),
    (
        "insert into graphile_worker_py.limits values ('graphile_worker', repeat('l', 400),"
        " array['send_mail', repeat('t', 128), '<script>alert(1)</script>'], 50, 37, 20, now()),"
        " ('graphile_worker', '<b>\"&', array['send_mail'], 0, 0, null, null)"
    ),
    (
        "insert into graphile_worker_py.limit_rates (worker_schema, name, tasks, rate, per, burst,"
        " full_at) values ('graphile_worker', 'stripe', array['send_mail'], 100, 1, 20,"
        " extract(epoch from now()) + 60)"
    ),
)


@asynccontextmanager
async def at_work(dsn: str, access: Access, send_mail: Any) -> AsyncIterator[Watched]:
    """A page of a database where a worker runs one task."""
    app = create_app(dsn, authorize=lambda _request: access)
    async with (
        served(app) as url,
        Runner(dsn, tasks={"send_mail": send_mail}, poll_interval=0.2),
        browsing() as browser,
        opened(browser, url) as watched,
    ):
        yield watched


async def test_a_failed_job_is_found_understood_retried_and_seen_to_complete(
    dsn: str, stored: Jobs
) -> None:
    go_on = asyncio.Event()

    async def send_mail(_payload: Any) -> None:
        await go_on.wait()

    job_id = stored.add("send_mail", {"to": "a@example.com"})
    stored.exhaust(job_id)
    async with at_work(dsn, Access.admin("anna"), send_mail) as watched:
        page = watched.page
        await page.goto("/")
        await page.click("a.tile.failed")
        await expect(page).to_have_url("/jobs?q=state:failed")
        await page.click(f"td.id a:has-text('{job_id}')")
        await expect(page.locator("#explain")).to_contain_text("All 25 attempts are used up")
        await page.click("text=Retry now")
        await expect(page.locator("[role=status]")).to_contain_text("will be tried again")
        await expect(page.locator("#state")).to_contain_text("running")
        go_on.set()
        await page.goto("/jobs")
        await expect(page.locator("#list")).to_contain_text("No jobs")


async def test_a_job_is_added_and_seen_to_complete(dsn: str, stored: Jobs) -> None:
    seen: list[Any] = []

    async def send_mail(payload: Any) -> None:
        seen.append(payload)

    async with at_work(dsn, Access.operator("anna"), send_mail) as watched:
        page = watched.page
        await page.goto("/jobs")
        await page.click("text=Add a job")
        await expect(page.locator("#tasks option")).to_have_attribute("value", "send_mail")
        await expect(page.locator("#live")).to_be_hidden()  # nothing here renews itself
        await page.fill("#task", "send_mail")
        await page.fill("#payload", '{"to": ')
        await page.fill("#run_at", "2090-01-31T04:00")
        await page.click("text=Add the job")
        await expect(page.locator("#payload-bad")).to_contain_text("This is not JSON")
        watched.faults.clear()  # the browser notes the status 422
        if shutil.which("npm") is not None:
            source = await asyncio.to_thread(axe_source)
            assert await serious_faults(page, source) == []
        await expect(page.locator("#run_at")).to_have_value("2090-01-31T04:00")
        await page.fill("#payload", '{"to": "a@example.com"}')
        await page.click("text=Add the job")
        await expect(page.locator("[role=status]")).to_contain_text("1 job added")
        await expect(page.locator("#explain")).to_contain_text("Due in")
        await page.click("text=Run now")
        await expect(page.locator("[role=status]")).to_contain_text("1 job rescheduled")
        await page.goto("/jobs")
        await expect(page.locator("#list")).to_contain_text("No jobs")
    assert seen == [{"to": "a@example.com"}]


async def test_a_page_renews_itself_until_it_is_paused(dsn: str, stored: Jobs) -> None:
    app = create_app(dsn, authorize=lambda _request: Access.admin("anna"))
    async with served(app) as url, browsing() as browser, opened(browser, url) as watched:
        page = watched.page
        await page.goto("/jobs")
        await expect(page.locator("#list")).to_contain_text("No jobs")
        stored.add("first")
        await expect(page.locator("#list")).to_contain_text("first")
        await page.click("#live")
        await expect(page.locator("#live")).to_contain_text("Paused")
        stored.add("second")
        await page.wait_for_timeout(4_500)
        assert "second" not in await page.inner_text("#list")
        await page.click("#live")
        await expect(page.locator("#list")).to_contain_text("second")


async def test_the_keyboard_moves_chooses_and_searches(dsn: str, stored: Jobs) -> None:
    stored.add_many(3, "a")
    app = create_app(dsn, authorize=lambda _request: Access.admin("anna"))
    async with served(app) as url, browsing() as browser, opened(browser, url) as watched:
        page = watched.page
        await page.goto("/jobs")
        for key in ("j", "j", "k", "j", "x"):
            await page.keyboard.press(key)
        assert await page.locator("tr.at td.id").inner_text() == "2"
        assert await page.locator("tr.at input").is_checked()
        await page.keyboard.press("?")
        await expect(page.locator("#keys")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("#keys")).to_be_hidden()
        await page.keyboard.press("/")
        await page.keyboard.type("key:none")
        await page.keyboard.press("Enter")
        await expect(page.locator("#list")).to_contain_text("Nothing found")


async def test_all_but_live_updates_works_without_javascript(dsn: str, stored: Jobs) -> None:
    ids = stored.add_many(3, "a")
    stored.exhaust(*ids)
    app = create_app(dsn)
    async with (
        served(app) as url,
        browsing() as browser,
        opened(browser, url, java_script_enabled=False) as watched,
    ):
        page = watched.page
        await page.goto("/jobs")
        await page.fill("input[name=token]", app.state.door.token)
        await page.click("main button")
        await expect(page).to_have_url(f"{url}/jobs")
        await page.click("text=Add a job")
        await page.fill("#task", "b")
        await page.click("text=Add the job")
        await expect(page.locator("h1")).to_contain_text("Job 4")
        await page.goto("/jobs")
        await page.fill("#q", "state:failed")
        await page.click(".filter button")
        await page.check("input[name=all]")
        await page.click("text=Continue…")
        await expect(page.locator("h1")).to_contain_text("Retry 3 jobs?")
        await page.click("main form button")
        await expect(page.locator("[role=status]")).to_contain_text("3 jobs will be tried again")
        await page.goto("/maintenance")
        await expect(page.locator("main")).to_contain_text("retry")
        await page.goto(f"/jobs/{ids[0]}")
        await page.click("summary:has-text('Edit')")
        await page.fill("textarea", '{"n" :  1.10}')
        await page.click("text=Save")
        await expect(page.locator("#payload")).to_have_text('{"n" :  1.10}')
    assert stored.one(ids[0])["json"] == '{"n" :  1.10}'


@pytest.mark.timeout(300)
async def test_pages_are_accessible_fit_and_ask_nothing_of_others(
    dsn: str, stored: Jobs, request: pytest.FixtureRequest
) -> None:
    if shutil.which("npm") is None:
        missing("npm is not installed: axe can't be fetched")
    source = await asyncio.to_thread(axe_source)
    fill(stored)
    await run_migrations(dsn, side_schema=True)
    for statement in RECORDED:
        stored.query(statement)
    app = create_app(dsn, authorize=lambda _request: Access.admin("u" * 400), links={"l" * 60: "/"})
    async with served(app) as url, browsing() as browser:
        faults: list[str] = []
        for at, (scheme, width) in enumerate(COMBINATIONS):
            # Each run looks at a part, `--long` at all.
            is_long = request.config.getoption("--long")
            pages = PAGES if is_long else PAGES[at :: len(COMBINATIONS)]
            options: dict[str, Any] = {
                "viewport": {"width": width, "height": 800},
                "color_scheme": scheme,
            }
            async with opened(browser, url, **options) as watched:
                faults += [
                    f"{scheme}, {width} px: {fault}"
                    for fault in await _faults(watched, pages, source, width)
                ]
        assert faults == []


async def _faults(watched: Watched, pages: Sequence[str], source: str, width: int) -> list[str]:
    faults = []
    for path in pages:
        await watched.page.goto(path)
        faults += [f"{path}: {each}" for each in await serious_faults(watched.page, source)]
        wide = await watched.page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            faults.append(f"{path} is {wide} pixels wide")
    # The browser notes the status of the page that is not there.
    watched.faults = [each for each in watched.faults if "404" not in each]
    return faults


async def test_below_a_prefix_links_cookies_and_events_stay_there(dsn: str, stored: Jobs) -> None:
    inner = create_app(databases={"prod": dsn, "test": dsn})

    # The server tells only the outer application when it ends.
    @asynccontextmanager
    async def lifespan(_host: FastAPI) -> AsyncIterator[None]:
        async with inner.router.lifespan_context(inner):
            yield

    host = FastAPI(lifespan=lifespan)
    host.mount("/jobs-admin", inner)
    stored.add("a")
    async with served(host) as url, browsing() as browser, opened(browser, url) as watched:
        page = watched.page
        await page.goto(f"/jobs-admin/?token={inner.state.door.token}")
        await expect(page).to_have_url(f"{url}/jobs-admin/prod/")
        await page.click(".side a:has-text('Jobs')")
        await page.click("td.id a")
        await expect(page).to_have_url(f"{url}/jobs-admin/prod/jobs/1")
        await page.click(".databases a:has-text('test')")
        await expect(page).to_have_url(f"{url}/jobs-admin/test/")
        async with page.expect_request("**/jobs-admin/test/api/v1/events"):
            await page.reload()
