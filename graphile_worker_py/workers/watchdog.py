"""Notice that nothing moves any more, and say so, or end the process.

A worker whose event loop stands still looks alive from outside: the process is there, its
connections are open, and no job is done. Only another thread can see it. This one asks the loop
each second for a sign of life, and with it how the fetching of jobs goes on.

Time counts by looks, not by the clock: a machine that was suspended, or a process that was stopped
for a while, has not stood still. Native code that lets no thread run is different: nobody looks
then, and a timer of faulthandler's ends the process. That one goes by a clock which stands still
while a machine is suspended, but not while a process is stopped (SIGSTOP, a paused container). So a
process that may be ended, and was stopped for longer than that, ends when it is to go on.
"""

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from graphile_worker_py.workers.waits import Waits

EXIT_STANDSTILL: Final = 70
"""Exit code of a process that was ended because nothing moved: EX_SOFTWARE of sysexits.h."""
NATIVE_PATIENCE: Final = 2
"""So many times the limit is given to native code that lets no other thread run."""
TELL_PATIENCE: Final = 5.0
JOIN_PATIENCE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How far the fetching of jobs has come.

    Attributes:
        step: Another number means that something has happened.
        patience: Seconds for which it is right that nothing does.
    """

    step: int
    patience: float


class Watchdog:
    """A thread that watches an event loop. Made, started and closed on that loop.

    Args:
        limit: Seconds of standstill until it is told as an error, or ends the process; 0 for never.
        exits: Whether to end the process then, with exit code 70.
        at_work: Says in words what an asyncio task, by its name, is doing. Called in the thread.
        fetching: Says on the loop how far the fetching of jobs is; None if there is none to be.
        logger: Where to tell.
        about: Fields for log records.
        waits: How often it looks, and when it first warns.
        clock: Seconds that only ever go up.
    """

    def __init__(
        self,
        *,
        limit: float,
        exits: bool,
        at_work: Callable[[str], str],
        fetching: Callable[[], Pace | None],
        logger: logging.Logger,
        about: dict[str, Any],
        waits: Waits,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._limit = limit
        self._exits = exits and limit > 0
        self._at_work = at_work
        self._fetching = fetching
        self._logger = logger
        self._about = about
        self._clock = clock
        self._look_every = min(waits.look, limit / 4) if limit > 0 else waits.look
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._turned = True
        self._pace: Pace | None = None
        self._still = 0.0
        self._first_warning = self._warn_at = waits.first_warning
        self._fetch_still = 0.0
        self._told = False
        self._armed_at = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="graphile-worker-py watchdog", daemon=True
        )

    @property
    def standing_still(self) -> bool:
        """Whether the limit is reached, and the process goes on nevertheless."""
        return self._told

    def start(self) -> None:
        """Begin to watch."""
        self._watch_native_code(self._clock())
        self._thread.start()

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        self._thread.join(JOIN_PATIENCE)

    def _watch(self) -> None:
        looked_at = self._clock()
        while not self._closed.wait(self._look_every):
            now = self._clock()
            passed, looked_at = min(now - looked_at, 2 * self._look_every), now
            self._watch_native_code(now)
            if self._loop.is_closed():
                break
            if self._turned:
                self._move_on()
            else:
                self._stand_still(passed)
            self._fetch_still += passed
            self._judge()
        if self._armed_at:
            faulthandler.cancel_dump_traceback_later()

    def _move_on(self) -> None:
        if self._still >= self._first_warning:
            self._tell(logging.WARNING, f"The event loop turns again, after {self._still:.0f} s")
        self._still = 0.0
        self._warn_at = self._first_warning
        self._turned = False
        with suppress(RuntimeError):  # the loop was closed in this very moment
            self._loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        """Give a sign of life; runs on the loop."""
        self._turned = True
        pace = self._fetching()
        if pace is None or pace != self._pace:
            self._fetch_still = 0.0
        self._pace = pace

    def _stand_still(self, passed: float) -> None:
        self._still += passed
        if self._still >= self._warn_at:
            self._warn_at *= 2
            self._tell(logging.WARNING, self._standstill())

    def _judge(self) -> None:
        pace = self._pace
        if self._limit == 0:
            return
        if self._still >= self._limit:
            self._give_up(self._standstill())
        elif pace is not None and self._fetch_still >= self._limit + pace.patience:
            self._give_up(f"No job was fetched, nor looked for, for {self._fetch_still:.0f} s")
        else:
            self._told = False

    def _standstill(self) -> str:
        """What the loop does instead of turning, with its stack."""
        frame = sys._current_frames().get(self._loop_thread)
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        task = asyncio.current_task(self._loop)
        doing = "a callback" if task is None else self._at_work(task.get_name())
        return f"The event loop has stood still for {self._still:.0f} s, in {doing}:\n{stack}"

    def _give_up(self, why: str) -> None:
        if self._told:
            return
        self._told = True
        if not self._exits:
            self._tell(logging.ERROR, why)
            return
        self._tell(logging.CRITICAL, f"Ending the process. {why}")
        _in_time(logging.shutdown)
        os._exit(EXIT_STANDSTILL)

    def _tell(self, level: int, message: str) -> None:
        # The loop may stand still because nobody reads the log any more.
        _in_time(lambda: self._logger.log(level, "%s", message, extra=self._about))

    def _watch_native_code(self, now: float) -> None:
        """Set a timer that ends the process even if no Python code runs any more."""
        if self._exits and now - self._armed_at >= self._look_every:
            # It needs a standard error to write the stacks to.
            with suppress(AttributeError, OSError, RuntimeError, ValueError):
                faulthandler.dump_traceback_later(NATIVE_PATIENCE * self._limit, exit=True)
                self._armed_at = now


def _in_time(tell: Callable[[], object]) -> None:
    """Call it in a thread of its own, and do not wait for long."""
    thread = threading.Thread(target=tell, name="graphile-worker-py watchdog", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # The system has no more threads for us. Should this block, there is still the timer.
        tell()
    else:
        thread.join(TELL_PATIENCE)
