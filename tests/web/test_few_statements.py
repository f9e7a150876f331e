"""A page takes at most three statements, also when nothing is known yet."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from graphile_worker_py import CircuitBreaker, ConcurrencyLimit, Runner, WorkerUtils, task
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import census
from graphile_worker_py.web import Access, create_app
from tests.support.eventually import eventually
from tests.support.jobs import Jobs

SWEEP = {census.read_sizes("any").text, census.count_chunk(0, by_queue=True).text}
PAGES = (
    "/",
    "/jobs",
    "/jobs?q=state:running",
    "/jobs/{running}",
    "/jobs/{waiting}",
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
    """A worker that runs a job, a job that waits, and one that was given up."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    @task("charge", limits=[ConcurrencyLimit(1)], breaker=CircuitBreaker("stripe"))
    async def charge(_payload: Any) -> None:
        begun.set()
        await go_on.wait()

    async with Runner(dsn, tasks=[charge], history="all") as runner, WorkerUtils(dsn) as utils:
        running = await utils.add_job("charge", queue_name="q")
        await begun.wait()
        waiting = await utils.add_job("charge")
        failed = await utils.add_job("unknown")
        await utils.permanently_fail_jobs([failed.id], "no")
        await eventually(lambda: runner.health().state == "running")
        yield {"running": running.id, "waiting": waiting.id}
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
    app = create_app(dsn, authorize=lambda _request: Access.admin("anna"))
    transport = httpx.ASGITransport(app=app)
    site = app.state.web.site
    database = await site.open()
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for page in PAGES:
                await (await site.census()).look()
                site.forget()
                sent.clear()
                shown = await client.get(page.format_map(busy), headers={"accept": "text/html"})
                assert shown.status_code == 200, shown.text
                texts = [text for each, text in sent if each is database]
                assert 1 <= len(texts) <= 3, "\n\n".join([page, *texts])
    finally:
        await site.close()
