"""A page takes at most three statements, also when nothing is known yet."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from graphile_worker_py import CircuitBreaker, ConcurrencyLimit, Runner, WorkerUtils, task
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import census, windows
from graphile_worker_py.web import Access, create_app
from tests.support.eventually import eventually
from tests.support.jobs import Jobs

SWEEP = {census.read_sizes("any").text, census.count_chunk(0, by_queue=True).text}
PAGES = (
    "/",
    "/jobs",
    "/jobs?q=state:running",
    "/jobs/new",
    "/jobs/{running}",
    "/jobs/{waiting}",
    "/jobs/{keyed}",
    "/tasks",
    "/tasks/charge",
    "/queues",
    "/limits",
    "/workers",
    "/recurring",
    "/errors",
    "/maintenance",
)


@pytest.fixture
async def busy(dsn: str, stored: Jobs) -> AsyncIterator[dict[str, int]]:
    """A worker that runs two jobs, jobs that wait for their limits, and one that was given up."""
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def work(_payload: Any) -> None:
        begun.release()
        await go_on.wait()

    tasks = [
        task("charge", limits=[ConcurrencyLimit(1)], breaker=CircuitBreaker("stripe"))(work),
        task("export", limits=[ConcurrencyLimit(1, key="tenant")])(work),
    ]
    async with (
        Runner(dsn, tasks=tasks, history="all", concurrent_jobs=4) as runner,
        WorkerUtils(dsn) as utils,
    ):
        running = await utils.add_job("charge", queue_name="q")
        await utils.add_job("export", {"tenant": "a"})
        await begun.acquire()
        await begun.acquire()
        waiting = await utils.add_job("charge")
        keyed = await utils.add_job("export", {"tenant": "a"})
        failed = await utils.add_job("unknown")
        await utils.permanently_fail_jobs([failed.id], "no")
        await eventually(lambda: runner.health().state == "running")
        yield {"running": running.id, "waiting": waiting.id, "keyed": keyed.id}
        go_on.set()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Database, str]]:
    """The statements, but for those that count jobs in the background."""
    texts: list[tuple[Database, str]] = []
    run = Database.run

    async def counted(database: Database, query: Query[Any], **options: Any) -> Any:
        if query.text not in SWEEP:
            texts.append((database, query.text))
        return await run(database, query, **options)

    monkeypatch.setattr(Database, "run", counted)
    return texts


async def test_no_page_takes_more_than_three_statements(
    busy: dict[str, int], dsn: str, sent: list[tuple[Database, str]]
) -> None:
    async with looking(dsn, sent) as look:
        for page in PAGES:
            text, statements = await look(page.format_map(busy))
            assert 1 <= len(statements) <= 3, "\n\n".join([page, *statements])
            if page == "/jobs/{keyed}":
                assert "1 of 1 jobs at once run with &#39;a&#39; at &#39;tenant&#39;" in text


async def test_nor_does_a_list_of_running_jobs_that_are_older_than_the_newest(
    busy: dict[str, int],
    dsn: str,
    stored: Jobs,
    sent: list[tuple[Database, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "WINDOW", 10)
    stored.add_many(20, "unknown")
    async with looking(dsn, sent) as look:
        text, statements = await look("/jobs?q=state:running")
        assert "Some of the newest running jobs" in text
        assert f"/jobs/{busy['running']}" in text
        assert 1 <= len(statements) <= 3, "\n\n".join(statements)


async def test_nor_does_the_page_of_a_job_that_is_gone(
    busy: dict[str, int], dsn: str, stored: Jobs, sent: list[tuple[Database, str]]
) -> None:
    async with looking(dsn, sent) as look:
        _, statements = await look("/jobs/123456", status=404)
        assert 1 <= len(statements) <= 3, "\n\n".join(statements)


@asynccontextmanager
async def looking(
    dsn: str, sent: list[tuple[Database, str]]
) -> AsyncIterator[Callable[..., Awaitable[tuple[str, list[str]]]]]:
    """A function that reads a page when nothing is known yet; gives its text and statements."""
    app = create_app(dsn, authorize=lambda _request: Access.admin("anna"))
    transport = httpx.ASGITransport(app=app)
    site = app.state.web.site
    database = await site.open()
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

        async def look(path: str, *, status: int = 200) -> tuple[str, list[str]]:
            await (await site.census()).look()
            site.forget()
            sent.clear()
            shown = await client.get(path, headers={"accept": "text/html"})
            assert shown.status_code == status, shown.text
            return shown.text, [text for each, text in sent if each is database]

        try:
            yield look
        finally:
            await site.close()
