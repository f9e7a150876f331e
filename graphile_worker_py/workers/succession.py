"""Worker pools one after the other: when one was declared dead, a new one takes its place."""

import logging
from collections.abc import Callable

from graphile_worker_py.errors import WorkerPoolError
from graphile_worker_py.workers.pool import WorkerPool


class Succession:
    """Runs a worker pool, and until it is stopped, the pools that take its place.

    Args:
        make: Makes a pool that is not running yet.
        logger: Where to log.

    Attributes:
        pool: The pool that runs now.
    """

    def __init__(self, make: Callable[[], WorkerPool], *, logger: logging.Logger) -> None:
        self._make = make
        self._logger = logger
        self._ending = False
        self.pool = make()

    @property
    def pool_id(self) -> str:
        """Id of the pool that runs now."""
        return self.pool.pool_id

    def stop(self, reason: str = "Worker pool is shutting down gracefully") -> None:
        """Stop gracefully; see `WorkerPool.stop`."""
        self._ending = True
        self.pool.stop(reason)

    def kill(self, reason: str = "Terminated through .kill() command") -> None:
        """Stop at once; see `WorkerPool.kill`."""
        self._ending = True
        self.pool.kill(reason)

    async def run(self) -> None:
        """Run until stopped, or until a pool ends by itself; raises what a pool raises."""
        while True:
            pool = self.pool
            try:
                await pool.run()
            except WorkerPoolError:
                if not pool.declared_dead:
                    raise
                # It was emitted that jobs could not be cut off; a new pool can still work.
            if self._ending or not pool.declared_dead:
                return
            self.pool = self._make()
            self._logger.info(
                "Working on as %s", self.pool.pool_id, extra={"pool_id": self.pool.pool_id}
            )
