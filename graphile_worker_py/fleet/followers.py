"""What follows each answered heartbeat: the lease of the leader, and what plugins do.

It is sent on the heartbeat's connection, and gets little time. Nothing that fails here fails the
heartbeat.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from psycopg import AsyncConnection

from graphile_worker_py import aio
from graphile_worker_py.errors import one_line
from graphile_worker_py.fleet.leader import Leader
from graphile_worker_py.plugins import Beating
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import ended_after
from graphile_worker_py.postgres.outages import is_outage
from graphile_worker_py.schema import own
from graphile_worker_py.sql import leaders

READ_AGAIN: Final = 15
"""Heartbeats after which a pool looks again for tables that were missing."""
_READ: Final = "read which tables of plugins there are"
_LEASE: Final = "renew the lease of the leader"


class Followers:
    """What one pool does after its heartbeats.

    Args:
        database: The database that the pool works on.
        leader: The pool's part in leading.
        beating: What plugins do.
        patience: Seconds that all of it may take; each gets the same share.
        pool_id: Id of the pool, for the log.
        logger: Where to log.

    Attributes:
        failures: How many times it failed.
        last_error: The last of these errors; None if there was none.
    """

    def __init__(
        self,
        *,
        database: Database,
        leader: Leader,
        beating: Sequence[Beating],
        patience: float,
        pool_id: str,
        logger: logging.Logger,
    ) -> None:
        self.failures = 0
        self.last_error: str | None = None
        self._database = database
        self._leader = leader
        self._about = {"pool_id": pool_id}
        self._logger = logger
        self._all = list(beating)
        if leader.has_chores:
            self._all.insert(0, Beating(name=_LEASE, leaf=leaders.LEAF, beat=leader.renew))
        self._share = patience / max(1, len(self._all))
        self._beats = 0
        self._failing: set[str] = set()

    async def follow(self, conn: AsyncConnection[Any]) -> None:
        """Do all of it; errors are logged and counted."""
        if not self._all:
            return
        await self._do(_READ, self._read_revisions, conn)
        for each in self._all:
            if own.is_ready(each.leaf, self._leader.applied) and not conn.closed:
                await self._do(each.name, each.beat, conn)

    async def _read_revisions(self, conn: AsyncConnection[Any]) -> None:
        """Look which tables there are: at the first heartbeat, and later if some are missing."""
        ready = all(own.is_ready(each.leaf, self._leader.applied) for each in self._all)
        if not ready and self._beats % READ_AGAIN == 0:
            self._leader.applied = await own.leaf_revisions(self._database, conn=conn)
        self._beats += 1

    async def _do(
        self,
        name: str,
        beat: Callable[[AsyncConnection[Any]], Awaitable[None]],
        conn: AsyncConnection[Any],
    ) -> None:
        try:
            async with ended_after(self._share, conn):
                await beat(conn)
        except aio.ENDING as error:
            if aio.is_cancelled(error):
                raise
            self._failed(name, error)
            if isinstance(error, own.MISSING):
                self._leader.applied, self._beats = {}, 0  # read anew with the next heartbeat
        else:
            self._failing.discard(name)

    def _failed(self, name: str, error: BaseException) -> None:
        self.failures += 1
        self.last_error = f"{name}: {one_line(error)}"
        self._logger.log(
            logging.DEBUG if name in self._failing or is_outage(error) else logging.WARNING,
            "Could not %s (%s); retrying with the next heartbeats",
            name,
            one_line(error),
            extra=self._about,
        )
        self._failing.add(name)
