"""Sessions that tasks borrow: reset when they come back, and never used for the pool's own work.

A task may do anything with its connection: set a role, a time limit or a search path, listen,
take advisory locks, change how rows are made. Nothing of it may reach the next task, and what no
reset undoes must not reach the statements of the worker. So a session that a task had stays with
the tasks. It still counts as one of the connections of its pool, and is given up when the worker
itself needs one and the pool has no other left.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final

import psycopg
import psycopg_pool
from psycopg import AsyncConnection, AsyncCursor, IsolationLevel, errors
from psycopg.adapt import AdaptersMap
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from graphile_worker_py import aio
from graphile_worker_py.errors import one_line
from graphile_worker_py.forks import kept_from_forks
from graphile_worker_py.postgres.connecting import AsyncPool, configure_like
from graphile_worker_py.postgres.idle import has_ended
from graphile_worker_py.records import Record

logger = logging.getLogger(__name__)

RESET_PATIENCE: Final = 5.0
"""Seconds after which a session that is not reset is closed."""
IN_USE_PATIENCE: Final = 60.0
"""Seconds that a statement may go on at the end of the block."""
_IN_USE: Final = (
    "the connection was closed, because a statement or an unfinished stream of the task still used "
    "it at the end of its block"
)
LIFETIME: Final = 3600.0
"""Seconds after which a session is not used again, as in a pool."""

# Not `discard all`, which would drop the statements that psycopg has prepared. One string, so
# that it takes one round trip.
_RESET: Final = """
reset session authorization; reset role; reset all; close all; unlisten *;
select pg_catalog.pg_advisory_unlock_all(); discard sequences; discard temp;
select name from pg_catalog.pg_prepared_statements
"""


_IN_TRANSACTION: Final = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


class _Client(Record):
    """How a connection object behaves, apart from its session on the server."""

    autocommit: bool
    isolation_level: IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    attributes: dict[str, Any]
    adapters: AdaptersMap
    notice_handlers: list[Any]
    notify_handlers: list[Any]

    @classmethod
    def of(cls, conn: AsyncConnection[Any]) -> "_Client":
        """How a connection behaves now."""
        return cls(
            autocommit=conn.autocommit,
            isolation_level=conn.isolation_level,
            read_only=conn.read_only,
            deferrable=conn.deferrable,
            attributes=_attributes_of(conn),
            adapters=AdaptersMap(conn.adapters),
            notice_handlers=list(conn._notice_handlers),
            notify_handlers=list(conn._notify_handlers),
        )

    async def restore(self, conn: AsyncConnection[Any]) -> None:
        """Let a connection behave like this again; it must not be in a transaction."""
        # First: a method may have been replaced.
        for name in _attributes_of(conn).keys() - self.attributes.keys():
            delattr(conn, name)
        for name, value in self.attributes.items():
            setattr(conn, name, value)
        if conn.autocommit != self.autocommit:
            await conn.set_autocommit(self.autocommit)
        if conn.isolation_level != self.isolation_level:
            await conn.set_isolation_level(self.isolation_level)
        if conn.read_only != self.read_only:
            await conn.set_read_only(self.read_only)
        if conn.deferrable != self.deferrable:
            await conn.set_deferrable(self.deferrable)
        conn._adapters = AdaptersMap(self.adapters)
        conn._notice_handlers[:] = self.notice_handlers
        conn._notify_handlers[:] = self.notify_handlers


def _attributes_of(conn: AsyncConnection[Any]) -> dict[str, Any]:
    """The attributes of a connection object, with those that a program has set itself."""
    own = {name: value for name, value in vars(conn).items() if not name.startswith("_")}
    kept = {"prepare_threshold": conn.prepare_threshold, "prepared_max": conn.prepared_max}
    return own | kept


class _Session:
    def __init__(self, conn: AsyncConnection[Any], client: _Client, since: float) -> None:
        self.conn = conn
        self.client = client
        self.since = since


class TaskSessions:
    """Lends connections of a pool to tasks.

    Args:
        pool: The pool.
        keep: Whether to keep sessions for the next task. A pool that the program uses, too, gets
            them back once they are reset.
        patience: Seconds until a connection is closed that is still used at the end of its block.
    """

    def __init__(self, pool: AsyncPool, *, keep: bool, patience: float = IN_USE_PATIENCE) -> None:
        self._pool = pool
        self._patience = patience
        self._keep = keep
        self._idle: deque[_Session] = deque()
        self._turns = asyncio.Semaphore(pool.max_size) if keep else None

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection for the block, which commits or rolls back at its end.

        Raises:
            psycopg_pool.PoolTimeout: There was none in time.
            psycopg.OperationalError: The database can't be reached, or something goes on using the
                connection after the block.
        """
        async with self._turn():
            session = await self._take()
            conn = session.conn
            try:
                async with conn:
                    try:
                        with kept_from_forks(conn):
                            yield conn
                    finally:
                        is_used = await self._is_used(conn)
                    if is_used:
                        raise psycopg.OperationalError(_IN_USE)
            except psycopg.Error as error:
                # As in `Database.connection`.
                if isinstance(error, errors.ReadOnlySqlTransaction):
                    await conn.close()
                if conn.closed:
                    await self.give_up_idle()
                    await self._pool.drain()
                raise
            finally:
                await aio.finish(self._take_back(session))

    async def _is_used(self, conn: AsyncConnection[Any]) -> bool:
        """Whether something goes on using a connection, which then is closed.

        A commit or rollback would wait for it: for ever, if it is a stream that nobody reads.
        """
        if not conn.lock.locked():
            return False
        try:
            async with asyncio.timeout(self._patience), conn.lock:
                return False
        except TimeoutError:
            conn.pgconn.finish()
            return True

    async def make_room(self) -> None:
        """Give up a session if the pool has no connection left for the worker itself."""
        if self._idle:
            stats = self._pool.get_stats()
            if not stats["pool_available"] and stats["pool_size"] >= stats["pool_max"]:
                await self._give_up(self._idle.popleft())

    async def give_up_idle(self) -> None:
        """Close the sessions that no task has."""
        while self._idle:
            await self._give_up(self._idle.popleft())

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        # At most as many tasks as the pool has connections ask for one at a time. So a session
        # that comes back goes to the next task, and not by way of the pool.
        if self._turns is None:
            yield
            return
        try:
            async with asyncio.timeout(self._pool.timeout):
                await self._turns.acquire()
        except TimeoutError:
            raise psycopg_pool.PoolTimeout(
                f"couldn't get a connection after {self._pool.timeout:.2f} sec"
            ) from None
        try:
            yield
        finally:
            self._turns.release()

    async def _take(self) -> _Session:
        while self._idle:
            session = self._idle.pop()
            if monotonic() - session.since < LIFETIME and not has_ended(session.conn):
                return session
            await self._give_up(session)
        conn = await self._pool.getconn()
        return _Session(conn, _Client.of(conn), monotonic())

    async def _take_back(self, session: _Session) -> None:
        if not await self._is_reset(session):
            await self._give_up(session)
        elif not self._keep:
            await self._pool.putconn(session.conn)
        elif self._pool.closed or self._pool.get_stats()["requests_waiting"]:
            await self._give_up(session)  # the worker itself waits for a connection
        else:
            self._idle.append(session)

    async def _give_up(self, session: _Session) -> None:
        conn = session.conn
        if conn.closed or conn.pgconn.transaction_status != TransactionStatus.IDLE:
            await conn.close()
        # The pool closes what is too old without a warning, and makes a new one if it wants one.
        conn._expire_at = 0.0
        await self._pool.putconn(conn)

    async def _is_reset(self, session: _Session) -> bool:
        conn = session.conn
        pgconn = conn.pgconn
        if conn.closed or pgconn.pipeline_status != PipelineStatus.OFF:
            return False
        try:
            async with asyncio.timeout(RESET_PATIENCE):
                if pgconn.transaction_status in _IN_TRANSACTION:
                    await conn.rollback()
                await session.client.restore(conn)
                await self._reset(conn)
        except Exception as error:  # a setting of the program, for example
            logger.debug("Closing a session that could not be reset (%s)", one_line(error))
            return False
        return pgconn.transaction_status == TransactionStatus.IDLE

    async def _reset(self, conn: AsyncConnection[Any]) -> None:
        autocommit = conn.autocommit
        if not autocommit:
            await conn.set_autocommit(True)
        async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
            await cursor.execute(_RESET, prepare=False)
            while cursor.nextset():
                pass
            prepared = {name.encode() for (name,) in await cursor.fetchall()}
            if prepared != set(conn._prepared._names.values()):
                # The task has prepared some itself, or dropped those of psycopg.
                conn._prepared.clear()
                await cursor.execute("deallocate all", prepare=False)
        if not autocommit:
            await conn.set_autocommit(False)
        # `reset all` keeps what came with the connection string, but not what this has set.
        await configure_like(self._pool, conn)
