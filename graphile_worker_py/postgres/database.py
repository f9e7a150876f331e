"""A schema in a database, and how statements reach it."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncPipeline, AsyncRawCursor, errors
from psycopg.sql import Composed

from graphile_worker_py import clock
from graphile_worker_py.errors import one_line
from graphile_worker_py.postgres import deadlines
from graphile_worker_py.postgres.availability import Availability, retrying
from graphile_worker_py.postgres.connecting import AsyncPool, connect_like
from graphile_worker_py.postgres.deadlines import ended_after
from graphile_worker_py.postgres.idle import has_ended
from graphile_worker_py.postgres.outages import race_delay
from graphile_worker_py.postgres.query import (
    BEGIN,
    STALE,
    UNPREPARED,
    CopyIn,
    Pause,
    Pipelined,
    Query,
    Script,
    Statements,
    Step,
    Steps,
    Transaction,
    ends_with_first_block,
    goes_without_preparing,
    has_rows,
    raw_cursor,
)
from graphile_worker_py.postgres.task_sessions import TaskSessions

logger = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S")


class Database:
    """A schema in a database, reached through a pool of connections.

    Args:
        pool: Where connections come from; the caller opens and closes it.
        schema: Name of the schema.
        prepared_statements: Whether statements are prepared on the server.
        use_node_time: Use this process's clock instead of the server's.
        owns_pool: Whether nothing else uses the pool.

    Attributes:
        task_sessions: Lends connections of the pool to tasks.
    """

    def __init__(
        self,
        pool: AsyncPool,
        *,
        schema: str,
        prepared_statements: bool = True,
        use_node_time: bool = False,
        owns_pool: bool = False,
    ) -> None:
        self.pool = pool
        self.process_id = os.getpid()
        """The process that opened it; its connections must not be used by another one."""
        self.task_sessions = TaskSessions(pool, keep=owns_pool)
        self._use_node_time = use_node_time
        self._shared: dict[Any, Any] = {}
        self.availability = Availability()
        self.statements = Statements(schema)
        # At the first use, because most statements are sent many times.
        self._prepare = prepared_statements

    @property
    def schema(self) -> str:
        """Name of the schema."""
        return self.statements.schema

    def now(self) -> datetime | None:
        """The time that decides which jobs are due; None means the server's."""
        return clock.utc_now() if self._use_node_time else None

    def shared(self, kind: "Callable[[Database], S]") -> S:
        """The one object of a kind that all users of this database share, made at first use."""
        try:
            return self._shared[kind]  # type: ignore[no-any-return]
        except KeyError:
            return self._shared.setdefault(kind, kind(self))  # type: ignore[no-any-return]

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection of the pool for the block; `timeout` is how many seconds to wait for one."""
        async with self._living_connection(timeout) as conn:
            try:
                yield conn
            except psycopg.Error as error:
                if isinstance(error, errors.ReadOnlySqlTransaction):
                    # A session that began while the database was read-only may stay so, and one to
                    # a server that became a standby leads to the wrong server. A new one does not.
                    await conn.close()
                if conn.closed:
                    # Where one connection was lost, more were, and each would cost a failure.
                    # Testing them would take up to a minute for each that leads nowhere.
                    await self.pool.drain()
                raise

    @asynccontextmanager
    async def _living_connection(
        self, timeout: float | None
    ) -> AsyncIterator[AsyncConnection[Any]]:
        # A connection that ended while it was idle is closed here, so that it leaves the pool.
        try:
            while True:
                async with AsyncExitStack() as stack:
                    with self.task_sessions.giving_way():
                        conn = await stack.enter_async_context(self.pool.connection(timeout))
                    if not has_ended(conn):
                        yield conn
                        return
                    await conn.close()
                await self.pool.drain()  # where one was closed, more were
        finally:
            self.task_sessions.has_room()

    @asynccontextmanager
    async def new_connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A new connection outside the pool, for the block."""
        conn = await connect_like(self.pool)
        try:
            yield conn
        finally:
            await conn.close()

    async def run(
        self,
        query: Query[T],
        *,
        conn: AsyncConnection[Any] | None = None,
        within: float | None = None,
    ) -> T:
        """Send one statement, on a caller's connection or on one from the pool.

        A caller's connection is used as it is: in its transaction, without retries and without a
        deadline.

        Args:
            query: The statement.
            conn: The caller's connection.
            within: Seconds that the statement may take on a connection from the pool; None means
                `STATEMENT_DEADLINE`.

        Raises:
            psycopg.OperationalError: The answer came too late, or the database can't be reached.
            psycopg.Error: The statement failed.
        """
        if conn is not None:
            return await self._send(conn, query)
        return await self._borrow_and_send(
            query, within=deadlines.STATEMENT_DEADLINE if within is None else within
        )

    async def run_patiently(
        self, query: Query[T], *, conn: AsyncConnection[Any] | None = None
    ) -> T:
        """Send one statement without a deadline, for example one that reads a whole table."""
        if conn is not None:
            return await self._send(conn, query)
        return await self._borrow_and_send(query, within=None)

    async def run_retrying(self, query: Query[T], *, what: str) -> T:
        """Send one statement, again after errors that may pass; it must be safe to send twice.

        `what` names the work in the log.
        """
        return await retrying(
            lambda: self.run(query), what=what, log=logger, availability=self.availability
        )

    async def drive(
        self,
        steps: Steps[T],
        *,
        conn: AsyncConnection[Any] | None = None,
        within: float | None = None,
    ) -> T:
        """Send what a generator yields, and return its result.

        The generator is sent each result; it may catch what a statement raises. `within` is as for
        `run`, for each statement that is sent by itself.
        """
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._take(step, conn, within)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _take(
        self, step: Step, conn: AsyncConnection[Any] | None, within: float | None
    ) -> Any:
        match step:
            case Query():
                return await self.run(step, conn=conn, within=within)
            case Pipelined():
                async with self._given_or_own(conn) as own:
                    return await self._run_each(step.queries, own)
            case CopyIn():
                async with self._given_or_own(conn) as own:
                    return await self._copy_in(step, own)
            case Script():
                async with self._given_or_own(conn) as own:
                    return await self.run_script(step.text, conn=own)
            case Pause():
                return await asyncio.sleep(step.seconds)
            case Transaction():
                async with self.transaction(conn) as own:
                    return await self.drive(step.steps, conn=own)

    @asynccontextmanager
    async def _given_or_own(
        self, conn: AsyncConnection[Any] | None
    ) -> AsyncIterator[AsyncConnection[Any]]:
        if conn is not None:
            yield conn
            return
        async with self.connection() as own:
            yield own

    @asynccontextmanager
    async def transaction(
        self, conn: AsyncConnection[Any] | None = None
    ) -> AsyncIterator[AsyncConnection[Any]]:
        """A transaction for the block, on a connection of the pool or within a caller's."""
        async with self._given_or_own(conn) as own:
            if conn is not None and ends_with_first_block(conn):
                await own.execute(BEGIN)
            async with own.transaction():
                yield own

    async def _run_each(
        self, queries: Iterable[Query[Any]], conn: AsyncConnection[Any]
    ) -> list[Any]:
        results: list[Any] = []
        async with AsyncExitStack() as stack:
            # libpq before 14 has no pipelines; then `execute` waits for the server.
            if AsyncPipeline.is_supported():
                await stack.enter_async_context(conn.pipeline())
            sent: tuple[AsyncRawCursor[Any], Query[Any]] | None = None
            for query in queries:
                # Waits for all rows but decodes only one, so that the server gets its next
                # statement at once.
                rows = await sent[0].fetchmany(1) if sent else []
                cursor = raw_cursor(conn)
                await self._execute(cursor, query)
                if sent:
                    results.append(sent[1].read(rows + await sent[0].fetchall()))
                sent = cursor, query
            if sent:
                results.append(sent[1].read(await sent[0].fetchall()))
        return results

    async def _copy_in(self, step: CopyIn, conn: AsyncConnection[Any]) -> None:
        cursor = raw_cursor(conn)
        async with cursor, cursor.copy(self.statements[step.query.text]) as copy:
            for block in step.blocks:
                await copy.write(block)

    async def run_script(self, text: LiteralString, *, conn: AsyncConnection[Any]) -> None:
        """Send statements without values, separated by semicolons, in one go on a connection."""
        await conn.execute(self.statements[text])

    async def run_composed(self, statement: Composed, *, conn: AsyncConnection[Any]) -> None:
        """Send a statement on the definition of tables, whose names are not constants."""
        await conn.execute(statement)

    async def until_won(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Await a transaction of ours, again if it lost a race with another one.

        Args:
            attempt: Awaited anew for each try.
        """
        failures = 0
        while True:
            try:
                return await attempt()
            except psycopg.Error as error:
                failures += 1
                delay = race_delay(error, failures=failures)
                if delay is None:
                    raise
                logger.debug("Lost a race (%s); trying again in %.2f s", one_line(error), delay)
                await asyncio.sleep(delay)

    async def _borrow_and_send(self, query: Query[T], *, within: float | None) -> T:
        async def attempt() -> T:
            try:
                return await self._send_within(within, query)
            except STALE:
                # Every connection of the pool may have it.
                await self.pool.drain()
                return await self._send_within(within, query)

        return await self.until_won(attempt)

    async def _send_within(self, seconds: float | None, query: Query[T]) -> T:
        async with self.connection() as conn:
            if seconds is None:
                return await self._send(conn, query)
            async with ended_after(seconds, conn):
                return await self._send(conn, query)

    async def _send(self, conn: AsyncConnection[Any], query: Query[T]) -> T:
        async with raw_cursor(conn) as cursor:
            return await self.send(cursor, query)

    async def send(self, cursor: AsyncRawCursor[Any], query: Query[T]) -> T:
        """Send one statement through a cursor made by `raw_cursor`."""
        if query.after is not None:
            return await self._send_after(query.after, cursor, query)
        await self._execute(cursor, query)
        if cursor.pgresult is None:
            # In a caller's pipeline nothing is answered before a nested block ends.
            async with cursor.connection.pipeline():
                pass
        return query.read(await cursor.fetchall() if has_rows(cursor) else [])

    async def _execute(self, cursor: AsyncRawCursor[Any], query: Query[Any]) -> None:
        text = self.statements[query.text]
        prepare = self._prepare and query.prepare
        try:
            await cursor.execute(text, query.values, prepare=prepare, binary=True)
        except UNPREPARED as error:
            if not prepare or not goes_without_preparing(cursor, error, warned=not self._prepare):
                raise
            self._prepare = False
            await cursor.execute(text, query.values, prepare=False, binary=True)

    async def _send_after(
        self, first: Query[Any], cursor: AsyncRawCursor[Any], query: Query[T]
    ) -> T:
        """Send two statements as one transaction; each sees what was committed before it began."""
        try:
            await self._send_both(first, cursor, query)
        except UNPREPARED as error:
            if not self._prepare or not goes_without_preparing(cursor, error, warned=False):
                raise
            self._prepare = False
            await self._send_both(first, cursor, query)
        return query.read(await cursor.fetchall())

    async def _send_both(
        self, first: Query[Any], cursor: AsyncRawCursor[Any], query: Query[Any]
    ) -> None:
        conn = cursor.connection
        # What is sent in a pipeline outside a transaction is one until its end: no statement more,
        # and no wait between them. libpq before 14 has no pipelines.
        block = conn.pipeline() if AsyncPipeline.is_supported() else conn.transaction()
        async with block, raw_cursor(conn) as before:
            await self._execute(before, first)
            await self._execute(cursor, query)
