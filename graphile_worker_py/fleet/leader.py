"""The leader: the one pool of a schema that does the chores which plugins ask for.

A pool takes the lease with a heartbeat, renews it with each further one, and leads until the lease
ends. A leader that stalls may meet its successor: each chore must be safe if two pools do it.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from psycopg import AsyncConnection, errors

from graphile_worker_py import aio
from graphile_worker_py.errors import one_line
from graphile_worker_py.plugins import Chore
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import ended_after
from graphile_worker_py.postgres.outages import is_outage
from graphile_worker_py.schema import own
from graphile_worker_py.sql import leaders

LEASE: Final = 3
"""How many heartbeats a lease lasts."""
CHORE_PATIENCE: Final = 60.0
"""Seconds that a chore may take."""
STEP_DOWN_PATIENCE: Final = 1.0
"""Seconds in which a leader that stops gives the lease back; without that, it ends later."""
ABSTAIN_FOR: Final = 60.0
"""Seconds for which a pool that lacks the rights for a chore leaves the lease to other pools."""

own.register_migrations(leaders.LEAF, leaders.MIGRATIONS)


class Leader:
    """One pool's part in leading its schema.

    Args:
        pool_id: Id of the pool.
        database: The database that the pool works on.
        chores: What the leader has to do; without chores the pool never leads.
        heartbeat_interval: Seconds between two heartbeats.
        logger: Where to log.

    Attributes:
        failures: How many times a chore failed.
        last_error: The last of these errors; None if there was none.
        applied: How many migrations of each leaf were applied.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        chores: Sequence[Chore],
        heartbeat_interval: float,
        logger: logging.Logger,
    ) -> None:
        self.failures = 0
        self.last_error: str | None = None
        self._pool_id = pool_id
        self._database = database
        self._chores = chores
        self._lease = LEASE * heartbeat_interval
        self._logger = logger
        self._about = {"pool_id": pool_id}
        self._until = 0.0
        self._abstains_until = 0.0
        self._due = dict.fromkeys((chore.name for chore in chores), 0.0)
        self._failing: dict[str, str] = {}
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()
        self.applied: Mapping[str, int] = {}

    @property
    def has_chores(self) -> bool:
        """Whether there is anything to lead for."""
        return bool(self._chores)

    @property
    def leads(self) -> bool:
        """Whether the pool is the leader now."""
        return asyncio.get_running_loop().time() < self._until

    async def renew(self, conn: AsyncConnection[Any]) -> None:
        """Take or renew the lease, unless another pool has it."""
        async with self._turn:
            sent = asyncio.get_running_loop().time()
            if self._closed.is_set() or sent < self._abstains_until:
                return
            schema = self._database.schema
            query = leaders.lead(self._pool_id, worker_schema=schema, lease=self._lease)
            if await self._database.run(query, conn=conn):
                self._until = sent + self._lease
                self._wake.set()

    def close(self) -> None:
        """Let `run` end; a chore that has begun is cut off."""
        self._closed.set()

    async def run(self) -> None:
        """Do the chores that are due, whenever the pool leads, until closed."""
        async with aio.until(self._closed):
            await self._do_what_is_due()
        if self.leads:
            await self._step_down()

    async def _do_what_is_due(self) -> None:
        while True:
            await self._wake.wait()  # for the next renewal
            self._wake.clear()
            for chore in self._chores:
                now = asyncio.get_running_loop().time()
                is_due = now >= self._due[chore.name] and own.is_ready(chore.leaf, self.applied)
                if self.leads and is_due:
                    self._due[chore.name] = now + chore.interval
                    await self._do(chore)

    async def _do(self, chore: Chore) -> None:
        try:
            # One of the pool's connections would be lost to it if a chore is cut off.
            async with (
                asyncio.timeout(2 * CHORE_PATIENCE),
                self._database.new_connection() as conn,
                ended_after(CHORE_PATIENCE, conn),
            ):
                await chore.run(conn)
        except aio.ENDING as error:
            if aio.is_cancelled(error):
                raise
            self._failed(chore, error)
            if isinstance(error, errors.InsufficientPrivilege):
                self._abstains_until = asyncio.get_running_loop().time() + ABSTAIN_FOR
                await self._step_down()
        else:
            self._failing.pop(chore.name, None)

    def _failed(self, chore: Chore, error: BaseException) -> None:
        self.failures += 1
        self.last_error = said = f"{chore.name}: {one_line(error)}"
        known = is_outage(error) or self._failing.get(chore.name) == said
        self._failing[chore.name] = said
        self._logger.log(
            logging.DEBUG if known else logging.WARNING,
            "Could not %s (%s); retrying every %g s",
            chore.name,
            one_line(error),
            chore.interval,
            extra=self._about,
        )

    async def _step_down(self) -> None:
        self._until = 0.0
        query = leaders.step_down(self._pool_id, worker_schema=self._database.schema)
        try:
            async with asyncio.timeout(STEP_DOWN_PATIENCE), self._turn:  # not during a renewal
                await self._database.run(query)
        except Exception as error:  # the lease ends without it
            self._logger.debug("Could not give the lease back (%s)", one_line(error))
