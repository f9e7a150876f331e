"""Stopping by force: what runs is cut off and returned, and the end comes in any case."""

import asyncio
import threading
from typing import Any

import psycopg
import pytest

from graphile_worker_py import (
    JobContext,
    LocalQueueOptions,
    Runner,
    SyncJobContext,
    WorkerPoolError,
    task,
)
from graphile_worker_py.events import (
    JobError,
    JobReturned,
    JobStart,
    JobSuccess,
    PoolForcefulShutdown,
    PoolForcefulShutdownComplete,
    PoolForcefulShutdownError,
    PoolListenSuccess,
)
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told, impatient

pytestmark = pytest.mark.any_server


async def hang(payload: Any) -> None:
    """A task that never ends by itself."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("local_queue", [LocalQueueOptions(), LocalQueueOptions(size=10)])
async def test_running_jobs_are_cut_off_and_returned_with_their_attempt(
    dsn: str, local_queue: LocalQueueOptions
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(4, "hang", "q")
    jobs.add_many(4, "hang")
    before = jobs.all()
    async with Runner(
        dsn,
        tasks={"hang": hang},
        concurrent_jobs=3,
        local_queue=local_queue,
        events=told.events,
    ) as runner:
        await told.seen(JobStart, count=3)
        await runner.kill("enough")
        assert jobs.all() == before
    assert [event.message for event in told.of(PoolForcefulShutdown)] == ["enough"]
    cut_off = {event.job.id for event in told.of(JobReturned)}
    assert cut_off == {event.job.id for event in told.of(JobStart)}
    (complete,) = told.of(PoolForcefulShutdownComplete)
    assert {job.id for job in complete.returned} == cut_off
    assert told.of(JobError) == []


async def test_what_a_job_makes_of_its_cancellation_is_its_outcome(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    for payload in ("succeed", "fail", "obey"):
        jobs.add("end", payload, queue_name=payload)

    async def end(payload: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            match payload:
                case "succeed":
                    await asyncio.sleep(0)
                    return
                case "fail":
                    raise ValueError("cut off") from None
            raise

    async with Runner(dsn, tasks={"end": end}, concurrent_jobs=3, events=told.events) as runner:
        await told.seen(JobStart, count=3)
        await runner.kill()
    left = {job["queue_name"]: (job["attempts"], job["last_error"]) for job in jobs.all()}
    assert left == {"fail": (1, "cut off"), "obey": (0, None)}
    assert jobs.locked() == []
    assert len(told.of(JobSuccess)) == len(told.of(JobError)) == len(told.of(JobReturned)) == 1


async def test_a_task_with_a_time_limit_is_returned_and_has_not_failed(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("limited")
    batch_id = jobs.add("batch", [1])

    @task(timeout=60)
    async def limited(payload: Any) -> None:
        async with asyncio.TaskGroup() as group, asyncio.timeout(60):
            group.create_task(hang(payload))
            await hang(payload)

    @task
    async def batch(payload: list[int]) -> list[Any]:
        return [hang(payload)]

    async with Runner(dsn, tasks=[limited, batch], concurrent_jobs=2, events=told.events) as runner:
        await told.seen(JobStart, count=2)
        await runner.kill()
    assert [(job["id"], job["attempts"]) for job in jobs.all()] == [(job_id, 0), (batch_id, 0)]
    assert told.of(JobError) == []


async def test_a_kill_sets_the_abort_events(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("modern")
    jobs.add("plain")
    seen: list[str] = []

    async def modern(payload: Any, ctx: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(f"modern {ctx.abort_event.is_set()}")

    def plain(payload: Any, ctx: SyncJobContext) -> None:
        seen.append(f"plain {ctx.abort_event.wait(10)}")

    tasks: dict[str, Any] = {"modern": modern, "plain": plain}
    async with Runner(dsn, tasks=tasks, concurrent_jobs=2, events=told.events) as runner:
        await told.seen(JobStart, count=2)
        await runner.kill()
    await eventually(lambda: sorted(seen) == ["modern True", "plain True"])


async def test_a_kill_during_a_graceful_stop_ends_it(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("hang")
    async with Runner(dsn, tasks={"hang": hang}, events=told.events) as runner:
        await told.seen(JobStart)
        stopping = asyncio.create_task(runner.stop())
        await asyncio.sleep(0)
        await runner.kill()
        await stopping
    assert jobs.one(job_id)["attempts"] == 0
    assert jobs.locked() == []


async def test_two_kills_at_once_are_one(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("hang")
    async with Runner(dsn, tasks={"hang": hang}, events=told.events) as runner:
        await told.seen(JobStart)
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(runner.kill())
    assert len(told.of(PoolForcefulShutdown)) == 1
    assert jobs.one(job_id)["attempts"] == 0
    assert jobs.locked() == []


async def test_a_second_cancellation_of_the_block_kills_and_leaves_no_loose_end(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("hang")

    async def block() -> None:
        async with Runner(dsn, tasks={"hang": hang}, events=told.events) as runner:
            await runner.wait()

    running = asyncio.create_task(block())
    await told.seen(JobStart)
    running.cancel()
    await eventually(lambda: "pool:gracefulShutdown" in told.names())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert jobs.one(job_id)["attempts"] == 0
    assert jobs.locked() == []
    assert told.names()[-1] == "stop"


async def test_a_task_that_ignores_its_cancellation_does_not_hold_up_the_end(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    stubborn_id = jobs.add("stubborn", queue_name="q")
    jobs.add("hang")
    release = asyncio.Event()

    async def stubborn(payload: Any) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass
        raise ValueError("far too late")

    tasks: dict[str, Any] = {"stubborn": stubborn, "hang": hang}
    try:
        with pytest.raises(WorkerPoolError, match=r"1 task\(s\) did not end within 0\.3 s"):
            async with impatient(kill=0.3)(
                dsn, tasks=tasks, concurrent_jobs=2, events=told.events
            ) as runner:
                await told.seen(JobStart, count=2)
                await runner.kill()
        (end,) = told.of(PoolForcefulShutdownError)
        assert "did not end" in str(end.error)
        # Its job went back, and what it makes of it in the end changes nothing.
        before = jobs.snapshot()
        assert jobs.one(stubborn_id)["attempts"] == 0
        assert jobs.locked() == []
    finally:
        release.set()  # or the event loop could not be closed
    await asyncio.sleep(0)
    await eventually(lambda: all("worker-" not in each.get_name() for each in asyncio.all_tasks()))
    assert jobs.snapshot() == before
    assert told.of(JobError) == []


async def test_a_thread_that_does_not_return_does_not_hold_up_the_end(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("block")
    release = threading.Event()

    def block(payload: Any) -> None:
        release.wait(20)

    async with Runner(dsn, tasks={"block": block}, events=told.events) as runner:
        await told.seen(JobStart)
        await runner.kill()
        assert jobs.one(job_id)["attempts"] == 0
        assert jobs.locked() == []
    # The thread ends with its function; a leaked one would fail the test.
    release.set()


async def test_a_kill_without_running_jobs_ends_at_once(dsn: str) -> None:
    told = Told()
    async with Runner(dsn, tasks={"hang": hang}, events=told.events) as runner:
        await told.seen(PoolListenSuccess)
        await asyncio.wait_for(runner.kill(), 15)
        await runner.kill()
        await runner.stop()
    assert len(told.of(PoolForcefulShutdown)) == 1


async def test_a_fetch_under_way_at_the_kill_leaves_nothing_locked(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(3, "hang")
    with psycopg.connect(dsn) as other:
        # The fetch waits for the table, and brings its jobs when nobody wants them any more.
        other.execute("lock graphile_worker._private_jobs in access exclusive mode")
        async with Runner(dsn, tasks={"hang": hang}, events=told.events) as runner:
            await jobs.seen_waiting()
            killing = asyncio.create_task(runner.kill())
            await asyncio.sleep(0.05)
            other.commit()
            await killing
    assert jobs.locked() == []
    assert {job["attempts"] for job in jobs.all()} == {0}


async def test_outcomes_that_cannot_be_recorded_in_time_are_told(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("work")
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()

    with (
        psycopg.connect(dsn) as other,
        pytest.raises(WorkerPoolError, match=rf"stay locked by pool-\w+: {job_id}$"),
    ):
        async with impatient(kill=0.3)(dsn, tasks={"work": work}, events=told.events) as runner:
            await told.seen(JobStart)
            other.execute("lock graphile_worker._private_jobs in access exclusive mode")
            finish.set()
            await told.seen(JobSuccess)
            await runner.kill()
    assert jobs.one(job_id)["locked_by"] == runner.pool_id
