"""Signals that end the process: the first one stops, the second one kills."""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Final

logger = logging.getLogger(__name__)

ENDING: Final = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2", "SIGBREAK")
    if hasattr(signal, name)
)
"""Graphile Worker's signals, as far as the platform has them. It also takes SIGABRT, which in a
Python process means that native code has failed; that one keeps its own meaning."""

REPEAT_WINDOW: Final = 0.3
"""Seconds in which a signal that comes again is taken for the same one: a terminal and a process
manager may both hand on one Ctrl-C."""


@contextmanager
def handle_signals(
    *, stop: Callable[[str], object], kill: Callable[[str], object]
) -> Iterator[None]:
    """Call `stop` at the first signal and `kill` at the second, each with the signal's name.

    Several runners in one process are all told. Outside of the main thread, where Python allows
    no handlers, nothing is handled.
    """
    if threading.current_thread() is not threading.main_thread():
        logger.warning("Not in the main thread: signals do not stop this worker")
        yield
        return
    handler = _Handler(stop, kill)
    for number in ENDING:
        previous: Any = signal.signal(number, handler)
        handler.previous[number] = previous
    try:
        yield
    finally:
        handler.ended = True
        for number in ENDING:
            # Another runner may have put its handler on top; it will pass over ours.
            current: object = signal.getsignal(number)
            if current is handler:
                signal.signal(number, handler.below(number))


def pass_on(name: str, *, force: bool) -> bool:
    """Tell the runners of this process to stop, or to be forced to, as a signal would.

    For what is told by other means than signals. It does not count as one: what is meant by both
    is obeyed once.

    Returns:
        Whether there is a runner.
    """
    handler: object = signal.getsignal(signal.SIGTERM)
    if not isinstance(handler, _Handler):
        return False
    handler.pass_on(name, force=force)
    return True


class _Handler:
    """A signal handler that passes each signal on to the handler of the runner before it."""

    def __init__(self, stop: Callable[[str], object], kill: Callable[[str], object]) -> None:
        self._stop = stop
        self._kill = kill
        self._loop = asyncio.get_running_loop()
        self._first_at: float | None = None
        self._stopped = False
        self.previous: dict[int, Any] = {}
        self.ended = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        below = self.below(number)
        if isinstance(below, _Handler) or (self.ended and callable(below)):
            below(number, frame)
        if not self.ended:
            # The loop may be in the middle of anything; it takes the news when it comes round.
            self._loop.call_soon_threadsafe(self._take, signal.Signals(number).name)

    def pass_on(self, name: str, *, force: bool) -> None:
        """Tell this runner, and those before it."""
        below = self.below(signal.SIGTERM)
        if isinstance(below, _Handler):
            below.pass_on(name, force=force)
        if not self.ended:
            self._loop.call_soon_threadsafe(partial(self._obey, name, force=force))

    def below(self, number: int) -> Any:
        """The handler before this one, those of runners that have ended left out."""
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
