"""`Database` for programs without an event loop."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg import Connection, Pipeline, RawCursor
from psycopg.rows import tuple_row

from graphile_worker_py import clock
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
    load_raw,
)

T = TypeVar("T")
S = TypeVar("S")


class SyncDatabase:
    """`Database` for programs without an event loop."""

    def __init__(
        self,
        pool: psycopg_pool.ConnectionPool[Any],
        *,
        schema: str,
        prepared_statements: bool = True,
        use_node_time: bool = False,
    ) -> None:
        self.pool = pool
        self.process_id = os.getpid()
        self.statements = Statements(schema)
        self._prepare = prepared_statements
        self._use_node_time = use_node_time
        self._shared: dict[Any, Any] = {}

    def now(self) -> datetime | None:
        """The time that jobs without `run_at` get; None means the server's."""
        return clock.utc_now() if self._use_node_time else None

    def shared(self, kind: "Callable[[SyncDatabase], S]") -> S:
        """The one object of a kind that all users of this database share, made at first use."""
        try:
            return self._shared[kind]  # type: ignore[no-any-return]
        except KeyError:
            return self._shared.setdefault(kind, kind(self))  # type: ignore[no-any-return]

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """A connection of the pool for the block. See `Database.connection`."""
        while True:
            with self.pool.connection() as conn:
                if not has_ended(conn):
                    yield conn
                    return
                conn.close()
            self.pool.drain()  # where one was closed, more were

    def run(self, query: Query[T], *, conn: Connection[Any] | None = None) -> T:
        """Send one statement, on a caller's connection or on one from the pool."""
        if conn is not None:
            return self._send(conn, query)

        def attempt() -> T:
            try:
                return self._borrow_and_send(query)
            except STALE:
                self.pool.drain()
                return self._borrow_and_send(query)

        return self.until_won(attempt)

    def until_won(self, attempt: Callable[[], T]) -> T:
        """Do a transaction of ours, again if it lost a race. See `Database.until_won`."""
        failures = 0
        while True:
            try:
                return attempt()
            except psycopg.Error as error:
                failures += 1
                delay = race_delay(error, failures=failures)
                if delay is None:
                    raise
                time.sleep(delay)

    def drive(self, steps: Steps[T], *, conn: Connection[Any] | None = None) -> T:
        """Send what a generator yields, and return its result. See `Database.drive`."""
        try:
            step = next(steps)
            while True:
                try:
                    result = self._take(step, conn)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _take(self, step: Step, conn: Connection[Any] | None) -> Any:
        match step:
            case Query():
                return self.run(step, conn=conn)
            case Pipelined():
                with self._given_or_own(conn) as own:
                    return self._run_each(step.queries, own)
            case CopyIn():
                with self._given_or_own(conn) as own:
                    return self._copy_in(step, own)
            case Script():
                with self._given_or_own(conn) as own:
                    return own.execute(self.statements[step.text])
            case Pause():
                return time.sleep(step.seconds)
            case Transaction():
                with self.transaction(conn) as own:
                    return self.drive(step.steps, conn=own)

    @contextmanager
    def _given_or_own(self, conn: Connection[Any] | None) -> Iterator[Connection[Any]]:
        if conn is not None:
            yield conn
            return
        with self.connection() as own:
            yield own

    @contextmanager
    def transaction(self, conn: Connection[Any] | None = None) -> Iterator[Connection[Any]]:
        """A transaction for the block. See `Database.transaction`."""
        with self._given_or_own(conn) as own:
            if conn is not None and ends_with_first_block(conn):
                own.execute(BEGIN)
            with own.transaction():
                yield own

    def _run_each(self, queries: Iterable[Query[Any]], conn: Connection[Any]) -> list[Any]:
        results: list[Any] = []
        with ExitStack() as stack:
            if Pipeline.is_supported():
                stack.enter_context(conn.pipeline())
            sent: tuple[RawCursor[Any], Query[Any]] | None = None
            for query in queries:
                rows = sent[0].fetchmany(1) if sent else []
                cursor = RawCursor(conn, row_factory=tuple_row)
                self._execute(cursor, query)
                if sent:
                    results.append(sent[1].read(rows + sent[0].fetchall()))
                sent = cursor, query
            if sent:
                results.append(sent[1].read(sent[0].fetchall()))
        return results

    def _copy_in(self, step: CopyIn, conn: Connection[Any]) -> None:
        cursor = RawCursor(conn)
        with cursor, cursor.copy(self.statements[step.query.text]) as copy:
            for block in step.blocks:
                copy.write(block)

    def _borrow_and_send(self, query: Query[T]) -> T:
        with self.connection() as conn:
            return self._send(conn, query)

    def _send(self, conn: Connection[Any], query: Query[T]) -> T:
        with RawCursor(conn, row_factory=tuple_row) as cursor:
            self._execute(cursor, query)
            if cursor.pgresult is None:
                with conn.pipeline():
                    pass
            return query.read(cursor.fetchall() if has_rows(cursor) else [])

    def _execute(self, cursor: RawCursor[Any], query: Query[Any]) -> None:
        load_raw(cursor)
        text = self.statements[query.text]
        prepare = self._prepare and query.prepare
        try:
            cursor.execute(text, query.values, prepare=prepare, binary=True)
        except UNPREPARED as error:
            if not prepare or not goes_without_preparing(cursor, error, warned=not self._prepare):
                raise
            self._prepare = False
            cursor.execute(text, query.values, prepare=False, binary=True)


def run_blocking(statements: Statements, query: Query[T], *, conn: Connection[Any]) -> T:
    """Send one statement, unprepared, on a connection."""
    with RawCursor(conn, row_factory=tuple_row) as cursor:
        load_raw(cursor)
        cursor.execute(statements[query.text], query.values, prepare=False, binary=True)
        return query.read(cursor.fetchall() if has_rows(cursor) else [])
