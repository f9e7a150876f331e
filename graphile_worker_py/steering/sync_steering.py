"""`Steering` for programs without an event loop."""

from collections.abc import Iterable
from datetime import datetime

from graphile_worker_py.checks import check_is, check_job_id
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.postgres.given import SyncGiven, taken_blocking
from graphile_worker_py.sql.cancel_jobs import Cancellation
from graphile_worker_py.sql.job_ends import JobOutcome
from graphile_worker_py.sql.pauses import Pause
from graphile_worker_py.steering import pausing, steps
from graphile_worker_py.steering.steering import GRACE
from graphile_worker_py.steering.sync_handles import SyncJobHandle, wait_for


class SyncSteering:
    """Methods of `SyncWorkerUtils` that steer jobs."""

    @property
    def _database(self) -> SyncDatabase:
        raise NotImplementedError

    def handle(self, job: Job | int | str) -> SyncJobHandle:
        """A handle of a job. See `WorkerUtils.handle`."""
        if isinstance(job, Job):
            job_id, created_at = job.id, job.created_at
        else:
            job_id, created_at = check_job_id("job", job), None
        return SyncJobHandle(job_id, created_at=created_at, database=self._database)

    def wait_all(
        self, handles: Iterable[SyncJobHandle], timeout: float | None = None
    ) -> list[JobOutcome]:
        """Wait for the end of several jobs. See `WorkerUtils.wait_all`."""
        wanted = list(handles)
        for handle in wanted:
            check_is("handles", handle, SyncJobHandle, how="what utils.handle(job) returns")
        outcomes = wait_for([handle.key for handle in wanted], self._database, timeout)
        return [outcomes[handle.job_id] for handle in wanted]

    def cancel_jobs(
        self,
        job_ids: Iterable[int | str],
        *,
        reason: str | None = None,
        grace: float = GRACE,
        conn: SyncGiven | None = None,
    ) -> list[Cancellation]:
        """Cancel jobs, wherever they are. See `WorkerUtils.cancel_jobs`."""
        schema = self._database.statements.schema
        cancel = steps.cancel(schema, job_ids, reason=reason, grace=grace)
        own = None if conn is None else taken_blocking(conn)
        return self._database.drive(cancel, conn=own)

    def retry_jobs(
        self,
        job_ids: Iterable[int | str] | None = None,
        *,
        state: str = "failed",
        task: str | None = None,
        error: str | None = None,
        limit: int = 1000,
        conn: SyncGiven | None = None,
    ) -> list[Job]:
        """Give failed jobs all their attempts again. See `WorkerUtils.retry_jobs`."""
        retry = steps.retry(job_ids, state=state, task=task, error=error, limit=limit)
        own = None if conn is None else taken_blocking(conn)
        return self._database.drive(retry, conn=own)

    def pause(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        pool: str | None = None,
        everything: bool = False,
        reason: str | None = None,
        until: datetime | None = None,
        by: str | None = None,
        conn: SyncGiven | None = None,
    ) -> Pause:
        """Start no more jobs of a task, queue or pool, or at all. See `WorkerUtils.pause`."""
        targets = {"task": task, "queue": queue, "pool": pool, "everything": everything}
        schema = self._database.statements.schema
        pause = pausing.pause(schema, targets, reason=reason, until=until, by=by)
        own = None if conn is None else taken_blocking(conn)
        return self._database.drive(pause, conn=own)

    def resume(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        pool: str | None = None,
        everything: bool = False,
        conn: SyncGiven | None = None,
    ) -> Pause | None:
        """End a pause. See `WorkerUtils.resume`."""
        targets = {"task": task, "queue": queue, "pool": pool, "everything": everything}
        own = None if conn is None else taken_blocking(conn)
        schema = self._database.statements.schema
        return self._database.drive(pausing.resume(schema, targets), conn=own)

    def pauses(self, *, conn: SyncGiven | None = None) -> list[Pause]:
        """Read what is paused. See `WorkerUtils.pauses`."""
        own = None if conn is None else taken_blocking(conn)
        return self._database.drive(pausing.read(self._database.statements.schema), conn=own)

    def quiet(self, *, pool: str | None = None, everything: bool = False) -> list[str]:
        """Have pools fetch no more jobs and run on. See `WorkerUtils.quiet`."""
        quiet = pausing.quiet(self._database.statements.schema, pool, everything=everything)
        return self._database.drive(quiet)
