"""A returned job gets its attempt back, unless it was removed or replaced while it was locked."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from graphile_worker_py import JobSpec, LocalQueueOptions, Runner, WorkerUtils, run_once
from graphile_worker_py.events import JobStart
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.return_jobs import return_unknown_jobs
from tests.support.jobs import Jobs
from tests.support.running import Told

Change = Callable[[WorkerUtils], Awaitable[Any]]


async def remove(utils: WorkerUtils) -> None:
    """Remove the job with the key."""
    await utils.remove_job("k")


async def replace(utils: WorkerUtils) -> None:
    """Add another job with the key."""
    await utils.add_job("other", job_key="k")


async def replace_among_others(utils: WorkerUtils) -> None:
    """Add another job with the key, and more."""
    await utils.add_jobs([JobSpec("other", job_key="k"), JobSpec("other")])


CHANGES = [remove, replace, replace_among_others]


async def forever(payload: Any) -> None:
    """A task that ends only when it is cancelled."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("max_attempts", [1, 25])
async def test_a_running_job_that_was_removed_or_replaced_does_not_run_again_after_a_forced_stop(
    dsn: str, change: Change, max_attempts: int
) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("work", job_key="k", max_attempts=max_attempts)
    async with WorkerUtils(dsn) as utils:
        runner = Runner(dsn, tasks={"work": forever}, events=told.events)
        async with runner:
            await told.seen(JobStart)
            await change(utils)
            await runner.kill()
    row = jobs.one(job_id)
    assert (row["attempts"], row["max_attempts"], row["key"]) == (max_attempts, max_attempts, None)
    assert jobs.locked() == []
    await run_once(dsn, tasks={"work": forever})


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("queue", [None, "q"])
async def test_a_job_that_was_fetched_ahead_and_then_removed_or_replaced_does_not_come_back(
    dsn: str, change: Change, queue: str | None
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    ahead = jobs.add("work", job_key="k", queue_name=queue)
    runner = Runner(
        dsn,
        tasks={"work": forever},
        events=told.events,
        concurrent_jobs=1,
        local_queue=LocalQueueOptions(size=5),
    )
    async with WorkerUtils(dsn) as utils, runner:
        await told.seen(JobStart)
        assert jobs.one(ahead)["locked_by"] is not None
        await change(utils)
        await runner.kill()
    row = jobs.one(ahead)
    assert (row["attempts"], row["max_attempts"]) == (25, 25)
    assert jobs.locked() == []


async def test_jobs_that_were_left_alone_get_their_attempt_back(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    running = jobs.add("work", job_key="k", max_attempts=1)
    ahead = jobs.add("work", job_key="l", queue_name="q")
    runner = Runner(
        dsn,
        tasks={"work": forever},
        events=told.events,
        concurrent_jobs=1,
        local_queue=LocalQueueOptions(size=5),
    )
    async with WorkerUtils(dsn) as utils, runner:
        await told.seen(JobStart)
        # Keeps the job, and changes its revision.
        await utils.add_job("other", job_key="k", job_key_mode="unsafe_dedupe")
        await runner.kill()
    assert [jobs.one(job_id)["attempts"] for job_id in (running, ahead)] == [0, 0]
    assert [jobs.one(job_id)["key"] for job_id in (running, ahead)] == ["k", "l"]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_job_of_a_lost_fetch_does_not_come_back_either(dsn: str, change: Change) -> None:
    jobs = Jobs(dsn)
    ids = [
        jobs.add("work", job_key="k"),
        jobs.add("work", max_attempts=1),
        jobs.add("work", job_key="l"),
    ]
    jobs.lock(*ids, pool_id="p", ago="0 s")
    async with WorkerUtils(dsn) as utils:
        await change(utils)
        database = Database(utils.pool, schema="graphile_worker")
        assert await database.run(return_unknown_jobs([], pool_id="p")) == set(ids)
    assert [jobs.one(job_id)["attempts"] for job_id in ids] == [25, 0, 0]
