"""Connections of tasks in threads, used again by later tasks.

They are outside the pool, whose connections belong to the event loop.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import psycopg
from psycopg import Connection, errors

from graphile_worker_py.errors import one_line
from graphile_worker_py.forks import kept_from_forks
from graphile_worker_py.postgres.lent_session import RESET_PATIENCE, Session

logger = logging.getLogger(__name__)

IDLE_PATIENCE: Final = 10.0
"""Seconds after which a connection that no task uses is closed."""

SyncSession = Session[Connection[Any]]


class ThreadSessions:
    """Lends connections to tasks in threads; made on the event loop, used by all threads.

    There are as many as tasks have used at the same time.

    Args:
        patience: Seconds after which an idle connection is closed.
    """

    def __init__(self, *, patience: float = IDLE_PATIENCE) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        # The last one to come back goes out first, so that those that are not needed grow old.
        self._idle: deque[tuple[SyncSession, float]] = deque()
        self._is_watched = False
        self._closed = False

    def take(self) -> SyncSession | None:
        """An idle session; None if there is none. The caller gives it to `lent`."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                session, _ = self._idle.pop()
            if session.is_usable:
                return session
            session.conn.close()

    @contextmanager
    def lent(
        self, session: SyncSession, loop: asyncio.AbstractEventLoop
    ) -> Iterator[Connection[Any]]:
        """The connection of a session for the block, which commits or rolls back at its end.

        Args:
            session: The session, from `take` or a new one.
            loop: The event loop, which closes the session after it was idle for long.
        """
        conn = session.conn
        try:
            with kept_from_forks(conn):
                yield conn
            if not (conn.closed or session.is_settled):
                conn.commit()
        except psycopg.Error as error:
            # As in `Database.connection`.
            if isinstance(error, errors.ReadOnlySqlTransaction):
                conn.close()
            if conn.closed:
                self._close_idle(0.0)
            raise
        finally:
            self._take_back(session, loop)

    def close(self) -> None:
        """Close the idle connections now, and the others as soon as they come back."""
        self._closed = True
        self._close_idle(0.0)

    def _take_back(self, session: SyncSession, loop: asyncio.AbstractEventLoop) -> None:
        if self._closed or not _is_reset(session) or session.is_old:
            session.conn.close()
            return
        with self._lock:
            self._idle.append((session, monotonic()))
            is_watched, self._is_watched = self._is_watched, True
        try:
            if not is_watched:
                loop.call_soon_threadsafe(self._watch, loop)
        except RuntimeError:  # the loop is closed
            self._closed = True
        if self._closed:  # meanwhile
            self._close_idle(0.0)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._close_idle(self._patience)
        with self._lock:
            self._is_watched = bool(self._idle)
            rest = self._idle[0][1] + self._patience - monotonic() if self._idle else 0.0
        if self._is_watched:
            loop.call_later(max(rest, 0.0), self._watch, loop)

    def _close_idle(self, age: float) -> None:
        limit = monotonic() - age
        while True:
            with self._lock:
                if not self._idle or self._idle[0][1] > limit:
                    return
                session, _ = self._idle.popleft()
            session.conn.close()


def _is_reset(session: SyncSession) -> bool:
    conn = session.conn
    if conn.closed or not conn.lock.acquire(blocking=False):
        return False  # something still uses it
    try:
        return conn.wait(session.reset(), timeout=RESET_PATIENCE)
    except Exception as error:  # a setting of the program, for example
        logger.debug("Closing a session that could not be reset (%s)", one_line(error))
        return False
    finally:
        conn.lock.release()
