"""Prove that a worker pool is alive, notice if others took it for dead, and recover theirs.

A pool registers in the side schema and beats there every two seconds, by the clock of the
database. Besides, its listening connection holds an advisory lock for as long as its session lives.
A pool whose heartbeat is late and whose lock is free is dead; each living pool of the same schema
looks for such, and frees what they had locked.

A pool that was only stopped, or cut off, learns from its first heartbeat that it is taken for dead.
Before it fetches anything it beats, if the last heartbeat is too long ago.

Where there is no side schema the only thing that is left to do is to renew the locks of long jobs.
"""

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, TypeVar, assert_never

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from graphile_worker_py import events, side_schema
from graphile_worker_py.backoff import CONTENTION, backoff_for
from graphile_worker_py.db import Database, Query, connect_like, one_line
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.events import Events
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.quarantine import Quarantine
from graphile_worker_py.recovery import recover
from graphile_worker_py.sql import notifications, pools
from graphile_worker_py.sql.pools import Standing
from graphile_worker_py.sql.renew_locks import renew_locks
from graphile_worker_py.sql.return_jobs import return_unknown_jobs
from graphile_worker_py.sql.suspects import forget_suspects

T = TypeVar("T")

RENEW_EVERY: Final = 30
"""Heartbeats from one look for old locks, and for suspects that are gone, to the next."""
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
        known_ids: Callable[[], Sequence[int]],
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
        self._dead = False
        self._stopping = False
        self._failing = False
        self._late_since: float | None = None
        self._is_urgent = False
        self._beating = asyncio.Lock()
        self._last_beat = 0.0
        self._steady_since = 0.0
        self._renew_at = 0.0
        self._others_late = asyncio.Event()
        self._recovering = False
        self._recoveries = 0
        self._wake = asyncio.Event()
        self._closed = False
        self._clean = True

    async def run(self) -> None:
        """Beat until closed, and recover others; then leave."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._recover_others(), name="recover dead pools")
            while not self._closed:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._delay()):
                        await self._wake.wait()
                if not self._closed:
                    await self.beat()
                    await self._look_after_long_jobs()
            self._others_late.set()
        await self._leave()

    def stopping(self) -> None:
        """Say that the pool was told to stop."""
        self._stopping = True
        self._wake.set()

    def close(self, *, clean: bool) -> None:
        """Let `run` end; `clean` says that the pool has nothing locked any more."""
        self._closed = True
        self._clean = clean
        self._wake.set()

    async def hold_lock(self, conn: AsyncConnection[Any]) -> None:
        """Let a session, for as long as it lasts, speak for the pool."""
        if self._wanted and not self._dead:
            await self._database.run(
                pools.hold_lock(self._lock_key, dead_after=self._dead_after), conn=conn
            )
            # Once more, so that its last statement tells administrators what the session is for.
            await conn.execute(notifications.LISTEN)

    async def confirm(self) -> bool:
        """Make sure, after a pause, that the pool is not taken for dead; whether it may fetch."""
        now = asyncio.get_running_loop().time()
        if self._registered and now > self._last_beat + self._dead_after:
            await self.beat()
        return not self._dead

    async def beat(self) -> None:
        """Prove to be alive; register before, where that was not done yet."""
        async with self._beating:
            if not self._wanted or self._dead:
                return
            try:
                # A server that does not answer is not waited for until it is too late.
                async with asyncio.timeout(self._longest_gap):
                    if not self._registered:
                        await self._register()
                    await self._beat()
            except side_schema.MISSING:
                self._logger.warning(
                    "The schema graphile_worker_py is gone, creating it anew", extra=self._about
                )
                self._registered = False
            except (psycopg.Error, OSError, ConfigurationError) as error:
                backoff = backoff_for(error)
                if backoff is CONTENTION:
                    self._wake.set()  # somebody else's turn; ours is next
                elif self._registered or backoff is not None:
                    self._failed(error)
                else:
                    self._do_without(error)

    async def _register(self) -> None:
        register = pools.register_pool(
            self._pool_id,
            worker_schema=self._database.schema,
            host=socket.gethostname(),
            pid=os.getpid(),
            dead_after=self._dead_after,
            lock_key=self._lock_key,
        )
        async with self._connection() as conn:
            await side_schema.install(self._database, conn)
            await self._database.run(register, conn=conn)
        self._registered = True

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        if self._failing or sent > self._last_beat + self._longest_gap:
            self._steady_since = sent
        recoveries = None if self._recovering else self._recoveries
        cleared = self.quarantine.cleared
        heard = await self._run(
            pools.beat(
                self._pool_id,
                worker_schema=self._database.schema,
                is_stopping=self._stopping,
                cleared=cleared,
            )
        )
        self.quarantine.forget(len(cleared))
        self._last_beat = sent
        self._failing = False
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

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        async with AsyncExitStack() as stack:
            borrowed = self._database.connection(timeout=self._interval / 2)
            try:
                conn = await stack.enter_async_context(borrowed)
            except PoolTimeout:
                # Tasks may have borrowed all connections. That is no reason to be dead.
                own = await connect_like(self._database.pool)
                conn = await stack.enter_async_context(own)
            yield conn

    async def _run(self, query: Query[T]) -> T:
        async with self._connection() as conn:
            return await self._database.run(query, conn=conn)

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

    def _delay(self) -> float:
        if not self._wanted or self._dead:
            return self._interval * RENEW_EVERY
        # Scattered, so that not all pools of a fleet come at once. When there is somebody to
        # recover, look again soon.
        part = random.uniform(0.8, 1)  # noqa: S311
        return self._interval * part * (0.25 if self._is_urgent else 1)

    async def _look_after_long_jobs(self) -> None:
        """Now and then renew the locks of long jobs, and forget suspects that are gone."""
        now = asyncio.get_running_loop().time()
        if now < self._renew_at or self._dead:
            return
        self._renew_at = now + self._interval * RENEW_EVERY
        try:
            known = self._known_ids()
            if known:
                await self._run(renew_locks(self._pool_id, known))
            if self.quarantine.suspects:
                await self._run(forget_suspects(self._database.schema))
        except (psycopg.Error, OSError) as error:
            self._logger.warning(
                "Could not renew the locks of long jobs (%s)", one_line(error), extra=self._about
            )

    async def _recover_others(self) -> None:
        while True:
            await self._others_late.wait()
            self._others_late.clear()
            if self._closed:
                return
            if not self._dead:
                self._recovering = True
                await self._recover()
                self._recovering = False
                self._recoveries += 1

    async def _recover(self) -> None:
        try:
            async with self._connection() as conn:
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
            async with asyncio.timeout(LEAVE_PATIENCE):
                if self._dead:
                    # What it has fetched since others thought it dead nobody else would free.
                    await self._run(return_unknown_jobs([], pool_id=self._pool_id))
                elif self._clean:
                    await self._run(pools.leave(self._pool_id))
        except (psycopg.Error, OSError) as error:
            self._logger.debug("Could not leave (%s)", one_line(error), extra=self._about)
