"""What signals stop: the start of a runner, and then its worker pool."""

import asyncio
import logging
from typing import Final

from graphile_worker_py.errors import StoppedError
from graphile_worker_py.workers.succession import Pools

MOST_JOBS: Final = 10
"""Maximum number of jobs in a log line."""


class Stopping:
    """Stops whatever a runner does at the time of a signal.

    Args:
        logger: Logs the jobs that a graceful stop waits for.

    Attributes:
        pool: The worker pools, once the runner has started.
        early: Set when a signal arrives before that.
        forced: Set when a signal stops by force.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.pool: Pools | None = None
        self.early = asyncio.Event()
        self.forced = asyncio.Event()
        self._logger = logger
        self._signal = ""

    def stop(self, name: str) -> None:
        """Stop gracefully because of a signal."""
        if self.pool is None:
            self._stop_early(name)
            return
        self.pool.stop(f"Graceful worker shutdown due to {name}")
        self._log_jobs(self.pool, "Ctrl-C" if name == "SIGINT" else name)

    def kill(self, name: str) -> None:
        """Stop by force because of a signal."""
        self.forced.set()
        if self.pool is None:
            self._stop_early(name)
        else:
            self.pool.kill(f"Forced worker shutdown due to {name}")

    def started(self) -> Pools:
        """The worker pools.

        Raises:
            StoppedError: A signal stopped the start.
        """
        if self.pool is None:
            raise StoppedError(self._signal)
        return self.pool

    def _stop_early(self, name: str) -> None:
        self._signal = name
        self.early.set()

    def _log_jobs(self, pools: Pools, again: str) -> None:
        jobs = [running.job for pool in pools.pools for running in pool.running.values()]
        if jobs:
            named = [f"{job.id} ({job.task_identifier})" for job in jobs[:MOST_JOBS]]
            self._logger.info(
                "Waiting for %d job%s: %s%s; %s again returns %s",
                len(jobs),
                "s" if len(jobs) > 1 else "",
                ", ".join(named),
                ", …" if len(jobs) > MOST_JOBS else "",
                again,
                "them" if len(jobs) > 1 else "it",
                extra={"pool_id": pools.pool_id},
            )
