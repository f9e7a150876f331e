"""What an attempt logs, kept as text: by `ctx.logger`, and by other loggers in its context."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from graphile_worker_py.history.texts import LONGEST_TEXT


class _Format(logging.Formatter):
    """Times in UTC."""

    converter = staticmethod(time.gmtime)


_FORMAT: Final = _Format("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
_HALF: Final = LONGEST_TEXT // 2
_SEEN: Final = "_in_history"
"""Attribute of records that were captured: each pool of the process has a handler."""


class LogCapture:
    """Keeps what one attempt of a job logs: the begin and the end, if it is long.

    Args:
        level: The lowest level that is kept.
    """

    def __init__(self, level: int) -> None:
        self.level = level
        self._first: list[str] = []
        self._room = _HALF
        self._last: deque[str] = deque()
        self._size = 0
        self._missing = 0
        self._turn = threading.Lock()

    def add(self, record: logging.LogRecord) -> None:
        """Keep a record once, if its level is high enough."""
        if record.levelno < self.level or hasattr(record, _SEEN):
            return
        setattr(record, _SEEN, True)
        try:
            line = _FORMAT.format(record)
        except Exception:  # arguments that do not fit the message; `logging` reports that
            line = str(record.msg)
        with self._turn:
            if not self._last and len(line) < self._room:
                self._first.append(line)
                self._room -= len(line) + 1
            else:
                self._last.append(line[-_HALF:])
                self._size += len(self._last[-1]) + 1
            while self._size > _HALF + 1:
                self._size -= len(self._last.popleft()) + 1
                self._missing += 1

    def text(self) -> str | None:
        """What was kept; None if nothing was logged."""
        with self._turn:
            gap = [f"… {self._missing} records are missing …"] if self._missing else []
            return "\n".join([*self._first, *gap, *self._last]) or None


_CAPTURE: Final[ContextVar[LogCapture | None]] = ContextVar("history_capture", default=None)


@contextmanager
def captured(capture: LogCapture) -> Iterator[None]:
    """Keep what is logged in the block, and in threads and asyncio tasks that it starts."""
    token = _CAPTURE.set(capture)
    try:
        yield
    finally:
        _CAPTURE.reset(token)


class CaptureHandler(logging.Handler):
    """Passes records to the attempt in whose context they were made.

    Those of `ctx.logger` are passed by itself, whatever levels are logged; they name the job.
    """

    def emit(self, record: logging.LogRecord) -> None:
        capture = _CAPTURE.get()
        if capture is not None and not hasattr(record, "job_id"):
            capture.add(record)
