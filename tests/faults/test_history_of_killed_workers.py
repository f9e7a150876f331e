"""What history says of workers that were killed, and of upgrades under running workers."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import pytest

from graphile_worker_py import Runner, RunOutcome, SyncWorkerUtils, run_migrations
from graphile_worker_py.events import JobSuccess, PoolListenSuccess, PoolRecovered
from graphile_worker_py.history.plugin import History
from graphile_worker_py.schema import own
from graphile_worker_py.sql import history_tables
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, Ledger
from tests.faults.test_killed_workers import begun, make_short
from tests.support.eventually import eventually
from tests.support.running import Told

RUNS: Final = """
select job_id, attempt, outcome, pool_id, error, error_group, started_at <= finished_at as ordered
from graphile_worker_py.runs order by job_id, attempt, finished_at
"""

OUTCOMES: Final = "select outcome, count(*) from graphile_worker_py.runs group by 1 order by 1"


@pytest.fixture
def ledger(ledger: Ledger) -> Iterator[Ledger]:
    """A ledger of a database without a side schema, before and after the test."""
    ledger.query("drop schema if exists graphile_worker_py cascade")
    yield ledger
    ledger.query("drop schema if exists graphile_worker_py cascade")


async def test_an_attempt_that_ended_with_its_process_has_a_run_that_says_killed(
    dsn: str, ledger: Ledger, start_worker: StartWorker
) -> None:
    told = Told()
    retried = ledger.add("work", {"seconds": 3600}, queue_name="q", job_key="k")
    last = ledger.add("work", {"seconds": 3600}, max_attempts=1)
    killed = start_worker(**FAST, concurrent_jobs=2)
    dead = await begun(ledger, killed, 2)
    make_short(ledger)
    options: dict[str, Any] = {"events": told.events, "history": "all", **FAST}
    async with Runner(dsn, tasks={"work": print}, **options):
        await told.seen(PoolListenSuccess)
        killed.kill()
        await told.seen(JobSuccess)
    message = f"The worker process died while this job was running: pool {dead} (process"
    first, second, third = ledger.query(RUNS)
    assert (first["job_id"], first["attempt"], first["outcome"]) == (retried, 1, "killed")
    assert (second["job_id"], second["attempt"], second["outcome"]) == (retried, 2, "completed")
    assert (third["job_id"], third["attempt"], third["outcome"]) == (last, 1, "killed")
    for row in (first, third):
        assert row["error"].startswith(message)
        assert (row["pool_id"], row["error_group"], row["ordered"]) == (dead, "killed", True)
    with SyncWorkerUtils(dsn) as utils:
        runs = {run.job_id: run for run in utils.list_runs(outcome=RunOutcome.KILLED)}
    assert (runs[retried].queue_name, runs[retried].key) == ("q", "k")
    assert runs[last].duration is None


async def test_jobs_that_were_only_prefetched_have_no_run(
    dsn: str, ledger: Ledger, start_worker: StartWorker
) -> None:
    told = Told()
    ids = [ledger.add("work", {"seconds": 3600}) for _ in range(5)]
    killed = start_worker(**FAST, concurrent_jobs=2, local_queue=5)
    await begun(ledger, killed, 2)
    make_short(ledger)
    async with Runner(dsn, tasks={"work": print}, events=told.events, **FAST):
        await told.seen(PoolListenSuccess)
        killed.kill()
        await told.seen(PoolRecovered)
        await told.seen(JobSuccess, count=5)
    assert [(row["job_id"], row["outcome"]) for row in ledger.query(RUNS)] == [
        (job_id, "killed") for job_id in ids[:2]
    ]


@pytest.mark.parametrize("level", ["none", "failed"])
async def test_the_pool_that_recovers_decides_which_killed_attempts_are_kept(
    dsn: str, ledger: Ledger, start_worker: StartWorker, level: str
) -> None:
    told = Told()
    ledger.add("work", {"seconds": 3600})
    killed = start_worker(**FAST)
    await begun(ledger, killed, 1)
    make_short(ledger)
    options: dict[str, Any] = {"events": told.events, "history": level, **FAST}
    async with Runner(dsn, tasks={"work": print}, **options):
        await told.seen(PoolListenSuccess)
        killed.kill()
        await told.seen(PoolRecovered)
        await told.seen(JobSuccess)
    assert len(ledger.query(RUNS)) == (level == "failed")
    assert [event.failed_plugins for event in told.of(PoolRecovered)] == [0]


async def test_tables_are_added_under_running_workers_of_an_older_release(
    dsn: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older release knows the core's tables only."""
    told = Told()
    assert History.leaf in own.REGISTERED
    monkeypatch.setattr(own, "REGISTERED", {})

    async def work(payload: Any) -> None:
        await asyncio.sleep(0.01)

    options: dict[str, Any] = {"tasks": {"work": work}, "events": told.events, "history": "all"}
    async with Runner(dsn, **options, **FAST) as older:
        await told.seen(PoolListenSuccess)
        await eventually(lambda: older.pool_id in ledger.pools())
        ledger.add_many(50, "work")
        await told.seen(JobSuccess, count=10)
        monkeypatch.undo()
        await run_migrations(dsn, side_schema=True)
        async with Runner(dsn, **options, **FAST) as newer:
            await eventually(lambda: newer.pool_id in ledger.pools())
            ledger.add_many(50, "work")
            await eventually(lambda: ledger.ids() == [], timeout=20)
            assert older.health().rider_failures == newer.health().rider_failures == 0
            assert {older.pool_id, newer.pool_id} == set(ledger.pools())
            await older.stop()
            ids = ledger.add_many(5, "work")
            await eventually(lambda: ledger.ids() == [])
    kept = {row["job_id"]: row["pool_id"] for row in ledger.query(RUNS)}
    assert {kept[job_id] for job_id in ids} == {newer.pool_id}
    applied = "select id from graphile_worker_py.leaf_migrations where leaf = 'history'"
    assert len(ledger.query(applied)) == len(history_tables.MIGRATIONS)


def _left(ledger: Ledger) -> int:
    [row] = ledger.query("select count(*) from graphile_worker._private_jobs")
    return int(row["count"])


def _fewer_left(ledger: Ledger, bound: int) -> bool:
    return _left(ledger) <= max(bound, 0)


@pytest.mark.timeout(3600)
async def test_with_workers_that_are_killed_each_job_completes_once_and_has_its_run(
    ledger: Ledger, start_worker: StartWorker, request: pytest.FixtureRequest
) -> None:
    long = request.config.getoption("--long")
    jobs, concurrent_jobs = (100_000, 40) if long else (800, 10)
    for _ in range(jobs // 400):  # many in one transaction take ever longer
        ledger.add_many(400, "work")
    options: dict[str, Any] = {
        **FAST,
        "history": "all",
        "concurrent_jobs": concurrent_jobs,
        "local_queue": 5 * concurrent_jobs,
        "dead_after": 1,
        "max_crashes": 0,  # the jobs are not to blame
    }
    workers = [start_worker(**options), start_worker(**options)]
    for worker in workers:
        await worker.seen("pool:listen:success")
    kills, began, left = 0, time.monotonic(), jobs
    while left:
        if long:
            await asyncio.sleep(2)
        else:
            await eventually(partial(_fewer_left, ledger, left - 200))
        workers[kills % 2].kill()
        workers[kills % 2] = start_worker(**options)
        await workers[kills % 2].seen("pool:listen:success")
        kills += 1
        left = _left(ledger)
    figures = {"kills": kills, "seconds": time.monotonic() - began}
    figures |= {row["outcome"]: row["count"] for row in ledger.query(OUTCOMES)}
    request.node.user_properties.append(("history", json.dumps(figures)))
    completed = ledger.query(
        "select job_id, count(*) as times from graphile_worker_py.runs_completed group by 1"
    )
    assert Counter(row["times"] for row in completed) == {1: jobs}
    assert kills > 1
