"""Heartbeats: prove that this pool is alive, and detect that other pools declared it dead.

A pool registers in the schema `graphile_worker_py` and updates its row there every two seconds, by
the clock of the database. Its listening connection also holds an advisory lock for as long as its
session lasts. A pool whose heartbeat is late and whose lock is free is dead: each living pool looks
for dead pools of its schema and frees the jobs that they had locked (see `recovery.py`).

A heartbeat must not depend on what tasks do to the connections of the pool, nor wait for a server
that does not answer. It has its own connection, and gets only a part of the available time on it.
If it fails for any reason, it is sent again at once on a new connection.
"""

import asyncio
import logging
import math
import os
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any, Final, assert_never

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py import aio
from graphile_worker_py.backoff import CONTENTION
from graphile_worker_py.errors import ConfigurationError, MigrationError, one_line
from graphile_worker_py.fleet.gaps import Gaps
from graphile_worker_py.fleet.mode import SILENT, Mode
from graphile_worker_py.fleet.refusals import Refusals
from graphile_worker_py.fleet.suspects import Suspects
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import ended_after, hung_up_after
from graphile_worker_py.postgres.outages import backoff_for, is_outage
from graphile_worker_py.schema import own
from graphile_worker_py.sql import notifications, pools
from graphile_worker_py.sql.pool_locks import PoolLock, hold_lock
from graphile_worker_py.sql.pools import HeartbeatReply, PoolReport, Standing
from graphile_worker_py.sql.return_jobs import return_unknown_jobs

REGISTER_PATIENCE: Final = 5.0
"""Seconds to register, because the schema may have to be created first."""
PART: Final = "send a heartbeat"
REGISTER: Final = "register this pool"
BEGIN_PATIENCE: Final = 30.0
BEGIN_INTERVAL: Final = 0.2
"""Seconds that a pool tries to register before its first fetch, and between two tries."""
MOST_MISSES: Final = 3
"""Heartbeats in a row for which tables of the schema may be missing."""
WITHOUT_LOCK: Final = 10
"""Factor by which a heartbeat may be later where a pool never holds an advisory lock."""
LEAVE_PATIENCE: Final = 3.0


class Heartbeat:
    """The heartbeats of one pool, and what the pool may do after them.

    Its modes:

    - `STARTING`: no heartbeat was answered yet. The pool waits up to `BEGIN_PATIENCE` seconds
      before its first fetch, because no other pool would free what an unregistered pool locks.
      The first answer leads to `ALIVE`.
    - `ALIVE`: heartbeats are answered, and the pool may fetch. If the last answer is older than
      `dead_after` when the pool wants to fetch, it sends a heartbeat at once. If that fails too,
      it is `HELD_BACK`.
    - `HELD_BACK`: the pool fetches nothing, because other pools may have declared it dead. The
      next answer leads back to `ALIVE`.
    - `STOPPING`: the pool was told to stop. Its heartbeats say so: if it is killed now, its jobs
      are not suspected of having killed it.
    - `DEAD`: an answer said that another pool had declared this one dead. Its jobs are no longer
      its own. `declared_dead` was called, once.
    - `WITHOUT`: there is no side schema: it is switched off, the role may not use it, or another
      role has planted it. The pool works on. If it is killed, its jobs stay locked until their
      locks are too old.
    - `GONE`: closed. The row was deleted, unless the pool left locks behind.

    Args:
        pool_id: Id of the pool.
        database: The database that the pool works on.
        options: `heartbeat_interval`, `dead_after`, `no_side_schema`.
        listens: Whether the pool has a listening connection, which can hold an advisory lock.
        suspects: Learns from each answer which jobs are suspects.
        connection: Opens or borrows the connection of a heartbeat, which no task has used.
        declared_dead: Called once if another pool declared this one dead.
        refusals: Learns which heartbeats fail, and why.
        follow: Called after each answered heartbeat with its connection; may not raise.
        report: Makes what the pool reports about itself, given how late the event loop is.
        logger: Where to log.

    Attributes:
        dead_after: Seconds that a heartbeat may be late before the pool counts as dead.
        others_late: Set when there may be dead pools to recover.
        last: The last answer; None before the first one.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        options: WorkerOptions,
        listens: bool,
        suspects: Suspects,
        connection: Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]],
        declared_dead: Callable[[], None],
        refusals: Refusals,
        follow: Callable[[AsyncConnection[Any]], Awaitable[None]] | None = None,
        report: Callable[[float], PoolReport],
        logger: logging.Logger,
    ) -> None:
        self.others_late = asyncio.Event()
        self.last: HeartbeatReply | None = None
        self._pool_id = pool_id
        self._database = database
        self._interval = options.heartbeat_interval
        self.dead_after = options.dead_after * (1 if listens else WITHOUT_LOCK)
        self._gaps = Gaps(longest=max(options.dead_after / 2, 1.5 * options.heartbeat_interval))
        self.server_time = self._gaps.server_time
        self._suspects = suspects
        self._connection = connection
        self._declared_dead = declared_dead
        self._refusals = refusals
        self._follow = follow
        self._report = report
        self._loop_lag = 0.0
        self._logger = logger
        self._about = {"pool_id": pool_id}
        self._lock: PoolLock | None = None
        self._mode = Mode.WITHOUT if options.no_side_schema else Mode.STARTING
        # The row can vanish in every mode; the next heartbeat inserts it again.
        self._has_row = False
        self._late_at = math.inf
        self._failures = self._misses = 0
        self._turn, self._wake = asyncio.Lock(), asyncio.Event()
        self._left_locks: bool | None = None  # until it is closed

    @property
    def mode(self) -> Mode:
        """What the heartbeat is doing."""
        return self._mode

    @property
    def held_back(self) -> bool:
        """Whether the pool fetches nothing, because other pools may have declared it dead."""
        return self._mode is Mode.HELD_BACK

    @property
    def is_registered(self) -> bool:
        """Whether other pools can see this one, and it can see them."""
        return self._has_row and self._mode not in SILENT

    @property
    def steady(self) -> float:
        """Seconds without a gap: a pool that paused cannot tell whether other pools did."""
        return self._gaps.steady

    def is_late(self) -> bool:
        """Whether other pools may have declared this one dead by now."""
        return asyncio.get_running_loop().time() > self._late_at

    async def begin(self, stop: asyncio.Event) -> None:
        """Register before the first fetch, but give up after `BEGIN_PATIENCE` seconds.

        Another session may have locked the side schema for longer.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + BEGIN_PATIENCE
        await self.beat()
        while self._mode is Mode.STARTING and loop.time() < deadline:
            if await aio.wait_for(stop, BEGIN_INTERVAL):
                return
            await self.beat()

    async def run(self) -> None:
        """Send heartbeats until closed, then leave."""
        while self._left_locks is None:
            self._wake.clear()
            try:
                async with asyncio.timeout(self._delay()) as limit:
                    await self._wake.wait()
            except TimeoutError:
                due = limit.when()
                self._loop_lag = 0.0 if due is None else asyncio.get_running_loop().time() - due
            if self._left_locks is None:
                await self.beat()
        await self._leave()

    def stopping(self) -> None:
        """Report in the next heartbeats that the pool was told to stop."""
        if self._mode not in SILENT:
            self._enter(Mode.STOPPING)
            self._wake.set()

    def close(self, *, left_locks: bool) -> None:
        """Let `run` end; `left_locks` says whether the pool has, or may have, locks left."""
        self._left_locks = left_locks
        self._wake.set()

    async def hold_lock(self, conn: AsyncConnection[Any]) -> None:
        """Take the advisory lock that proves, while its session lasts, that the pool lives."""
        if self._mode in SILENT:
            return
        take_lock = hold_lock(dead_after=self.dead_after)
        self._lock = await self._database.run(take_lock, conn=conn)
        self._wake.set()  # the next heartbeat tells other pools which lock it is
        # Again, so that pg_stat_activity shows administrators what the session is for.
        await self._database.run_script(notifications.LISTEN, conn=conn)

    async def confirm(self) -> bool:
        """Return whether the pool may fetch; after a pause, send a heartbeat first to find out."""
        if self.is_late():
            await self.beat()
        if self._mode is Mode.DEAD:
            return False
        if not self.is_late():
            return True
        if self._mode is Mode.ALIVE:
            self._enter(Mode.HELD_BACK)
            # In a known outage, this is only what follows from it.
            is_away = self._database.availability.is_away(except_for=(PART, REGISTER))
            self._logger.log(
                logging.DEBUG if is_away else logging.WARNING,
                "Fetching no jobs: this pool could not prove for %g s that it is alive, so other "
                "pools may have declared it dead",
                self.dead_after,
                extra=self._about,
            )
        return False

    async def beat(self) -> None:
        """Send a heartbeat; create the schema and register first where that is needed."""
        async with self._turn:
            if self._mode in SILENT:
                return
            try:
                await self._beat_in_time()
            except own.MISSING:
                self._schema_is_missing()
            except (psycopg.Error, OSError, ConfigurationError, MigrationError) as error:
                backoff = backoff_for(error)
                if backoff is CONTENTION:
                    self._wake.set()  # lost a race: try again at once
                elif self._has_row or backoff is not None:
                    self._failed(error)
                else:
                    self._do_without(error)

    def _enter(self, mode: Mode) -> None:
        self._mode = mode  # only here

    async def _beat_in_time(self) -> None:
        """Send a heartbeat, and if that fails, again at once on a new connection.

        The first try gets only a part of the time, so that the second one is not too late. Its
        session may be dead, or changed by another client of a pooler.
        """
        try:
            await self._beat_within(self._gaps.longest / 2)
        except own.MISSING:
            raise
        except (psycopg.Error, OSError) as error:
            self._logger.debug("A heartbeat failed (%s)", one_line(error), extra=self._about)
            await self._beat_within(self._gaps.longest)

    async def _beat_within(self, within: float) -> None:
        self._refusals.connecting()
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(within + self._interval):
                conn = await stack.enter_async_context(self._connection())
            self._refusals.connected()
            if self._has_row:
                with hung_up_after(within, conn):
                    await self._send(conn)
            else:
                with hung_up_after(max(within, REGISTER_PATIENCE), conn):
                    await self._register(conn)
            if self._follow is not None and self.is_registered:
                await self._follow(conn)

    async def _register(self, conn: AsyncConnection[Any]) -> None:
        """Insert the pool's row and send its first heartbeat, both or neither.

        Other pools would declare a registered pool dead if its role may not send heartbeats.
        """
        register = pools.register_pool(
            self._pool_id,
            worker_schema=self._database.schema,
            host=socket.gethostname(),
            pid=os.getpid(),
            dead_after=self.dead_after,
        )
        await own.install(self._database, conn)
        async with conn.transaction():
            await self._database.run(register, conn=conn)
            await self._send(conn)

    async def _send(self, conn: AsyncConnection[Any]) -> None:
        sent = asyncio.get_running_loop().time()
        self._gaps.sent(sent, after_failure=self._failures > 0)
        asked_at = self._suspects.version
        await self._suspects.forget_cleared(conn)
        beat = pools.beat(
            self._pool_id,
            worker_schema=self._database.schema,
            is_stopping=self._mode is Mode.STOPPING,
            lock=self._lock,
            report=self._report(self._loop_lag),
        )
        # A prepared statement that a pooler loses would fail the transaction that registers.
        reply = await self._database.run(replace(beat, prepare=self._has_row), conn=conn)
        self._answered(reply, sent=sent, asked_at=asked_at)

    def _answered(self, reply: HeartbeatReply, *, sent: float, asked_at: int | None) -> None:
        self._gaps.answered(sent, server_time=reply.at)
        self._late_at, self.last = sent + self.dead_after, reply
        self._failures = self._misses = 0
        self._refusals.answered()
        self._database.availability.works(PART)
        self._database.availability.works(REGISTER)
        self._has_row = reply.standing is not Standing.UNKNOWN
        self._suspects.can_mark = True
        match reply.standing:
            case Standing.ALIVE:
                if self._mode in {Mode.STARTING, Mode.HELD_BACK}:
                    self._enter(Mode.ALIVE)
                self._suspects.learn_from_answer(reply.suspects, asked_at=asked_at)
                if reply.others_late:
                    self.others_late.set()
            case Standing.DEAD:
                self._enter(Mode.DEAD)
                self._declared_dead()
            case Standing.UNKNOWN:
                self._wake.set()  # the row was deleted: insert it again at once
            case _:
                assert_never(reply.standing)

    def _schema_is_missing(self) -> None:
        self._has_row = False
        self._misses += 1
        if self._misses > MOST_MISSES:
            # Its migrations say that it is up to date.
            self._do_without(ConfigurationError("tables are missing in it: drop it"))
        else:
            self._logger.warning(
                "The schema graphile_worker_py is missing; creating it again", extra=self._about
            )

    def _failed(self, error: Exception) -> None:
        if self._failures == 0 or is_outage(error):
            part = PART if self._has_row else REGISTER
            self._database.availability.failed(
                part, error, delay=self._interval, log=self._logger, extra=self._about
            )
        self._failures += 1
        self._refusals.failed(error)
        if self._mode is Mode.HELD_BACK:
            self._refusals.check()

    def _do_without(self, error: Exception) -> None:
        self._enter(Mode.WITHOUT)
        self._late_at = math.inf
        self._suspects.can_mark = False
        self._logger.warning(
            "Working without the schema graphile_worker_py (%s): if this process is killed, its "
            "jobs stay locked for four hours. Let a role that may create the schema do so, or "
            "switch it off with no_side_schema",
            one_line(error),
            extra=self._about,
        )

    def _delay(self) -> float | None:
        """Seconds until the next heartbeat; random, so that the pools of a fleet spread out."""
        if self._mode in SILENT:
            return None
        return self._interval * random.uniform(0.8, 1)  # noqa: S311

    async def _leave(self) -> None:
        mode = self._mode
        self._enter(Mode.GONE)
        if not self._has_row:
            return
        try:
            async with (
                asyncio.timeout(2 * LEAVE_PATIENCE),
                self._connection() as conn,
                ended_after(LEAVE_PATIENCE, conn),
            ):
                if mode is Mode.DEAD:
                    # What it fetched after it was declared dead.
                    unknown = return_unknown_jobs([], pool_id=self._pool_id)
                    await self._database.run(unknown, conn=conn)
                elif not self._left_locks:
                    await self._suspects.forget_cleared(conn)
                    await self._database.run(pools.leave(self._pool_id), conn=conn)
        except (psycopg.Error, OSError) as error:
            self._logger.debug("Could not deregister (%s)", one_line(error), extra=self._about)
