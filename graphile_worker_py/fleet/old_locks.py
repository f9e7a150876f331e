"""Look after old locks every few minutes: those of this pool, and those of dead pools.

- Renew locks of this pool's jobs that are older than an hour, so that no worker takes them for
  abandoned.
- Forget suspects whose jobs are gone.
- Free what dead pools have locked since they were recovered. Normally there is nothing to free,
  but a process that was paused in the middle of a fetch may lock jobs when it resumes, and die
  before it learns that it was declared dead.

This is separate from the heartbeat because it uses the tables of jobs, which other sessions may
lock for any length of time. It waits a few seconds for them and otherwise tries again later.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py import aio
from graphile_worker_py.errors import RowsHiddenError
from graphile_worker_py.fleet.heartbeat import Heartbeat
from graphile_worker_py.fleet.suspects import Suspects
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import ended_after
from graphile_worker_py.schema.rights import check_visible
from graphile_worker_py.sql import admin, notifications, pools
from graphile_worker_py.sql.renew_locks import read_old_locks, renew_locks
from graphile_worker_py.sql.suspects import (
    forget_suspects,
    read_held_jobs,
    return_attempts,
)
from graphile_worker_py.sql.time_limits import limit_transaction

EVERY: Final = 30
"""Heartbeats from one turn to the next."""
FREE_AGAIN_AFTER: Final = 600.0
"""Seconds after which a pool looks again for locks of a dead pool; that reads the whole table."""
DEADLINE: Final = 60.0
"""Seconds that a transaction may take."""
LOCK_PATIENCE: Final = 5.0
"""Seconds to wait for rows and tables that other sessions have locked."""


class OldLocks:
    """Looks after old locks until closed.

    Args:
        pool_id: Id of the pool.
        database: The database that the pool works on.
        heartbeat_interval: Seconds between two heartbeats.
        longest_interval: Most seconds between two turns, even if heartbeats are seldom.
        known_ids: Returns the ids of the jobs that the pool has locked.
        heartbeat: Tells whether the pool is registered.
        suspects: The suspects that the pool knows.
        logger: Where to log.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        heartbeat_interval: float,
        longest_interval: float,
        known_ids: Callable[[], AbstractSet[int]],
        heartbeat: Heartbeat,
        suspects: Suspects,
        logger: logging.Logger,
    ) -> None:
        self._pool_id = pool_id
        self._database = database
        self._interval = min(EVERY * heartbeat_interval, longest_interval)
        self._known_ids = known_ids
        self._heartbeat = heartbeat
        self._suspects = suspects
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
            if self._heartbeat.is_registered:
                await self._free_locks_of_the_dead()
        except (psycopg.Error, OSError, RowsHiddenError) as error:
            self._database.availability.skipped(
                "look after old locks", error, log=self._logger, extra=self._about
            )

    async def _renew_locks(self) -> None:
        known = list(self._known_ids())
        if not known:
            return
        async with self._transaction() as conn:
            if await self._database.run(read_old_locks(self._pool_id, known), conn=conn):
                await self._database.run(renew_locks(self._pool_id, known), conn=conn)

    async def _free_locks_of_the_dead(self) -> None:
        schema = self._database.schema
        async with self._transaction() as conn:
            if self._suspects.crashes:
                await self._database.run(forget_suspects(schema), conn=conn)
            dead = await self._database.run(
                pools.take_unlocked(schema, after=FREE_AGAIN_AFTER), conn=conn
            )
            if not dead:
                return
            await check_visible(partial(self._database.run, conn=conn), schema)
            held = await self._database.run(read_held_jobs(dead), conn=conn)
            freed = await self._database.run(admin.force_unlock_workers(dead), conn=conn)
            kept = [job.job_id for job in held if job.keeps_attempt]
            await self._database.run(return_attempts(kept), conn=conn)
            if freed.jobs:
                await self._database.run(notifications.announce_jobs(freed.jobs), conn=conn)
        if freed.jobs or freed.queues:
            self._logger.warning(
                "Freed %d job(s) and %d queue(s) that dead pools had locked after their recovery",
                freed.jobs,
                freed.queues,
                extra=self._about,
            )

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        limits = limit_transaction(lock=LOCK_PATIENCE, statement=DEADLINE, idle=DEADLINE)
        async with (
            self._database.new_connection() as conn,
            ended_after(DEADLINE, conn),
            conn.transaction(),
        ):
            await self._database.run(limits, conn=conn)
            yield conn
