"""The plugin that lets a pool fetch nothing while it has too much to do."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from graphile_worker_py.executors.memory import resident
from graphile_worker_py.options.shedding import Shedding
from graphile_worker_py.plugins import FetchRequest, Part, Plugin
from graphile_worker_py.sql.get_jobs import Fetched

LOOK: Final = 0.1
"""Seconds between two looks."""
CALM: Final = 5
"""Looks in a row without a reason until the pool fetches again."""
_CONTAINER: Final = Path("/sys/fs/cgroup/memory.max")


def memory_limit() -> int | None:
    """Bytes that the process may use; None where that is not known."""
    if sys.platform != "linux":
        return None
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(_CONTAINER.read_text()))
    except (OSError, ValueError):  # no container, or one without limit
        return machine


class PoolLoad:
    """What one pool has to do.

    Args:
        pool: The `WorkerPool`.
        thresholds: Above which it fetches nothing.

    Attributes:
        reason: Why it fetches nothing; None if it fetches.
    """

    def __init__(self, pool: Any, thresholds: Shedding) -> None:
        self.reason: str | None = None
        self._pool = pool
        self._thresholds = thresholds
        self._limit = memory_limit() if thresholds.memory is not None else None
        self._calm = 0

    async def run(self) -> None:
        """Look whether it is too much, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK
            await asyncio.sleep(LOOK)
            self.look(loop.time() - due)

    def look(self, lag: float) -> None:
        """Look once; `lag` is by how many seconds the event loop is late."""
        reason = self._found(lag)
        if reason is not None:
            if self.reason is None:
                self._pool.logger.warning(
                    "Shedding load: fetching no jobs, because %s",
                    reason,
                    extra={"pool_id": self._pool.pool_id},
                )
            self.reason, self._calm = reason, 0
        elif self.reason is not None:
            self._calm += 1
            if self._calm > CALM:
                self.reason = None
                self._pool.nudge(1)

    def _found(self, lag: float) -> str | None:
        most = self._thresholds
        if most.loop_lag is not None and lag > most.loop_lag:
            return f"the event loop is {lag:.2f} s late"
        if most.unrecorded is not None:
            ended = self._pool.parts.settler.unrecorded
            if ended > most.unrecorded:
                return f"{ended} jobs have ended and are not recorded"
        if most.memory is not None and self._limit is not None:
            share = resident(os.getpid()) / self._limit
            if share > most.memory:
                return f"{share:.0%} of the memory is used"
        return None


class LoadShedding(Plugin):
    """Lets worker pools fetch nothing while they have too much to do."""

    def __init__(self, thresholds: Shedding) -> None:
        self._thresholds = thresholds
        self._loads: WeakKeyDictionary[Any, PoolLoad] = WeakKeyDictionary()
        self._by_id: WeakValueDictionary[str, PoolLoad] = WeakValueDictionary()

    def parts(self, pool: Any) -> Iterable[Part]:
        """The load of the pool is looked at."""
        if pool.once:
            return []
        load = self._loads[pool] = self._by_id[pool.pool_id] = PoolLoad(pool, self._thresholds)
        return [Part(name="look at the load", run=load.run)]

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """No jobs are fetched while it is too much."""
        load = self._by_id.get(request.pool_id)
        if load is not None and load.reason is not None:
            return Fetched([], more=False)
        return await proceed(request)

    def trouble(self, pool: Any) -> str | None:
        """Why the pool fetches nothing."""
        load = self._loads.get(pool)
        return None if load is None or load.reason is None else f"shedding: {load.reason}"
