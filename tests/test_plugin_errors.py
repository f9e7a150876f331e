"""Plugins see what goes wrong in the steps that they wrap."""

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from graphile_worker_py import (
    Fetched,
    FetchRequest,
    GraphileWorkerError,
    JobContext,
    LocalQueueOptions,
    Plugin,
    Runner,
    SchemaStep,
    run_once,
)
from graphile_worker_py.events import JobSuccess, PoolListenSuccess, WorkerGetJobError
from tests.support.running import Jobs, Told

pytestmark = pytest.mark.any_server


class Watch(Plugin):
    """Notes what the steps raise, and passes it on."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, type[BaseException]]] = []

    async def bootstrap(
        self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
    ) -> None:
        await self._watched("bootstrap", proceed, step)

    async def migrate(
        self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
    ) -> None:
        await self._watched("migrate", proceed, step)

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        fetched: Fetched = await self._watched("get_jobs", proceed, request)
        return fetched

    async def run_job(
        self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
    ) -> Any:
        return await self._watched("run_job", proceed, ctx)

    async def _watched(
        self, name: str, proceed: Callable[[Any], Awaitable[Any]], subject: Any
    ) -> Any:
        try:
            return await proceed(subject)
        except Exception as error:
            self.errors.append((name, type(error)))
            raise


async def test_a_migration_that_failed(dsn: str) -> None:
    """Its tables are there already, but nothing says so."""
    Jobs(dsn).query("delete from graphile_worker.migrations")
    watch = Watch()
    with pytest.raises(psycopg.errors.DuplicateTable):
        await run_once(dsn, tasks={"work": print}, hooks=[watch])
    assert watch.errors == [("migrate", psycopg.errors.DuplicateTable)]


async def test_a_schema_that_could_not_be_made(empty_dsn: str) -> None:
    jobs = Jobs(empty_dsn)
    # A view has the name of the table that is to be made first.
    jobs.query("create schema graphile_worker")
    jobs.query("create view graphile_worker.migrations as select 1 as other")
    watch = Watch()
    with pytest.raises(psycopg.Error):
        await run_once(empty_dsn, tasks={"work": print}, hooks=[watch])
    assert [name for name, _ in watch.errors] == ["bootstrap"]


async def test_a_fetch_that_failed_and_a_task_that_failed(dsn: str) -> None:
    jobs, told, watch = Jobs(dsn), Told(), Watch()

    async def work(payload: str) -> None:
        if payload == "fail":
            raise LookupError("no")

    async with Runner(dsn, tasks={"work": work}, hooks=[watch], events=told.events):
        await told.seen(PoolListenSuccess)
        await jobs.in_thread("alter table graphile_worker._private_jobs rename to hidden")
        jobs.query("""notify "jobs:insert", '{"count": 1}'""")
        await told.seen(WorkerGetJobError)
        await jobs.in_thread("alter table graphile_worker.hidden rename to _private_jobs")
        failing = jobs.add("work", "fail")
        jobs.add("work", "succeed")
        await told.seen(JobSuccess)
    assert jobs.ids() == [failing]
    assert ("get_jobs", psycopg.errors.UndefinedTable) in watch.errors
    assert watch.errors[-1] == ("run_job", LookupError)


class Spoil(Plugin):
    """Does something with what one of the fetches has brought."""

    def __init__(self, spoil: Callable[[Fetched], Any], *, fetch: int = 1) -> None:
        self._spoil = spoil
        self._left = fetch

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        fetched = await proceed(request)
        self._left -= 1
        return self._spoil(fetched) if self._left == 0 else fetched


def refuse(_fetched: Fetched) -> None:
    raise LookupError("no")


def fail_in_the_database(_fetched: Fetched) -> None:
    raise psycopg.errors.UndefinedTable("no")


SPOILT = [
    (refuse, LookupError),
    (fail_in_the_database, psycopg.errors.UndefinedTable),
    (lambda fetched: None, GraphileWorkerError),
]


@pytest.mark.parametrize(("spoil", "error"), SPOILT)
async def test_jobs_that_a_plugin_does_not_hand_on_are_returned(
    dsn: str, spoil: Callable[[Fetched], Any], error: type[Exception]
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work", queue_name="q")
    before = jobs.snapshot()
    with pytest.raises(error):
        await run_once(dsn, tasks={"work": print}, hooks=[Spoil(spoil)])
    assert jobs.locked() == []
    assert jobs.snapshot() == before
    async with Runner(dsn, tasks={"work": print}, hooks=[Spoil(spoil)], events=told.events):
        assert isinstance((await told.seen(WorkerGetJobError)).error, error)
        await told.seen(JobSuccess)
    assert jobs.ids() == []


async def test_jobs_that_were_fetched_ahead_are_returned_where_a_fetch_ends_all(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(150, "work")
    with pytest.raises(LookupError):
        await run_once(
            dsn,
            tasks={"work": print},
            hooks=[Spoil(refuse, fetch=2)],
            local_queue=LocalQueueOptions(size=100),
        )
    assert jobs.locked() == []
    left = jobs.all()
    assert len(left) >= 50
    assert {job["attempts"] for job in left} == {0}
