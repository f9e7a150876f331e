"""Cut off jobs that run longer than the timeout of their task."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from graphile_worker_py.errors import TaskTimeoutError
from graphile_worker_py.tasks.context import RunningJob

T = TypeVar("T")


def with_time_limit(
    call: Callable[[RunningJob], Awaitable[T]], timeout: float
) -> Callable[[RunningJob], Awaitable[T]]:
    """The same call, cut off after some seconds."""

    def limited(running: RunningJob) -> Awaitable[T]:
        running.deadline = asyncio.get_running_loop().time() + timeout
        return in_time(running, call(running))

    return limited


async def in_time(running: RunningJob, work: Awaitable[T]) -> T:
    """Await work for a job, and cancel it at the job's time limit, if there is one.

    Raises:
        TaskTimeoutError: It was cut off.
    """
    if running.deadline is None:
        return await work
    try:
        async with asyncio.timeout_at(running.deadline) as limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        task = running.task
        raise TaskTimeoutError(
            f"task {task.identifier!r} ran longer than its timeout of {task.timeout:g} s"
        ) from error
