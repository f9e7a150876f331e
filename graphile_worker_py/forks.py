"""Detect that this process is a fork of the one in which something was made."""

import asyncio
import os
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, Protocol


class _Connection(Protocol):
    @property
    def closed(self) -> bool: ...
    @property
    def pgconn(self) -> Any: ...

    def fileno(self) -> int: ...


_origins: "weakref.WeakSet[Origin]" = weakref.WeakSet()
_kept: dict[int, _Connection] = {}


class Unsendable:
    """What uses connections of its process: it can't be pickled, for another one."""

    _send_instead: ClassVar[str]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} can't be pickled or copied, because it uses connections of "
            f"this process: send {self._send_instead}"
        )


class Origin:
    """The process in which something was made, such as a worker pool.

    A fork has a copy of everything, but sockets, pipes and what an event loop waits for are shared
    with the process it was forked from. So it must not use them.

    Args:
        loop: An event loop that must not go on in a fork: the fork ends when the loop gets its next
            turn. None means none.

    Attributes:
        is_left: Whether this process is a fork, so that the origin is another process.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.is_left = False
        self._loop = loop
        self._thread = threading.get_ident()
        _origins.add(self)

    def end(self) -> NoReturn:
        """End the fork without cleaning up, because what it would clean up is not its own.

        The exit status is that of a program that ends now: by an error, `sys.exit` or neither.
        """
        error = sys.exception()
        if isinstance(error, SystemExit):
            # As in Python: None is a success, and what is no number an error.
            status = 0 if error.code is None else error.code
            os._exit(status & 0xFF if isinstance(status, int) else 1)
        os._exit(0 if error is None else 1)

    def leave(self) -> None:
        """Note that this process is a fork."""
        self.is_left = True
        # Forked by another thread, the loop has no thread to run in.
        if self._loop is None or self._loop.is_closed() or self._thread != threading.get_ident():
            return
        self._loop.call_soon(os._exit, 1)
        ready = getattr(self._loop, "_ready", None)  # not every loop has one
        if ready is not None:
            ready.rotate(1)  # before what was to be called next


@contextmanager
def ending_forks() -> Iterator[None]:
    """End a fork that leaves the block, which is for the process that has entered it to leave."""
    origin = Origin()
    try:
        yield
    finally:
        if origin.is_left:
            origin.end()


@contextmanager
def kept_from_forks(conn: _Connection) -> Iterator[None]:
    """Let no fork send anything by a connection, for the block, such as a commit or its end.

    A fork that leaves the block ends.
    """
    _kept[id(conn)] = conn
    try:
        with ending_forks():
            yield
    finally:
        del _kept[id(conn)]


def _cut_off(conn: _Connection) -> None:
    """Close a connection in this process only: what that sends leads nowhere."""
    if conn.closed:
        return
    nowhere, other_end = socket.socketpair()
    with nowhere:
        other_end.close()
        os.dup2(nowhere.fileno(), conn.fileno(), inheritable=False)
    conn.pgconn.finish()


def _leave_all() -> None:
    for origin in list(_origins):
        origin.leave()
    for conn in list(_kept.values()):
        _cut_off(conn)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_all)
