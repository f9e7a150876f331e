"""Jobs of one serial queue run one after the other, in order, whoever runs them."""

import asyncio
from typing import Any

import pytest

from graphile_worker_py import JobContext, Runner, run_once
from graphile_worker_py.events import JobError, JobReturned, JobStart, JobSuccess, WorkerGetJobEmpty
from graphile_worker_py.options import LocalQueueOptions
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

PREFETCHING = [LocalQueueOptions(), LocalQueueOptions(size=20)]


class Lanes:
    """A task that notes what runs at once in each queue."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.order: dict[str, list[int]] = {}
        self._pools: set[str] = set()
        self._both = asyncio.Event()

    async def work(self, payload: Any, ctx: JobContext) -> None:
        """The task; no job goes on before two pools are at work."""
        self._pools.add(ctx.pool_id)
        if len(self._pools) == 2:
            self._both.set()
        queue = await ctx.get_queue_name() or ""
        self.running[queue] = self.running.get(queue, 0) + 1
        self.most[queue] = max(self.most.get(queue, 0), self.running[queue])
        self.order.setdefault(queue, []).append(payload["n"])
        try:
            await self._both.wait()
            for _ in range(3):
                await asyncio.sleep(0)
            if payload["n"] % 7 == 3 and ctx.job.attempts == 1:
                raise ValueError("the queue must be free after this, too")
        finally:
            self.running[queue] -= 1


@pytest.mark.parametrize("local_queue", PREFETCHING, ids=["no prefetch", "prefetch"])
async def test_two_pools_of_eight_workers_never_run_two_jobs_of_a_queue_at_once(
    dsn: str, local_queue: LocalQueueOptions
) -> None:
    jobs = Jobs(dsn)
    names = ["a", "b", "c"]
    for name in names:
        jobs.add_many(25, "work", name)
    jobs.add_many(25, "work")
    lanes = Lanes()
    told = Told()
    options: dict[str, Any] = {
        "tasks": {"work": lanes.work},
        "concurrent_jobs": 8,
        "local_queue": local_queue,
        "events": told.events,
        "poll_interval": 0.1,
    }
    async with Runner(dsn, **options), Runner(dsn, **options):

        def all_run() -> bool:
            jobs.make_due()
            return jobs.ids() == []

        await eventually(all_run, timeout=15, interval=0.05)
    assert len(told.of(JobError)) == 4 * 4
    assert len(told.of(JobSuccess)) == 100
    assert [lanes.most[name] for name in names] == [1, 1, 1]
    assert jobs.ids() == []
    assert jobs.locked() == []
    assert len({event.pool_id for event in told.of(JobSuccess)}) == 2


async def test_jobs_of_a_queue_run_in_order(dsn: str) -> None:
    jobs = Jobs(dsn)
    ids = jobs.add_many(15, "work", "q")
    for n, job_id in enumerate(ids):
        jobs.change(job_id, f"run_at = now() - interval '{(n * 7) % 15} s'")
    jobs.change(ids[9], "priority = -1")
    seen = []

    async def work(payload: Any) -> None:
        seen.append(payload["n"])

    await run_once(dsn, tasks={"work": work}, concurrent_jobs=4)
    by_time = sorted(range(15), key=lambda n: -((n * 7) % 15))
    assert seen == [9, *(n for n in by_time if n != 9)]


@pytest.mark.parametrize("local_queue", PREFETCHING, ids=["no prefetch", "prefetch"])
@pytest.mark.parametrize("concurrent_jobs", [1, 4])
async def test_the_next_job_of_a_queue_does_not_wait_for_a_poll(
    dsn: str, local_queue: LocalQueueOptions, concurrent_jobs: int
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(20, "work", "q")
    told = Told()

    async def work(payload: Any) -> None:
        if payload["n"] % 5 == 4:
            raise ValueError("no")

    async with Runner(
        dsn,
        tasks={"work": work},
        concurrent_jobs=concurrent_jobs,
        local_queue=local_queue,
        poll_interval=3600,
        events=told.events,
    ):
        await told.seen(JobSuccess, count=16)
        await told.seen(JobError, count=4)
    assert jobs.locked() == []


@pytest.mark.parametrize("local_queue", PREFETCHING, ids=["no prefetch", "prefetch"])
async def test_a_backlog_of_one_queue_keeps_nobody_else_waiting(
    dsn: str, local_queue: LocalQueueOptions
) -> None:
    """Although it is older, and more than a fetch can take."""
    jobs = Jobs(dsn)
    jobs.add_many(200, "block", "busy")
    jobs.add_many(5, "work")
    jobs.add_many(5, "work", "other")
    told = Told()
    release = asyncio.Event()
    blocked = []

    async def block(payload: Any) -> None:
        blocked.append(payload["n"])
        await release.wait()

    async def work(payload: Any) -> None:
        assert len(blocked) <= 1

    async with Runner(
        dsn,
        tasks={"block": block, "work": work},
        concurrent_jobs=3,
        local_queue=local_queue,
        poll_interval=3600,
        events=told.events,
    ):
        await told.seen(JobSuccess, count=10)
        assert len(blocked) == 1
        jobs.query("delete from graphile_worker._private_jobs where locked_by is null")
        release.set()


async def test_a_queue_whose_jobs_wait_is_not_locked(dsn: str) -> None:
    """A queue is locked with a job of it at work, and only then."""
    jobs = Jobs(dsn)
    jobs.add("work", queue_name="future", run_at="2100-01-01")
    jobs.add("somebody_elses", queue_name="others")
    jobs.add("work", queue_name="flagged", flags=["no"])
    jobs.add("work", queue_name="now")
    seen: list[Any] = []

    async def work(payload: Any) -> None:
        seen.append(jobs.locked())

    await run_once(dsn, tasks={"work": work}, concurrent_jobs=4, forbidden_flags=["no"])
    assert seen == [["job 4", "queue now"]]
    assert jobs.locked() == []


async def test_the_queue_is_free_after_every_kind_of_end(dsn: str) -> None:
    jobs = Jobs(dsn)
    for kind in ("succeed", "fail", "cancel", "exit", "hang"):
        jobs.add("end", kind, queue_name=kind)
    hanging = asyncio.Event()
    told = Told()

    async def end(payload: str) -> None:
        match payload:
            case "fail":
                raise ValueError("no")
            case "cancel":
                raise asyncio.CancelledError
            case "exit":
                raise SystemExit(1)
            case "hang":
                hanging.set()
                await asyncio.Event().wait()

    async with Runner(dsn, tasks={"end": end}, concurrent_jobs=5, events=told.events) as runner:
        await asyncio.wait_for(hanging.wait(), 15)
        await told.seen(JobError, count=3)
        await told.seen(JobSuccess)
        await eventually(lambda: jobs.locked() == ["job 5", "queue hang"])
        await runner.kill()
    assert [event.job.id for event in told.of(JobReturned)] == [5]
    assert jobs.locked() == []
    attempts = {job["queue_name"]: job["attempts"] for job in jobs.all()}
    assert attempts == {"fail": 1, "cancel": 1, "exit": 1, "hang": 0}


@pytest.mark.parametrize("end", ["succeed", "fail", "return"])
async def test_a_queue_that_others_have_taken_meanwhile_stays_theirs(dsn: str, end: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work", queue_name="q")
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()
        if end == "fail":
            raise ValueError("no")

    async with Runner(dsn, tasks={"work": work}, events=told.events) as runner:
        await told.seen(JobStart)
        jobs.query("update graphile_worker._private_job_queues set locked_by = 'pool-other'")
        if end == "return":
            await runner.kill()
        finish.set()
    assert jobs.locked() == ["queue q"]


async def test_an_idle_pool_does_not_look_again_and_again_for_a_busy_queue(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(5, "work", "q")
    jobs.query(
        "update graphile_worker._private_job_queues set locked_at = now(), locked_by = 'pool-other'"
    )
    told = Told()
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events):
        # One look at the start, one when it listens, and a second look after that.
        await told.seen(WorkerGetJobEmpty, count=2)
        looks = len(told.of(WorkerGetJobEmpty))
        await asyncio.sleep(0.3)
        assert len(told.of(WorkerGetJobEmpty)) - looks <= 2
