"""Free what dead worker pools had locked, and give up jobs that kill their workers.

Where there are several living pools, this takes two turns. In the first one the jobs of a dead pool
are recorded as suspects. In the second one, when all living pools have read that, the jobs are
freed. Pools that do this at the same time do not get in each other's way.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py import aio, events
from graphile_worker_py.errors import RowsHiddenError
from graphile_worker_py.events import Events
from graphile_worker_py.fleet.heartbeat import Heartbeat
from graphile_worker_py.fleet.mode import SILENT
from graphile_worker_py.fleet.suspects import Suspects
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.deadlines import ended_after
from graphile_worker_py.records import Record
from graphile_worker_py.schema import own, rights
from graphile_worker_py.sql import admin, notifications, pools, suspects
from graphile_worker_py.sql.pools import DeadPool
from graphile_worker_py.sql.suspects import HeldJob
from graphile_worker_py.sql.time_limits import limit_transaction

DIED_UNDER_IT: Final = (
    "The worker process died {crashes} times while this job was running, the last time pool "
    "{pool.pool_id} (process {pool.pid} on {pool.host}); it is not tried again"
)
DIED_AT_LAST: Final = (
    "The worker process died while it had this job: pool {pool.pool_id} (process {pool.pid} on "
    "{pool.host}); no attempts are left"
)

STATEMENT_PATIENCE: Final = 240.0
"""Seconds that a statement may take; some read the whole table."""
IDLE_PATIENCE: Final = 30.0
"""Seconds after which the server ends a transaction whose pool has gone silent."""
DEADLINE: Final = 300.0
"""Seconds that a recovery may take."""


class Recovered(Record):
    """What was done for dead pools.

    Args:
        dead: The pools whose jobs were freed; at least one.
        jobs: How many jobs they had locked.
        queues: How many queues they had locked.
        given_up: Ids of the jobs under which workers died too often.
        failed_plugins: How many plugins could not release what the pools held.
    """

    dead: Sequence[DeadPool]
    jobs: int
    queues: int
    given_up: Sequence[int]
    failed_plugins: int


class RecoveryLoop:
    """Recovers dead pools each time a heartbeat reports that there may be some.

    Args:
        pool_id: Id of the pool that does it.
        database: The database that the pool works on.
        options: `max_crashes`.
        heartbeat: Reports late pools, and for how long this pool was steady.
        suspects: The suspects that the pool knows.
        hooks: Plugins that release what dead pools held.
        events: Where to emit events.
        lock_patience: Seconds to wait for rows and tables that other sessions have locked.
        logger: Where to log.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        options: WorkerOptions,
        heartbeat: Heartbeat,
        suspects: Suspects,
        hooks: Hooks,
        events: Events,
        lock_patience: float,
        logger: logging.Logger,
    ) -> None:
        self._pool_id = pool_id
        self._database = database
        self._max_crashes = options.max_crashes
        self._heartbeat = heartbeat
        self._suspects = suspects
        self._hooks = hooks
        self._events = events
        self._logger = logger
        self._about = {"pool_id": pool_id}
        self._closed = asyncio.Event()
        self._limits = limit_transaction(
            lock=lock_patience, statement=STATEMENT_PATIENCE, idle=IDLE_PATIENCE
        )

    def close(self) -> None:
        """Let `run` end; a recovery that has begun is cut off."""
        self._closed.set()
        self._heartbeat.others_late.set()

    async def run(self) -> None:
        """Recover dead pools until closed."""
        others_late = self._heartbeat.others_late
        while True:
            await others_late.wait()
            others_late.clear()
            if self._closed.is_set():
                return
            if self._heartbeat.mode not in SILENT:
                async with aio.until(self._closed):
                    await self._recover_or_log()

    async def _recover_or_log(self) -> None:
        try:
            with self._suspects.recording():
                recovered = await self._recover()
        except (psycopg.Error, OSError, RowsHiddenError) as error:
            self._database.availability.skipped(
                "recover the jobs of dead pools", error, log=self._logger, extra=self._about
            )
        else:
            if recovered is not None:
                self._report(recovered)

    def _report(self, recovered: Recovered) -> None:
        for pool in recovered.dead:
            self._logger.warning(
                "Pool %s is dead (process %d on %s): its jobs and queues were freed",
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
                failed_plugins=recovered.failed_plugins,
            )
        )

    async def _recover(self) -> Recovered | None:
        """Take one turn; None if no jobs could be freed yet."""
        schema = self._database.schema
        async with (
            self._database.new_connection() as conn,
            ended_after(DEADLINE, conn),
        ):
            await rights.check_visible(partial(self._database.run, conn=conn), schema)
            await self._record(conn)
            async with conn.transaction():
                await self._database.run(self._limits, conn=conn)
                dead = await self._database.run(
                    pools.take_dead(
                        self._pool_id,
                        worker_schema=schema,
                        patience=self._heartbeat.dead_after,
                    ),
                    conn=conn,
                )
                return await self._free(conn, dead) if dead else None

    async def _record(self, conn: AsyncConnection[Any]) -> None:
        """Find dead pools, and record their jobs as suspects."""
        schema = self._database.schema
        find_dead = pools.find_dead(
            self._pool_id, worker_schema=schema, steady=self._heartbeat.steady
        )
        async with conn.transaction():
            await self._database.run(self._limits, conn=conn)
            dead = await self._database.run(find_dead, conn=conn)
            # A process that was killed because it took too long to stop proves nothing about its
            # jobs.
            crashed = [pool.pool_id for pool in dead if not pool.is_stopping]
            if crashed and self._max_crashes:
                await self._database.run(suspects.record_suspects(schema, crashed), conn=conn)
        await self._database.run(pools.mark_recorded(schema), conn=conn)

    async def _free(self, conn: AsyncConnection[Any], dead: Sequence[DeadPool]) -> Recovered:
        """Free the jobs of dead pools, within a transaction that has these pools locked."""
        run, schema = self._database.run, self._database.schema
        crashes = await run(suspects.read_suspects(schema), conn=conn)
        # Before any of them can be fetched.
        self._suspects.learn(crashes)
        by_id = {pool.pool_id: pool for pool in dead}
        held = await run(suspects.read_held_jobs(list(by_id)), conn=conn)
        unlocked = await run(admin.force_unlock_workers(list(by_id)), conn=conn)
        most = self._max_crashes
        given_up = [job for job in held if 0 < most <= crashes.get(job.job_id, 0)]
        others = [job for job in held if not 0 < most <= crashes.get(job.job_id, 0)]
        kept = [job for job in others if job.keeps_attempt]
        last = [job for job in others if job.is_last_attempt and not job.keeps_attempt]
        await self._fail(conn, given_up, DIED_UNDER_IT, by_id, crashes)
        await self._fail(conn, last, DIED_AT_LAST, by_id, crashes)
        if kept:
            await run(suspects.return_attempts([job.job_id for job in kept]), conn=conn)
        await run(suspects.forget_marks(schema, list(by_id)), conn=conn)
        if given_up:
            ids = [job.job_id for job in given_up]
            await run(suspects.forget_suspects(schema, ids), conn=conn)
        await run(pools.mark_unlocked(list(by_id)), conn=conn)
        # Without an announcement, at commit, workers would find the jobs only when they next poll.
        if left := len(held) - len(given_up) - len(last):
            await run(notifications.announce_jobs(left), conn=conn)
        return Recovered(
            dead=dead,
            jobs=unlocked.jobs,
            queues=unlocked.queues,
            given_up=[job.job_id for job in given_up],
            failed_plugins=await self._let_plugins_release(conn, dead, held),
        )

    async def _let_plugins_release(
        self, conn: AsyncConnection[Any], dead: Sequence[DeadPool], held: Sequence[HeldJob]
    ) -> int:
        """Call `Plugin.recovered`; returns how many plugins failed."""
        plugins = self._hooks.recovering
        if not plugins:
            return 0
        with_jobs = [
            replace(pool, jobs=[job for job in held if job.pool_id == pool.pool_id])
            for pool in dead
        ]
        if any(plugin.leaf is not None for plugin in plugins):
            applied = await own.leaf_revisions(self._database, conn=conn)
            plugins = [plugin for plugin in plugins if own.is_ready(plugin.leaf, applied)]
        return await self._hooks.recovered(conn, with_jobs, plugins=plugins)

    async def _fail(
        self,
        conn: AsyncConnection[Any],
        jobs: Sequence[HeldJob],
        reason: str,
        by_id: Mapping[str, DeadPool],
        crashes: Mapping[int, int],
    ) -> None:
        """Give up jobs that were freed, each with a reason that says what happened to it."""
        reasons: dict[str, list[int]] = {}
        for job in jobs:
            text = reason.format(crashes=crashes.get(job.job_id, 0), pool=by_id[job.pool_id])
            reasons.setdefault(text, []).append(job.job_id)
        for text, ids in reasons.items():
            await self._database.run(admin.permanently_fail_jobs(ids, text), conn=conn)
