"""Stopping gracefully: nothing new begins, what runs may end, nothing stays locked."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from graphile_worker_py import Events, JobContext, LocalQueueOptions, Runner, SyncJobContext, run
from graphile_worker_py.events import (
    Event,
    JobStart,
    JobSuccess,
    LocalQueueReturnJobs,
    PoolForcefulShutdown,
    PoolGracefulShutdown,
    PoolGracefulShutdownComplete,
    PoolGracefulShutdownWorkerError,
    PoolListenSuccess,
    PoolRelease,
    WorkerStop,
)
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told, impatient


class Work:
    """A task that runs until it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.ran: list[int] = []

    async def work(self, payload: Any, ctx: JobContext) -> None:
        """The task."""
        await self.go.wait()
        self.ran.append(ctx.job.id)


async def test_running_jobs_end_and_are_recorded_and_no_more_begin(dsn: str) -> None:
    jobs, work, told = Jobs(dsn), Work(), Told()
    ids = jobs.add_many(5, "work")
    async with Runner(
        dsn, tasks={"work": work.work}, concurrent_jobs=2, events=told.events
    ) as runner:
        await told.seen(JobStart, count=2)
        stopping = asyncio.create_task(runner.stop("enough"))
        await told.seen(PoolGracefulShutdown)
        assert not stopping.done()
        work.go.set()
        await stopping
        assert sorted(work.ran) == ids[:2]
        assert jobs.ids() == ids[2:]
        assert jobs.locked() == []
        assert [job["attempts"] for job in jobs.all()] == [0, 0, 0]
    assert [event.message for event in told.of(PoolGracefulShutdown)] == ["enough"]
    assert told.of(PoolForcefulShutdown) == []
    assert told.names()[-3:] == ["pool:gracefulShutdown:complete", "pool:release", "stop"]


async def test_leaving_the_block_waits_for_running_jobs(dsn: str) -> None:
    jobs, work, told = Jobs(dsn), Work(), Told()
    jobs.add("work")
    async with Runner(dsn, tasks={"work": work.work}, events=told.events):
        await told.seen(JobStart)
        asyncio.get_running_loop().call_later(0.1, work.go.set)
    assert len(work.ran) == 1
    assert jobs.ids() == []


async def test_an_error_in_the_block_stops_gracefully_and_passes(dsn: str) -> None:
    jobs, work, told = Jobs(dsn), Work(), Told()
    jobs.add("work")
    with pytest.raises(LookupError, match="mine"):
        async with Runner(dsn, tasks={"work": work.work}, events=told.events):
            await told.seen(JobStart)
            asyncio.get_running_loop().call_later(0.05, work.go.set)
            raise LookupError("mine")
    assert jobs.ids() == []
    assert told.of(PoolGracefulShutdownComplete)


@pytest.mark.parametrize("local_queue", [LocalQueueOptions(), LocalQueueOptions(size=10)])
async def test_cancelling_run_lets_running_jobs_end(
    dsn: str, local_queue: LocalQueueOptions
) -> None:
    jobs, work, told = Jobs(dsn), Work(), Told()
    ids = jobs.add_many(5, "work", "q") + jobs.add_many(5, "work")
    running = asyncio.create_task(
        run(
            dsn,
            tasks={"work": work.work},
            concurrent_jobs=3,
            local_queue=local_queue,
            events=told.events,
        )
    )
    await told.seen(JobStart, count=3)
    running.cancel()
    await told.seen(PoolGracefulShutdown)
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(work.ran) == 3
    assert jobs.ids() == [job_id for job_id in ids if job_id not in work.ran]
    assert jobs.locked() == []
    assert {job["attempts"] for job in jobs.all()} == {0}


async def test_jobs_that_were_fetched_ahead_are_returned_at_once_with_their_attempt(
    dsn: str,
) -> None:
    jobs, work, told = Jobs(dsn), Work(), Told()
    ids = [*jobs.add_many(6, "work"), *jobs.add_many(1, "work", "q")]
    before = {job["id"]: job for job in jobs.all()}
    async with Runner(
        dsn,
        tasks={"work": work.work},
        local_queue=LocalQueueOptions(size=7),
        events=told.events,
    ) as runner:
        await told.seen(JobStart)
        assert len(jobs.locked()) == 8
        stopping = asyncio.create_task(runner.stop())
        # Others can have them before the running job ends.
        returned = await told.seen(LocalQueueReturnJobs)
        assert [job.id for job in returned.jobs] == ids[1:]
        await eventually(lambda: jobs.locked() == [f"job {ids[0]}"])
        work.go.set()
        await stopping
    after = {job["id"]: job for job in jobs.all()}
    del before[ids[0]]
    assert after == before


async def test_stopping_twice_waits_for_the_same_end(dsn: str) -> None:
    jobs, work, told = Jobs(dsn), Work(), Told()
    jobs.add("work")
    async with Runner(dsn, tasks={"work": work.work}, events=told.events) as runner:
        await told.seen(JobStart)
        async with asyncio.TaskGroup() as group:
            for reason in ("first", "second"):
                group.create_task(runner.stop(reason))
            await told.seen(PoolGracefulShutdown)
            work.go.set()
        await runner.wait()
        await runner.stop()
    assert [event.message for event in told.of(PoolGracefulShutdown)] == ["first"]
    assert len(told.of(PoolRelease)) == 1


async def test_who_gives_up_waiting_for_the_stop_does_not_disturb_it(dsn: str) -> None:
    jobs, work, told = Jobs(dsn), Work(), Told()
    jobs.add("work")
    async with Runner(dsn, tasks={"work": work.work}, events=told.events) as runner:
        await told.seen(JobStart)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runner.stop(), 0.02)
        work.go.set()
        await runner.wait()
    assert jobs.ids() == []


async def test_some_time_into_the_stop_jobs_see_their_abort_event(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("modern")
    jobs.add("plain")
    begun: list[str] = []
    seen: list[str] = []

    async def modern(payload: Any, ctx: JobContext) -> None:
        assert not ctx.abort_event.is_set()
        begun.append("modern")
        await ctx.abort_event.wait()
        seen.append("modern")

    def plain(payload: Any, ctx: SyncJobContext) -> None:
        assert not ctx.abort_event.is_set()
        begun.append("plain")
        assert ctx.abort_event.wait(10)
        seen.append("plain")
        raise RuntimeError("aborted")

    tasks: dict[str, Callable[..., Any]] = {"modern": modern, "plain": plain}
    async with Runner(
        dsn,
        tasks=tasks,
        concurrent_jobs=2,
        graceful_shutdown_abort_timeout=0.2,
        events=told.events,
    ):
        await eventually(lambda: len(begun) == 2)
        left_at = time.monotonic()
    assert time.monotonic() - left_at >= 0.2
    assert sorted(seen) == ["modern", "plain"]
    (left,) = jobs.all()
    assert left["last_error"] == "aborted"
    assert left["attempts"] == 1


async def test_a_stop_without_running_jobs_does_not_wait_for_the_abort_time(dsn: str) -> None:
    told = Told()
    async with Runner(
        dsn, tasks={"work": print}, graceful_shutdown_abort_timeout=3600, events=told.events
    ):
        await told.seen(PoolListenSuccess)
        left_at = time.monotonic()
    assert time.monotonic() - left_at < 15


async def test_a_runner_that_is_stopped_before_it_listens_ends(dsn: str) -> None:
    told = Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events) as runner:
        await runner.stop()
    assert told.of(PoolListenSuccess) == []
    assert told.of(PoolRelease)


async def test_jobs_announced_while_stopping_are_left(dsn: str) -> None:
    jobs, work, told = Jobs(dsn), Work(), Told()
    jobs.add("work")
    async with Runner(
        dsn, tasks={"work": work.work}, concurrent_jobs=3, events=told.events
    ) as runner:
        await told.seen(PoolListenSuccess)
        await told.seen(JobStart)
        stopping = asyncio.create_task(runner.stop())
        await told.seen(WorkerStop, count=2)
        late = await runner.add_job("work")
        work.go.set()
        await stopping
    assert jobs.ids() == [late.id]
    assert len(told.of(JobSuccess)) == 1


async def test_a_stop_is_not_held_up_by_jobs_that_never_wait(dsn: str) -> None:
    """Jobs in store, and a task that blocks the loop: others must have a turn in between."""
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(100, "busy")
    ran = []

    async def busy(payload: Any) -> None:
        ran.append(payload["n"])
        time.sleep(0.02)  # noqa: ASYNC251  # that is the point

    async with Runner(
        dsn, tasks={"busy": busy}, local_queue=LocalQueueOptions(size=100), events=told.events
    ):
        await told.seen(JobStart)
    assert len(ran) < 50
    assert len(jobs.ids()) == 100 - len(ran)
    assert jobs.locked() == []


class FaultyEvents(Events):
    """Events of somebody's own, at fault once a job has succeeded."""

    def emit(self, event: Event) -> None:
        """Tell it, unless it is the success of a job."""
        if event.name == JobSuccess.name:
            raise LookupError("at fault")
        super().emit(event)


async def test_a_worker_that_breaks_down_is_told_and_its_job_tried_again(
    dsn: str,
) -> None:
    jobs, work, faulty = Jobs(dsn), Work(), FaultyEvents()
    told: list[Event] = []
    faulty.subscribe(Event, told.append)
    job_id = jobs.add("work")
    runner = Runner(dsn, tasks={"work": work.work}, events=faulty)
    with pytest.raises(LookupError, match="at fault"):
        async with runner:
            await eventually(lambda: any(isinstance(event, JobStart) for event in told))
            stopping = asyncio.create_task(runner.stop())
            await eventually(lambda: any(isinstance(event, PoolGracefulShutdown) for event in told))
            work.go.set()
            await stopping
    (error,) = [each for each in told if isinstance(each, PoolGracefulShutdownWorkerError)]
    assert (error.name, str(error.error)) == ("pool:gracefulShutdown:workerError", "at fault")
    assert error.job is not None
    assert error.job.id == job_id
    assert jobs.locked() == []
    job = jobs.one(job_id)
    assert (job["attempts"], job["is_available"]) == (1, True)
    assert "at fault" in job["last_error"]
    names = [event.name for event in told]
    assert names.index("pool:gracefulShutdown") < names.index(error.name)
    assert names.index(error.name) < names.index("pool:gracefulShutdown:error")


async def test_the_end_of_the_last_fetch_does_not_end_an_outcome_that_is_being_written(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    quick, long = jobs.add_many(2, "work")
    ends = {quick: asyncio.Event(), long: asyncio.Event()}

    async def work(_payload: Any, ctx: JobContext) -> None:
        await ends[ctx.job.id].wait()

    # With two connections, fetches and outcomes share one.
    options: dict[str, Any] = {"concurrent_jobs": 2, "max_pool_size": 2, "events": told.events}
    async with (
        await psycopg.AsyncConnection.connect(dsn) as another,
        impatient(stop=0.1)(dsn, tasks={"work": work}, **options) as runner,
    ):
        await told.seen(JobStart, count=2)
        await another.execute("select from graphile_worker._private_jobs for key share")
        ends[quick].set()
        await jobs.seen_waiting("%delete%")
        stopping = asyncio.create_task(runner.stop())
        await eventually(lambda: "cut off the last fetch" not in tasks())
        await another.rollback()
        await eventually(lambda: jobs.ids() == [long])
        ends[long].set()
        await stopping
    assert jobs.ids() == []
    assert "Could not complete" not in caplog.text


def tasks() -> set[str]:
    """The names of the asyncio tasks that run."""
    return {task.get_name() for task in asyncio.all_tasks()}
