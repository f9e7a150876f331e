"""Locks older than four hours are taken from whoever held them, and what was deleted is mended."""

from typing import Any

import pytest

from graphile_worker_py import ConfigurationError, Runner, run_once
from graphile_worker_py.events import (
    JobSuccess,
    PoolListenSuccess,
    ResetLockedFailure,
    ResetLockedStarted,
    ResetLockedSuccess,
)
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

SWEEPS: dict[str, Any] = {"min_reset_locked_interval": 0.05, "max_reset_locked_interval": 0.1}


async def test_stale_locks_are_freed_and_young_ones_are_kept(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    ages = {"stale": "4 hours 1 minute", "young": "3 hours 59 minutes"}
    for name in ages:
        jobs.add("work", name, queue_name=name, run_at="2020-01-01", max_attempts=2)
    exhausted = jobs.add("work", "exhausted", max_attempts=1)
    later = jobs.add("work", "later", run_at="2100-01-01")
    ages |= {"exhausted": "5 hours", "later": "5 hours"}
    for name, age in ages.items():
        jobs.query(
            "update graphile_worker._private_jobs set attempts = attempts + 1, last_error = 'old',"
            " locked_by = 'pool-dead', locked_at = now() - %s::interval"
            " where payload #>> '{}' = %s",
            age,
            name,
        )
        jobs.query(
            "update graphile_worker._private_job_queues set locked_by = 'pool-dead',"
            " locked_at = now() - %s::interval where queue_name = %s",
            age,
            name,
        )
    seen: list[Any] = []

    async def work(payload: Any) -> None:
        seen.append(payload)

    async with Runner(dsn, tasks={"work": work}, poll_interval=3600, events=told.events, **SWEEPS):
        # Nobody announces it: the sweep itself leads to a fetch.
        await told.seen(JobSuccess)
    assert seen == ["stale"]
    left = {job["payload"]: job for job in jobs.all()}
    assert set(left) == {"young", "exhausted", "later"}
    assert left["young"]["locked_by"] == "pool-dead"
    assert sorted(jobs.locked()) == [f"job {left['young']['id']}", "queue young"]
    assert jobs.one(exhausted)["attempts"] == 1
    assert jobs.one(exhausted)["last_error"] == "old"
    assert jobs.one(later)["run_at"].year == 2100


async def test_the_time_of_a_freed_job_is_now(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("somebody_elses", run_at="2020-01-01")
    jobs.change(job_id, "locked_by = 'pool-dead', locked_at = now() - interval '5 hours'")
    async with Runner(dsn, tasks={"work": print}, events=told.events, **SWEEPS):
        await told.seen(ResetLockedSuccess)
    (row,) = jobs.query(
        "select run_at > now() - interval '20 s' as fresh, locked_by, attempts, revision"
        " from graphile_worker._private_jobs"
    )
    assert row == {"fresh": True, "locked_by": None, "attempts": 0, "revision": 0}


async def test_it_sweeps_again_and_again_between_the_given_times(dsn: str) -> None:
    told = Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events, **SWEEPS):
        await told.seen(ResetLockedSuccess, count=3)
    delays = [event.delay for event in told.of(ResetLockedSuccess)]
    assert all(0.05 <= delay <= 0.1 for delay in delays)
    assert len(told.of(ResetLockedStarted)) >= 3


async def test_a_sweep_that_fails_is_told_and_tried_again(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events, **SWEEPS):
        await told.seen(PoolListenSuccess)
        await jobs.in_thread("alter table graphile_worker._private_job_queues rename to hidden")
        await told.seen(ResetLockedFailure)
        done = len(told.of(ResetLockedSuccess))
        await jobs.in_thread("alter table graphile_worker.hidden rename to _private_job_queues")
        await told.seen(ResetLockedSuccess, count=done + 1)
    assert "Could not reset stale locks (UndefinedTable: " in caplog.text


async def test_tasks_that_a_cleanup_deleted_get_jobs_again(dsn: str) -> None:
    """New jobs get a new number for their task, for which nobody would look."""
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks={"work": print}, poll_interval=0.1, events=told.events, **SWEEPS):
        await told.seen(PoolListenSuccess)
        jobs.query("delete from graphile_worker._private_tasks")
        jobs.add("work")
        await told.seen(JobSuccess)


async def test_runs_that_end_by_themselves_do_not_sweep(dsn: str) -> None:
    told = Told()
    await run_once(dsn, tasks={"work": print}, events=told.events, **SWEEPS)
    assert told.of(ResetLockedStarted) == []


@pytest.mark.parametrize(
    ("shortest", "longest"), [(0, 1), (2, 1), (-1, 1), (1, float("inf")), (float("nan"), 1)]
)
async def test_times_that_make_no_sense_are_refused(shortest: float, longest: float) -> None:
    with pytest.raises(ConfigurationError, match="reset_locked_interval"):
        await run_once(
            "postgresql://",
            tasks={"work": print},
            min_reset_locked_interval=shortest,
            max_reset_locked_interval=longest,
        )


async def test_the_job_that_is_running_here_is_not_started_twice_by_the_sweep(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("long")
    ran: list[int] = []

    async def long(payload: Any) -> None:
        ran.append(1)
        jobs.change(job_id, "locked_at = now() - interval '5 hours'")
        await eventually(lambda: jobs.one(job_id)["attempts"] == 2)

    async with Runner(
        dsn,
        tasks={"long": long},
        concurrent_jobs=2,
        poll_interval=3600,
        events=told.events,
        **SWEEPS,
    ):
        await told.seen(JobSuccess)
    assert ran == [1]
    assert jobs.ids() == []
