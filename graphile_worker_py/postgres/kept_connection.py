"""A connection outside the pool that some parts of a worker use now and then."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, Self

from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from graphile_worker_py.postgres.connecting import connect_like
from graphile_worker_py.postgres.database import Database

PATIENCE: Final = 0.5
"""Seconds that a use waits for another one before it gets a connection of its own."""


class KeptConnection:
    """A connection that no task can change or keep busy; a context manager, also of several users.

    It is opened at the first use, and again after a use that raised or left a transaction open. It
    is closed when the last of its users has left.

    Args:
        database: The database to connect to.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._conn: AsyncConnection[Any] | None = None
        self._turn = asyncio.Lock()
        self._users = 0

    async def __aenter__(self) -> Self:
        self._users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if self._users == 0 and self._conn is not None:
            conn, self._conn = self._conn, None
            await conn.close()

    @asynccontextmanager
    async def borrowed(self) -> AsyncIterator[AsyncConnection[Any]]:
        """The connection, for the block; another one if it is in use for long."""
        async with AsyncExitStack() as stack:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await stack.enter_async_context(self._turn)
            # Without the turn there is none: who has the turn has taken it.
            conn, self._conn = self._conn, None
            if conn is None or conn.closed:
                conn = await connect_like(self._database.pool)
            is_usable = False
            try:
                yield conn
                is_usable = conn.pgconn.transaction_status == TransactionStatus.IDLE
            finally:
                if is_usable and self._users and self._conn is None:
                    self._conn = conn
                else:
                    await conn.close()
