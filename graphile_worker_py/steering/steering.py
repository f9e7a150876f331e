"""What programs with an event loop do with jobs that were added: cancel them, try them again."""

from collections.abc import Iterable

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.cancel_jobs import Cancellation
from graphile_worker_py.steering import steps

GRACE = 30.0
"""Seconds that a cancelled job gets to end by default."""


class Steering:
    """Methods of `WorkerUtils` and `Runner` that steer jobs."""

    @property
    def _database(self) -> Database:
        raise NotImplementedError

    async def cancel_jobs(
        self, job_ids: Iterable[int | str], *, reason: str | None = None, grace: float = GRACE
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
        return await self._database.drive(cancel)

    async def retry_jobs(
        self,
        job_ids: Iterable[int | str] | None = None,
        *,
        state: str = "failed",
        task: str | None = None,
        error: str | None = None,
        limit: int = 1000,
    ) -> list[Job]:
        """Give failed jobs all their attempts again, due now.

        Args:
            job_ids: The jobs; None means those that the filter finds. Running jobs are left alone.
            state: `"failed"`: no attempts are left; `"retrying"`: they wait for another attempt.
            task: Identifier of their task; None means any.
            error: Pattern for their last error, as of SQL's `like` (`timeout%`); None means any.
            limit: How many jobs that the filter finds are tried again at the most.

        Returns:
            The jobs that are tried again.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
            psycopg.Error: The database could not do it.
        """
        retry = steps.retry(job_ids, state=state, task=task, error=error, limit=limit)
        return await self._database.drive(retry)
