"""`Database` for programs without an event loop."""

from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg import Connection, Pipeline, RawCursor
from psycopg.rows import tuple_row

from graphile_worker_py import clock
from graphile_worker_py.postgres.query import (
    STALE,
    UNPREPARED,
    Query,
    Statements,
    Steps,
    goes_without_preparing,
    has_rows,
    load_raw,
)

T = TypeVar("T")


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
        self.statements = Statements(schema)
        self._prepare = prepared_statements
        self._use_node_time = use_node_time

    def now(self) -> datetime | None:
        """The time that jobs without `run_at` get; None means the server's."""
        return clock.utc_now() if self._use_node_time else None

    def run(self, query: Query[T], *, conn: Connection[Any] | None = None) -> T:
        """Send one statement, on a caller's connection or on one from the pool."""
        if conn is not None:
            return self._send(conn, query)
        try:
            return self._borrow_and_send(query)
        except STALE:
            self.pool.drain()
            return self._borrow_and_send(query)

    def drive(self, steps: Steps[T], *, conn: Connection[Any] | None = None) -> T:
        """Send the statements that a generator yields. See `Database.drive`."""
        try:
            query = next(steps)
            while True:
                try:
                    result = self.run(query, conn=conn)
                except psycopg.Error as error:
                    query = steps.throw(error)
                else:
                    query = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def run_each(self, queries: Iterable[Query[None]], *, conn: Connection[Any]) -> None:
        """Send statements one after the other. See `Database.run_each`."""
        with ExitStack() as stack:
            if Pipeline.is_supported():
                stack.enter_context(conn.pipeline())
            sent: tuple[RawCursor[Any], Query[None]] | None = None
            for query in queries:
                rows = sent[0].fetchmany(1) if sent else []
                cursor = RawCursor(conn, row_factory=tuple_row)
                self._execute(cursor, query)
                if sent:
                    sent[1].read(rows + sent[0].fetchall())
                sent = cursor, query
            if sent:
                sent[1].read(sent[0].fetchall())

    def copy_in(self, query: Query[None], blocks: Iterable[str], *, conn: Connection[Any]) -> None:
        """Send a COPY statement and its data on a connection."""
        cursor = RawCursor(conn)
        with cursor, cursor.copy(self.statements[query.text]) as copy:
            for block in blocks:
                copy.write(block)

    def _borrow_and_send(self, query: Query[T]) -> T:
        with self.pool.connection() as conn:
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
