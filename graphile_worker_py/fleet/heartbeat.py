"""Prove that a worker pool is alive, notice if others took it for dead, and recover theirs.

A pool registers in the side schema and beats there every two seconds, by the clock of the
database. Besides, its listening connection holds an advisory lock for as long as its session lives.
A pool whose heartbeat is late and whose lock is free is dead; each living pool of the same schema
looks for such, and frees what they had locked.

A pool that was only stopped, or cut off, learns from its first heartbeat that it is taken for dead.
Before it fetches anything it beats, if the last heartbeat is too long ago.

A pool that could not beat for so long that others may think it dead fetches nothing until it can.

A heartbeat must not wait: neither for connections that tasks have borrowed, nor on one that leads
nowhere. So it is given up after a part of the time that there is, its connection is cut, and the
next one is sent at once on a new connection.

It is long because when a pool beats, when it is late and when it may fetch is one thing.
"""

import asyncio
import logging
import math
import os
import random
import socket
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, Final, assert_never

import psycopg
from psycopg import AsyncConnection, errors

from graphile_worker_py import aio, events
from graphile_worker_py.backoff import CONTENTION
from graphile_worker_py.errors import ConfigurationError, one_line
from graphile_worker_py.events import Events
from graphile_worker_py.fleet.old_locks import Upkeep
from graphile_worker_py.fleet.recovery import recover
from graphile_worker_py.fleet.suspects import Quarantine
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import ended_after, hung_up_after
from graphile_worker_py.postgres.outages import backoff_for, is_outage
from graphile_worker_py.schema import own
from graphile_worker_py.sql import notifications, pools
from graphile_worker_py.sql.pools import Standing
from graphile_worker_py.sql.return_jobs import return_unknown_jobs

REGISTER_PATIENCE: Final = 5.0
"""Seconds to register, for which the schema may have to be made, or others make it."""
BEGIN_PATIENCE: Final = 30.0
BEGIN_INTERVAL: Final = 0.2
"""Seconds that a pool tries to register before its first fetch, and between two tries."""
MOST_MISSES: Final = 3
"""Heartbeats in a row for which tables of the schema may be missing."""
RECOVERY_DEADLINE: Final = 300.0
WITHOUT_LOCK: Final = 10
"""How many times as late a heartbeat may be where a pool never has a lock that speaks for it."""
LEAVE_PATIENCE: Final = 3.0


class Presence:
    """One pool among others.

    Args:
        pool_id: Id of the pool.
        database: Where it works.
        options: `heartbeat_interval`, `dead_after`, `max_crashes`, `no_side_schema`.
        listens: Whether the pool has a listening connection, which can hold a lock.
        known_ids: The jobs that the pool has locked.
        taken_for_dead: Called once if others have found the pool dead.
        events: Where to tell what happens.
        logger: Where to log.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        options: WorkerOptions,
        listens: bool,
        known_ids: Callable[[], AbstractSet[int]],
        taken_for_dead: Callable[[], None],
        events: Events,
        logger: logging.Logger,
    ) -> None:
        self._pool_id = pool_id
        self._database = database
        self._interval = options.heartbeat_interval
        self._dead_after = options.dead_after * (1 if listens else WITHOUT_LOCK)
        # Whoever had a gap of this length can't say of others that they had one.
        self._longest_gap = max(options.dead_after / 2, 1.5 * options.heartbeat_interval)
        self._max_crashes = options.max_crashes
        self._known_ids = known_ids
        self._taken_for_dead = taken_for_dead
        self._events = events
        self._logger = logger
        self._about = {"pool_id": pool_id}
        # The pool's id is random enough; a key has 64 bits with a sign.
        self._lock_key = int(pool_id.rpartition("-")[2][:16], 16) - 2**63
        self.quarantine = Quarantine(
            pool_id=pool_id, database=database, max_crashes=options.max_crashes, logger=logger
        )
        self._wanted = not options.no_side_schema
        self._registered = False
        self._has_beaten = False
        self._held_back = False
        self._dead = False
        self._stopping = False
        self._failing = False
        self._misses = 0
        self._late_since: float | None = None
        self._is_urgent = False
        self._beating = asyncio.Lock()
        self._last_beat = 0.0
        self._steady_since = 0.0
        self._clocks_apart = math.inf
        self._others_late = asyncio.Event()
        self._recovering = False
        self._recoveries = 0
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()
        self._clean = True
        self._upkeep = Upkeep(
            pool_id=pool_id,
            database=database,
            heartbeat_interval=options.heartbeat_interval,
            known_ids=known_ids,
            suspects=self.quarantine.suspects,
            registered=lambda: self._registered and not self._dead,
            logger=logger,
        )

    async def begin(self, stop: asyncio.Event) -> None:
        """Register, before anything is fetched: nobody would free what is locked otherwise.

        Not for ever: work is not to wait for whoever has locked the side schema.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + BEGIN_PATIENCE
        await self.beat()
        while self._wanted and not self._has_beaten and loop.time() < deadline:
            if await aio.wait_for(stop, BEGIN_INTERVAL):
                return
            await self.beat()

    async def run(self) -> None:
        """Beat until closed, and recover others; then leave."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._recover_others(), name="recover dead pools")
            group.create_task(self._upkeep.run(), name="look after old locks")
            while not self._closed.is_set():
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._delay()):
                        await self._wake.wait()
                if not self._closed.is_set():
                    await self.beat()
            self._others_late.set()
        await self._leave()

    def stopping(self) -> None:
        """Say that the pool was told to stop."""
        self._stopping = True
        self._wake.set()

    def close(self, *, clean: bool) -> None:
        """Let `run` end; `clean` says that the pool has nothing locked any more."""
        self._closed.set()
        self._upkeep.close()
        self._clean = clean
        self._wake.set()

    async def hold_lock(self, conn: AsyncConnection[Any]) -> None:
        """Let a session, for as long as it lasts, speak for the pool."""
        if self._wanted and not self._dead:
            hold_lock = pools.hold_lock(self._lock_key, dead_after=self._dead_after)
            if not await self._database.run(hold_lock, conn=conn):
                # Somebody tries whether the lock is free, and has it for that moment.
                raise errors.LockNotAvailable("the lock that speaks for the pool is not free")
            # Once more, so that its last statement tells administrators what the session is for.
            await conn.execute(notifications.LISTEN)

    async def confirm(self) -> bool:
        """Make sure, after a pause, that the pool is not taken for dead; whether it may fetch."""
        if self.is_late():
            await self.beat()
        if self._dead:
            return False
        is_late = self.is_late()
        if is_late and not self._held_back:
            self._logger.error(
                "Fetching no jobs: this pool could not prove to be alive for %g s, so others may "
                "think it dead",
                self._dead_after,
                extra=self._about,
            )
        self._held_back = is_late
        return not is_late

    @property
    def held_back(self) -> bool:
        """Whether nothing is fetched, because others may have found this pool dead."""
        return self._held_back and self.is_late()

    def is_late(self) -> bool:
        """Whether others may have found this pool dead by now."""
        now = asyncio.get_running_loop().time()
        return self._wanted and self._has_beaten and now > self._last_beat + self._dead_after

    async def beat(self) -> None:
        """Prove to be alive; register before, where that was not done yet."""
        async with self._beating:
            if not self._wanted or self._dead:
                return
            try:
                await self._beat_in_time()
            except own.MISSING:
                self._registered = False
                self._misses += 1
                if self._misses > MOST_MISSES:
                    # Only a part of it is: its migrations say that there is nothing to be done.
                    self._do_without(ConfigurationError("tables are missing in it: drop it"))
                    return
                self._logger.warning(
                    "The schema graphile_worker_py is gone, creating it anew", extra=self._about
                )
            except (psycopg.Error, OSError, ConfigurationError) as error:
                backoff = backoff_for(error)
                if backoff is CONTENTION:
                    self._wake.set()  # somebody else's turn; ours is next
                elif self._registered or backoff is not None:
                    self._failed(error)
                else:
                    self._do_without(error)

    async def _beat_in_time(self) -> None:
        """Beat on a connection of the pool, or else, at once, on a new one.

        The first try gets a part of the time only, so that the second one is not too late.
        """
        borrowed = self._database.connection_in_any_case(self._interval / 2)
        try:
            await self._beat_on(borrowed, within=self._longest_gap / 2)
        except (psycopg.OperationalError, OSError) as error:
            if not is_outage(error):
                raise
            self._logger.debug("A heartbeat failed (%s)", one_line(error), extra=self._about)
            # The connections of the pool may all lead nowhere.
            await self._beat_on(self._database.new_connection(), within=self._longest_gap)

    async def _beat_on(
        self, given: AbstractAsyncContextManager[AsyncConnection[Any]], *, within: float
    ) -> None:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(within + self._interval):
                conn = await stack.enter_async_context(given)
            if self._registered:
                with hung_up_after(within, conn):
                    await self._beat(conn)
            else:
                with hung_up_after(max(within, REGISTER_PATIENCE), conn):
                    await self._register(conn)

    async def _register(self, conn: AsyncConnection[Any]) -> None:
        """Make the pool known, with its first heartbeat.

        Both or neither: one that may not beat must not be known, or others find it dead.
        """
        register = pools.register_pool(
            self._pool_id,
            worker_schema=self._database.schema,
            host=socket.gethostname(),
            pid=os.getpid(),
            dead_after=self._dead_after,
            lock_key=self._lock_key,
        )
        await own.install(self._database, conn)
        async with conn.transaction():
            await self._database.run(register, conn=conn)
            await self._beat(conn)
        self._registered = True

    async def _beat(self, conn: AsyncConnection[Any]) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        if self._failing or sent > self._last_beat + self._longest_gap:
            self._steady_since = sent
        recoveries = None if self._recovering else self._recoveries
        await self.quarantine.clear(conn)
        beat = pools.beat(
            self._pool_id, worker_schema=self._database.schema, is_stopping=self._stopping
        )
        # In the transaction of the first one a pooler that loses what was prepared would undo all.
        heard = await self._database.run(replace(beat, prepare=self._registered), conn=conn)
        if heard.at - sent > self._clocks_apart + self._longest_gap:
            # The server's clock was put forward. All look late, and nobody is known to be.
            self._steady_since = sent
        self._clocks_apart = heard.at - sent
        self._last_beat = sent
        self._has_beaten = True
        self._failing = False
        self._misses = 0
        match heard.standing:
            case Standing.ALIVE:
                # What this pool records itself meanwhile may be missing in the answer.
                if recoveries == self._recoveries and not self._recovering:
                    self.quarantine.learn(heard.suspects)
                if heard.others_late:
                    self._others_late.set()
                    self._late_since = self._late_since or sent
                    # Not for ever: a session may speak for one that stands still.
                    self._is_urgent = sent < self._late_since + 2 * self._dead_after
                else:
                    self._late_since, self._is_urgent = None, False
            case Standing.DEAD:
                self._dead = True
                self._taken_for_dead()
            case Standing.UNKNOWN:
                # Somebody has emptied the table, or made it anew.
                self._registered = False
                self._wake.set()
            case _:
                assert_never(heard.standing)

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            self._logger.warning(
                "Could not tell others that this pool is alive (%s); trying on",
                one_line(error),
                extra=self._about,
            )
        self._failing = True

    def _do_without(self, error: Exception) -> None:
        self._wanted = False
        self._logger.warning(
            "Working without the schema graphile_worker_py (%s): should this process be killed, "
            "its jobs stay locked for four hours. Let a role that may do so create the schema, or "
            "switch it off with no_side_schema",
            one_line(error),
            extra=self._about,
        )

    def _delay(self) -> float | None:
        if not self._wanted or self._dead:
            return None
        # Scattered, so that not all pools of a fleet come at once. When there is somebody to
        # recover, look again soon.
        part = random.uniform(0.8, 1)  # noqa: S311
        return self._interval * part * (0.25 if self._is_urgent else 1)

    async def _recover_others(self) -> None:
        while True:
            await self._others_late.wait()
            self._others_late.clear()
            if self._closed.is_set():
                return
            if not self._dead:
                self._recovering = True
                async with aio.until(self._closed):
                    await self._recover()
                self._recovering = False
                self._recoveries += 1

    async def _recover(self) -> None:
        try:
            async with (
                self._database.connection_in_any_case(self._interval / 2) as conn,
                ended_after(RECOVERY_DEADLINE, conn),
            ):
                recovered = await recover(
                    self._database,
                    conn,
                    self._pool_id,
                    steady=self._last_beat - self._steady_since,
                    patience=self._dead_after,
                    max_crashes=self._max_crashes,
                    learn=self.quarantine.learn,
                )
        except (psycopg.Error, OSError) as error:
            self._logger.warning(
                "Could not recover the jobs of dead pools (%s); trying on",
                one_line(error),
                extra=self._about,
            )
            return
        if not recovered.dead:
            return
        for pool in recovered.dead:
            self._logger.warning(
                "Pool %s is dead (process %d on %s): what it had locked is free again",
                pool.pool_id,
                pool.pid,
                pool.host,
                extra=self._about,
            )
        if recovered.given_up:
            self._logger.error(
                "Gave up %d job(s) under which worker processes died %d times: %s",
                len(recovered.given_up),
                self._max_crashes,
                ", ".join(map(str, recovered.given_up[:10])),
                extra=self._about,
            )
        self._events.emit(
            events.PoolRecovered(
                pool_id=self._pool_id,
                dead_pool_ids=tuple(pool.pool_id for pool in recovered.dead),
                jobs=recovered.jobs,
                queues=recovered.queues,
                given_up=recovered.given_up,
            )
        )

    async def _leave(self) -> None:
        if not self._registered:
            return
        try:
            async with (
                asyncio.timeout(2 * LEAVE_PATIENCE),
                self._database.connection_in_any_case(LEAVE_PATIENCE / 2) as conn,
                ended_after(LEAVE_PATIENCE, conn),
            ):
                if self._dead:
                    # What it has fetched since others thought it dead.
                    unknown = return_unknown_jobs([], pool_id=self._pool_id)
                    await self._database.run(unknown, conn=conn)
                elif self._clean:
                    await self.quarantine.clear(conn)
                    await self._database.run(pools.leave(self._pool_id), conn=conn)
        except (psycopg.Error, OSError) as error:
            self._logger.debug("Could not leave (%s)", one_line(error), extra=self._about)
