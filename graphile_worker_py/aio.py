"""Helpers for cancellation and waiting that asyncio lacks."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context
from typing import Any, Final, TypeVar

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Await work to its end, even if the awaiting task is cancelled meanwhile.

    For writes that must not be interrupted. A cancellation is raised after the work has ended,
    unless the work raised an error.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:  # raised below by `result`
            break
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


async def wait_for(event: asyncio.Event, timeout: float | None) -> bool:
    """Wait for an event for at most `timeout` seconds; None waits without limit.

    Returns:
        Whether the event is set.
    """
    if event.is_set():
        return True
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
    return event.is_set()


async def run_to_end(work: Coroutine[Any, Any, T], *, on_cancel: Callable[[], object]) -> T:
    """Await work to its end; if the awaiting task is cancelled, ask the work to stop.

    Each cancellation calls `on_cancel`, which must make the work end. The cancellation is raised
    after the work has ended, unless the work raised an error.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    if cancelled is not None and not task.cancelled() and task.exception() is None:
        raise cancelled
    return task.result()


ENDING: Final = (Exception, SystemExit, asyncio.CancelledError)
"""What code of users may raise without meaning more than itself; see `is_cancelled`."""


def is_cancelled(error: BaseException) -> bool:
    """Whether an error is the cancellation of this asyncio task, and not raised by its code."""
    task = asyncio.current_task()
    is_ours = task is None or task.cancelling() > 0
    return is_ours and isinstance(error, asyncio.CancelledError)


async def awaited(result: Any) -> Any:
    """What a function returned; awaited, as long as it can be."""
    while inspect.isawaitable(result):
        result = await result
    return result


class Crew:
    """The asyncio tasks of one owner, which are cancelled together.

    A TaskGroup waits forever for a task that suppresses its cancellation; a crew gives such a task
    up. Members must handle their own exceptions.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    def start(
        self, work: Coroutine[Any, Any, None], *, name: str, context: Context | None = None
    ) -> "asyncio.Task[None]":
        """Start a member; `context` is for what it runs, None means a copy of the current one."""
        task = asyncio.create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._has_ended)
        return task

    def leave(self, member: "asyncio.Task[None]") -> None:
        """Neither wait for a member nor cancel it."""
        self._has_ended(member)

    async def wait(self) -> None:
        """Wait until all members have ended or were given up."""
        await self._ended.wait()

    async def cancel(self, *, patience: float, pause: float = 1.0) -> list[str]:
        """Cancel all members every `pause` seconds for `patience` seconds, then give up.

        Returns:
            The names of the members that keep running.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while self._tasks and loop.time() < deadline:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=min(pause, patience))
        self._ended.set()
        return [task.get_name() for task in self._tasks]

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._ended.set()


@contextmanager
def keeping_cancellation() -> Iterator[None]:
    """Raise a cancellation at the end of the block if something within has suppressed it.

    Until Python 3.12 `asyncio.wait_for`, which psycopg uses, suppresses a cancellation that arrives
    together with the result.
    """
    block = asyncio.current_task()
    if block is None:
        raise RuntimeError("keeping_cancellation() needs a running task")
    before = block.cancelling()
    yield
    if block.cancelling() > before:
        raise asyncio.CancelledError


@asynccontextmanager
async def until(event: asyncio.Event) -> AsyncIterator[None]:
    """Run the block until it ends or the event is set, which cancels the block and leaves it."""
    block = asyncio.current_task()
    if block is None:
        raise RuntimeError("until() needs a running task")
    before = block.cancelling()
    cut_off = False

    async def watch() -> None:
        nonlocal cut_off
        await event.wait()
        cut_off = True
        block.cancel()

    watcher = asyncio.create_task(watch(), name="until")
    try:
        yield
    except asyncio.CancelledError:
        # Suppressed only if nothing else cancelled the task as well.
        if not cut_off or block.uncancel() > before:
            raise
    else:
        if cut_off:
            block.uncancel()  # the block has suppressed it
    finally:
        watcher.cancel()
        await asyncio.wait([watcher])
