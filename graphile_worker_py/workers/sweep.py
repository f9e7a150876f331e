"""Release locks older than four hours, every eight to ten minutes, as Node workers do."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

import psycopg

from graphile_worker_py import aio, events
from graphile_worker_py.events import Events
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.reset_locked_at import reset_locked_at
from graphile_worker_py.workers.fetcher import Fetcher

FIRST_WITHIN: Final = 60.0
"""Seconds after the start within which the first sweep takes place."""
DEADLINE: Final = 600.0
"""Seconds that a sweep may take; it reads the whole table."""


class Sweep:
    """Sweeps until told to stop.

    Args:
        pool_id: Id of the pool.
        database: Where it works.
        fetcher: Registers its tasks again after each sweep.
        options: The shortest and longest interval between two sweeps.
        stop: Ends it, also in the middle of a sweep.
        nudge: Called with the number of jobs that became available.
        events: Where to emit events.
        logger: Where to log.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        fetcher: Fetcher,
        options: WorkerOptions,
        stop: asyncio.Event,
        nudge: Callable[[int], None],
        events: Events,
        logger: logging.Logger,
    ) -> None:
        self._pool_id = pool_id
        self._database = database
        self._fetcher = fetcher
        self._shortest = options.min_reset_locked_interval
        self._longest = options.max_reset_locked_interval
        self._stop = stop
        self._nudge = nudge
        self._events = events
        self._logger = logger

    async def run(self) -> None:
        """Sweep until told to stop."""
        delay = random.random() * min(FIRST_WITHIN, self._longest)  # noqa: S311
        while not await aio.wait_for(self._stop, delay):
            delay = self._shortest + random.random() * (self._longest - self._shortest)  # noqa: S311
            self._events.emit(events.ResetLockedStarted(pool_id=self._pool_id))
            try:
                await self._sweep(delay)
            except (psycopg.Error, OSError) as error:
                self._database.availability.skipped("reset stale locks", error, log=self._logger)
                self._events.emit(
                    events.ResetLockedFailure(pool_id=self._pool_id, error=error, delay=delay)
                )

    async def _sweep(self, delay: float) -> None:
        freed: list[int] = []
        is_done = False
        async with aio.until(self._stop):
            freed = await self._database.run(reset_locked_at(self._database.now()), within=DEADLINE)
            # A cleanup may have deleted tasks without jobs; they get new ids.
            await self._fetcher.register_tasks(self._database.run)
            is_done = True
        if freed:
            self._logger.warning(
                "Reset the locks of %d job(s), older than four hours: %s",
                len(freed),
                ", ".join(map(str, freed[:10])),
                extra={"pool_id": self._pool_id},
            )
            self._nudge(len(freed))
        if is_done:  # and not cut off by a stop
            self._events.emit(events.ResetLockedSuccess(pool_id=self._pool_id, delay=delay))
