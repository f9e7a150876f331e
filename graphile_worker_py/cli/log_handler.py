"""A log handler that never blocks the worker for long, even if its reader has stopped reading."""

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 0.2
"""Seconds to wait for a reader that has fallen behind, before lines are dropped."""


class PatientHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes lines to stderr. If the reader of a pipe stops reading, lines are dropped and counted.

    A blocked write would stop the event loop, and with it the heartbeat and the handling of
    signals. While the pipe is full, lines are dropped at once. When the reader reads again, a line
    says how many are lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self._write: Callable[[bytes], int] | None = _writer(self.stream)
        self._rest = b""
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or drop it if the reader does not read."""
        if self._write is None:
            super().emit(record)
            return
        try:
            line = f"{self.format(record)}{self.terminator}"
            self._send(line.encode(errors="backslashreplace"), self._write)
        except BrokenPipeError:
            self._rest = b""  # the reader has ended; the worker goes on
        except Exception:  # as every handler does
            self.handleError(record)

    def _send(self, line: bytes, write: Callable[[bytes], int]) -> None:
        is_stuck = bool(self._rest or self._lost)
        # The rest of a line goes first, so that no line begins within another.
        head = self._rest
        if self._lost:
            text = f"{self._lost} log line(s) were dropped, because nothing read the log"
            head += f"{text}{self.terminator}".encode()
        pending = head + line
        sent = _write_all(pending, write, patience=0 if is_stuck else PATIENCE)
        if sent > len(head) or sent == len(pending):
            self._rest, self._lost = pending[sent:], 0
        elif sent > len(self._rest):
            self._rest, self._lost = head[sent:], 1
        else:
            self._rest, self._lost = self._rest[sent:], self._lost + 1


def _write_all(data: bytes, write: Callable[[bytes], int], *, patience: float) -> int:
    """Write as much as possible; returns the number of bytes that were written."""
    deadline = time.monotonic() + patience
    sent = 0
    while sent < len(data):
        try:
            sent += write(data[sent:])
        except BlockingIOError:
            if time.monotonic() >= deadline:
                break
            time.sleep(0.005)
    return sent


def _writer(stream: object) -> Callable[[bytes], int] | None:
    """A function that writes to the file of a stream without blocking; None if it never blocks."""
    try:
        number: int = stream.fileno()  # type: ignore[attr-defined]
        mode = os.fstat(number).st_mode
    except (AttributeError, OSError, ValueError):
        return None
    if stat.S_ISSOCK(mode):
        return _socket_writer(number)
    if stat.S_ISFIFO(mode):
        # The mode of the open file is shared with other processes; a second open file is our own.
        with contextlib.suppress(OSError):
            own = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return lambda data: os.write(own, data)
    if stat.S_ISFIFO(mode) or os.isatty(number):
        return lambda data: _write_if_ready(number, data)
    return None


def _socket_writer(number: int) -> Callable[[bytes], int]:
    own = socket.socket(fileno=os.dup(number))
    return lambda data: own.send(data, socket.MSG_DONTWAIT)


def _write_if_ready(number: int, data: bytes) -> int:
    """Write no more than a file that is ready takes at once."""
    _, ready, _ = select.select([], [number], [], 0)
    if not ready:
        raise BlockingIOError(errno.EAGAIN, "not ready")
    return os.write(number, data[: select.PIPE_BUF])
