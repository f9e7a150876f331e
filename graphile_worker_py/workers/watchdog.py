"""Detect a stalled event loop or stalled fetching, and log it or end the process.

A worker whose event loop is stalled looks alive from outside: the process exists and its
connections are open, but no job is done. Only another thread can detect that. This one asks the
loop each second to set a flag, and to report how far the fetching of jobs has come.

Stalled time is counted in checks, not by the clock: a machine that was suspended, or a process that
was stopped for a while, has not stalled. If native code lets no thread run, no check takes place;
then a timer of `faulthandler` ends the process. Its clock stops while a machine is suspended, but
not while a process is stopped (SIGSTOP, a paused container). So a process that may be ended, and
that was stopped for longer than the timer, ends when it is continued.
"""

import asyncio
import faulthandler
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final

from graphile_worker_py.records import Record
from graphile_worker_py.workers.waits import Waits

EXIT_STANDSTILL: Final = 70
"""Exit code of a process that the watchdog ended: EX_SOFTWARE of sysexits.h."""
NATIVE_PATIENCE: Final = 2
"""Factor of the limit after which native code that lets no thread run is ended."""
LOG_PATIENCE: Final = 5.0
"""Seconds that a log record may take to be written."""
JOIN_PATIENCE: Final = 1.0
LAST_FRAMES: Final = 5
"""Frames that are shown where it can't be seen which of them the event loop has called."""
_OURS: Final = str(Path(__file__).parent.parent)
_LOOP: Final = re.compile(r"[/\\](asyncio|uvloop)[/\\]")


class Pace(Record, kw_only=False):
    """How far the fetching of jobs has come.

    Attributes:
        step: Changes with each fetch that begins or ends.
        patience: Seconds for which it may stay the same.
    """

    step: int
    patience: float


class Watchdog:
    """A thread that watches an event loop; it is made, started and closed on that loop.

    Args:
        limit: Seconds until a standstill is logged as an error, or ends the process; 0 means
            never.
        exits: Whether a standstill ends the process, with exit code 70.
        at_work: Returns in words what the asyncio task of a name is doing. Called in the thread.
        fetching: Returns how far fetching has come; None if no fetch is expected. Called on the
            loop.
        logger: Where to log.
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
        self._logged = False
        self._armed_at = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="graphile-worker-py watchdog", daemon=True
        )

    @property
    def standing_still(self) -> bool:
        """Whether there is a standstill of at least the limit."""
        return self._logged

    def start(self) -> None:
        """Start to watch."""
        self._watch_native_code(self._clock())
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
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
            self._log(logging.WARNING, f"The event loop turns again, after {_shown(self._still)}")
        self._still = 0.0
        self._warn_at = self._first_warning
        self._turned = False
        with suppress(RuntimeError):  # the loop was closed in this moment
            self._loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        """Set the flag that the loop is turning; runs on the loop."""
        self._turned = True
        pace = self._fetching()
        if pace is None or pace != self._pace:
            self._fetch_still = 0.0
        self._pace = pace

    def _stand_still(self, passed: float) -> None:
        self._still += passed
        if self._still >= self._warn_at:
            self._warn_at *= 2
            self._log(logging.WARNING, self._standstill(), self._stack())

    def _judge(self) -> None:
        pace = self._pace
        if self._limit == 0:
            return
        if self._still >= self._limit:
            self._give_up(self._standstill(), self._stack())
        elif pace is not None and self._fetch_still >= self._limit + pace.patience:
            unfetched = f"No job was fetched, nor looked for, for {self._fetch_still:.0f} s"
            if self._still >= self._limit / 2:  # then this is the cause
                self._give_up(self._standstill(), self._stack())
            else:
                self._give_up(unfetched)
        else:
            self._logged = False

    def _standstill(self) -> str:
        """What the stalled loop is doing."""
        task = asyncio.current_task(self._loop)
        doing = "a callback" if task is None else self._at_work(task.get_name())
        return f"The event loop has stood still for {_shown(self._still)}, in {doing}:"

    def _stack(self) -> str | None:
        """What the stalled loop has called, the last frame at the end; of tasks only their own."""
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return None
        frames = traceback.extract_stack(frame)
        loops = [at for at, each in enumerate(frames) if _LOOP.search(each.filename)]
        called = (frames[loops[-1] + 1 :] if loops else []) or frames[-LAST_FRAMES:]
        theirs = [at for at, each in enumerate(called) if not each.filename.startswith(_OURS)]
        return "".join(traceback.format_list(called[theirs[0] :] if theirs else called)).rstrip()

    def _give_up(self, why: str, stack: str | None = None) -> None:
        if self._logged:
            return
        self._logged = True
        if not self._exits:
            self._log(logging.ERROR, why, stack)
            return
        self._log(logging.CRITICAL, f"Ending the process. {why}", stack)
        _in_time(logging.shutdown)
        os._exit(EXIT_STANDSTILL)

    def _log(self, level: int, message: str, stack: str | None = None) -> None:
        if not self._logger.isEnabledFor(level):
            return
        record = self._logger.makeRecord(
            self._logger.name, level, __file__, 0, "%s", (message,), None,
            extra=self._about, sinfo=stack,
        )  # fmt: skip
        # The loop may be stalled because the reader of the log has stopped reading.
        _in_time(lambda: self._logger.handle(record))

    def _watch_native_code(self, now: float) -> None:
        """Set a timer that ends the process even if Python code no longer runs."""
        if self._exits and now - self._armed_at >= self._look_every:
            # faulthandler needs a standard error for the stacks.
            with suppress(AttributeError, OSError, RuntimeError, ValueError):
                faulthandler.dump_traceback_later(NATIVE_PATIENCE * self._limit, exit=True)
                self._armed_at = now


def _shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"


def _in_time(log: Callable[[], object]) -> None:
    """Call a function in another thread, and wait for `LOG_PATIENCE` seconds at most."""
    thread = threading.Thread(target=log, name="graphile-worker-py watchdog", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # The system has no more threads. If this blocks, the timer still ends the process.
        log()
    else:
        thread.join(LOG_PATIENCE)
