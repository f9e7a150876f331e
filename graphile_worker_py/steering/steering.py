"""What programs with an event loop do with jobs that were added: cancel them, try them again."""

from collections.abc import Iterable
from datetime import datetime

from graphile_worker_py.checks import check_is, check_job_id
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.given import AsyncGiven, taken
from graphile_worker_py.sql.cancel_jobs import Cancellation
from graphile_worker_py.sql.job_ends import JobOutcome
from graphile_worker_py.sql.pauses import Pause
from graphile_worker_py.steering import pausing, steps
from graphile_worker_py.steering.handles import JobHandle
from graphile_worker_py.steering.waiter import Waiter

GRACE = 30.0
"""Seconds that a cancelled job gets to end by default."""


class Steering:
    """Methods of `WorkerUtils` and `Runner` that steer jobs."""

    _waiter_if_made: Waiter | None = None

    @property
    def _database(self) -> Database:
        raise NotImplementedError

    @property
    def _waiter(self) -> Waiter:
        if self._waiter_if_made is None:
            self._waiter_if_made = Waiter(self._database)
        return self._waiter_if_made

    async def _close_waiter(self) -> None:
        if self._waiter_if_made is not None:
            await self._waiter_if_made.close()

    def handle(self, job: Job | int | str) -> JobHandle:
        """A handle of a job, given by itself or by its id: to follow it, and to wait for its end.

        Raises:
            ConfigurationError: It is not an id.
        """
        if isinstance(job, Job):
            job_id, created_at = job.id, job.created_at
        else:
            job_id, created_at = check_job_id("job", job), None
        return JobHandle(
            job_id, created_at=created_at, database=self._database, waiter=self._waiter
        )

    async def wait_all(
        self, handles: Iterable[JobHandle], timeout: float | None = None
    ) -> list[JobOutcome]:
        """Wait for the end of several jobs; their outcomes in the order of the handles.

        Args:
            handles: The jobs.
            timeout: Seconds for all of them; None waits as long as it takes.

        Raises:
            TimeoutError: One has not ended in time.
            MissingTablesError: The tables of history are missing.
            psycopg.Error: The database could not answer.
        """
        wanted = list(handles)
        for handle in wanted:
            check_is("handles", handle, JobHandle, how="what utils.handle(job) returns")
        outcomes = await self._waiter.outcomes([handle.key for handle in wanted], timeout)
        return [outcomes[handle.job_id] for handle in wanted]

    async def cancel_jobs(
        self,
        job_ids: Iterable[int | str],
        *,
        reason: str | None = None,
        grace: float = GRACE,
        conn: AsyncGiven | None = None,
    ) -> list[Cancellation]:
        """Cancel jobs, wherever they are.

        A waiting job is deleted. A running one is never tried again, and its Python worker pool is
        asked to end it: an async task is cancelled, a function in a thread or process is asked to
        end, an executable is terminated. A job that runs in a Node worker can't be ended.

        Args:
            job_ids: The jobs.
            reason: Why; kept with the run of the job.
            grace: Seconds that a running job gets to end after it was asked to. Then it is cut off,
                and its outcome no longer counts.
            conn: As for `complete_jobs`.

        Returns:
            What has become of each job, in the order of the ids. `requested` means that it runs,
            and will end. `running_elsewhere` means that it can't be ended: it runs in a Node
            worker, or the side schema with the tables of history is missing.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
            psycopg.Error: The database could not do it. Some of more than 500 jobs may be
                cancelled.
        """
        cancel = steps.cancel(self._database.schema, job_ids, reason=reason, grace=grace)
        own = None if conn is None else await taken(conn)
        return await self._database.drive(cancel, conn=own)

    async def retry_jobs(
        self,
        job_ids: Iterable[int | str] | None = None,
        *,
        state: str = "failed",
        task: str | None = None,
        error: str | None = None,
        limit: int = 1000,
        conn: AsyncGiven | None = None,
    ) -> list[Job]:
        """Give failed jobs all their attempts again, due now.

        Args:
            job_ids: The jobs; None means those that the filter finds. Running jobs are left alone.
            state: `"failed"`: no attempts are left; `"retrying"`: they wait for another attempt.
            task: Identifier of their task; None means any.
            error: Pattern for their last error, as of SQL's `like` (`timeout%`); None means any.
            limit: How many jobs that the filter finds are tried again at the most.
            conn: As for `complete_jobs`.

        Returns:
            The jobs that are tried again.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
            psycopg.Error: The database could not do it.
        """
        retry = steps.retry(job_ids, state=state, task=task, error=error, limit=limit)
        own = None if conn is None else await taken(conn)
        return await self._database.drive(retry, conn=own)

    async def pause(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        pool: str | None = None,
        everything: bool = False,
        reason: str | None = None,
        until: datetime | None = None,
        by: str | None = None,
        conn: AsyncGiven | None = None,
    ) -> Pause:
        """Start no more jobs of a task, of a queue, in pools of a name, or at all.

        Running jobs go on. Pools learn it within one `heartbeat_interval`, at once where
        notifications arrive. A paused queue is left alone by Node's workers, too; all other pauses
        bind Python pools only. Pausing what is paused changes reason and end.

        Args:
            task: Identifier of a task.
            queue: Name of a queue, which may have no jobs yet.
            pool: Name of a pool; `default` where the runner has only one.
            everything: All Python pools.
            reason: Why; shown with the pause.
            until: When it ends by itself, which takes a running Python pool; None for never.
            by: Who pauses; None means the role of the session.
            conn: As for `complete_jobs`.

        Raises:
            ConfigurationError: Not exactly one thing is given, or a value is not allowed.
            MissingTablesError: The tables of pauses are missing.
        """
        targets = {"task": task, "queue": queue, "pool": pool, "everything": everything}
        schema = self._database.schema
        pause = pausing.pause(schema, targets, reason=reason, until=until, by=by)
        own = None if conn is None else await taken(conn)
        return await self._database.drive(pause, conn=own)

    async def resume(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        pool: str | None = None,
        everything: bool = False,
        conn: AsyncGiven | None = None,
    ) -> Pause | None:
        """End a pause.

        A queue of which a job still runs is freed when that job has ended, by a Python pool.

        Args:
            task: As for `pause`, as are the others.
            queue: As for `pause`.
            pool: As for `pause`.
            everything: Ends the pause of everything; others stand.
            conn: As for `complete_jobs`.

        Returns:
            The pause; None if there was none.
        """
        targets = {"task": task, "queue": queue, "pool": pool, "everything": everything}
        own = None if conn is None else await taken(conn)
        return await self._database.drive(pausing.resume(self._database.schema, targets), conn=own)

    async def pauses(self, *, conn: AsyncGiven | None = None) -> list[Pause]:
        """Read what is paused, by kind and name.

        Raises:
            MissingTablesError: The tables of pauses are missing.
        """
        own = None if conn is None else await taken(conn)
        return await self._database.drive(pausing.read(self._database.schema), conn=own)

    async def quiet(self, *, pool: str | None = None, everything: bool = False) -> list[str]:
        """Have pools fetch no more jobs and run on, as before a deployment. See `docs/limits.md`.

        Pools that start later fetch. A pool learns it with its next heartbeat, and returns the
        jobs that it has fetched ahead.

        Args:
            pool: Name of pools, or the id of one.
            everything: All Python pools that run now.

        Returns:
            The ids of the pools.
        """
        quiet = pausing.quiet(self._database.schema, pool, everything=everything)
        return await self._database.drive(quiet)
