"""What a pool looks after every few minutes: old locks, its own and those of the dead.

- Locks of its jobs that are older than an hour are renewed, so that they do not count as left
  behind, which they would after four hours.
- Suspects whose jobs are gone are forgotten.
- What pools that were found dead have locked since is freed. There should be nothing; but one that
  stood still may have gone on in the middle of a fetch, and died before it heard of its death.

It is apart from the heartbeat, because it touches the tables of jobs, which others may lock for as
long as they like. It waits for them for some seconds, and has its turn the next time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py import aio
from graphile_worker_py.errors import one_line
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import ended_after
from graphile_worker_py.sql import admin, notifications, pools
from graphile_worker_py.sql.renew_locks import read_old_locks, renew_locks
from graphile_worker_py.sql.suspects import forget_suspects
from graphile_worker_py.sql.time_limits import limit_transaction

EVERY: Final = 30
"""Heartbeats from one turn to the next."""
LONGEST_INTERVAL: Final = 600.0
"""Seconds from one turn to the next, at the most, so that a lock of an hour has many turns."""
FREE_AGAIN_AFTER: Final = 600.0
"""Seconds after which somebody looks anew what a dead pool has locked; it reads the whole table."""
BORROW_PATIENCE: Final = 1.0
DEADLINE: Final = 60.0
"""Seconds that a transaction may take."""
LOCK_PATIENCE: Final = 5.0
"""Seconds for which others may have locked what is needed."""


class Upkeep:
    """Takes turns until closed.

    Args:
        pool_id: Id of the pool.
        database: Where it works.
        heartbeat_interval: Seconds between two heartbeats.
        known_ids: The jobs that the pool has locked.
        suspects: Jobs under which workers died, as far as the pool knows.
        registered: Whether others know the pool, and it knows of them.
        logger: Where to log.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        heartbeat_interval: float,
        known_ids: Callable[[], AbstractSet[int]],
        suspects: Mapping[int, int],
        registered: Callable[[], bool],
        logger: logging.Logger,
    ) -> None:
        self._pool_id = pool_id
        self._database = database
        self._interval = min(EVERY * heartbeat_interval, LONGEST_INTERVAL)
        self._known_ids = known_ids
        self._suspects = suspects
        self._registered = registered
        self._logger = logger
        self._about = {"pool_id": pool_id}
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Let `run` end; a turn that has begun is cut off."""
        self._closed.set()

    async def run(self) -> None:
        """Take turns until closed."""
        while not await aio.wait_for(self._closed, self._interval):
            async with aio.until(self._closed):
                await self._take_turn()

    async def _take_turn(self) -> None:
        try:
            await self._renew_locks()
            if self._registered():
                await self._look_after_the_dead()
        except (psycopg.Error, OSError) as error:
            self._logger.warning(
                "Could not look after old locks (%s); trying on", one_line(error), extra=self._about
            )

    async def _renew_locks(self) -> None:
        known = list(self._known_ids())
        if not known:
            return
        async with self._transaction() as conn:
            if await self._database.run(read_old_locks(self._pool_id, known), conn=conn):
                await self._database.run(renew_locks(self._pool_id, known), conn=conn)

    async def _look_after_the_dead(self) -> None:
        schema = self._database.schema
        async with self._transaction() as conn:
            if self._suspects:
                await self._database.run(forget_suspects(schema), conn=conn)
            dead = await self._database.run(
                pools.take_unlocked(schema, after=FREE_AGAIN_AFTER), conn=conn
            )
            if not dead:
                return
            freed = await self._database.run(admin.force_unlock_workers(dead), conn=conn)
            if freed.jobs:
                text = f'{{"count":{freed.jobs}}}'
                await self._database.run(
                    notifications.notify(notifications.JOBS_INSERT, text), conn=conn
                )
        if freed.jobs or freed.queues:
            self._logger.warning(
                "Freed %d job(s) and %d queue(s) that dead pools had locked since they were found "
                "dead",
                freed.jobs,
                freed.queues,
                extra=self._about,
            )

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        limits = limit_transaction(lock=LOCK_PATIENCE, statement=DEADLINE, idle=DEADLINE)
        async with (
            self._database.connection_in_any_case(BORROW_PATIENCE) as conn,
            ended_after(DEADLINE, conn),
            conn.transaction(),
        ):
            await self._database.run(limits, conn=conn)
            yield conn
