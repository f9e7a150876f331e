"""The plugin that keeps history: what a runner adds to its worker pools."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py.errors import one_line
from graphile_worker_py.history import upkeep
from graphile_worker_py.history.logs import CaptureHandler, LogCapture, captured
from graphile_worker_py.history.recorder import AWAIT, Recorder
from graphile_worker_py.history.running import CANCEL, Running
from graphile_worker_py.history.stacks import ASK, Stacks
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.plugins import Chore, Part, Plugin, Rider
from graphile_worker_py.schema.own import register_migrations
from graphile_worker_py.sql import history_tables
from graphile_worker_py.sql.pools import DeadPool
from graphile_worker_py.tasks.context import JobContext

KILLED: str = (
    "The worker process died while this job was running: pool {pool.pool_id} (process {pool.pid} "
    "on {pool.host})"
)

register_migrations(history_tables.LEAF, history_tables.MIGRATIONS)


class History(Plugin):
    """Keeps runs and counters of the jobs of a runner's worker pools."""

    leaf = history_tables.LEAF

    def __init__(self) -> None:
        self._recorders: WeakKeyDictionary[Any, Recorder] = WeakKeyDictionary()
        self._running: WeakKeyDictionary[Any, Running] = WeakKeyDictionary()
        self._by_id: WeakValueDictionary[str, Recorder] = WeakValueDictionary()
        self._latest: Recorder | None = None

    def _recorder(self, pool: Any) -> Recorder:
        recorder = self._recorders.get(pool)
        if recorder is None:
            recorder = self._recorders[pool] = self._latest = Recorder(pool)
            self._by_id[pool.pool_id] = recorder
        return recorder

    def _running_of(self, pool: Any) -> Running:
        running = self._running.get(pool)
        if running is None:
            running = self._running[pool] = Running(pool)
        return running

    def riders(self, pool: Any) -> Iterable[Rider]:
        """Runs are written with the outcomes, and snoozes counted."""
        return [
            Rider(name="history", bind=self._recorder(pool).bind),
            Rider(name="count snoozes", bind=self._running_of(pool).count_snoozes),
        ]

    def settled(self, pool: Any, batch: Sequence[Settled]) -> None:
        """Outcomes are counted."""
        self._recorder(pool).settled(batch)

    async def beat(self, pool: Any, conn: AsyncConnection[Any]) -> None:
        """Counters and progress are written, and jobs that are to end cancelled."""
        await self._recorder(pool).beat(conn)
        await self._running_of(pool).beat(conn)

    def parts(self, pool: Any) -> Iterable[Part]:
        """Requests to cancel jobs, or to show where they are, are heard.

        At the end, what was counted last is written.
        """
        recorder = self._recorder(pool)
        running = self._running_of(pool)
        pool.listener.on(AWAIT, recorder.hear_awaited)
        pool.listener.on(CANCEL, running.hear)
        stacks = Stacks(pool)
        pool.listener.on(ASK, stacks.hear)

        async def flush_at_end() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    await recorder.flush()
                except (psycopg.Error, OSError) as error:
                    pool.logger.debug("Could not write the last counters (%s)", one_line(error))

        return [
            Part(name="write counters", run=flush_at_end),
            Part(name="cancel jobs", run=running.cancel_when_asked),
            Part(name="show stacks", run=stacks.show_when_asked),
        ]

    def chores(self, pool: Any) -> Iterable[Chore]:
        """Partitions are added and dropped, and rows of jobs that are gone are deleted."""
        return upkeep.chores(pool)

    def trouble(self, pool: Any) -> str | None:
        """Whether the tables are missing."""
        return None if self._recorder(pool).ready else upkeep.MISSING

    async def recovered(self, conn: AsyncConnection[Any], pools: Sequence[DeadPool]) -> None:
        """Write runs of the jobs under which workers died."""
        if self._latest is not None:
            killed = [
                (job, KILLED.format(pool=pool))
                for pool in pools
                for job in pool.jobs
                if job.has_begun
            ]
            await self._latest.write_killed(conn, killed)


class CapturingHistory(History):
    """History of a runner with tasks whose logs are captured."""

    def __init__(self) -> None:
        super().__init__()
        self._handler = CaptureHandler()
        self._capturing = 0

    async def run_job(
        self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
    ) -> Any:
        """Keep what the attempt logs until its outcome is recorded."""
        recorder = self._by_id.get(ctx.pool_id)
        level = None if recorder is None else recorder.log_level(ctx.job.task_identifier)
        if recorder is None or level is None:
            return await proceed(ctx)
        ctx.log_capture = capture = LogCapture(level)
        try:
            with captured(capture):
                return await proceed(ctx)
        finally:
            recorder.keep_logs(ctx.job.id, capture.text())

    def parts(self, pool: Any) -> Iterable[Part]:
        """Records of all loggers are captured while the pool runs."""

        async def capture() -> None:
            # One for all pools of the runner: each would capture every record.
            if self._capturing == 0:
                logging.root.addHandler(self._handler)
            self._capturing += 1
            try:
                await asyncio.Event().wait()
            finally:
                self._capturing -= 1
                if self._capturing == 0:
                    logging.root.removeHandler(self._handler)

        return [*super().parts(pool), Part(name="capture logs", run=capture)]
