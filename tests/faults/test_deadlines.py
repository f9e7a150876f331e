"""Nothing that a worker sends is waited for without end, and a stop waits for none of it."""

import asyncio
import time
from typing import Any

import psycopg
import pytest

from graphile_worker_py import WorkerUtils
from graphile_worker_py.events import (
    JobSuccess,
    PoolListenError,
    PoolListenSuccess,
    ResetLockedStarted,
    ResetLockedSuccess,
    WorkerGetJobEmpty,
)
from graphile_worker_py.postgres import deadlines
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.schema import migrate
from tests.support.eventually import eventually
from tests.support.locking import table_locked
from tests.support.proxy import Proxy
from tests.support.running import Jobs, Told, impatient

SLEEP: Query[list[tuple[Any, ...]]] = Query("select pg_sleep(3600)", (), list)


async def test_a_job_that_cannot_be_added_in_time_is_not_added_later(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(dsn)
    monkeypatch.setattr(deadlines, "STATEMENT_DEADLINE", 0.3)
    async with WorkerUtils(dsn) as utils:
        async with table_locked(dsn):
            with pytest.raises(psycopg.OperationalError, match=r"did not answer within 0\.3 s"):
                await utils.add_job("work")
            assert jobs.waiting("%add_job%") == []
        await utils.add_job("work")
    assert len(jobs.ids()) == 1


async def test_what_a_caller_adds_on_a_connection_of_his_own_may_take_its_time(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(dsn)
    monkeypatch.setattr(deadlines, "STATEMENT_DEADLINE", 0.1)
    async with (
        WorkerUtils(dsn) as utils,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        asyncio.TaskGroup() as group,
        table_locked(dsn),
    ):
        adding = group.create_task(utils.add_job("work", conn=conn))
        counting = group.create_task(utils.counts())
        await eventually(lambda: len(jobs.waiting("%graphile_worker%")) == 2)
        await asyncio.sleep(0.2)
        assert not adding.done()
        assert not counting.done()
    assert len(jobs.ids()) == 1


async def test_on_a_way_that_leads_nowhere_a_statement_ends_soon_after_its_deadline(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "CANCEL_PATIENCE", 0.2)
    async with Proxy(dsn).running() as proxy, opened_pool(proxy.dsn, max_size=4) as pool:
        reached = Database(pool, schema="graphile_worker")
        async with pool.connection(), pool.connection(), pool.connection():
            pass  # three that stay
        with proxy.stranded():
            began = time.monotonic()
            with pytest.raises(psycopg.OperationalError, match="did not answer"):
                await reached.run(SLEEP, within=0.2)
            # The next one is not sent on another connection that leads nowhere.
            assert await reached.run(Query("select 1", (), list), within=1) == [(1,)]
            assert time.monotonic() - began < 10


async def test_an_idle_worker_stops_soon_while_its_sweep_waits_for_a_lock(
    dsn: str,
) -> None:
    told = Told()
    async with impatient(stop=0.3)(
        dsn,
        tasks={"work": print},
        poll_interval=3600,
        min_reset_locked_interval=0.2,
        max_reset_locked_interval=0.2,
        events=told.events,
    ) as runner:
        await told.seen(PoolListenSuccess)
        await told.seen(ResetLockedSuccess)
        async with table_locked(dsn):
            await Jobs(dsn).seen_waiting("%with jobs_reset%")
            await asyncio.wait_for(runner.stop(), 15)
    assert len(told.of(ResetLockedSuccess)) == len(told.of(ResetLockedStarted)) - 1


async def test_a_fetch_that_waits_for_a_lock_is_ended_by_a_stop_and_leaves_no_doubt(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    async with impatient(stop=0.3)(
        dsn, tasks={"work": print}, poll_interval=0.05, events=told.events
    ) as runner:
        await told.seen(WorkerGetJobEmpty)
        async with table_locked(dsn):
            await jobs.seen_waiting("%sight as%")
            # It does not say that jobs may be locked of which it does not know.
            await asyncio.wait_for(runner.stop(), 15)
    assert jobs.locked() == []


async def test_a_listening_connection_is_made_anew_where_no_other_connection_answers(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "CANCEL_PATIENCE", 0.2)
    monkeypatch.setattr(deadlines, "STATEMENT_DEADLINE", 0.5)
    told = Told()
    async with (
        Proxy(dsn).running() as proxy,
        impatient(echo=0.3)(
            proxy.dsn,
            tasks={"work": print},
            listen_echo_interval=0.2,
            no_side_schema=True,
            poll_interval=3600,
            events=told.events,
        ) as runner,
    ):
        await eventually(lambda: runner.health().listening)
        with proxy.stranded():
            await told.seen(PoolListenError)
            await told.seen(PoolListenSuccess, count=2)
            await eventually(lambda: runner.health().listening)
            Jobs(dsn).add("work")
            await told.seen(JobSuccess, timeout=10)


async def test_a_start_that_waits_for_the_schema_says_so(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = "Still installing or checking schema 'graphile_worker'"
    async with (
        opened_pool(dsn, max_size=1) as pool,
        asyncio.TaskGroup() as group,
        table_locked(dsn, "graphile_worker.migrations"),
    ):
        database = Database(pool, schema="graphile_worker")
        group.create_task(migrate.migrate(database, warn_after=0.2))
        await eventually(lambda: said in caplog.text)
    assert caplog.text.count(said) == 1
