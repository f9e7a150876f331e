"""Async tasks that swallow the cancellation at their time limit, or end too late."""

import asyncio
from typing import Any

import pytest

from graphile_worker_py import JobContext, run_once, task
from graphile_worker_py.events import JobComplete, JobError, JobSuccess, TaskStuck
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told, impatient

pytestmark = pytest.mark.any_server

TOO_LATE = "task 'stubborn' ran longer than its timeout of 0.01 s"


class Stubborn:
    """Code that swallows each cancellation until it is let go."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.ended = 0
        self._gate = asyncio.Event()

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        latest = clock() + 6  # so that a failed test ends
        while not self._gate.is_set() and clock() < latest:
            try:
                async with asyncio.timeout_at(latest):
                    await self._gate.wait()
            except BaseException:  # that is what is wrong with it
                self.cancelled += 1
        self.ended += 1

    def let_go(self) -> None:
        self._gate.set()


async def test_a_result_that_comes_after_the_time_limit_does_not_count(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(2, "stubborn")

    @task(timeout=0.01)
    async def stubborn(payload: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)

    await run_once(dsn, tasks=[stubborn], events=told.events)
    assert not told.of(JobSuccess)
    assert [job["last_error"] for job in jobs.all()] == [TOO_LATE] * 2


async def test_an_error_that_comes_after_the_time_limit_is_the_one_that_is_recorded(
    dsn: str,
) -> None:
    jobs = Jobs(dsn)
    jobs.add("stubborn")

    @task(timeout=0.01)
    async def stubborn(payload: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("could not clean up")

    await run_once(dsn, tasks=[stubborn])
    assert [job["last_error"] for job in jobs.all()] == ["could not clean up"]


@pytest.mark.parametrize("kind", ["task", "batch"])
async def test_a_worker_goes_on_without_a_job_that_swallows_its_cancellations(
    dsn: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told, code = Jobs(dsn), Told(), Stubborn()
    stuck_job = jobs.add("stubborn", [1, 2], max_attempts=1)
    jobs.add("next")

    @task(timeout=0.01)
    async def stubborn(payload: Any) -> Any:
        return [None, code.run()] if kind == "batch" else await code.run()

    async with impatient(overrun=0.05)(
        dsn, tasks=[stubborn, task("next")(print)], events=told.events, poll_interval=3600
    ) as runner:
        success = await told.seen(JobSuccess)
        assert success.job.task_identifier == "next"
        await eventually(lambda: (jobs.one(stuck_job)["last_error"] or "").endswith(TOO_LATE))
        assert [event.job.id for event in told.of(JobError) if type(event) is JobError] == [
            stuck_job
        ]
        assert jobs.one(stuck_job)["json"] == ("[2]" if kind == "batch" else "[1, 2]")
        (event,) = told.of(TaskStuck)
        assert (event.job.id, event.stuck, event.worker_id) == (stuck_job, 1, success.worker_id)
        if kind == "task":
            assert code.cancelled == 2
            assert "await self._gate.wait()" in event.stack
            assert "graphile_worker_py/workers" not in event.stack
        assert f"Job {stuck_job} (stubborn) was cut off, but its task runs on" in caplog.text
        assert _health(runner).stuck_tasks == 1
        code.let_go()
        await eventually(lambda: _health(runner).stuck_tasks == 0)
        await runner.add_job("next")
        await told.seen(JobSuccess, count=2)
    assert code.ended == 1
    assert len(told.of(JobComplete)) == 3
    assert [job["id"] for job in jobs.all()] == [stuck_job]


def _health(runner: Any) -> Any:
    health = runner.health()
    assert health is not None
    return health


@pytest.mark.parametrize("stop", ["stop", "kill"])
async def test_a_stop_does_not_wait_for_a_job_that_is_stuck(dsn: str, stop: str) -> None:
    jobs, told, code = Jobs(dsn), Told(), Stubborn()
    jobs.add("stubborn")

    @task(timeout=0.01)
    async def stubborn(payload: Any) -> None:
        await code.run()

    async with impatient(overrun=0.01)(dsn, tasks=[stubborn], events=told.events) as runner:
        await told.seen(TaskStuck)
        async with asyncio.timeout(3):
            await (runner.stop() if stop == "stop" else runner.kill())
    assert jobs.locked() == []
    code.let_go()
    await eventually(lambda: code.ended)


async def test_a_job_may_clean_up_after_its_time_limit(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("stubborn")
    cleaned: list[str] = []

    @task(timeout=0.01)
    async def stubborn(payload: Any, ctx: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            cleaned.append("up")

    await run_once(dsn, tasks=[stubborn], events=told.events)
    assert cleaned == ["up"]
    assert not told.of(TaskStuck)
    assert [job["last_error"] for job in jobs.all()] == [TOO_LATE]
