"""`ctx.with_retries`: work on a connection, again when the database failed for a moment."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from graphile_worker_py import JobContext, Runner, SyncJobContext, run_once
from graphile_worker_py.events import JobComplete, JobStart
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

CONFLICT = "do $$ begin raise serialization_failure using message = 'a conflict'; end $$"
DEADLOCK = "do $$ begin raise deadlock_detected; end $$"
CUT_OFF = "select pg_terminate_backend(pg_backend_pid())"
CUT_OTHERS_OFF = """
select pg_terminate_backend(pid)
from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""


@pytest.fixture(params=["async", "plain"])
def kind(request: pytest.FixtureRequest) -> str:
    """Where the task runs: on the loop, or in a thread."""
    return str(request.param)


def work_that_sends(kind: str, statement: Callable[[], str], results: list[Any]) -> Any:
    """A task that sends a statement, another one at each try, and keeps what comes back."""

    async def modern(payload: Any, ctx: JobContext) -> None:
        async def send(conn: psycopg.AsyncConnection[Any]) -> Any:
            async with conn.transaction():
                cursor = await conn.execute(statement().encode())
                return await cursor.fetchone()

        results.append(await ctx.with_retries(send))

    def plain(payload: Any, ctx: SyncJobContext) -> None:
        def send(conn: psycopg.Connection[Any]) -> Any:
            with conn.transaction():
                return conn.execute(statement().encode()).fetchone()

        results.append(ctx.with_retries(send))

    return modern if kind == "async" else plain


@pytest.mark.parametrize("trouble", [CONFLICT, DEADLOCK, CUT_OFF])
async def test_what_failed_for_a_moment_is_done_again_and_its_result_returned(
    dsn: str, kind: str, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)
    jobs.add("work")
    statements = [trouble, trouble, "select 7"]
    results: list[Any] = []
    work = work_that_sends(kind, lambda: statements.pop(0), results)
    await run_once(dsn, tasks={"work": work})
    assert results == [(7,)]
    assert jobs.ids() == []
    told = [each for each in caplog.records if "retrying in" in each.getMessage()]
    assert [vars(record)["task_identifier"] for record in told] == ["work", "work"]


async def others_are_gone(conn: psycopg.AsyncConnection[Any]) -> bool:
    """End the other sessions; whether there were none left."""
    return (await conn.execute(CUT_OTHERS_OFF)).rowcount == 0


async def test_many_lost_connections_do_not_cost_a_try_each(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("work")
    tries: list[int] = []

    async def cut_all_off(conn: psycopg.AsyncConnection[Any]) -> None:
        tries.append(conn.info.backend_pid)
        await conn.execute("select 1")
        if len(tries) == 1:
            await eventually(lambda: others_are_gone(conn))
            await conn.execute(CUT_OFF)

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection(), ctx.connection(), ctx.connection(), ctx.connection():
            pass  # from now on they lie ready
        await ctx.with_retries(cut_all_off)

    await run_once(dsn, tasks={"work": work})
    assert len(tries) == 2
    assert jobs.ids() == []


async def test_what_would_fail_again_is_raised_at_once(dsn: str, kind: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("work")
    statements = ["select nonsense", "select 7"]
    await run_once(dsn, tasks={"work": work_that_sends(kind, lambda: statements.pop(0), [])})
    assert statements == ["select 7"]
    assert 'column "nonsense" does not exist' in jobs.one(job_id)["last_error"]


async def test_a_job_that_is_to_end_does_not_try_again(dsn: str, kind: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("work")
    tried = threading.Event()
    tries: list[int] = []

    def conflict() -> str:
        tries.append(1)
        tried.set()
        return CONFLICT

    work = work_that_sends(kind, conflict, [])
    async with Runner(
        dsn,
        tasks={"work": work},
        events=told.events,
        graceful_shutdown_abort_timeout=0,
    ) as runner:
        await told.seen(JobStart)
        assert await asyncio.to_thread(tried.wait, 10)
        await runner.stop()
    assert told.of(JobComplete)
    assert len(tries) < 10
    assert jobs.one(job_id)["last_error"].startswith("a conflict")
