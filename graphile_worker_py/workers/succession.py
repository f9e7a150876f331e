"""Worker pools one after the other, and several of them side by side.

When one was declared dead, a new one takes its place.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from graphile_worker_py.errors import WorkerPoolError
from graphile_worker_py.workers.health import Health
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


class Pools:
    """The worker pools of a runner, which begin and end together.

    Args:
        successions: The pools by their names.
    """

    def __init__(self, successions: Mapping[str, Succession]) -> None:
        self._successions = successions

    @property
    def pools(self) -> list[WorkerPool]:
        """The pools that run now."""
        return [each.pool for each in self._successions.values()]

    @property
    def pool_id(self) -> str:
        """Id of the first pool."""
        return self.pools[0].pool_id

    def health(self) -> Health:
        """The health of the pool that is worst off."""
        return min((pool.health() for pool in self.pools), key=lambda each: (each.live, each.ready))

    def stop(self, reason: str = "Worker pool is shutting down gracefully") -> None:
        """Stop all of them gracefully; see `WorkerPool.stop`."""
        for each in self._successions.values():
            each.stop(reason)

    def kill(self, reason: str = "Terminated through .kill() command") -> None:
        """Stop all of them at once; see `WorkerPool.kill`."""
        for each in self._successions.values():
            each.kill(reason)

    async def run(self) -> None:
        """Run until all have stopped; one that ends by itself stops the others.

        Raises the first error as it is: an exception group would not be a `WorkerPoolError`.
        """
        if len(self._successions) == 1:
            (only,) = self._successions.values()
            await only.run()
            return
        broken: list[Exception] = []

        async def run(name: str, pool: Succession) -> None:
            try:
                await pool.run()
            except Exception as error:  # raised below
                broken.append(error)
            finally:
                self.stop(f"Pool {name!r} has ended")

        async with asyncio.TaskGroup() as group:
            for name, pool in self._successions.items():
                group.create_task(run(name, pool), name=f"pool {name}")
        if broken:
            raise broken[0]
