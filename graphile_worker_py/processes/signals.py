"""Signals that end the process: the first one stops, the second one kills."""

import asyncio
import atexit
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Final

from graphile_worker_py.processes.early import ENDING, end_by

logger = logging.getLogger(__name__)

REPEAT_WINDOW: Final = 0.3
"""Seconds during which a repeated signal counts as the same signal: a terminal and a process
manager may both forward one Ctrl-C."""
STORM: Final = 3
"""This number of signals is a storm, whose rest is ignored after the end of a runner."""


@contextmanager
def handle_signals(
    *, stop: Callable[[str], object], kill: Callable[[str], object]
) -> Iterator[None]:
    """Call `stop` at the first signal and `kill` at the second, each with the signal's name.

    All runners of a process receive each signal, and so do handlers of the program, such as those
    of a web server. Outside of the main thread Python allows no handlers, so signals are not
    handled.
    """
    if threading.current_thread() is not threading.main_thread():
        logger.warning("Not in the main thread: signals do not stop this worker")
        yield
        return
    _restore_in_forks()
    handler = _Handler(stop, kill)
    for number in ENDING:
        before: Any = signal.getsignal(number)
        if before is None:  # installed by native code, and could not be restored
            continue
        handler.previous[number] = before.previous[number] if isinstance(before, _Late) else before
        signal.signal(number, handler)
    try:
        yield
    finally:
        handler.end()


def pass_on(name: str, *, force: bool) -> bool:
    """Stop the runners of this process, or force them to stop, for a reason other than a signal.

    It does not count as a signal: if a signal requests the same, the runners stop once.

    Returns:
        Whether there is a runner.
    """
    handler: object = signal.getsignal(signal.SIGTERM)
    if not isinstance(handler, _Handler):
        return False
    handler.pass_on(name, force=force)
    return True


@functools.cache
def _restore_in_forks() -> None:
    """Let a process that a task forks have the handlers from before, so that it can be ended."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_restore)


_forking = threading.local()


def _block() -> None:
    # So that no signal is lost between the fork and the new handlers.
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _restore() -> None:
    for number in ENDING:
        handler: Any = signal.getsignal(number)
        while isinstance(handler, _Handler | _Late):
            handler = handler.previous[number]
        signal.signal(number, handler)
    _unblock()


class _Handler:
    """A signal handler that also calls the handler before it: another runner's or the program's."""

    def __init__(self, stop: Callable[[str], object], kill: Callable[[str], object]) -> None:
        self._stop = stop
        self._kill = kill
        self._loop = asyncio.get_running_loop()
        self._first_at: float | None = None
        self._stopped = False
        self.previous: dict[int, Any] = {}
        self._last_at = 0.0
        self._count = 0
        self.ended = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._last_at = time.monotonic()
        self._count += 1
        if not self.ended:
            # The loop may be at any point; it handles the signal in its next turn.
            self._loop.call_soon_threadsafe(self._take, signal.Signals(number).name)
        below = self.below(number)
        if callable(below) and (self.ended or not _is_default(below)):
            below(number, frame)

    def end(self) -> None:
        """Give the signals back to the handlers from before."""
        self.ended = True
        late = None
        if self._count:
            late = _Late(self._loop, self._last_at, in_storm=self._count >= STORM)
        for number in ENDING:
            # The handler of another runner may be on top; it skips this one.
            current: object = signal.getsignal(number)
            if current is not self:
                continue
            below = self.below(number)
            if late is not None and _is_default(below):
                late.previous[number] = below
                below = late
            signal.signal(number, below)

    def pass_on(self, name: str, *, force: bool) -> None:
        """Stop this runner and the runners before it."""
        below = self.below(signal.SIGTERM)
        if isinstance(below, _Handler):
            below.pass_on(name, force=force)
        if not self.ended:
            self._loop.call_soon_threadsafe(partial(self._obey, name, force=force))

    def below(self, number: int) -> Any:
        """The handler before this one, without those of runners that have ended."""
        previous = self.previous[number]
        while isinstance(previous, _Handler) and previous.ended:
            previous = previous.previous[number]
        return previous

    def _take(self, name: str) -> None:
        now = self._loop.time()
        if self._first_at is None:
            self._first_at = now
            self._obey(name, force=False)
        elif now - self._first_at > REPEAT_WINDOW:
            self._obey(name, force=True)

    def _obey(self, name: str, *, force: bool) -> None:
        if force:
            self._kill(name)
        elif not self._stopped:
            self._stopped = True
            self._stop(name)


class _Late:
    """Ignores signals that follow on those that stopped a runner, and would change how it ended.

    It ignores the rest of a storm, and signals during the end of the process. Other signals, and
    signals after a pause, have the effect that they had before the runner.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, last_at: float, *, in_storm: bool) -> None:
        self.previous: dict[int, Any] = {}
        self._loop = loop
        self._last_at = last_at
        self._in_storm = in_storm
        atexit.register(self._ignore_at_exit)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        is_ending = not self._loop.is_running()
        if now - self._last_at <= REPEAT_WINDOW and (self._in_storm or is_ending):
            self._last_at = now
            return
        previous = self.previous[number]
        signal.signal(number, previous)
        if callable(previous):
            previous(number, frame)
        else:
            signal.raise_signal(number)

    def _ignore_at_exit(self) -> None:
        # The interpreter restores the default actions while it ends.
        for number in self.previous:
            current: object = signal.getsignal(number)
            if current is self:
                signal.signal(number, signal.SIG_IGN)


def _is_default(handler: object) -> bool:
    """Whether a handler only ends the process or the main task, as without any handler."""
    if isinstance(handler, partial):  # asyncio's own handler of SIGINT
        return isinstance(getattr(handler.func, "__self__", None), asyncio.Runner)
    return handler in (None, signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, end_by)
