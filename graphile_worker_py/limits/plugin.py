"""The plugin that keeps limits: what a runner adds to its worker pools if a task has a limit."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from psycopg import AsyncConnection

from graphile_worker_py.limits.pool import PoolLimits
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.plugins import FetchRequest, Part, Plugin
from graphile_worker_py.plugins.per_pool import PerPool
from graphile_worker_py.schema.own import register_migrations
from graphile_worker_py.sql import limit_tables
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.limit_permits import TOPIC

register_migrations(limit_tables.LEAF, limit_tables.MIGRATIONS)


class Limits(Plugin):
    """Keeps the limits of tasks in a runner's worker pools."""

    leaf = limit_tables.LEAF

    def __init__(self) -> None:
        self._limits = PerPool(PoolLimits)

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Jobs whose tasks are at their limits are left out."""
        return await self._limits.by_id(request.pool_id).fetch(request, proceed)

    def settled(self, pool: Any, batch: Sequence[Settled]) -> None:
        """The permits of jobs that ended are free."""
        self._limits.of(pool).settled(batch)

    def parts(self, pool: Any) -> Iterable[Part]:
        """Permits are given back, and changes of limits are heard."""
        limits = self._limits.of(pool)
        pool.listener.on(TOPIC, limits.hear)
        return [Part(name="keep limits", run=limits.run)]

    async def beat(self, pool: Any, conn: AsyncConnection[Any]) -> None:
        """Limits are read that operators and other pools have changed."""
        await self._limits.of(pool).beat(conn)

    def trouble(self, pool: Any) -> str | None:
        """Whether the tables are missing, or could not be read."""
        return self._limits.of(pool).trouble()
