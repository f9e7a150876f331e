"""What `WorkerUtils` and `SyncWorkerUtils` read of jobs, queues and pools as they are now."""

from abc import ABC, abstractmethod
from typing import TypeVar

from graphile_worker_py.looking import explaining
from graphile_worker_py.looking.explaining import Explanation
from graphile_worker_py.postgres.given import AsyncGiven, SyncGiven
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.sql import backlog, inspect, known_crontabs
from graphile_worker_py.sql.backlog import Backlog, RegisteredPool
from graphile_worker_py.sql.inspect import JobCounts, JobQueue, JobState, ListedJob, LockHolder
from graphile_worker_py.sql.known_crontabs import KnownCrontab
from graphile_worker_py.sql.migrations import read_revisions

T = TypeVar("T")


class LooksNow(ABC):
    """The methods of `WorkerUtils` about what is in the tables now."""

    _schema: str

    @abstractmethod
    async def _run(self, query: Query[T], conn: AsyncGiven | None) -> T: ...

    @abstractmethod
    async def _run_steps(self, steps: Steps[T], conn: AsyncGiven | None) -> T: ...

    async def get_job(
        self, job_id: int | str, *, conn: AsyncGiven | None = None
    ) -> ListedJob | None:
        """Read one job; None if there is none with that id."""
        return await self._run(inspect.get_job(job_id), conn)

    async def list_jobs(
        self,
        *,
        state: JobState | str | None = None,
        task: str | None = None,
        queue: str | None = None,
        key: str | None = None,
        text: str | None = None,
        locked_by: str | None = None,
        limit: int | None = inspect.DEFAULT_LIMIT,
        after: int | str | None = None,
        conn: AsyncGiven | None = None,
    ) -> list[ListedJob]:
        """Read jobs, the newest first. Conditions that are given must all hold.

        Args:
            state: Where the job stands.
            task: Identifier of its task.
            queue: Name of its queue.
            key: Its job key.
            text: Found in its payload, key or `last_error`, in upper or lower case.
            locked_by: Id of the worker pool that runs it.
            limit: The largest number of jobs; None means all.
            after: Go on after this job: the id of the last one of the page before.
            conn: As for `complete_jobs`.
        """
        query = inspect.list_jobs(
            state=state,
            task=task,
            queue=queue,
            key=key,
            text=text,
            locked_by=locked_by,
            limit=limit,
            after=after,
        )
        return await self._run(query, conn)

    async def counts(self, *, conn: AsyncGiven | None = None) -> JobCounts:
        """Count the jobs by state, in all and for each task."""
        return await self._run(inspect.count_jobs(), conn)

    async def queues(self, *, conn: AsyncGiven | None = None) -> list[JobQueue]:
        """Read all queues by name, with how many jobs they have and who has them locked."""
        return await self._run(inspect.list_queues(), conn)

    async def workers(self, *, conn: AsyncGiven | None = None) -> list[LockHolder]:
        """Read which worker pools have jobs or queues locked, the oldest lock first.

        A pool that has nothing locked can't be seen, and one that died is seen until its locks
        are freed: by `force_unlock_workers`, or by any worker after four hours.
        """
        return await self._run(inspect.list_lock_holders(), conn)

    async def pools(self, *, conn: AsyncGiven | None = None) -> list[RegisteredPool] | None:
        """Read which Python worker pools run on this schema, and when they last proved alive.

        Returns:
            The pools, the oldest first; None if pools do not register in this database, or the
            role may not read where they do. Pools of Node never register.
        """
        return await self._run_steps(backlog.registered_pools(self._schema), conn)

    async def backlog(self, *, conn: AsyncGiven | None = None) -> Backlog:
        """Count the jobs that are due and the locks that are older than four hours.

        Reads all jobs that are due.
        """
        return await self._run(backlog.read_backlog(), conn)

    async def explain(self, job_id: int | str, *, conn: AsyncGiven | None = None) -> Explanation:
        """Say why a job is not running: reasons in order, with what to do about each.

        Pools of Node do not report which tasks they have. What pools of Python report is in the
        schema `graphile_worker_py`; without it, `Explanation.missing` says so.
        """
        return await self._run_steps(explaining.explain(job_id, self._schema), conn)

    async def unserved_tasks(self, *, conn: AsyncGiven | None = None) -> dict[str, str | None]:
        """Read the tasks of due jobs that no live Python pool has.

        Pools of Node may have them. Looks at the first 20,000 jobs that are due.

        Returns:
            For each of these tasks the most similar name that a pool has, or None. Empty if no pool
            is registered, or one of an older release does not report its tasks.
        """
        return await self._run_steps(explaining.unserved_tasks(self._schema), conn)

    async def known_crontabs(self, *, conn: AsyncGiven | None = None) -> list[KnownCrontab]:
        """Read all crontab items that a worker ever registered, by identifier."""
        return await self._run(known_crontabs.list_known(), conn)

    async def revision(self, *, conn: AsyncGiven | None = None) -> int:
        """Read the number of the latest migration that was applied to the schema."""
        return (await self._run(read_revisions(), conn)).latest or 0


class SyncLooksNow(ABC):
    """The same without an event loop; see `LooksNow`."""

    _schema: str

    @abstractmethod
    def _run(self, query: Query[T], conn: SyncGiven | None) -> T: ...

    @abstractmethod
    def _run_steps(self, steps: Steps[T], conn: SyncGiven | None) -> T: ...

    def get_job(self, job_id: int | str, *, conn: SyncGiven | None = None) -> ListedJob | None:
        """Read one job. See `WorkerUtils.get_job`."""
        return self._run(inspect.get_job(job_id), conn)

    def list_jobs(
        self,
        *,
        state: JobState | str | None = None,
        task: str | None = None,
        queue: str | None = None,
        key: str | None = None,
        text: str | None = None,
        locked_by: str | None = None,
        limit: int | None = inspect.DEFAULT_LIMIT,
        after: int | str | None = None,
        conn: SyncGiven | None = None,
    ) -> list[ListedJob]:
        """Read jobs, the newest first. See `WorkerUtils.list_jobs`."""
        query = inspect.list_jobs(
            state=state,
            task=task,
            queue=queue,
            key=key,
            text=text,
            locked_by=locked_by,
            limit=limit,
            after=after,
        )
        return self._run(query, conn)

    def counts(self, *, conn: SyncGiven | None = None) -> JobCounts:
        """Count the jobs. See `WorkerUtils.counts`."""
        return self._run(inspect.count_jobs(), conn)

    def queues(self, *, conn: SyncGiven | None = None) -> list[JobQueue]:
        """Read all queues. See `WorkerUtils.queues`."""
        return self._run(inspect.list_queues(), conn)

    def workers(self, *, conn: SyncGiven | None = None) -> list[LockHolder]:
        """Read which worker pools have something locked. See `WorkerUtils.workers`."""
        return self._run(inspect.list_lock_holders(), conn)

    def pools(self, *, conn: SyncGiven | None = None) -> list[RegisteredPool] | None:
        """Read which Python worker pools run. See `WorkerUtils.pools`."""
        return self._run_steps(backlog.registered_pools(self._schema), conn)

    def backlog(self, *, conn: SyncGiven | None = None) -> Backlog:
        """Count the jobs that are due, and old locks. See `WorkerUtils.backlog`."""
        return self._run(backlog.read_backlog(), conn)

    def explain(self, job_id: int | str, *, conn: SyncGiven | None = None) -> Explanation:
        """Say why a job is not running: reasons in order, with what to do about each.

        Pools of Node do not report which tasks they have. What pools of Python report is in the
        schema `graphile_worker_py`; without it, `Explanation.missing` says so.
        """
        return self._run_steps(explaining.explain(job_id, self._schema), conn)

    def unserved_tasks(self, *, conn: SyncGiven | None = None) -> dict[str, str | None]:
        """Read the tasks of due jobs that no live Python pool has.

        Pools of Node may have them. Looks at the first 20,000 jobs that are due.

        Returns:
            For each of these tasks the most similar name that a pool has, or None. Empty if no pool
            is registered, or one of an older release does not report its tasks.
        """
        return self._run_steps(explaining.unserved_tasks(self._schema), conn)

    def known_crontabs(self, *, conn: SyncGiven | None = None) -> list[KnownCrontab]:
        """Read all crontab items ever registered. See `WorkerUtils.known_crontabs`."""
        return self._run(known_crontabs.list_known(), conn)

    def revision(self, *, conn: SyncGiven | None = None) -> int:
        """Read the number of the latest migration. See `WorkerUtils.revision`."""
        return self._run(read_revisions(), conn).latest or 0
