"""Prefetching: when it fetches, what it holds, when it gives back."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from graphile_worker_py import JobContext, LocalQueueOptions, RefetchDelay, Runner, run_once
from graphile_worker_py.events import (
    JobStart,
    JobSuccess,
    LocalQueueGetJobsComplete,
    LocalQueueInit,
    LocalQueueRefetchDelayAbort,
    LocalQueueRefetchDelayExpired,
    LocalQueueRefetchDelayStart,
    LocalQueueReturnJobs,
    LocalQueueSetMode,
    PoolListenSuccess,
)
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told


def modes(told: Told) -> list[str]:
    """The modes that the queue went through."""
    changes = told.of(LocalQueueSetMode)
    for before, after in pairwise(changes):
        assert before.new_mode == after.old_mode
    return [event.new_mode for event in changes]


def fetched(told: Told) -> list[int]:
    """How many jobs each fetch brought."""
    return [len(event.jobs) for event in told.of(LocalQueueGetJobsComplete)]


UNLOCK_HELD = """
update graphile_worker._private_jobs set locked_by = null, locked_at = null where id > 50
"""


class Steps:
    """A task whose jobs end one by one, when the test says so."""

    def __init__(self) -> None:
        self._permits = asyncio.Semaphore(0)
        self.ran: list[int] = []

    async def work(self, payload: Any, ctx: JobContext) -> None:
        """The task."""
        self.ran.append(ctx.job.id)
        await self._permits.acquire()

    def let_go(self, count: int) -> None:
        """Let so many jobs end."""
        for _ in range(count):
            self._permits.release()


async def test_it_fetches_as_many_as_it_holds_and_again_when_it_has_run_dry(dsn: str) -> None:
    jobs, steps, told = Jobs(dsn), Steps(), Told()
    ids = jobs.add_many(7, "work")
    async with Runner(
        dsn,
        tasks={"work": steps.work},
        local_queue=LocalQueueOptions(size=3),
        poll_interval=3600,
        events=told.events,
    ):
        await told.seen(JobStart)
        assert fetched(told) == [3]
        assert len(jobs.locked()) == 3
        steps.let_go(1)
        await told.seen(JobStart, count=2)
        assert fetched(told) == [3]
        steps.let_go(6)
        await told.seen(JobSuccess, count=7)
    assert fetched(told)[:3] == [3, 3, 1]
    assert steps.ran == ids
    assert told.all.index(told.of(LocalQueueInit)[0]) < told.all.index(
        told.of(LocalQueueSetMode)[0]
    )
    assert modes(told)[:5] == ["POLLING", "WAITING", "POLLING", "WAITING", "POLLING"]
    assert modes(told)[-1] == "RELEASED"


async def test_without_prefetching_no_job_is_locked_before_a_worker_is_there(dsn: str) -> None:
    jobs, steps, told = Jobs(dsn), Steps(), Told()
    jobs.add_many(7, "work")
    async with Runner(
        dsn, tasks={"work": steps.work}, concurrent_jobs=3, poll_interval=3600, events=told.events
    ):
        await told.seen(JobStart, count=3)
        # Workers that are idle at the same moment are served by one fetch.
        assert fetched(told) == [3]
        assert len(jobs.locked()) == 3
        steps.let_go(2)
        await told.seen(JobStart, count=5)
        await eventually(lambda: len(jobs.locked()) == 3)
        steps.let_go(5)
        await told.seen(JobSuccess, count=7)
    assert told.of(LocalQueueReturnJobs) == []


async def test_jobs_that_nobody_takes_in_time_are_returned_with_their_attempt(dsn: str) -> None:
    jobs, steps, told = Jobs(dsn), Steps(), Told()
    jobs.add_many(2, "work")
    jobs.add_many(1, "work", "q")
    before = jobs.snapshot()
    async with Runner(
        dsn,
        tasks={"work": steps.work},
        local_queue=LocalQueueOptions(size=5, ttl=0.1),
        poll_interval=3600,
        events=told.events,
    ):
        await told.seen(JobStart)
        returned = await told.seen(LocalQueueReturnJobs)
        assert len(returned.jobs) == 2
        await eventually(lambda: jobs.locked() == [f"job {steps.ran[0]}"])
        assert jobs.snapshot()[1:] == before[1:]
        assert modes(told) == ["POLLING", "WAITING", "TTL_EXPIRED"]
        # The first worker that asks leads to a fetch, without a poll.
        steps.let_go(1)
        await told.seen(JobStart, count=2)
        assert modes(told)[3] == "POLLING"
        steps.let_go(2)
        await told.seen(JobSuccess, count=3)
    assert jobs.ids() == []
    assert len(steps.ran) == 3


async def test_no_job_is_fetched_for_a_worker_that_was_cancelled_while_it_waited(dsn: str) -> None:
    """A task may get hold of the worker that runs it, and cancel it when it is done."""
    jobs, steps, told = Jobs(dsn), Steps(), Told()
    workers: list[asyncio.Task[Any] | None] = []

    async def meddle(_payload: Any) -> None:
        workers.append(asyncio.current_task())

    async with Runner(
        dsn,
        tasks={"work": steps.work, "meddle": meddle},
        poll_interval=3600,
        events=told.events,
    ):
        await told.seen(PoolListenSuccess)
        jobs.add("meddle")
        await told.seen(JobSuccess)
        await eventually(lambda: jobs.ids() == [])
        (worker,) = workers
        assert worker is not None
        worker.cancel()
        await eventually(lambda: not worker.cancelling())
        jobs.add_many(2, "work")
        await told.seen(JobStart, count=2)
        assert jobs.locked() == [f"job {steps.ran[0]}"]
        steps.let_go(2)
        await told.seen(JobSuccess, count=3)


async def test_a_held_job_that_somebody_unlocked_and_that_is_fetched_again_runs_once(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(120, "work")
    jobs.query("update graphile_worker._private_jobs set priority = -1 where id <= 100")
    ran: list[int] = []

    async def work(_payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.job.id)
        if len(ran) == 50:
            # At this job, jobs are fetched ahead.
            jobs.query(UNLOCK_HELD)
            await told.seen(LocalQueueGetJobsComplete, count=2)

    tasks = {"work": work}
    await run_once(dsn, tasks=tasks, local_queue=LocalQueueOptions(size=100), events=told.events)
    assert sorted(ran) == list(range(1, 121))
    assert jobs.ids() == []


async def test_announced_jobs_are_not_fetched_while_jobs_are_held(dsn: str) -> None:
    jobs, steps, told = Jobs(dsn), Steps(), Told()
    jobs.add_many(2, "work")
    async with Runner(
        dsn,
        tasks={"work": steps.work},
        local_queue=LocalQueueOptions(size=2),
        poll_interval=3600,
        events=told.events,
    ):
        await told.seen(PoolListenSuccess)
        await told.seen(JobStart)
        late = jobs.add("work")
        await eventually(lambda: "pool:listen:notification" in told.names())
        assert fetched(told) == [2]
        assert jobs.one(late)["locked_by"] is None
        steps.let_go(3)
        await told.seen(JobSuccess, count=3)


async def test_a_rest_after_a_small_fetch_ends_in_its_time(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    rest = RefetchDelay(duration=0.2, threshold=2, max_abort_threshold=0)
    jobs.add_many(2, "work")

    def add_more(_event: LocalQueueRefetchDelayStart) -> None:
        add_no_more()
        jobs.add_many(3, "work")

    # Announced during the rest: fetched after it, not before.
    add_no_more = told.events.subscribe(LocalQueueRefetchDelayStart, add_more)
    async with Runner(
        dsn,
        tasks={"work": print},
        local_queue=LocalQueueOptions(size=10, refetch_delay=rest),
        poll_interval=3600,
        events=told.events,
    ):
        started = await told.seen(LocalQueueRefetchDelayStart)
        assert (started.job_count, started.threshold) == (2, 2)
        assert 0.1 <= started.delay <= 0.3
        await told.seen(LocalQueueRefetchDelayExpired)
        await told.seen(JobSuccess, count=5)
    assert told.of(LocalQueueRefetchDelayAbort) == []
    assert fetched(told)[:2] == [2, 3]
    names = told.names()
    assert (
        names.index("localQueue:refetchDelay:expired")
        < [at for at, name in enumerate(names) if name == "localQueue:getJobs:complete"][1]
    )


async def test_a_rest_ends_early_when_many_jobs_are_announced(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    rest = RefetchDelay(duration=1000, max_abort_threshold=5)
    async with Runner(
        dsn,
        tasks={"work": print},
        local_queue=LocalQueueOptions(size=10, refetch_delay=rest),
        poll_interval=1000,
        events=told.events,
    ):
        await told.seen(LocalQueueRefetchDelayStart)
        await told.seen(PoolListenSuccess)
        jobs.query(
            "select graphile_worker.add_jobs(array_agg("
            "  row('work', null, null, null, null, null, null, null)::graphile_worker.job_spec))"
            " from generate_series(1, 6)"
        )
        await told.seen(JobSuccess, count=6)
    abort = told.of(LocalQueueRefetchDelayAbort)[0]
    assert abort.count >= abort.abort_threshold
    assert abort.abort_threshold <= 5


async def test_a_fetch_that_brought_enough_is_not_followed_by_a_rest(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    rest = RefetchDelay(duration=0, threshold=2)
    jobs.add_many(2, "work")
    await run_once(
        dsn,
        tasks={"work": print},
        local_queue=LocalQueueOptions(size=2, refetch_delay=rest),
        events=told.events,
    )
    full = told.of(LocalQueueGetJobsComplete)[0]
    assert len(full.jobs) == 2
    # The threshold would allow it, but there may be more jobs.
    assert {event.job_count for event in told.of(LocalQueueRefetchDelayStart)} == {0}


async def test_a_stop_during_a_rest_does_not_wait_for_its_end(dsn: str) -> None:
    told = Told()
    rest = RefetchDelay(duration=1000, max_abort_threshold=0)
    async with Runner(
        dsn,
        tasks={"work": print},
        local_queue=LocalQueueOptions(size=1, refetch_delay=rest),
        poll_interval=1000,
        events=told.events,
    ) as runner:
        await told.seen(LocalQueueRefetchDelayStart)
        await asyncio.wait_for(runner.stop(), 15)


@pytest.mark.parametrize("size", [-1, 4])
async def test_retries_and_future_jobs_are_found_by_polling(dsn: str, size: int) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("work", run_at="2100-01-01")
    async with Runner(
        dsn,
        tasks={"work": print},
        local_queue=LocalQueueOptions(size=size),
        poll_interval=0.2,
        events=told.events,
    ):
        await told.seen(PoolListenSuccess)
        # Nobody announces this.
        jobs.change(job_id, "run_at = now()")
        await told.seen(JobSuccess)


async def test_two_prefetching_pools_share_the_work_and_run_each_job_once(dsn: str) -> None:
    jobs, one, two = Jobs(dsn), Told(), Told()
    jobs.add_many(120, "work")
    ran: list[int] = []
    pools: set[str] = set()
    both = asyncio.Event()

    async def work(payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.job.id)
        pools.add(ctx.pool_id)
        if len(pools) == 2:
            both.set()
        await both.wait()

    options: dict[str, Any] = {
        "tasks": {"work": work},
        "concurrent_jobs": 2,
        "local_queue": LocalQueueOptions(size=10),
    }
    async with (
        Runner(dsn, events=one.events, **options),
        Runner(dsn, events=two.events, **options),
    ):
        await eventually(lambda: len(one.of(JobSuccess)) + len(two.of(JobSuccess)) == 120)
    assert len(ran) == len(set(ran)) == 120
    assert one.of(JobSuccess)
    assert two.of(JobSuccess)
    assert jobs.ids() == []
