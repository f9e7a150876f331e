"""Call plain functions in threads, so that they never block the event loop."""

import asyncio
import queue
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from graphile_worker_py.errors import presentable
from graphile_worker_py.forks import Origin
from graphile_worker_py.processes.interrupts import as_failure

THREAD_NAME: Final = "graphile-worker-py-task"
MOST_STUCK: Final = 32
"""Most functions that may run on after they were cut off; beyond it no more threads are made."""
_JOIN_PATIENCE: Final = 1.0

_Work = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Threads:
    """Threads that are made when needed and used again.

    They are daemon threads, because a function that never returns must not keep the process alive
    after a forced stop. The thread pools of the standard library wait for such a function at exit.

    A thread can't be cut off. If the caller of a function is cancelled, the thread is stuck: the
    function runs on, and another thread takes its place. Once `most_stuck` threads are stuck, no
    more are made, and a caller that needs one waits until a function returns.

    Args:
        most_stuck: See above.

    Attributes:
        origin: The process of the threads; a fork that a function makes ends with the function.
    """

    def __init__(self, *, most_stuck: int = MOST_STUCK) -> None:
        self.most_stuck = most_stuck
        self.origin = Origin()
        self._idle: list[_TaskThread] = []
        self._busy: set[_TaskThread] = set()
        self._stuck: set[_TaskThread] = set()
        self._returned = asyncio.Event()
        self._closed = False

    @property
    def busy(self) -> int:
        """How many functions are running, stuck ones included."""
        return len(self._busy)

    @property
    def stuck(self) -> int:
        """How many functions run on after their callers were cancelled."""
        return len(self._stuck)

    async def run(
        self, function: Callable[[], Any], *, on_stuck: Callable[[], object] | None = None
    ) -> Any:
        """Call a function in a thread.

        If the caller is cancelled, the function runs on to its end, and its result is dropped.

        Args:
            function: What to call.
            on_stuck: Called if the caller is cancelled while the function runs.
        """
        loop = asyncio.get_running_loop()
        while not self._idle and len(self._stuck) >= self.most_stuck:
            self._returned.clear()
            await self._returned.wait()
        done: asyncio.Future[Any] = loop.create_future()
        thread = self._idle.pop() if self._idle else _TaskThread(self, loop)
        self._busy.add(thread)
        thread.submit(function, done)
        try:
            return await done
        except asyncio.CancelledError:
            # The function may have raised it, or have returned in this very moment.
            if done.cancelled() and thread in self._busy:
                self._stuck.add(thread)
                if on_stuck is not None:
                    on_stuck()
            raise

    def release(self, thread: "_TaskThread") -> None:
        """Take back a thread that has finished; called on the loop."""
        self._busy.discard(thread)
        self._stuck.discard(thread)
        self._returned.set()
        if self._closed:
            thread.end()
        else:
            self._idle.append(thread)

    def close(self) -> int:
        """End the idle threads at once, busy ones as soon as their functions return.

        Returns:
            How many threads run on, because their functions have not returned.
        """
        self._closed = True
        idle, self._idle = self._idle, []
        for thread in idle:
            thread.end()
        return len(self._busy)


class _TaskThread:
    """A thread that calls one function after another."""

    def __init__(self, owner: Threads, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """Its number among the threads of the process."""
        return self._thread.ident

    def submit(self, function: Callable[[], Any], done: "asyncio.Future[Any]") -> None:
        self._work.put((function, done))

    def end(self) -> None:
        self._work.put(None)
        self._thread.join(_JOIN_PATIENCE)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            function, done = work
            result, error = None, None
            try:
                try:
                    result = function()
                finally:
                    if self._owner.origin.is_left:
                        self._owner.origin.end()
            except BaseException as raised:  # SystemExit included: it is the task's failure
                error = presentable(raised)
            try:
                self._loop.call_soon_threadsafe(self._finish, done, result, error)
            except RuntimeError:
                return  # the loop is closed
            del function, done, work, result, error

    def _finish(
        self, done: "asyncio.Future[Any]", result: Any, error: BaseException | None
    ) -> None:
        self._owner.release(self)
        if done.done():
            return
        if error is None:
            done.set_result(result)
        elif isinstance(error, StopIteration | GeneratorExit | KeyboardInterrupt):
            # The first two would end the coroutine that awaits the future, the last one the event
            # loop. Ctrl-C raises KeyboardInterrupt in the main thread only.
            done.set_exception(as_failure(error))
        else:
            done.set_exception(error)


def thread_of(frame: FrameType) -> int | None:
    """The number of the thread for which a suspended call of `Threads.run` waits.

    None if the frame is another one's. It is read from there, so that calls need not note it.
    """
    if frame.f_code is not Threads.run.__code__:
        return None
    thread: _TaskThread | None = frame.f_locals.get("thread")
    return None if thread is None else thread.ident
