"""Find the job that kills its workers, without blaming those that ran beside it.

When a worker process dies, nobody knows which of its jobs did it, if any. All that it had locked
become suspects, with one crash each. From then on a suspect is marked as started before it runs;
at the next death only those that the dead pool had marked count one crash more. Suspects that one
more crash would condemn run one at a time in each pool, so that it is clear whom to blame. A
suspect that comes to an outcome, good or bad, is none any more.

As long as no worker died, all this costs a look into an empty dictionary.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py.errors import CutOffError, one_line
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.suspects import clear_suspects, mark_started

OPENS_AFTER: Final = 30.0
"""Seconds after which a suspect that runs alone no longer keeps others waiting."""


class Quarantine:
    """The suspects, as far as one pool knows them, and how it runs them.

    Args:
        pool_id: Id of the pool.
        database: Where they are recorded.
        max_crashes: With so many crashes a job is given up; 0 means never.
        logger: Where to log.

    Attributes:
        suspects: How often a worker died under a job, by the job's id. Always the same dictionary.
    """

    def __init__(
        self, *, pool_id: str, database: Database, max_crashes: int, logger: logging.Logger
    ) -> None:
        self.suspects: dict[int, int] = {}
        self._pool_id = pool_id
        self._database = database
        self._max_crashes = max_crashes
        self._logger = logger
        self._alone = asyncio.Lock()
        self._cleared: list[int] = []

    def learn(self, suspects: Mapping[int, int]) -> None:
        """Take note of the suspects there are."""
        if suspects or self.suspects:
            self.suspects.clear()
            if self._max_crashes:
                self.suspects.update(suspects)

    async def clear(self, conn: AsyncConnection[Any] | None = None) -> None:
        """Record that the suspects which came to an outcome are none any more.

        Raises:
            psycopg.Error: The database did not do so. They are kept in mind.
            OSError: It could not be reached.
        """
        if not self._cleared:
            return
        cleared, self._cleared = self._cleared, []
        try:
            clear = clear_suspects(self._database.schema, self._pool_id, cleared)
            await self._database.run(clear, conn=conn)
        except BaseException:
            self._cleared += cleared
            raise

    async def run(self, job: Job, call: Callable[[Job], Awaitable[Any]]) -> Any:
        """Call the task of a suspect; returns and raises what it does."""
        crashes = self.suspects.get(job.id, 0)
        if crashes + 1 < self._max_crashes:
            return await self._run_marked(job, call)
        async with self._one_at_a_time():
            self._logger.warning(
                "Running job %d alone among the suspects: workers died under it %d times",
                job.id,
                crashes,
                extra={"pool_id": self._pool_id, "job_id": job.id},
            )
            return await self._run_marked(job, call)

    async def _run_marked(self, job: Job, call: Callable[[Job], Awaitable[Any]]) -> Any:
        try:
            # First: should this job end the process, those that ended before it are not to blame.
            await self.clear()
            await self._database.run(mark_started(self._database.schema, job.id, self._pool_id))
        except (psycopg.Error, OSError) as error:
            # It is only harder to tell whom to blame.
            self._logger.warning(
                "Could not mark job %d as started (%s)",
                job.id,
                one_line(error),
                extra={"pool_id": self._pool_id, "job_id": job.id},
            )
        try:
            result = await call(job)
        except CutOffError:
            raise
        except Exception:
            self._clear(job)
            raise
        # Not where it was cut off: that says nothing about it.
        self._clear(job)
        return result

    def _clear(self, job: Job) -> None:
        self.suspects.pop(job.id, None)
        self._cleared.append(job.id)

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        await self._alone.acquire()
        is_holding = True

        def let_go() -> None:
            nonlocal is_holding
            if is_holding:
                is_holding = False
                self._alone.release()

        opening = asyncio.get_running_loop().call_later(OPENS_AFTER, let_go)
        try:
            yield
        finally:
            opening.cancel()
            let_go()
