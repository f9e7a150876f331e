"""What programs do with the limits of tasks: look at them, and set their numbers."""

from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.given import AsyncGiven, SyncGiven, taken, taken_blocking
from graphile_worker_py.sql import breakers
from graphile_worker_py.sql import limits as limiting
from graphile_worker_py.sql.breakers import Breaker
from graphile_worker_py.sql.limits import Limit


class LimitSteering:
    """Methods of `WorkerUtils` for limits."""

    @property
    def _database(self) -> Database:
        raise NotImplementedError

    async def limits(self, *, conn: AsyncGiven | None = None) -> list[Limit]:
        """Read the limits that worker pools have used, by name, and how much of them is used.

        Raises:
            MissingTablesError: The tables of limits are missing.
        """
        own = None if conn is None else await taken(conn)
        return await self._database.drive(limiting.known_limits(self._database.schema), conn=own)

    async def set_limit(
        self,
        name: str,
        amount: int,
        *,
        kind: str | None = None,
        conn: AsyncGiven | None = None,
    ) -> Limit:
        """Set the number of a limit, which counts until `clear_limit`, whatever the code says.

        Jobs that run are not ended: a limit that is lowered below what runs drains first.

        Args:
            name: The limit, which a worker pool has to have used before.
            amount: Jobs at once, or starts in the `per` seconds of a rate; 0 pauses the tasks.
            kind: `"concurrency"` or `"rate"`; None means jobs at once if there is such a limit.
            conn: As for `complete_jobs`.

        Raises:
            ConfigurationError: There is no such limit, or the number is not allowed.
            MissingTablesError: The tables of limits are missing.
        """
        change = limiting.set_limit(self._database.schema, name, amount, kind=kind)
        own = None if conn is None else await taken(conn)
        return await self._database.drive(change, conn=own)

    async def clear_limit(
        self, name: str, *, kind: str | None = None, conn: AsyncGiven | None = None
    ) -> Limit:
        """Let the number in the code count again. As for `set_limit`."""
        change = limiting.set_limit(self._database.schema, name, None, kind=kind)
        own = None if conn is None else await taken(conn)
        return await self._database.drive(change, conn=own)

    async def breakers(self, *, conn: AsyncGiven | None = None) -> list[Breaker]:
        """Read the circuit breakers that worker pools have had, by name.

        Raises:
            MissingTablesError: The table of breakers is missing.
        """
        own = None if conn is None else await taken(conn)
        return await self._database.drive(breakers.known_breakers(self._database.schema), conn=own)

    async def reset_breaker(self, name: str, *, conn: AsyncGiven | None = None) -> None:
        """Close a circuit breaker, so that all its jobs go on; nothing happens if it is closed.

        Args:
            name: The breaker, which a worker pool has to have had.
            conn: As for `complete_jobs`.

        Raises:
            ConfigurationError: There is no such breaker.
            MissingTablesError: The table of breakers is missing.
        """
        own = None if conn is None else await taken(conn)
        await self._database.drive(breakers.reset_breaker(self._database.schema, name), conn=own)


class SyncLimitSteering:
    """`LimitSteering` for programs without an event loop."""

    @property
    def _database(self) -> SyncDatabase:
        raise NotImplementedError

    def limits(self, *, conn: SyncGiven | None = None) -> list[Limit]:
        """Read the limits that worker pools have used. See `WorkerUtils.limits`."""
        own = None if conn is None else taken_blocking(conn)
        schema = self._database.statements.schema
        return self._database.drive(limiting.known_limits(schema), conn=own)

    def set_limit(
        self,
        name: str,
        amount: int,
        *,
        kind: str | None = None,
        conn: SyncGiven | None = None,
    ) -> Limit:
        """Set the number of a limit. See `WorkerUtils.set_limit`."""
        schema = self._database.statements.schema
        own = None if conn is None else taken_blocking(conn)
        change = limiting.set_limit(schema, name, amount, kind=kind)
        return self._database.drive(change, conn=own)

    def clear_limit(
        self, name: str, *, kind: str | None = None, conn: SyncGiven | None = None
    ) -> Limit:
        """Let the number in the code count again. See `WorkerUtils.clear_limit`."""
        schema = self._database.statements.schema
        own = None if conn is None else taken_blocking(conn)
        change = limiting.set_limit(schema, name, None, kind=kind)
        return self._database.drive(change, conn=own)

    def breakers(self, *, conn: SyncGiven | None = None) -> list[Breaker]:
        """Read the circuit breakers that worker pools have had. See `WorkerUtils.breakers`."""
        own = None if conn is None else taken_blocking(conn)
        schema = self._database.statements.schema
        return self._database.drive(breakers.known_breakers(schema), conn=own)

    def reset_breaker(self, name: str, *, conn: SyncGiven | None = None) -> None:
        """Close a circuit breaker. See `WorkerUtils.reset_breaker`."""
        schema = self._database.statements.schema
        own = None if conn is None else taken_blocking(conn)
        self._database.drive(breakers.reset_breaker(schema, name), conn=own)
