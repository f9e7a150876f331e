"""Find the job that kills its workers, without blaming the jobs that ran next to it.

When a worker process dies, it is unknown which of its jobs killed it, if any did. All jobs that it
had locked become suspects, with one crash each. From then on a suspect is marked as started before
it runs, and at the next death only the suspects that the dead pool had marked count another crash.
Suspects that one more crash would condemn run one at a time in each pool, so that the blame is
clear. A suspect that completes or fails is cleared.

A pool that prefetches also marks jobs that begin their last attempt. When it dies, the jobs that
never began get that attempt back, instead of failing for good.

As long as no worker has died, and for jobs with further attempts, all this costs a lookup in an
empty dictionary.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py.errors import CutOffError, one_line
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.suspects import clear_suspects, mark_started


class Suspects:
    """The suspects that one pool knows, and how it runs them.

    Args:
        pool_id: Id of the pool.
        database: The database where suspects are recorded.
        max_crashes: Number of crashes after which a job is given up; 0 means never.
        marks_last: Whether jobs that begin their last attempt are marked.
        alone_for: Seconds after which a suspect that runs alone no longer keeps the other suspects
            waiting.
        logger: Where to log.

    Attributes:
        crashes: How often a worker died under a job, by the job's id. Always the same dictionary.
        can_mark: Whether there are tables to mark jobs in; set by the heartbeat.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        max_crashes: int,
        marks_last: bool,
        alone_for: float,
        logger: logging.Logger,
    ) -> None:
        self.crashes: dict[int, int] = {}
        self.can_mark = False
        self._pool_id = pool_id
        self._database = database
        self._max_crashes = max_crashes
        self._marks_last = marks_last
        self._alone_for = alone_for
        self._logger = logger
        self._alone = asyncio.Lock()
        self._cleared: list[int] = []
        self._recordings = 0
        self._is_recording = False

    @property
    def version(self) -> int | None:
        """Another value after each recording; None during one."""
        return None if self._is_recording else self._recordings

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Mark the block as one in which this pool itself records new suspects."""
        self._is_recording = True
        try:
            yield
        finally:
            self._is_recording = False
            self._recordings += 1

    def learn(self, crashes: Mapping[int, int]) -> None:
        """Take over the suspects that the database has."""
        if crashes or self.crashes:
            self.crashes.clear()
            if self._max_crashes:
                self.crashes.update(crashes)

    def learn_from_answer(self, crashes: Mapping[int, int], *, asked_at: int | None) -> None:
        """Take over the suspects of an answer, unless this pool has recorded new ones since.

        Args:
            crashes: The suspects.
            asked_at: The `version` at the time of the question.
        """
        if asked_at is not None and asked_at == self.version:
            self.learn(crashes)

    async def forget_cleared(self, conn: AsyncConnection[Any] | None = None) -> None:
        """Record that suspects which completed or failed are cleared.

        Raises:
            psycopg.Error: The database refused. They are recorded the next time.
            OSError: The database could not be reached.
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

    def marks(self, job: Job) -> bool:
        """Whether a job that is no suspect has to be marked before it runs."""
        return self._marks_last and self.can_mark and job.attempts >= job.max_attempts

    async def run(self, job: Job, call: Callable[[Job], Awaitable[Any]]) -> Any:
        """Mark a job as started and call its task; returns and raises what the task does."""
        crashes = self.crashes.get(job.id, 0)
        if crashes == 0 or crashes + 1 < self._max_crashes:
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
            # First, so that suspects that ended before are not blamed if this job kills the worker.
            if job.id in self.crashes:
                await self.forget_cleared()
            await self._database.run(mark_started(self._database.schema, job.id, self._pool_id))
        except (psycopg.Error, OSError) as error:
            # The job runs nevertheless. Only the blame will be less clear.
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
        # A job that was cut off stays a suspect: being cut off says nothing about it.
        self._clear(job)
        return result

    def _clear(self, job: Job) -> None:
        self.crashes.pop(job.id, None)
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

        opening = asyncio.get_running_loop().call_later(self._alone_for, let_go)
        try:
            yield
        finally:
            opening.cancel()
            let_go()
