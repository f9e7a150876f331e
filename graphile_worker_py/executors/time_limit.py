"""Cut off jobs that run longer than the timeout of their task."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

from graphile_worker_py import events
from graphile_worker_py.errors import TaskTimeoutError
from graphile_worker_py.events import Events
from graphile_worker_py.tasks.context import RunningJob

T = TypeVar("T")

_PACKAGE: Final = str(Path(__file__).parent.parent)


class TimeLimits:
    """Cuts off jobs in time, and knows those that run on nevertheless.

    A job is cancelled at its time limit. If it has not ended after `patience` seconds, it is
    cancelled again. If it has not ended after the same time once more, it has failed, and its
    worker goes on without it.

    Args:
        observed: Where to report jobs that run on.
        patience: Seconds that a cancelled job gets to end.
    """

    def __init__(self, observed: Events, *, patience: float) -> None:
        self.patience = patience
        self._events = observed
        self._stuck: set[asyncio.Task[Any]] = set()

    @property
    def stuck(self) -> int:
        """How many jobs run on after their workers went on without them."""
        return len(self._stuck)

    def limited(
        self, call: Callable[[RunningJob], Awaitable[T]], timeout: float
    ) -> Callable[[RunningJob], Awaitable[T]]:
        """The same call, cut off after some seconds."""

        def limited_call(running: RunningJob) -> Awaitable[T]:
            running.deadline = asyncio.get_running_loop().time() + timeout
            return self.in_time(running, call(running))

        return limited_call

    async def in_time(
        self,
        running: RunningJob,
        work: Awaitable[T],
        *,
        failure: Callable[[TaskTimeoutError], BaseException] = lambda error: error,
    ) -> T:
        """Await work for a job, and cancel it at the job's time limit, if there is one.

        Args:
            running: The job.
            work: What to await.
            failure: Makes the failure of the job, if its worker goes on without it.

        Raises:
            TaskTimeoutError: It did not end in time. What it returned too late does not count.
        """
        if running.deadline is None:
            return await work
        cut = _Cut(running, partial(self._leave, running, failure), patience=self.patience)
        try:
            result = await work
        except asyncio.CancelledError as error:
            if cut.end():
                raise too_late(running) from error
            raise
        except BaseException:
            cut.end()
            raise
        if cut.end():
            raise too_late(running)
        return result

    def _leave(
        self,
        running: RunningJob,
        failure: Callable[[TaskTimeoutError], BaseException],
        task: "asyncio.Task[Any]",
    ) -> None:
        """Let the worker of a job go on without it."""
        self._stuck.add(task)
        task.add_done_callback(self._stuck.discard)
        self._events.emit(
            events.TaskStuck(
                pool_id=running.pool.pool_id,
                worker_id=running.worker_id,
                job=running.job,
                stuck=self.stuck,
                stack=stack_of(task.get_coro()),
            )
        )
        running.leave(failure(too_late(running)))


class _Cut:
    """Cancels the asyncio task that made it at a job's time limit, until it is ended."""

    def __init__(
        self,
        running: RunningJob,
        leave: Callable[["asyncio.Task[Any]"], None],
        *,
        patience: float,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # jobs run in one
        assert running.deadline is not None  # noqa: S101  # asked by the caller
        self._task = task
        self._leave = leave
        self._patience = patience
        self._cancelled = 0
        self._others = task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(running.deadline, self._cancel)

    def end(self) -> bool:
        """Cancel no more; returns whether this, and nothing else, has cancelled the task."""
        self._timer.cancel()
        for _ in range(self._cancelled):
            self._task.uncancel()
        return self._cancelled > 0 and self._task.cancelling() <= self._others

    def _cancel(self) -> None:
        self._cancelled += 1
        self._task.cancel()
        following = self._cancel if self._cancelled < 2 else self._give_up
        self._timer = self._loop.call_later(self._patience, following)

    def _give_up(self) -> None:
        self._leave(self._task)


def too_late(running: RunningJob) -> TaskTimeoutError:
    """The failure of a job that ran longer than it may."""
    task = running.task
    return TaskTimeoutError(
        f"task {task.identifier!r} ran longer than its timeout of {task.timeout:g} s"
    )


def stack_of(coroutine: Any) -> str:
    """Where a coroutine waits, as lines of a traceback, without the frames of this package."""
    frames: list[tuple[FrameType, int]] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            frames.append((frame, frame.f_lineno))
        coroutine = coroutine.cr_await
    return "".join(traceback.StackSummary.extract(iter(frames)).format())
