"""What a worker owes to the others on the same schema."""

import asyncio
from typing import Any

import psycopg
import pytest

from graphile_worker_py import (
    JobContext,
    LocalQueueOptions,
    Runner,
    UnsupportedPostgresError,
    run_migrations,
    run_once,
)
from graphile_worker_py.events import JobStart, PoolListenSuccess
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

OPEN = """
select count(*) as count from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null
"""
LISTENING = """
select count(*) as count from pg_stat_activity
where datname = current_database() and query ilike 'listen%'
"""
OLD_SERVER = """
alter function pg_catalog.current_setting(text) rename to real_current_setting;
create function pg_catalog.current_setting(text) returns text language sql as $$
  select case when $1 = 'server_version_num' then '110022' else real_current_setting($1) end
$$;
"""


@pytest.mark.parametrize("size", [-1, 10])
async def test_while_jobs_run_no_transaction_is_open(dsn: str, size: int) -> None:
    """One would hold rows back from others, and the database's memory of dead ones."""
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(5, "work", "q")
    jobs.add_many(5, "work")
    finish = asyncio.Event()

    async def work(payload: Any, ctx: JobContext) -> None:
        await finish.wait()

    async with Runner(
        dsn,
        tasks={"work": work},
        concurrent_jobs=3,
        poll_interval=3600,
        local_queue=LocalQueueOptions(size=size),
        events=told.events,
    ):
        await told.seen(PoolListenSuccess)
        await told.seen(JobStart, count=3)
        await eventually(lambda: jobs.query(OPEN) == [{"count": 0}])
        finish.set()
        await eventually(lambda: jobs.ids() == [])


async def test_a_server_that_is_too_old_is_refused_before_anything_is_changed(
    empty_dsn: str, dsn: str
) -> None:
    """No server of that age is at hand: this one says that it is one."""
    for each in (empty_dsn, dsn):
        with psycopg.connect(each, autocommit=True) as conn:
            conn.execute(OLD_SERVER)
        with pytest.raises(UnsupportedPostgresError, match="PostgreSQL 11 is too old: 12 or newer"):
            await run_migrations(each)
        with pytest.raises(UnsupportedPostgresError):
            await run_once(each, tasks={"work": print})
    assert Jobs(empty_dsn).query("select 1 from pg_namespace where nspname ~ 'graphile'") == []


async def test_a_run_that_ends_by_itself_does_not_listen(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    seen: list[Any] = []

    async def work(payload: Any) -> None:
        seen.append(jobs.query(LISTENING))

    await run_once(dsn, tasks={"work": work}, events=told.events)
    assert seen == [[{"count": 0}]]
    assert [name for name in told.names() if name.startswith("pool:listen")] == []
