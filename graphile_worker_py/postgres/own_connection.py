"""A connection that one part of a worker keeps for its statements."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg import AsyncRawCursor, errors
from psycopg.pq import TransactionStatus

from graphile_worker_py.errors import one_line
from graphile_worker_py.postgres import deadlines
from graphile_worker_py.postgres.availability import Availability, retrying
from graphile_worker_py.postgres.connecting import connect_like
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import hang_up, hung_up_after
from graphile_worker_py.postgres.outages import backoff_for
from graphile_worker_py.postgres.query import STALE, Query, raw_cursor

logger = logging.getLogger(__name__)

T = TypeVar("T")

Session = tuple[int, str]
"""A session: its server process id and its start, which together are unique on a server."""
_END_SESSION: Final = """
select pg_catalog.pg_terminate_backend(pid)
from pg_catalog.pg_stat_get_activity($1::pg_catalog.int4)
where extract(epoch from backend_start)::pg_catalog.text = $2::pg_catalog.text
"""
END_INTERVAL: Final = 0.05
"""Seconds between two checks whether a session has ended."""


class OwnConnection:
    """A connection that one part of a worker keeps to itself; a context manager.

    It is opened at the first statement, and again after it was lost. The part does not compete
    with tasks for the connections of the pool.

    A statement may still arrive, or go on, long after its answer was given up, and lock jobs that
    the worker does not know about. So after a lost connection, its session is terminated before
    the next statement is sent.

    Args:
        database: The database to connect to.
        begin: Makes the first statement of each connection from the server process id that the
            connection reports. The statement prepares the session and returns its identity, or
            None behind a pooler.
    """

    def __init__(
        self, database: Database, *, begin: Callable[[int], Query[Session | None]]
    ) -> None:
        self._database = database
        self._begin = begin
        self._cursor: AsyncRawCursor[Any] | None = None
        self._session: Session | None = None
        self._lost: list[Session] = []
        self._turn = asyncio.Lock()
        self._runs_for: asyncio.Task[Any] | None = None

    @property
    def availability(self) -> Availability:
        """Whether the database serves the parts of the worker."""
        return self._database.availability

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._drop()

    async def run(self, query: Query[T]) -> T:
        """Send one statement; concurrent calls wait for their turn.

        Raises:
            psycopg.OperationalError: It was not answered within `STATEMENT_DEADLINE`, or the
                database can't be reached.
            psycopg.Error: The statement failed.
        """
        async with self._turn:
            self._runs_for = asyncio.current_task()
            try:
                return await self._run(query)
            except STALE:
                return await self._run(query)

    async def run_retrying(self, query: Query[T], *, what: str) -> T:
        """Send one statement, again after errors that may pass. See `Database.run_retrying`."""
        return await retrying(
            lambda: self.run(query), what=what, log=logger, availability=self.availability
        )

    async def renew(self) -> None:
        """Let the next statement have a new session.

        After row-level security hid rows: a statement that was prepared meanwhile goes on hiding
        them in PostgreSQL 12.
        """
        async with self._turn:
            await self._drop()

    async def end_statement(self, of: asyncio.Task[Any] | None) -> None:
        """Cancel the running statement of an asyncio task; cut the connection if that fails.

        The task's `run` then raises `QueryCanceled`, or what it raises for a lost connection.
        """
        cursor = self._cursor
        if cursor is None or not self._turn.locked() or self._runs_for is not of:
            return
        with suppress(psycopg.Error):  # the server can't be reached
            await cursor.connection.cancel_safe(timeout=deadlines.CANCEL_PATIENCE)
        try:
            async with asyncio.timeout(deadlines.CANCEL_PATIENCE), self._turn:
                pass  # it has ended
        except TimeoutError:
            hang_up(cursor.connection)

    async def _run(self, query: Query[T]) -> T:
        cursor = self._cursor or await self._connect()
        try:
            with hung_up_after(deadlines.STATEMENT_DEADLINE, cursor.connection):
                return await self._database.send(cursor, query)
        except psycopg.Error as error:
            if _is_of_session(error):
                await self._drop()
            raise
        finally:
            if (
                self._cursor is cursor
                and cursor.connection.pgconn.transaction_status != TransactionStatus.IDLE
            ):
                # Lost, or cancelled in the middle of a statement.
                self._lost += [] if self._session is None else [self._session]
                await self._drop()

    async def _connect(self) -> AsyncRawCursor[Any]:
        async with asyncio.timeout(deadlines.STATEMENT_DEADLINE):
            conn = await connect_like(self._database.pool)
        try:
            with hung_up_after(deadlines.STATEMENT_DEADLINE, conn):
                cursor = raw_cursor(conn)
                session = await self._database.send(cursor, self._begin(conn.info.backend_pid))
                await self._end_lost(cursor)
        except BaseException:
            await conn.close()
            raise
        self._session, self._cursor = session, cursor
        return cursor

    async def _end_lost(self, cursor: AsyncRawCursor[Any]) -> None:
        while self._lost:
            end = Query(_END_SESSION, self._lost[-1], bool, prepare=False)
            try:
                if await self._database.send(cursor, end):
                    await asyncio.sleep(END_INTERVAL)  # it was still there
                    continue
            except errors.InsufficientPrivilege as error:
                logger.debug("Could not terminate a lost session (%s)", one_line(error))
            self._lost.pop()

    async def _drop(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            await cursor.connection.close()


def _is_of_session(error: psycopg.Error) -> bool:
    """Whether a new session may succeed at once with the same statement."""
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return True  # as in `Database.connection`
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError):
        return False
    return backoff_for(error) is None
