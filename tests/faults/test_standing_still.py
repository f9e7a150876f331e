"""A worker that stood still or was cut off learns that it was taken for dead, and begins anew."""

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack, ExitStack, suppress
from datetime import datetime
from functools import partial
from typing import Any

from graphile_worker_py import JobContext, Runner, WorkerOptions, run_once
from graphile_worker_py.events import (
    JobLost,
    JobReturned,
    JobStart,
    JobSuccess,
    PoolCreate,
    PoolListenSuccess,
    PoolRecovered,
    PoolTakenForDead,
)
from graphile_worker_py.fleet.heartbeat import Heartbeat
from graphile_worker_py.fleet.mode import Mode
from graphile_worker_py.fleet.refusals import Refusals
from graphile_worker_py.fleet.suspects import Suspects
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.pools import PoolReport
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, FASTER, Ledger
from tests.faults.test_killed_workers import begun
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.running import Told

TERMINATE: str = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and application_name = %s
"""
SKEWED_CLOCK = """
create schema skewed;
create table skewed.clock (ahead interval not null);
insert into skewed.clock values ('0 s');
alter function pg_catalog.clock_timestamp() rename to real_clock_timestamp;
alter function pg_catalog.statement_timestamp() rename to real_statement_timestamp;
create function pg_catalog.clock_timestamp() returns timestamptz language sql volatile as
  $$ select real_clock_timestamp() + clock.ahead from skewed.clock $$;
create function pg_catalog.statement_timestamp() returns timestamptz language sql volatile as
  $$ select real_statement_timestamp() + clock.ahead from skewed.clock $$;
"""
"""Gives the test's database a clock that can be set, although statements name PostgreSQL's own."""
JUMP = """
update skewed.clock set ahead = ahead + interval '1 hour'
returning pg_catalog.real_clock_timestamp() + ahead as now
"""
FIND_DEAD = "update graphile_worker_py.pools set died_at = now(), unlocked_at = now()"
UNLOCK = "select graphile_worker.force_unlock_workers(array[%s])"


async def test_a_stopped_process_whose_session_ended_is_replaced_and_begins_anew(
    dsn: str, ledger: Ledger, start_worker: StartWorker
) -> None:
    """As in a network partition, or while a virtual machine is paused."""
    stopped = start_worker(at=f"{dsn}?application_name=stopped", **FAST)
    job_id = ledger.add("work", {"seconds": 3600})
    first = await begun(ledger, stopped, 1)
    ledger.change(job_id, "payload = '{}'")
    other = start_worker(**FAST)
    await other.seen("pool:listen:success")
    os.kill(stopped.pid, signal.SIGSTOP)
    ledger.query(TERMINATE, "stopped")

    await other.seen("pool:recovered")
    await eventually(lambda: len(ledger.runs(job_id)) == 2, timeout=10)
    os.kill(stopped.pid, signal.SIGCONT)
    assert await stopped.seen("pool:takenForDead") == f"pool:takenForDead {first}"
    second = (await stopped.seen("pool ", count=2)).split()[1]
    await eventually(lambda: ledger.ids() == [])
    # It was cut off there, and ran to its end here.
    assert [run["ended_at"] is None for run in ledger.runs(job_id)] == [True, False]

    await stopped.seen("pool:listen:success", count=2)
    other.terminate()
    assert other.wait() == 0
    ledger.add("work", {})
    await eventually(lambda: ledger.ids() == [])
    assert ledger.runs()[-1]["pool_id"] == second
    assert ledger.locked() == []


async def test_a_stopped_process_is_spared_while_its_session_lasts(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    stopped = start_worker(**FAST)
    job_id = ledger.add("work", {"seconds": 4})
    pool_id = await begun(ledger, stopped, 1)
    other = start_worker(**FAST)
    watcher = (await other.seen("pool:listen:success")).split()[1]
    await eventually(lambda: ledger.has_lock(pool_id))
    os.kill(stopped.pid, signal.SIGSTOP)
    stopped_at = ledger.pools()[pool_id]["heartbeat_at"]
    # The other one has looked, and more than once since it was late.
    await eventually(
        lambda: (ledger.pools()[watcher]["heartbeat_at"] - stopped_at).total_seconds() > 1.5
    )
    assert ledger.holders() == {pool_id}
    os.kill(stopped.pid, signal.SIGCONT)

    await eventually(lambda: ledger.ids() == [], timeout=10)
    assert len(ledger.runs(job_id)) == 1
    assert stopped.lines("pool:takenForDead") == []


async def test_a_process_that_stands_still_for_good_is_replaced_although_its_session_lasts(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    stopped = start_worker(**{**FAST, **FASTER})
    job_id = ledger.add("work", {"seconds": 3600})
    await begun(ledger, stopped, 1)
    ledger.change(job_id, "payload = '{}'")
    other = start_worker(**FAST)
    await other.seen("pool:listen:success")
    os.kill(stopped.pid, signal.SIGSTOP)

    await other.seen("pool:recovered", 15)
    await eventually(lambda: ledger.ids() == [], timeout=10)
    os.kill(stopped.pid, signal.SIGCONT)
    await stopped.seen("pool:takenForDead")
    await stopped.seen("pool ", count=2)
    assert [run["ended_at"] is None for run in ledger.runs(job_id)] == [True, False]


async def test_a_pool_that_others_found_dead_aborts_its_tasks_and_records_nothing(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    job_id = ledger.add("work")
    pools: list[str] = []
    aborted: list[str] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        pools.append(ctx.pool_id)
        if len(pools) > 1:
            return
        try:
            await asyncio.Event().wait()
        finally:
            aborted.append("cut off, told" if ctx.abort_event.is_set() else "cut off")

    async with Runner(dsn, tasks={"work": work}, events=told.events, **FAST) as runner:
        await told.seen(JobStart)
        first = runner.pool_id
        ledger.query(UNLOCK, first)
        ledger.query(FIND_DEAD)
        await told.seen(JobSuccess)
        assert runner.pool_id != first
        assert pools == [first, runner.pool_id]
        await eventually(lambda: ledger.ids() == [])
    assert aborted == ["cut off, told"]
    assert [event.pool_id for event in told.of(PoolTakenForDead)] == [first]
    assert [event.job.id for event in told.of(JobReturned)] == [job_id]
    # Giving it back has changed nothing, for it was not its own any more.
    assert [event.pool_id for event in told.of(JobLost)] == [first]


async def test_what_a_pool_fetched_after_it_was_found_dead_is_returned(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    ran: list[str] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.pool_id)
        if len(told.of(PoolCreate)) == 1:
            await asyncio.Event().wait()

    # No heartbeat comes before that fetch.
    slow: dict[str, Any] = {"heartbeat_interval": 3, "dead_after": 6, "poll_interval": 3600}
    async with Runner(dsn, tasks={"work": work}, events=told.events, **slow) as runner:
        await told.seen(PoolListenSuccess)
        first = runner.pool_id
        await eventually(lambda: first in ledger.pools())
        # At once, so that a beat does not come in between.
        ledger.query(f"{FIND_DEAD}; select id from graphile_worker.add_job('work')")
        await told.seen(JobSuccess)
        await eventually(lambda: ledger.ids() == [])
    assert ran[0] == first
    assert ran[1] != first
    assert ledger.locked() == []


async def test_after_a_pause_a_pool_makes_sure_that_it_lives_before_it_fetches(
    dsn: str, ledger: Ledger
) -> None:
    taken_for_dead = asyncio.Event()
    async with opened_pool(dsn, max_size=2) as pool:
        pool_id, logger = "pool-0123456789abcdef01", logging.getLogger(__name__)
        database = Database(pool, schema="graphile_worker")
        # It is not run, so it sends heartbeats only when it has to confirm.
        heartbeat = Heartbeat(
            pool_id=pool_id,
            database=database,
            options=WorkerOptions(heartbeat_interval=0.2, dead_after=3),
            listens=True,
            suspects=Suspects(
                pool_id=pool_id,
                database=database,
                max_crashes=3,
                marks_last=False,
                alone_for=30,
                logger=logger,
            ),
            connection=database.new_connection,
            declared_dead=taken_for_dead.set,
            refusals=Refusals(longest=0, stuck=lambda _: None),
            report=lambda loop_lag: PoolReport(
                version="0",
                tasks=["a"],
                forbidden_flags=None,
                concurrency=1,
                prefetches=False,
                running=0,
                memory=None,
                loop_lag=loop_lag,
                name="default",
                connections=3,
            ),
            logger=logger,
        )
        await heartbeat.beat()
        ledger.query(FIND_DEAD)
        assert await heartbeat.confirm()
        await eventually(lambda: lateness(ledger, pool_id) > 3)
        assert not await heartbeat.confirm()
        assert heartbeat.mode is Mode.DEAD
    assert taken_for_dead.is_set()


async def test_running_once_begins_anew_too(dsn: str, ledger: Ledger) -> None:
    told = Told()
    ledger.add("work")
    ran: list[str] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.pool_id)
        if len(ran) == 1:
            ledger.query(FIND_DEAD)
            await asyncio.Event().wait()

    await run_once(dsn, tasks={"work": work}, events=told.events, **FAST)
    assert len(set(ran)) == 2
    assert ledger.ids() == []
    assert len(told.of(PoolTakenForDead)) == 1


async def test_a_pool_that_is_stopped_when_it_is_taken_for_dead_is_not_replaced(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    ledger.add("work")

    async def work(payload: Any) -> None:
        await asyncio.Event().wait()

    async with Runner(dsn, tasks={"work": work}, events=told.events, **FAST) as runner:
        await told.seen(JobStart)
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.stop())
            await asyncio.sleep(0)
            ledger.query(FIND_DEAD)
    assert len(told.of(PoolTakenForDead)) == 1
    assert len(told.of(PoolCreate)) == 1
    assert ledger.locked() == []


async def test_an_outage_for_all_is_nobodys_death(dsn: str, ledger: Ledger) -> None:
    told = [Told(), Told()]
    done: list[int] = []
    finish = asyncio.Event()

    async def work(payload: Any, ctx: JobContext) -> None:
        await finish.wait()
        done.append(ctx.job.id)

    jobs = ledger.add_many(2, "work")
    async with (
        Proxy(dsn).running() as proxy,
        Runner(proxy.dsn, tasks={"work": work}, events=told[0].events, **FAST) as one,
        Runner(proxy.dsn, tasks={"work": work}, events=told[1].events, **FAST) as two,
    ):
        for each in told:
            await each.seen(JobStart)
        pools = {one.pool_id, two.pool_id}
        await eventually(lambda: ledger.holders() == pools)
        with ExitStack() as at_the_end:
            at_the_end.callback(finish.set)
            proxy.refuse()
            await eventually(lambda: all(lateness(ledger, pool_id) > 1 for pool_id in pools))
            proxy.accept()
            await eventually(
                lambda: all(lateness(ledger, pool_id) < 0.4 for pool_id in pools), timeout=10
            )
            finish.set()
            await eventually(lambda: ledger.ids() == [], timeout=10)
            # Both have looked around since.
            await eventually(
                lambda: all(pool["died_at"] is None for pool in ledger.pools().values())
            )
    assert sorted(done) == jobs
    for each in told:
        assert each.of(PoolTakenForDead) == []
        assert each.of(PoolRecovered) == []


def lateness(ledger: Ledger, pool_id: str) -> float:
    """Seconds since the last heartbeat of a pool."""
    (row,) = ledger.query(
        "select extract(epoch from clock_timestamp() - heartbeat_at)::float8 as seconds"
        " from graphile_worker_py.pools where pool_id = %s",
        pool_id,
    )
    return float(row["seconds"])


async def test_a_blocked_event_loop_is_no_death(ledger: Ledger, start_worker: StartWorker) -> None:
    blocked, other = start_worker(**FAST), start_worker(**FAST)
    for worker in (blocked, other):
        pool_id = (await worker.seen("pool:listen:success")).split()[1]
        await eventually(partial(ledger.has_lock, pool_id))
    # One that is slow to start may have been taken for dead before its session spoke for it.
    before = [worker.lines("pool:takenForDead") for worker in (blocked, other)]
    job_id = ledger.add("work", {"blocks": 2})

    await eventually(lambda: ledger.ids() == [], timeout=10)
    assert len(ledger.runs(job_id)) == 1
    assert [worker.lines("pool:takenForDead") for worker in (blocked, other)] == before


async def test_a_task_that_borrows_all_connections_is_no_death(dsn: str, ledger: Ledger) -> None:
    told, watching = Told(), Told()
    borrowed, finish = asyncio.Event(), asyncio.Event()
    ledger.add("work")

    async def work(payload: Any, ctx: JobContext) -> None:
        async with AsyncExitStack() as stack:
            with suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(1):
                        await stack.enter_async_context(ctx.connection())
            borrowed.set()
            await finish.wait()

    def other(payload: Any) -> None: ...

    async with (
        Runner(dsn, tasks={"work": work}, max_pool_size=3, events=told.events, **FAST) as hogging,
        Runner(dsn, tasks={"other": other}, events=watching.events, **FAST),
    ):
        with ExitStack() as at_the_end:
            at_the_end.callback(finish.set)
            await asyncio.wait_for(borrowed.wait(), 10)
            (row,) = ledger.query("select clock_timestamp() as now")
            await eventually(
                lambda: (
                    (ledger.pools()[hogging.pool_id]["heartbeat_at"] - row["now"]).total_seconds()
                    > 1.5
                ),
            )
            finish.set()
            await told.seen(JobSuccess)
    assert told.of(PoolTakenForDead) == []
    assert watching.of(PoolRecovered) == []


async def test_a_worker_whose_clock_is_an_hour_ahead_is_judged_by_that_of_the_database(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    ahead = start_worker(hours_ahead=1, **FAST)
    behind = start_worker(hours_ahead=-1, **FAST)
    pools = [
        (await worker.seen("pool:listen:success", 15)).split()[1] for worker in (ahead, behind)
    ]
    (row,) = ledger.query("select clock_timestamp() as now")

    def seconds(pool_id: str) -> float:
        return float((ledger.pools()[pool_id]["heartbeat_at"] - row["now"]).total_seconds())

    await eventually(lambda: all(1 < seconds(pool_id) < 60 for pool_id in pools))
    for worker in (ahead, behind):
        assert worker.lines("pool:takenForDead") == []
        assert worker.lines("pool:recovered") == []


def all_have_beaten(ledger: Ledger, *, after: datetime) -> bool:
    """Whether each registered pool has proved to be alive since."""
    return all(pool["heartbeat_at"] > after for pool in ledger.pools().values())


async def test_a_jump_of_the_databases_clock_is_nobodys_death(dsn: str, ledger: Ledger) -> None:
    await ledger.in_thread(SKEWED_CLOCK)
    told = Told()
    options: dict[str, Any] = {"heartbeat_interval": 0.5, "dead_after": 2}
    async with (
        Runner(dsn, tasks={"work": print}, events=told.events, **options) as one,
        Runner(dsn, tasks={"work": print}, events=told.events, **options) as two,
    ):
        pools = {one.pool_id, two.pool_id}
        await told.seen(PoolListenSuccess, count=2)
        for _ in range(2):
            # Now each of them has been there for long enough to judge the other one.
            await asyncio.sleep(2.5)
            (row,) = ledger.query(JUMP)
            await eventually(partial(all_have_beaten, ledger, after=row["now"]))
        assert set(ledger.pools()) == pools
    assert told.of(PoolTakenForDead) == []
