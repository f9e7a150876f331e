"""Detect that an idle connection was closed, without asking the server."""

import select
from typing import Any, Final

import psycopg
import psycopg_pool
from psycopg import AsyncConnection, BaseConnection, Connection
from psycopg.pq import ConnStatus

MOST_READS: Final = 100
"""Most times that what the server has sent to an idle connection is read at once."""


def has_ended(conn: BaseConnection[Any]) -> bool:
    """Whether an idle connection was closed: by the server, an administrator or a firewall.

    Nothing is sent. The operating system knows whether the other side has closed the connection;
    libpq finds out only when it reads, which would be after the next statement was sent.
    """
    pgconn = conn.pgconn
    try:
        for _ in range(MOST_READS):
            if not _is_readable(pgconn.socket):
                break
            pgconn.consume_input()  # a notice, a notification, or the end
    except (OSError, psycopg.Error):
        return True
    return pgconn.status != ConnStatus.OK


class Pool(psycopg_pool.ConnectionPool[Any]):
    """A pool that hands out no connection that was closed while it was idle.

    Its own `check=` would do the same, with a pause of a second after each such connection.
    """

    def getconn(self, timeout: float | None = None) -> Connection[Any]:
        """Borrow a connection."""
        conn: Connection[Any]
        while has_ended(conn := super().getconn(timeout)):
            conn.close()
            self.putconn(conn)
            self.drain()  # where one was closed, more were
        return conn


class AsyncPool(psycopg_pool.AsyncConnectionPool[Any]):
    """`Pool` for programs with an event loop."""

    async def getconn(self, timeout: float | None = None) -> AsyncConnection[Any]:
        """Borrow a connection."""
        conn: AsyncConnection[Any]
        while has_ended(conn := await super().getconn(timeout)):
            await conn.close()
            await self.putconn(conn)
            await self.drain()
        return conn


def _is_readable(descriptor: int) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
