"""A killed worker has fetched jobs ahead at their last attempt: those that never began run."""

import psycopg
import pytest

from graphile_worker_py import LocalQueueOptions, Runner
from graphile_worker_py.events import JobStart, JobSuccess, PoolListenSuccess
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, Ledger
from tests.faults.test_killed_workers import begun, make_short
from tests.support.eventually import eventually
from tests.support.running import Told

MANY = 40


@pytest.mark.parametrize("max_crashes", [3, 0])
async def test_jobs_that_never_began_keep_their_last_attempt(
    ledger: Ledger, start_worker: StartWorker, max_crashes: int
) -> None:
    options = {"concurrent_jobs": 2, "local_queue": 100, "max_crashes": max_crashes, **FAST}
    jobs = [ledger.add("work", {"seconds": 3600}, max_attempts=1) for _ in range(MANY)]
    killed = start_worker(**options)
    dead = await begun(ledger, killed, 2)
    await eventually(lambda: len(ledger.locked()) == MANY)
    began = {run["job_id"] for run in ledger.runs()}
    other = start_worker(**options)
    await other.seen("pool:listen:success")
    make_short(ledger)
    killed.kill()

    await eventually(lambda: set(ledger.ids()) == began, timeout=15)
    assert {run["job_id"] for run in ledger.runs() if run["ended_at"]} == set(jobs) - began
    assert len(ledger.runs()) == MANY
    for job_id in began:
        row = ledger.one(job_id)
        assert row["attempts"] == row["max_attempts"]
        assert f"The worker process died while it had this job: pool {dead}" in row["last_error"]
    assert ledger.locked() == []
    # Should they be revived, they are suspects; those that ran are none.
    suspects = dict.fromkeys(began, 1) if max_crashes else {}
    await eventually(lambda: ledger.suspects() == suspects)


async def test_a_job_that_was_removed_before_it_began_does_not_run(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    options = {"concurrent_jobs": 1, "local_queue": 100, **FAST}
    first = ledger.add("work", {"seconds": 3600}, max_attempts=1)
    removed = ledger.add("work", {"seconds": 3600}, max_attempts=1, job_key="k")
    killed = start_worker(**options)
    await begun(ledger, killed, 1)
    await eventually(lambda: len(ledger.locked()) == 2)
    ledger.query("select id from graphile_worker.remove_job('k')")
    make_short(ledger)
    killed.kill()
    other = start_worker(**options)
    await other.seen("pool:recovered", 15)
    last = ledger.add("work", {})
    await eventually(lambda: last not in ledger.ids(), timeout=10)
    assert {run["job_id"] for run in ledger.runs()} == {first, last}
    assert ledger.one(removed)["attempts"] == 1


async def test_a_last_attempt_that_begins_is_marked_and_the_mark_goes_with_its_outcome(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    marks: list[int] = []

    def work(payload: object) -> None:
        with psycopg.connect(dsn) as conn:
            cursor = conn.execute("select count(*) from graphile_worker_py.suspects")
            marks.append(int((cursor.fetchone() or [0])[0]))

    async with Runner(
        dsn,
        tasks={"work": work},
        local_queue=LocalQueueOptions(size=10),
        events=told.events,
        **FAST,
    ):
        await told.seen(PoolListenSuccess)
        ledger.add("work", max_attempts=1)
        ledger.add("work", max_attempts=2, run_at="2100-01-01")
        await told.seen(JobSuccess)
        assert marks == [1]
        await eventually(lambda: ledger.suspects() == {})
        ledger.query("update graphile_worker._private_jobs set run_at = now()")
        ledger.query("select pg_notify('jobs:insert', '{\"count\":1}')")
        await told.seen(JobStart, count=2)
        await told.seen(JobSuccess, count=2)
    # A job that has further attempts needs no mark.
    assert marks == [1, 0]
