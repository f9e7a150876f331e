"""A pool cancels a job that it runs: the job ends, its row is deleted, its worker goes on."""

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py import JobContext, Part, Plugin, Runner, SyncJobContext, load_tasks
from graphile_worker_py.events import (
    JobCancelled,
    JobError,
    JobStart,
    JobSuccess,
    PoolListenSuccess,
    TaskStuck,
    ThreadStuck,
)
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told


class Reach(Plugin):
    """Gets hold of the pool."""

    pool: Any

    def parts(self, pool: Any) -> Iterable[Part]:
        """No part."""
        self.pool = pool
        return ()


class Case:
    """A job that runs, to be cancelled."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.jobs, self.told, self.reach = Jobs(dsn), Told(), Reach()

    def runner(self, tasks: Any, **options: Any) -> Runner:
        """A runner of one worker."""
        given: Any = {"concurrent_jobs": 1, "hooks": [self.reach], "events": self.told.events}
        return Runner(self.dsn, tasks=tasks, **{**given, **options})

    async def cancelled(self, job_id: int, *, grace: float = 5) -> None:
        """Cancel the job once it runs, and wait until it is gone."""
        await self.told.seen(JobStart)
        await eventually(lambda: job_id in self.reach.pool.running)
        assert self.reach.pool.cancel(job_id, reason="not needed", grace=grace)
        await self.told.seen(JobCancelled)
        await eventually(lambda: job_id not in self.jobs.ids())
        (event,) = self.told.of(JobCancelled)
        assert (event.job.id, event.reason) == (job_id, "not needed")
        assert self.told.of(JobError) == []


@pytest.fixture
def case(dsn: str) -> Case:
    """A job table, and a pool to be reached."""
    return Case(dsn)


async def quick(_payload: Any) -> None:
    """End at once."""


async def test_an_async_task_is_cancelled_and_its_worker_goes_on(case: Case) -> None:
    seen: list[Any] = []

    async def work(_payload: Any, ctx: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append((ctx.cancelled, ctx.abort_reason, ctx.abort_event.is_set()))

    job_id = case.jobs.add("work", queue_name="q")
    async with case.runner({"work": work, "quick": quick}):
        await case.cancelled(job_id)
        case.jobs.add("quick", queue_name="q")
        await case.told.seen(JobSuccess)
    assert seen == [(True, "cancelled", True)]


async def test_an_async_task_that_swallows_it_is_left_behind(case: Case) -> None:
    go_on = asyncio.Event()

    async def work(_payload: Any) -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    job_id = case.jobs.add("work")
    async with case.runner({"work": work, "quick": quick}):
        await case.cancelled(job_id, grace=0.1)
        case.jobs.add("quick")
        await case.told.seen(JobSuccess)
        go_on.set()


async def test_a_task_that_ends_well_after_it_was_cancelled_has_succeeded(case: Case) -> None:
    async def work(_payload: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    job_id = case.jobs.add("work")
    async with case.runner({"work": work}):
        await case.told.seen(JobStart)
        await eventually(lambda: job_id in case.reach.pool.running)
        assert case.reach.pool.cancel(job_id)
        await case.told.seen(JobSuccess)
        await eventually(lambda: case.jobs.ids() == [])
    assert case.told.of(JobCancelled) == []


async def test_a_function_in_a_thread_is_asked_to_end(case: Case) -> None:
    def work(_payload: Any, ctx: SyncJobContext) -> None:
        assert ctx.abort_event.wait(10)
        ctx.raise_if_cancelled()

    job_id = case.jobs.add("work")
    async with case.runner({"work": work}):
        await case.cancelled(job_id)
    assert case.told.of(ThreadStuck) == []


async def test_a_function_that_does_not_listen_is_stuck_after_its_grace(case: Case) -> None:
    go_on = threading.Event()
    job_id = case.jobs.add("work")
    async with case.runner({"work": lambda _: go_on.wait(15), "quick": quick}):
        await case.cancelled(job_id, grace=0.1)
        assert len(case.told.of(ThreadStuck)) == 1
        case.jobs.add("quick")
        await case.told.seen(JobSuccess)
        go_on.set()


async def test_an_executable_is_ended_with_all_that_it_has_started(
    case: Case, tmp_path: Path
) -> None:
    script = tmp_path / "work"
    script.write_text("#!/bin/sh\nsleep 60 &\nwait\n")
    script.chmod(0o755)
    job_id = case.jobs.add("work")
    async with case.runner(load_tasks(tmp_path)):
        await case.cancelled(job_id)


async def test_a_job_that_does_not_run_here_is_not_cancelled(case: Case) -> None:
    async with case.runner({"quick": quick}):
        await case.told.seen(PoolListenSuccess)
        assert case.reach.pool.cancel(5) is False


async def test_a_job_is_cancelled_once(case: Case) -> None:
    async def work(_payload: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)

    job_id = case.jobs.add("work")
    async with case.runner({"work": work}):
        await case.cancelled(job_id)
        assert case.reach.pool.cancel(job_id) is False
    assert case.told.of(TaskStuck) == []
