"""Somebody adds a column to the tables of jobs and queues while sessions are open."""

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import psycopg_pool
import pytest

from graphile_worker_py import JobContext, Runner, SyncWorkerUtils, WorkerUtils
from graphile_worker_py.events import JobError, JobSuccess, WorkerGetJobError
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql.planning import keep_to_indexes
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

INSTALLER = "python"

ADD_COLUMNS = """
alter table graphile_worker._private_jobs add column extra text;
alter table graphile_worker._private_job_queues add column extra text;
"""
COLOURS = "create table colours as select 1 as number"
MORE_COLOURS = "alter table colours add column if not exists name text default 'red'"
READ_COLOURS: Query[list[tuple[Any, ...]]] = Query("select * from colours", (), list)
BACKEND = "select pg_backend_pid()"


async def test_a_worker_that_has_fetched_goes_on(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()

    async def parent(payload: Any, ctx: JobContext) -> None:
        await ctx.add_job("child")

    async def bad(payload: Any) -> None:
        raise ValueError("no")

    async with Runner(
        dsn,
        tasks={"parent": parent, "child": lambda _: None, "bad": bad},
        poll_interval=3600,
        events=told.events,
    ):
        for round_number in (1, 2):
            jobs.add("parent", queue_name="q")
            await told.seen(JobSuccess, count=2 * round_number)
            jobs.add("bad", queue_name="q")
            await told.seen(JobError, count=round_number)
            await eventually(lambda: jobs.locked() == [])
            if round_number == 1:
                await jobs.in_thread(ADD_COLUMNS)
    assert told.of(WorkerGetJobError) == []
    assert [job["last_error"] for job in jobs.all()] == ["no", "no"]


async def test_jobs_are_added_and_changed_on_a_callers_connection_as_before(dsn: str) -> None:
    jobs = Jobs(dsn)
    async with (
        WorkerUtils(dsn) as utils,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):
        job = await utils.add_job("work", job_key="key", conn=conn)
        await utils.get_job(job.id, conn=conn)
        await utils.reschedule_jobs([job.id], priority=1, conn=conn)
        await jobs.in_thread(ADD_COLUMNS)
        again = await utils.add_job("work", job_key="key", conn=conn)
        await utils.reschedule_jobs([job.id], priority=2, conn=conn)
        found = await utils.get_job(job.id, conn=conn)
    assert again.id == job.id
    assert found is not None
    assert found.priority == 2


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """A database with a table of the test's own, and connections that have read it."""
    await Jobs(dsn).in_thread(COLOURS)
    async with opened_pool(dsn, max_size=3) as pool:
        database = Database(pool, schema="graphile_worker")
        async with pool.connection() as one, pool.connection() as two:
            for conn in (one, two):
                assert await database.run(READ_COLOURS, conn=conn) == [(1,)]
        yield database


async def test_a_statement_whose_result_changed_is_sent_again_on_a_new_connection(
    dsn: str, database: Database
) -> None:
    Jobs(dsn).query(MORE_COLOURS)
    assert await database.run(READ_COLOURS) == [(1, "red")]


async def test_a_worker_leaves_a_session_whose_prepared_statements_are_stale(
    dsn: str, database: Database
) -> None:
    async with OwnConnection(database, begin=keep_to_indexes) as line:
        assert await line.run(READ_COLOURS) == [(1,)]
        Jobs(dsn).query(MORE_COLOURS)
        assert await line.run(READ_COLOURS) == [(1, "red")]


async def test_an_error_that_may_be_of_the_session_ends_it_and_one_of_the_values_does_not(
    database: Database,
) -> None:
    backend = Query(BACKEND, (), lambda rows: rows[0][0])
    async with OwnConnection(database, begin=keep_to_indexes) as line:
        first = await line.run(backend)
        with pytest.raises(psycopg.DataError):
            await line.run(Query("select 1 / $1::int4", (0,), list))
        assert await line.run(backend) == first
        with pytest.raises(psycopg.errors.UndefinedTable):
            await line.run(Query("select * from nothing", (), list))
        assert await line.run(backend) != first


def test_programs_without_an_event_loop_go_on(dsn: str) -> None:
    jobs = Jobs(dsn)
    with SyncWorkerUtils(dsn) as utils:
        utils.add_job("work")
        jobs.query(ADD_COLUMNS)
        utils.add_job("work")
    assert len(jobs.ids()) == 2


FORGET = "do $$ begin execute 'deallocate all'; end $$"
"""Drops the prepared statements of a session without its driver's notice, as a pooler would."""


async def test_statements_that_a_session_has_lost_are_sent_again_unprepared(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "kwargs": {"autocommit": True}}
    async with (
        psycopg_pool.AsyncConnectionPool(dsn, open=False, **options) as pool,
        WorkerUtils(pool) as utils,
    ):
        await utils.add_job("work")
        async with pool.connection() as conn:
            await conn.execute(FORGET)
        await utils.add_job("work")
        await utils.add_job("work")
    assert len(Jobs(dsn).ids()) == 3
    assert caplog.text.count("Statements are no longer prepared") == 1


def test_without_an_event_loop_they_are_sent_again_too(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "kwargs": {"autocommit": True}}
    with (
        psycopg_pool.ConnectionPool(dsn, open=False, **options) as pool,
        SyncWorkerUtils(pool) as utils,
    ):
        utils.add_job("work")
        with pool.connection() as conn:
            conn.execute(FORGET)
        utils.add_job("work")
        utils.add_job("work")
    assert len(Jobs(dsn).ids()) == 3
    assert caplog.text.count("Statements are no longer prepared") == 1
