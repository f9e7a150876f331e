"""Where plain functions are called: on the loop, or in threads that can't be cut off."""

import asyncio
import inspect
import logging
import threading
from typing import Any

import pytest

from graphile_worker_py import JobContext, Runner, run_once, task
from graphile_worker_py.events import JobError, JobReturned, JobStart, ThreadStuck
from graphile_worker_py.executors.thread import MOST_STUCK, THREAD_NAME, Threads
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

# On the loop.


async def test_an_inline_function_runs_on_the_loop_with_the_context_of_an_async_one(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    for name in ("alone", "with_context", "nothing"):
        jobs.add(name, 1)
    seen: list[Any] = []

    @task(executor="inline")
    def alone(payload: int) -> None:
        seen.append((payload, threading.current_thread(), asyncio.get_running_loop()))

    @task(executor="inline")
    def with_context(payload: int, ctx: JobContext) -> Any:
        seen.append(type(ctx))
        return ctx.add_job("later", run_at=ctx.job.run_at)  # what it returns is awaited

    @task(executor="inline")
    def nothing() -> None:
        seen.append("nothing")

    await run_once(dsn, tasks=[alone, with_context, nothing], events=told.events)
    here = (1, threading.current_thread(), asyncio.get_running_loop())
    assert seen == [here, JobContext, "nothing"]
    assert [job["task_identifier"] for job in jobs.all()] == ["later"]
    assert not told.of(JobError)


async def test_an_inline_function_fails_like_any_other_and_takes_batch_jobs(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    failing = jobs.add("fail", max_attempts=1)
    batch = jobs.add("batch", [1, 0], max_attempts=1)

    @task(executor="inline")
    def fail(payload: Any) -> None:
        raise ValueError("no")

    @task(executor="inline")
    def batch_(payload: list[int]) -> list[Any]:
        async def divide(item: int) -> None:
            assert 1 / item

        return [divide(item) for item in payload]

    await run_once(dsn, tasks=[fail, batch_.renamed("batch")], events=told.events)
    assert jobs.one(failing)["last_error"] == "no"
    assert jobs.one(batch)["json"] == "[0]"


# In threads.


class Blocking:
    """Functions that do not return before they are let go."""

    def __init__(self) -> None:
        self.gates: list[threading.Event] = []
        self._are_free = False

    def __call__(self) -> int:
        gate = threading.Event()
        self.gates.append(gate)
        if not self._are_free:
            gate.wait(15)
        return len(self.gates)

    def let_all_go(self) -> None:
        self._are_free = True  # first, for one may be about to begin
        for gate in self.gates:
            gate.set()


def threads() -> int:
    return sum(thread.name == THREAD_NAME for thread in threading.enumerate())


async def test_a_thread_that_nobody_waits_for_is_stuck_until_its_function_returns() -> None:
    executor, blocking = Threads(), Blocking()
    told: list[int] = []
    running = asyncio.create_task(
        executor.run(blocking, on_stuck=lambda: told.append(executor.stuck))
    )
    await eventually(lambda: blocking.gates)
    assert (executor.busy, executor.stuck) == (1, 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (executor.busy, executor.stuck, told) == (1, 1, [1])
    # Others do not have to wait for it.
    assert await executor.run(lambda: "next") == "next"
    blocking.let_all_go()
    await eventually(lambda: executor.busy == executor.stuck == 0)
    executor.close()


async def test_a_function_that_raises_a_cancellation_is_not_stuck() -> None:
    executor = Threads()
    told: list[None] = []

    def cancel() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await executor.run(cancel, on_stuck=lambda: told.append(None))
    assert (executor.busy, executor.stuck, told) == (0, 0, [])
    executor.close()


async def test_with_too_many_stuck_threads_no_more_are_made_until_one_returns() -> None:
    executor, blocking = Threads(most_stuck=2), Blocking()
    for count in (1, 2):
        running = asyncio.create_task(executor.run(blocking))
        await eventually(lambda count=count: len(blocking.gates) == count)  # type: ignore[misc]
        running.cancel()
        await asyncio.wait([running])
    waiting = [asyncio.create_task(executor.run(lambda: "ran")) for _ in range(3)]
    impatient = asyncio.create_task(executor.run(lambda: "ran"))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait([impatient])
    assert (executor.busy, executor.stuck, threads()) == (2, 2, 2)
    assert not any(each.done() for each in waiting)
    blocking.gates[0].set()
    assert [await each for each in waiting] == ["ran"] * 3
    assert executor.stuck == 1
    assert threads() <= 4
    blocking.let_all_go()
    await eventually(lambda: executor.busy == 0)
    executor.close()


async def test_a_plain_task_that_runs_on_after_its_timeout_is_told_and_counted(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("block", max_attempts=1)
    blocking = Blocking()

    @task(timeout=0.05)
    def block(payload: Any) -> None:
        blocking()

    with caplog.at_level(logging.WARNING):
        await run_once(dsn, tasks=[block], events=told.events)
    (stuck,) = told.of(ThreadStuck)
    assert (stuck.job.id, stuck.stuck, stuck.most_stuck) == (job_id, 1, MOST_STUCK)
    assert f"Job {job_id} (block) was cut off, but its function keeps running" in caplog.text
    assert jobs.one(job_id)["last_error"] == "task 'block' ran longer than its timeout of 0.05 s"
    blocking.let_all_go()
    await eventually(lambda: threads() == 0)


async def test_a_plain_task_that_runs_on_at_a_forced_stop_is_told(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("block")
    blocking = Blocking()
    async with Runner(dsn, tasks={"block": lambda _: blocking()}, events=told.events) as runner:
        await told.seen(JobStart)
        await eventually(lambda: blocking.gates)
        await runner.kill()
    assert len(told.of(ThreadStuck)) == len(told.of(JobReturned)) == 1
    blocking.let_all_go()
    await eventually(lambda: threads() == 0)


def test_the_settings_of_a_task_tell_where_it_is_called() -> None:
    async def modern() -> None: ...

    def plain() -> None: ...

    assert task(modern).executor is None
    assert task(plain).executor == "thread"
    inline = task(executor="inline")(plain)
    assert (inline.executor, inline.is_inline, inline.is_process) == ("inline", True, False)
    assert not inspect.iscoroutinefunction(inline.function)
