"""The plugin that heeds pauses: what a runner adds to its worker pools."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from psycopg import AsyncConnection

from graphile_worker_py.pausing.gate import Gate
from graphile_worker_py.plugins import FetchRequest, Part, PartEnd, Plugin
from graphile_worker_py.plugins.per_pool import PerPool
from graphile_worker_py.schema.own import register_migrations
from graphile_worker_py.sql import pauses
from graphile_worker_py.sql.get_jobs import Fetched

register_migrations(pauses.LEAF, pauses.MIGRATIONS)


class Pausing(Plugin):
    """Leaves what is paused out of the fetches of a runner's worker pools."""

    leaf = pauses.LEAF

    def __init__(self) -> None:
        self._gates = PerPool(Gate)

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Paused tasks take no lock and no attempt."""
        return await self._gates.by_id(request.pool_id).fetch(request, proceed)

    async def beat(self, pool: Any, conn: AsyncConnection[Any]) -> None:
        """Pauses are read if they have changed."""
        await self._gates.of(pool).beat(conn)

    def parts(self, pool: Any) -> Iterable[Part]:
        """Notifications about pauses are heard."""
        gate = self._gates.of(pool)
        pool.listener.on(pauses.TOPIC, gate.hear)
        return [Part(name="heed pauses", run=gate.follow, ends=PartEnd.WITH_FETCHING)]

    def trouble(self, pool: Any) -> str | None:
        """What is paused."""
        return self._gates.of(pool).trouble
