"""A pool beats in time, whatever is in the way; and where it can't, it does no harm."""

import asyncio
from typing import Any

import pytest

from graphile_worker_py import JobContext, Runner
from graphile_worker_py.events import (
    JobStart,
    JobSuccess,
    PoolListenSuccess,
    PoolRecovered,
    PoolTakenForDead,
    WorkerGetJobEmpty,
)
from tests.faults.ledger import FAST, Ledger
from tests.support.eventually import eventually
from tests.support.locking import POOLS, table_locked
from tests.support.proxy import Proxy
from tests.support.running import Told, impatient

NOW = "select clock_timestamp() as now"
GHOST = """
insert into graphile_worker_py.pools
  (pool_id, worker_schema, host, pid, heartbeat_at, dead_after, lock_key,
   died_at, recorded_at, unlocked_at)
values
  ('pool-ghost', 'graphile_worker', 'host', 1, now() - interval '1 hour', 0.01, 1, %s, %s, %s)
"""
HAUNT = "locked_by = 'pool-ghost', locked_at = now()"


async def heartbeat_after(ledger: Ledger, pool_id: str, *, seconds: float, timeout: float) -> None:
    """Wait for a heartbeat that is so many seconds from now, by the clock of the database."""
    (row,) = ledger.query(NOW)
    await eventually(
        lambda: (ledger.pools()[pool_id]["heartbeat_at"] - row["now"]).total_seconds() > seconds,
        timeout=timeout,
    )


async def test_a_lock_on_the_table_of_jobs_keeps_nobody_from_beating(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()

    ledger.add("work")
    async with Runner(
        dsn,
        tasks={"work": work},
        # Every thirtieth of them it looks after the locks of its jobs.
        heartbeat_interval=0.01,
        dead_after=8,
        poll_interval=3600,
        events=told.events,
    ) as runner:
        await told.seen(JobStart)
        async with table_locked(dsn):
            await ledger.seen_waiting("%interval '1 hour'%")
            await heartbeat_after(ledger, runner.pool_id, seconds=0.5, timeout=5)
        finish.set()


async def test_connections_that_lead_nowhere_hardly_delay_a_heartbeat(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    together = asyncio.Barrier(4)

    async def borrow(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection():
            await together.wait()

    ledger.add_many(4, "borrow")
    async with (
        Proxy(dsn).running() as proxy,
        Runner(
            proxy.dsn,
            tasks={"borrow": borrow},
            concurrent_jobs=4,
            heartbeat_interval=0.2,
            dead_after=2,
            events=told.events,
        ) as runner,
    ):
        await told.seen(JobSuccess, count=4)
        await eventually(lambda: not ledger.ids())
        with proxy.stranded():
            await heartbeat_after(ledger, runner.pool_id, seconds=0, timeout=5)
            await heartbeat_after(ledger, runner.pool_id, seconds=0.5, timeout=5)
        assert told.of(PoolTakenForDead) == []


async def test_a_pool_that_cannot_beat_fetches_nothing_until_it_can(
    dsn: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    async with Runner(
        dsn, tasks={"work": print}, events=told.events, **{**FAST, "poll_interval": 0.05}
    ) as runner:
        await told.seen(PoolListenSuccess)
        async with table_locked(dsn, POOLS):
            await eventually(lambda: "Fetching no jobs: " in caplog.text)
            ledger.add("work")
            before = runner.health()
            looked = len(told.of(WorkerGetJobEmpty))
            await told.seen(WorkerGetJobEmpty, count=looked + 2)
            assert ledger.holders() == set()
            health = runner.health()
            assert (health.live, health.ready, health.trouble) == (True, False, "held back")
            assert health.last_fetch_at == before.last_fetch_at
        await told.seen(JobSuccess)
        assert runner.health().ready
    assert caplog.text.count("Fetching no jobs: ") == 1


async def test_what_a_dead_pool_has_locked_since_it_was_found_dead_is_freed_in_the_end(
    dsn: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    job_id = ledger.add("work", queue_name="q")
    ledger.change(job_id, HAUNT)
    ledger.query(f"update graphile_worker._private_job_queues set {HAUNT}")
    async with Runner(
        dsn,
        tasks={"work": print},
        heartbeat_interval=0.01,
        dead_after=8,
        poll_interval=3600,
        events=told.events,
    ):
        await told.seen(PoolListenSuccess)
        (row,) = ledger.query("select now() - interval '11 minutes' as ago")
        ledger.query(GHOST, row["ago"], row["ago"], row["ago"])
        await told.seen(JobSuccess)
    assert (
        "Freed 1 job(s) and 1 queue(s) that dead pools had locked after their recovery"
        in caplog.text
    )
    assert ledger.locked() == []


async def test_a_recovery_that_meets_a_locked_table_is_given_up_and_tried_again(
    dsn: str,
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()
    ledger.change(ledger.add("work"), HAUNT)
    runner_type = impatient(recovery_lock=0.2)
    async with runner_type(dsn, tasks={"work": print}, events=told.events, **FAST):
        await told.seen(PoolListenSuccess)
        async with table_locked(dsn):
            ledger.query(GHOST, None, None, None)
            await eventually(
                lambda: "Could not recover the jobs of dead pools (LockNotAvailable" in caplog.text
            )
            # Nothing of it is left; others may have their turn.
            assert ledger.pools()["pool-ghost"]["died_at"] is None
        await told.seen(PoolRecovered)
        await told.seen(JobSuccess)


async def test_a_stop_does_not_wait_for_a_recovery_that_waits_for_a_lock(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    async with impatient(stop=0.3)(
        dsn, tasks={"work": print}, events=told.events, **FAST
    ) as runner:
        await told.seen(PoolListenSuccess)
        async with table_locked(dsn):
            ledger.query(GHOST, None, None, None)
            await ledger.seen_waiting("%graphile_worker_py.suspects%")
            await asyncio.wait_for(runner.stop(), 15)
    assert told.of(PoolRecovered) == []
