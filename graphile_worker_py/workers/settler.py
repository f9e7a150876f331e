"""Record the outcomes of a pool's jobs: completed, failed, returned."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import psycopg

from graphile_worker_py import events
from graphile_worker_py.errors import WorkerPoolError, one_line
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.postgres.outages import backoff_for
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql.complete_jobs import complete_jobs
from graphile_worker_py.sql.fail_jobs import Failure, fail_jobs
from graphile_worker_py.sql.return_jobs import return_jobs
from graphile_worker_py.workers.batcher import Batcher


class Settler:
    """Writes outcomes in batches, and tries until they are written.

    Args:
        pool_id: Id of the pool; only what it has locked is changed.
        line: The connection for outcomes.
        options: The delays for gathering outcomes.
        events: Where to tell of outcomes that changed nothing.
        logger: Where to log writes that failed.
        settled: Called with jobs whose outcome is recorded.
        broken: Called with an error, and what could not be done, if an outcome can't be written
            for a reason that will not pass; its job stays locked.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        line: OwnConnection,
        options: WorkerOptions,
        events: Events,
        logger: logging.Logger,
        settled: Callable[[Sequence[Job]], None],
        broken: Callable[[BaseException, str], None],
    ) -> None:
        self._pool_id = pool_id
        self._line = line
        self._events = events
        self._logger = logger
        self._settled = settled
        self._broken = broken
        self._completed = Batcher(self._complete, delay=options.complete_job_batch_delay)
        self._failed = Batcher(self._fail, delay=options.fail_job_batch_delay)
        self._returned = Batcher(self.give_back_now, delay=0)
        self.complete = self._completed.put
        """Record, soon, that a job has succeeded."""
        self.fail = self._failed.put
        """Record, soon, that a job has failed."""
        self.give_back = self._returned.put
        """Return a job, soon, with its attempt."""

    def parts(self) -> list[tuple[Awaitable[None], str]]:
        """What has to run for outcomes to be written, and what each part does."""
        return [
            (self._completed.run(), "complete jobs"),
            (self._failed.run(), "fail jobs"),
            (self._returned.run(), "return jobs"),
        ]

    def close(self) -> None:
        """Let the parts end once every outcome is written."""
        for batcher in (self._completed, self._failed, self._returned):
            batcher.close()

    async def give_back_now(self, jobs: Sequence[Job]) -> None:
        """Return jobs with their attempts."""
        await self._settle(jobs, lambda some: return_jobs(some, pool_id=self._pool_id), "return")

    async def _complete(self, jobs: Sequence[Job]) -> None:
        await self._settle(
            jobs, lambda some: complete_jobs(some, pool_id=self._pool_id), "complete"
        )

    async def _fail(self, failures: Sequence[Failure]) -> None:
        by_id = {failure.job.id: failure for failure in failures}

        def simplify(job: Job) -> bool:
            plain = by_id[job.id].in_ascii()
            if plain == by_id[job.id]:
                return False
            by_id[job.id] = plain
            return True

        await self._settle(
            [failure.job for failure in failures],
            lambda some: fail_jobs([by_id[job.id] for job in some], pool_id=self._pool_id),
            "fail",
            simplify,
        )

    async def _settle(
        self,
        jobs: Sequence[Job],
        query: Callable[[Sequence[Job]], Query[set[int]]],
        action: str,
        simplify: Callable[[Job], bool] = lambda _: False,
    ) -> None:
        """Record an outcome, however long it takes: until then the jobs stay locked."""
        failures = 0
        while True:
            try:
                written = await self._line.run(query(jobs))
                break
            except (psycopg.Error, OSError, UnicodeEncodeError) as error:
                failures += 1
                backoff = backoff_for(error)
                if backoff is None:
                    await self._settle_singly(jobs, query, action, simplify, error)
                    return
                delay = backoff.delay(failures)
                self._logger.warning(
                    "Could not %s %d job(s) (%s); again in %.1f s",
                    action,
                    len(jobs),
                    one_line(error),
                    delay,
                    extra={"pool_id": self._pool_id},
                )
                await asyncio.sleep(delay)
        # After a failure rows may be missing because the first write arrived all the same.
        if len(written) < len(jobs) and failures == 0:
            lost = [job.id for job in jobs if job.id not in written]
            self._events.emit(events.JobLost(pool_id=self._pool_id, job_ids=lost))
        self._settled(jobs)

    async def _settle_singly(
        self,
        jobs: Sequence[Job],
        query: Callable[[Sequence[Job]], Query[set[int]]],
        action: str,
        simplify: Callable[[Job], bool],
        error: Exception,
    ) -> None:
        """One outcome of several can't be written, for no passing reason. The others can."""
        # Text that the encoding lacks: the database's, or that of a caller's connections.
        is_text = isinstance(error, psycopg.DataError | UnicodeEncodeError)
        if len(jobs) == 1 and is_text and simplify(jobs[0]):
            await self._settle(jobs, query, action)
            return
        if len(jobs) == 1:
            failure = WorkerPoolError(f"could not {action} job {jobs[0].id}: {one_line(error)}")
            self._broken(failure, f"{action} jobs")
            return
        for job in jobs:
            await self._settle([job], query, action, simplify)
