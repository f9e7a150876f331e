"""`Steering` for programs without an event loop."""

from collections.abc import Iterable

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.sql.cancel_jobs import Cancellation
from graphile_worker_py.steering import steps
from graphile_worker_py.steering.steering import GRACE


class SyncSteering:
    """Methods of `SyncWorkerUtils` that steer jobs."""

    @property
    def _database(self) -> SyncDatabase:
        raise NotImplementedError

    def cancel_jobs(
        self, job_ids: Iterable[int | str], *, reason: str | None = None, grace: float = GRACE
    ) -> list[Cancellation]:
        """Cancel jobs, wherever they are. See `WorkerUtils.cancel_jobs`."""
        schema = self._database.statements.schema
        return self._database.drive(steps.cancel(schema, job_ids, reason=reason, grace=grace))

    def retry_jobs(
        self,
        job_ids: Iterable[int | str] | None = None,
        *,
        state: str = "failed",
        task: str | None = None,
        error: str | None = None,
        limit: int = 1000,
    ) -> list[Job]:
        """Give failed jobs all their attempts again. See `WorkerUtils.retry_jobs`."""
        retry = steps.retry(job_ids, state=state, task=task, error=error, limit=limit)
        return self._database.drive(retry)
