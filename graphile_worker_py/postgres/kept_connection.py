"""A connection outside the pool that one part of a worker uses now and then."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from graphile_worker_py.postgres.connecting import connect_like
from graphile_worker_py.postgres.database import Database


class KeptConnection:
    """A connection that no task can change or keep busy; a context manager.

    It is opened at the first use, and again after a use that raised or left a transaction open.

    Args:
        database: The database to connect to.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._conn: AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()

    @asynccontextmanager
    async def borrowed(self) -> AsyncIterator[AsyncConnection[Any]]:
        """The connection, for the block; one use at a time."""
        conn, self._conn = self._conn, None
        if conn is None or conn.closed:
            conn = await connect_like(self._database.pool)
        is_usable = False
        try:
            yield conn
            is_usable = conn.pgconn.transaction_status == TransactionStatus.IDLE
        finally:
            if is_usable:
                self._conn = conn
            else:
                await conn.close()
