"""Sessions that tasks borrow: reset when they come back, and never used for the pool's own work.

A task may do anything with its connection: set a role, a time limit or a search path, listen,
take advisory locks, change how rows are made. Nothing of it may reach the next task, and what no
reset undoes must not reach the statements of the worker. So a session that a task had stays with
the tasks. It still counts as one of the connections of its pool, and is given up when the worker
itself needs one and the pool has no other left.

A session is reset while the job that had it goes on: a job waits for no reset, only for a session.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any, Final

import psycopg
import psycopg_pool
from psycopg import AsyncConnection, errors
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready, Wait

from graphile_worker_py import aio
from graphile_worker_py.errors import one_line
from graphile_worker_py.forks import kept_from_forks
from graphile_worker_py.postgres.connecting import AsyncPool, configure_like
from graphile_worker_py.postgres.lent_session import RESET_PATIENCE, Session

logger = logging.getLogger(__name__)

IN_USE_PATIENCE: Final = 60.0
"""Seconds that a statement may go on at the end of the block."""
_IN_USE: Final = (
    "the connection was closed, because a statement or an unfinished stream of the task still used "
    "it at the end of its block"
)

AsyncSession = Session[AsyncConnection[Any]]


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
        self._idle: deque[AsyncSession] = deque()
        self._resets: dict[AsyncSession, _Reset] = {}
        self._waiting: deque[asyncio.Future[AsyncSession]] = deque()
        self._kept = 0  # lent, idle, and being reset
        self._asking: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._wanted = 0  # by the worker itself

    def borrow(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """A connection for the block, which commits or rolls back at its end.

        The block raises:
            psycopg_pool.PoolTimeout: There was none in time.
            psycopg.OperationalError: The database can't be reached, or something goes on using the
                connection after the block.
        """
        return _Loan(self)

    async def take(self) -> AsyncSession:
        """A session for a task, which must give it back."""
        if not self._keep:
            return Session(await self._pool.getconn(), is_kept=False)
        while self._idle:
            session = self._idle.pop()
            if session.is_usable:
                return session
            self._leave(session)
        return await self._wait()

    async def give_back(self, session: AsyncSession) -> None:
        """Take back a session; it is reset while the caller goes on."""
        if not self._keep:
            await aio.finish(self._put_back(session))
        elif session.conn.lock.locked():
            self._leave(session)  # something still uses it
        else:
            try:
                await session.conn.lock.acquire()  # at once, unless something still uses it
            except BaseException:
                self._leave(session)
                raise
            self._resets[session] = reset = _Reset(session, self._has_reset)
            reset.begin()

    async def is_used(self, conn: AsyncConnection[Any]) -> bool:
        """Whether something goes on using a connection, which then is closed.

        A commit or rollback would wait for it: for ever, if it is a stream that is not read.
        """
        if not conn.lock.locked():
            return False
        try:
            async with asyncio.timeout(self._patience), conn.lock:
                return False
        except TimeoutError:
            conn.pgconn.finish()
            return True

    def has_room(self) -> None:
        """Note that the worker itself has given a connection back."""
        if self._waiting:
            self._ask()

    async def lost(self) -> None:
        """Note that a connection was lost: where one was, more were."""
        await self.give_up_idle()
        await self._pool.drain()

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """A block in which the worker itself waits for a connection of the pool."""
        self._wanted += 1
        try:
            if self._idle and self._is_missed():
                self._leave(self._idle.popleft())
            yield
        finally:
            self._wanted -= 1

    async def give_up_idle(self) -> None:
        """Close the sessions that no task has."""
        while self._resets:
            session, reset = self._resets.popitem()
            reset.end()
            self._leave(session)
        while self._idle:
            self._leave(self._idle.popleft())
        ending = set(self._leaving)
        if not self._waiting:
            ending |= self._asking
            for task in self._asking:
                task.cancel()
        if ending:
            await asyncio.wait(ending)

    def _is_missed(self) -> bool:
        """Whether the worker itself waits for a connection that tasks keep from it."""
        if self._wanted <= len(self._leaving):
            return False
        stats = self._pool.get_stats()
        return not stats["pool_available"] and stats["pool_size"] >= stats["pool_max"]

    async def _wait(self) -> AsyncSession:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[AsyncSession] = loop.create_future()
        self._waiting.append(waiter)
        timer = loop.call_later(self._pool.timeout, self._is_late, waiter)
        self._ask()
        try:
            return await waiter
        except BaseException:
            with suppress(ValueError):
                self._waiting.remove(waiter)
            if not waiter.cancelled() and waiter.exception() is None:
                self._is_ready(waiter.result())  # cancelled in the moment when it was given
            raise
        finally:
            timer.cancel()

    def _is_late(self, waiter: asyncio.Future[AsyncSession]) -> None:
        if not waiter.done():
            seconds = self._pool.timeout
            message = f"couldn't get a connection after {seconds:.2f} sec"
            waiter.set_exception(psycopg_pool.PoolTimeout(message))

    def _next_waiter(self) -> asyncio.Future[AsyncSession] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _ask(self) -> None:
        # Tasks wait for sessions of other tasks, not in the queue of the pool, where they would
        # get in the way of the worker.
        while len(self._asking) + len(self._resets) < len(self._waiting) and self._may_ask():
            # `give_up_idle` ends it.
            asking = asyncio.create_task(self._fetch(), name="task sessions")  # noqa: TID251
            self._asking.add(asking)
            asking.add_done_callback(self._has_asked)

    def _may_ask(self) -> bool:
        if not self._kept and not self._asking:
            return True
        if self._kept >= self._pool.max_size:
            return False
        stats = self._pool.get_stats()
        room = stats["pool_max"] - stats["pool_size"] + stats["pool_available"]
        return len(self._asking) < room

    async def _fetch(self) -> None:
        """Let the pool give a session, or make one."""
        try:
            conn = await self._pool.getconn()
        except psycopg.Error as error:
            waiter = self._next_waiter()
            if waiter is None:
                logger.debug("Got no connection for tasks (%s)", one_line(error))
            else:
                waiter.set_exception(error)
        else:
            self._kept += 1
            self._is_ready(Session(conn, is_kept=True))

    def _has_asked(self, asking: "asyncio.Task[None]") -> None:
        self._asking.discard(asking)
        self.has_room()

    def _has_reset(self, session: AsyncSession, is_reset: bool) -> None:  # noqa: FBT001
        del self._resets[session]
        if is_reset and not session.is_old:
            self._is_ready(session)
        else:
            self._leave(session)

    def _is_ready(self, session: AsyncSession) -> None:
        if self._pool.closed or self._is_missed():
            self._leave(session)
        elif (waiter := self._next_waiter()) is not None:
            waiter.set_result(session)
        else:
            self._idle.append(session)

    def _leave(self, session: AsyncSession) -> None:
        self._kept -= 1
        # `give_up_idle` waits for it.
        leaving = asyncio.create_task(self._give_up(session), name="task sessions")  # noqa: TID251
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _give_up(self, session: AsyncSession) -> None:
        conn = session.conn
        if conn.closed or conn.pgconn.transaction_status != TransactionStatus.IDLE:
            await conn.close()
        # The pool closes what is too old without a warning, and makes a new one if it wants one.
        conn._expire_at = 0.0
        await self._pool.putconn(conn)
        self._ask()

    async def _put_back(self, session: AsyncSession) -> None:
        conn = session.conn
        if await self._is_reset(session):
            await self._pool.putconn(conn)
        else:
            await self._give_up(session)

    async def _is_reset(self, session: AsyncSession) -> bool:
        conn = session.conn
        if conn.closed:
            return False
        try:
            async with asyncio.timeout(RESET_PATIENCE):
                async with conn.lock:
                    is_reset = await conn.wait(session.reset())
                # `reset all` keeps what came with the connection string, not what this has set.
                await configure_like(self._pool, conn)
        except Exception as error:  # a setting of the program, for example
            logger.debug("Closing a session that could not be reset (%s)", one_line(error))
            return False
        return is_reset


class _Loan:
    """The block in which a task has a session."""

    __slots__ = ("_kept", "_session", "_sessions")

    def __init__(self, sessions: TaskSessions) -> None:
        self._sessions = sessions

    async def __aenter__(self) -> AsyncConnection[Any]:
        self._session = await self._sessions.take()
        conn = self._session.conn
        self._kept = kept_from_forks(conn)
        self._kept.__enter__()
        return conn

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session = self._session
        self._kept.__exit__(kind, error, trace)
        try:
            if await self._sessions.is_used(session.conn) and error is None:
                raise psycopg.OperationalError(_IN_USE)
            if not session.is_settled:
                await session.conn.__aexit__(kind, error, trace)
            if isinstance(error, psycopg.Error):
                await self._after(error)
        except psycopg.Error as raised:
            await self._after(raised)
            raise
        finally:
            await self._sessions.give_back(session)

    async def _after(self, error: psycopg.Error) -> None:
        # As in `Database.connection`.
        conn = self._session.conn
        if isinstance(error, errors.ReadOnlySqlTransaction):
            await conn.close()
        if conn.closed:
            await self._sessions.lost()


class _Reset:
    """A reset of a session for which nothing waits.

    Args:
        session: The session; the lock of its connection is held until the end.
        done: Told whether the session is as it was.
    """

    __slots__ = ("_done", "_loop", "_session", "_socket", "_steps", "_timer", "_watched")

    def __init__(self, session: AsyncSession, done: Callable[[AsyncSession, bool], None]) -> None:
        self._session = session
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._steps = session.reset()
        self._timer = self._loop.call_later(RESET_PATIENCE, self._finish, False)  # noqa: FBT003
        self._socket = -1
        self._watched = 0

    def begin(self) -> None:
        """Send the first statements."""
        self._advance(None)

    def end(self) -> None:
        """Stop. If it was not done, the session is in an unknown state."""
        self._timer.cancel()
        self._watch(0)
        self._steps.close()
        self._session.conn.lock.release()

    def _finish(self, is_reset: bool) -> None:  # noqa: FBT001
        self.end()
        self._done(self._session, is_reset)

    def _advance(self, ready: Any) -> None:
        self._watch(0)  # libpq may close the socket
        try:
            wanted = self._steps.send(ready)
        except StopIteration as end:
            self._finish(end.value)
        except Exception as error:  # a setting of the program, for example
            logger.debug("Closing a session that could not be reset (%s)", one_line(error))
            self._finish(False)  # noqa: FBT003
        else:
            self._watch(wanted)

    def _watch(self, wanted: int) -> None:
        if wanted:
            self._socket = self._session.conn.pgconn.socket
        changed = wanted ^ self._watched
        self._watched = wanted
        if changed & Wait.R:
            if wanted & Wait.R:
                self._loop.add_reader(self._socket, self._advance, Ready.R)
            else:
                self._loop.remove_reader(self._socket)
        if changed & Wait.W:
            if wanted & Wait.W:
                self._loop.add_writer(self._socket, self._advance, Ready.W)
            else:
                self._loop.remove_writer(self._socket)
