"""A job key while workers run: what is replaced, what is left alone, what runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from graphile_worker_py import JobContext, LocalQueueOptions, Runner
from graphile_worker_py.events import JobError, JobSuccess, LocalQueueGetJobsComplete
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told


class Gate:
    """A task whose jobs wait until they are let go, or told to fail."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self._go: dict[Any, asyncio.Future[None]] = {}

    async def work(self, payload: Any, ctx: JobContext) -> None:
        """The task."""
        self.begun.append(payload)
        go = self._go[payload] = asyncio.get_running_loop().create_future()
        await go
        self.ended.append(payload)

    async def begins(self, payload: Any) -> None:
        """Wait until a job runs."""
        await eventually(lambda: payload in self.begun)

    def let_go(self, payload: Any) -> None:
        """Let a job succeed."""
        self._go[payload].set_result(None)

    def fail(self, payload: Any) -> None:
        """Let a job fail."""
        self._go[payload].set_exception(ValueError(f"{payload} failed"))

    @asynccontextmanager
    async def running(self, dsn: str, **options: Any) -> AsyncIterator[Told]:
        """Run the task with two workers."""
        told = Told()
        async with Runner(
            dsn,
            tasks={"work": self.work},
            concurrent_jobs=2,
            poll_interval=0.1,
            events=told.events,
            **options,
        ):
            yield told


async def test_replacing_a_running_job_adds_one_that_runs_beside_it(dsn: str) -> None:
    jobs, gate = Jobs(dsn), Gate()
    old = jobs.add("work", "old", job_key="k")
    async with gate.running(dsn) as told:
        await gate.begins("old")
        new = jobs.add("work", "new", job_key="k")
        assert new != old
        assert jobs.one(old)["key"] is None
        await gate.begins("new")
        gate.let_go("new")
        gate.let_go("old")
        await told.seen(JobSuccess, count=2)
    assert jobs.ids() == []


async def test_a_replaced_job_that_fails_is_not_tried_again(dsn: str) -> None:
    jobs, gate = Jobs(dsn), Gate()
    old = jobs.add("work", "old", job_key="k", queue_name="q")
    async with gate.running(dsn) as told:
        await gate.begins("old")
        new = jobs.add("work", "new", job_key="k", queue_name="q")
        gate.fail("old")
        await told.seen(JobError)
        await gate.begins("new")
        gate.let_go("new")
        await eventually(lambda: new not in jobs.ids())
    job = jobs.one(old)
    assert job["attempts"] == job["max_attempts"]
    assert job["last_error"] == "old failed"
    assert jobs.locked() == []


async def test_a_replaced_job_of_a_serial_queue_is_waited_for(dsn: str) -> None:
    jobs, gate = Jobs(dsn), Gate()
    jobs.add("work", "old", job_key="k", queue_name="q")
    async with gate.running(dsn) as told:
        await gate.begins("old")
        jobs.add("work", "new", job_key="k", queue_name="q")
        jobs.add("work", "other")
        await gate.begins("other")
        assert gate.begun == ["old", "other"]
        gate.let_go("old")
        await gate.begins("new")
        assert gate.ended == ["old"]
        gate.let_go("new")
        gate.let_go("other")
        await told.seen(JobSuccess, count=3)


async def test_replacing_a_job_that_failed_gives_it_all_its_attempts_back(dsn: str) -> None:
    jobs, gate = Jobs(dsn), Gate()
    job_id = jobs.add("work", "old", job_key="k")
    async with gate.running(dsn) as told:
        await gate.begins("old")
        gate.fail("old")
        await eventually(lambda: jobs.one(job_id)["last_error"] == "old failed")
        assert jobs.add("work", "new", job_key="k") == job_id
        await gate.begins("new")
        job = jobs.one(job_id)
        assert (job["attempts"], job["last_error"], job["revision"]) == (1, None, 1)
        gate.let_go("new")
        await told.seen(JobSuccess)
    assert jobs.ids() == []


async def test_removing_a_running_job_lets_it_end_and_never_tries_it_again(dsn: str) -> None:
    jobs, gate = Jobs(dsn), Gate()
    jobs.add("work", "good", job_key="good")
    bad = jobs.add("work", "bad", job_key="bad")
    async with gate.running(dsn) as told:
        for payload in ("good", "bad"):
            await gate.begins(payload)
            jobs.query("select graphile_worker.remove_job(%s)", payload)
        gate.let_go("good")
        gate.fail("bad")
        await told.seen(JobSuccess)
        await told.seen(JobError)
    (left,) = jobs.all()
    assert left["id"] == bad
    assert left["key"] is None
    assert left["is_available"] is False
    assert left["last_error"] == "bad failed"


async def test_deduplication_leaves_a_running_job_alone(dsn: str) -> None:
    jobs, gate = Jobs(dsn), Gate()
    job_id = jobs.add("work", "old", job_key="k")
    async with gate.running(dsn) as told:
        await gate.begins("old")
        jobs.query(
            "select graphile_worker.add_job('work', '\"new\"', job_key := 'k',"
            " job_key_mode := 'unsafe_dedupe')"
        )
        assert jobs.ids() == [job_id]
        assert jobs.one(job_id)["revision"] == 1
        gate.let_go("old")
        await told.seen(JobSuccess)
    assert gate.begun == ["old"]
    assert jobs.ids() == []


async def test_a_job_that_replaces_itself_runs_again(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("again", 3, job_key="k", queue_name="q")
    seen = []
    told = Told()

    async def again(payload: int, ctx: JobContext) -> None:
        seen.append(payload)
        if payload:
            await ctx.add_job("again", payload - 1, job_key="k", queue_name="q")

    async with Runner(dsn, tasks={"again": again}, poll_interval=3600, events=told.events):
        await told.seen(JobSuccess, count=4)
    assert seen == [3, 2, 1, 0]
    assert jobs.ids() == []
    assert jobs.locked() == []


async def test_replacing_a_job_that_was_fetched_ahead_runs_both(dsn: str) -> None:
    """It is locked, so its replacement is a job of its own; the old one is not lost either."""
    jobs, gate = Jobs(dsn), Gate()
    told = Told()
    jobs.add("work", "running")
    old = jobs.add("work", "held", job_key="k")
    async with Runner(
        dsn,
        tasks={"work": gate.work},
        poll_interval=0.1,
        local_queue=LocalQueueOptions(size=2),
        events=told.events,
    ):
        await told.seen(LocalQueueGetJobsComplete)
        await gate.begins("running")
        assert jobs.one(old)["locked_by"] is not None
        assert jobs.add("work", "new", job_key="k") != old
        for payload in ("running", "held", "new"):
            await gate.begins(payload)
            gate.let_go(payload)
        await told.seen(JobSuccess, count=3)
    assert gate.ended == ["running", "held", "new"]
    assert jobs.ids() == []
