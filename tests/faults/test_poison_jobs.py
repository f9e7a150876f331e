"""A job that kills its workers is given up; those that ran beside it are not blamed."""

import asyncio
import signal
from typing import Any

from graphile_worker_py import Runner
from graphile_worker_py.events import (
    JobError,
    JobStart,
    JobSuccess,
    PoolGracefulShutdown,
    PoolListenSuccess,
)
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, Ledger
from tests.support.eventually import eventually
from tests.support.running import Told, impatient

SUSPECT = """
insert into graphile_worker_py.suspects (worker_schema, job_id, crashes)
values ('graphile_worker', %s, %s)
"""
ANNOUNCE = "select pg_notify('jobs:insert', %s)"


async def test_after_three_deaths_the_job_that_dealt_them_is_failed_and_no_other(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    def start() -> Any:
        return start_worker(concurrent_jobs=8, local_queue=100, **FAST)

    innocent = [ledger.add("work", {"seconds": 0.2}) for _ in range(5)]
    poison = ledger.add("work", {"seconds": 0.1, "dies": True})
    innocent += [ledger.add("work", {"seconds": 0.2}) for _ in range(30)]
    deaths = 0
    worker = start()
    while deaths < 3:
        worker.wait(15)
        assert worker.returncode == -signal.SIGKILL
        deaths += 1
        worker = start()
    await eventually(lambda: ledger.ids() == [poison], timeout=10)

    assert worker.returncode is None
    row = ledger.one(poison)
    assert row["attempts"] == row["max_attempts"]
    assert row["last_error"].startswith(
        "The worker process died 3 times while this job was running, the last time pool pool-"
    )
    assert len(ledger.runs(poison)) == 3
    assert {run["job_id"] for run in ledger.runs() if run["ended_at"]} == set(innocent)
    # The next heartbeat clears those that came to an outcome.
    await eventually(lambda: ledger.suspects() == {})
    assert ledger.locked() == []


async def test_only_jobs_that_a_dead_worker_had_begun_count_as_its_second_crash(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    jobs = [ledger.add("work", {"seconds": 3600}) for _ in range(5)]
    killed = start_worker(concurrent_jobs=5, **FAST)
    await eventually(lambda: len(ledger.runs()) == 5, timeout=10)
    killed.kill()
    # It fetches all, and begins two.
    killed = start_worker(concurrent_jobs=2, local_queue=10, **FAST)
    await eventually(lambda: len(ledger.runs()) == 7, timeout=10)
    begun = {run["job_id"] for run in ledger.runs()[5:]}
    assert ledger.suspects() == dict.fromkeys(jobs, 1)
    killed.kill()
    start_worker(concurrent_jobs=1, **FAST)

    await eventually(lambda: set(ledger.suspects().values()) == {1, 2}, timeout=10)
    assert ledger.suspects() == {job_id: 1 + (job_id in begun) for job_id in jobs}


async def test_suspects_that_one_more_crash_would_condemn_run_one_at_a_time(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    at_once = most = 0
    free = asyncio.Event()

    async def work(payload: Any) -> None:
        nonlocal at_once, most
        if payload == "innocent":
            free.set()
            return
        # They wait for the other one, so it does not wait for them.
        await free.wait()
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    async with Runner(dsn, tasks={"work": work}, concurrent_jobs=8, events=told.events, **FAST):
        await told.seen(PoolListenSuccess)
        await make_suspects_due(ledger, 4, crashes=2)
        ledger.add("work", "innocent")
        await told.seen(JobSuccess, count=5)
        # An outcome clears them.
        await eventually(lambda: ledger.suspects() == {})
    assert most == 1
    assert ledger.ids() == []


async def test_a_long_suspect_does_not_keep_the_others_waiting_for_ever(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    together = asyncio.Barrier(2)

    async def work(payload: Any) -> None:
        await together.wait()

    options: dict[str, Any] = {"concurrent_jobs": 2, "events": told.events, **FAST}
    async with impatient(suspect_alone=0.1)(dsn, tasks={"work": work}, **options):
        await told.seen(PoolListenSuccess)
        await make_suspects_due(ledger, 2, crashes=2)
        await told.seen(JobSuccess, count=2)


async def test_a_suspect_that_fails_without_a_crash_is_none_any_more(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()

    async def work(payload: Any) -> None:
        raise ValueError("no")

    async with Runner(dsn, tasks={"work": work}, events=told.events, **FAST):
        await told.seen(PoolListenSuccess)
        (job_id,) = await make_suspects_due(ledger, 1, crashes=1)
        await told.seen(JobError)
        await eventually(lambda: ledger.suspects() == {})
    assert ledger.one(job_id)["last_error"] == "no"


async def test_a_suspect_that_fails_while_its_pool_stops_is_none_any_more(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()

    async def work(payload: Any) -> None:
        await told.seen(PoolGracefulShutdown)
        raise ValueError("no")

    async with Runner(
        dsn, tasks={"work": work}, events=told.events, heartbeat_interval=1
    ) as runner:
        await told.seen(PoolListenSuccess)
        (job_id,) = await make_suspects_due(ledger, 1, crashes=1)
        await told.seen(JobStart)
        await runner.stop()
    assert ledger.one(job_id)["last_error"] == "no"
    assert ledger.suspects() == {}


async def test_suspects_that_have_ended_are_none_any_more_when_the_next_one_begins(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    known: list[dict[int, int]] = []

    async def work(payload: Any) -> None:
        known.append(ledger.suspects())

    async with Runner(
        dsn, tasks={"work": work}, concurrent_jobs=2, events=told.events, heartbeat_interval=1
    ):
        await told.seen(PoolListenSuccess)
        await make_suspects_due(ledger, 2, crashes=2)
        await told.seen(JobSuccess, count=2)
    # Should the second one kill the worker now, the first one is not to blame.
    assert [len(each) for each in known] == [2, 1]


async def test_with_max_crashes_0_nobody_is_suspected(
    dsn: str, ledger: Ledger, start_worker: StartWorker
) -> None:
    killed = start_worker(**FAST)
    ledger.add("work", {"dies": True})
    killed.wait()
    told = Told()
    async with Runner(dsn, tasks={"work": print}, max_crashes=0, events=told.events, **FAST):
        await told.seen(JobStart, timeout=10)
        await told.seen(JobSuccess)
        assert ledger.suspects() == {}


async def make_suspects_due(ledger: Ledger, count: int, *, crashes: int) -> list[int]:
    """Add jobs under which workers died, and let them be due when all pools have heard of it."""
    suspects = [ledger.add("work", "suspect", run_at="2100-01-01") for _ in range(count)]
    for job_id in suspects:
        ledger.query(SUSPECT, job_id, crashes)
    await heartbeat_of_all(ledger)
    for job_id in suspects:
        ledger.change(job_id, "run_at = now()")
    ledger.query(ANNOUNCE, f'{{"count":{count}}}')
    return suspects


async def heartbeat_of_all(ledger: Ledger) -> None:
    """Wait until all pools have heard what is in the database now."""
    (row,) = ledger.query("select clock_timestamp() as now")
    await eventually(
        lambda: all(pool["heartbeat_at"] > row["now"] for pool in ledger.pools().values())
    )
