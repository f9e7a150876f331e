"""Connections for the utils of a test, which work on every event loop."""

from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from graphile_worker_py.postgres.connecting import checked_conninfo


class LooseConnections(AsyncConnectionPool[AsyncConnection[Any]]):
    """A pool that opens a connection for each use, and closes it afterwards.

    It holds no connections and starts no tasks, so it belongs to no event loop: fixtures may use it
    in one loop and tests in another, and there is nothing to close at the end of a test.

    Args:
        dsn: The database.
    """

    def __init__(self, dsn: str) -> None:
        super().__init__(
            checked_conninfo(dsn), kwargs={"autocommit": True}, min_size=0, max_size=10, open=False
        )

    async def getconn(self, timeout: float | None = None) -> AsyncConnection[Any]:  # noqa: ARG002
        """Open a connection."""
        return await AsyncConnection.connect(str(self.conninfo), autocommit=True)

    async def putconn(self, conn: AsyncConnection[Any]) -> None:
        """Close a connection."""
        await conn.close()

    async def drain(self) -> None:
        """Do nothing, because there are no idle connections."""
