"""What `WorkerUtils` and `SyncWorkerUtils` read of history."""

from abc import ABC, abstractmethod
from datetime import timedelta
from typing import Final, TypeVar

from graphile_worker_py.postgres.given import AsyncGiven, SyncGiven
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql import error_groups, forgetting, runs, task_minutes
from graphile_worker_py.sql.error_groups import ErrorGroup
from graphile_worker_py.sql.runs import JobRun, RunOutcome
from graphile_worker_py.sql.side_tables import Moment
from graphile_worker_py.sql.task_minutes import TaskStats

T = TypeVar("T")

A_DAY: Final = timedelta(days=1)


class LooksBack(ABC):
    """The methods of `WorkerUtils` about jobs that ended."""

    _schema: str

    @abstractmethod
    async def _run_steps(self, steps: Steps[T], conn: AsyncGiven | None) -> T: ...

    async def list_runs(
        self,
        *,
        job_id: int | str | None = None,
        task: str | None = None,
        outcome: RunOutcome | str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        limit: int | None = runs.DEFAULT_LIMIT,
        after: str | JobRun | None = None,
        conn: AsyncGiven | None = None,
    ) -> list[JobRun]:
        """Read attempts of jobs that ended, the newest first. Conditions must all hold.

        Which of them there are depends on the option `history` of the workers, and for how long
        they are kept on `history_retention`.

        Args:
            job_id: Id of the job.
            task: Identifier of its task.
            outcome: How the attempt ended.
            since: Ended at this time or later: an aware datetime, or how long ago it was, as a
                `timedelta` or in seconds.
            until: Ended before this time.
            limit: Maximum number of runs; None means all.
            after: The last run of the page before, or its `cursor`.
            conn: As for `complete_jobs`.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
            MissingTablesError: No history is kept in this database, or this role may not read it.
        """
        steps = runs.list_runs(
            self._schema,
            job_id=job_id,
            task=task,
            outcome=outcome,
            since=since,
            until=until,
            limit=limit,
            after=after,
        )
        return await self._run_steps(steps, conn)

    async def task_stats(
        self,
        task: str | None = None,
        *,
        since: Moment = A_DAY,
        step: float | None = task_minutes.MINUTE,
        conn: AsyncGiven | None = None,
    ) -> list[TaskStats]:
        """Read how many jobs of each task ended in which way, how long they waited and ran.

        Counters are written by the workers every ten seconds.

        Args:
            task: Identifier of the task; None means all.
            since: As for `list_runs`.
            step: Seconds, in whole minutes, that are added up; None adds up all.
            conn: As for `complete_jobs`.

        Returns:
            An item for each task and step in which a job ended, by task and time.

        Raises:
            As `list_runs`.
        """
        steps = task_minutes.task_stats(self._schema, task=task, since=since, step=step)
        return await self._run_steps(steps, conn)

    async def error_groups(
        self,
        task: str | None = None,
        *,
        since: Moment = A_DAY,
        limit: int = error_groups.DEFAULT_LIMIT,
        conn: AsyncGiven | None = None,
    ) -> list[ErrorGroup]:
        """Read which errors attempts ended with, the most frequent first.

        Errors are the same if task, type of the exception and the function of the program in which
        it was raised are. Only attempts are counted of which `history` keeps a run.

        Args:
            task: Identifier of the task; None means all.
            since: As for `list_runs`.
            limit: Maximum number of groups.
            conn: As for `complete_jobs`.

        Raises:
            As `list_runs`.
        """
        steps = error_groups.error_groups(self._schema, task=task, since=since, limit=limit)
        return await self._run_steps(steps, conn)

    async def forget(
        self,
        job_id: int | str | None = None,
        *,
        key: str | None = None,
        conn: AsyncGiven | None = None,
    ) -> int:
        """Delete all that is kept of a job that ended, or of the jobs with a key.

        Jobs that did not end are left alone, and so are the counters.

        Args:
            job_id: Id of the job; either this or `key`.
            key: The job key.
            conn: As for `complete_jobs`.

        Returns:
            The number of rows that were deleted.

        Raises:
            As `list_runs`.
        """
        return await self._run_steps(forgetting.forget(self._schema, job_id=job_id, key=key), conn)


class SyncLooksBack(ABC):
    """The same without an event loop; see `LooksBack`."""

    _schema: str

    @abstractmethod
    def _run_steps(self, steps: Steps[T], conn: SyncGiven | None) -> T: ...

    def list_runs(
        self,
        *,
        job_id: int | str | None = None,
        task: str | None = None,
        outcome: RunOutcome | str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        limit: int | None = runs.DEFAULT_LIMIT,
        after: str | JobRun | None = None,
        conn: SyncGiven | None = None,
    ) -> list[JobRun]:
        """Read attempts of jobs that ended. See `WorkerUtils.list_runs`."""
        steps = runs.list_runs(
            self._schema,
            job_id=job_id,
            task=task,
            outcome=outcome,
            since=since,
            until=until,
            limit=limit,
            after=after,
        )
        return self._run_steps(steps, conn)

    def task_stats(
        self,
        task: str | None = None,
        *,
        since: Moment = A_DAY,
        step: float | None = task_minutes.MINUTE,
        conn: SyncGiven | None = None,
    ) -> list[TaskStats]:
        """Read how many jobs ended, and how long they took. See `WorkerUtils.task_stats`."""
        steps = task_minutes.task_stats(self._schema, task=task, since=since, step=step)
        return self._run_steps(steps, conn)

    def error_groups(
        self,
        task: str | None = None,
        *,
        since: Moment = A_DAY,
        limit: int = error_groups.DEFAULT_LIMIT,
        conn: SyncGiven | None = None,
    ) -> list[ErrorGroup]:
        """Read which errors attempts ended with. See `WorkerUtils.error_groups`."""
        steps = error_groups.error_groups(self._schema, task=task, since=since, limit=limit)
        return self._run_steps(steps, conn)

    def forget(
        self,
        job_id: int | str | None = None,
        *,
        key: str | None = None,
        conn: SyncGiven | None = None,
    ) -> int:
        """Delete all that is kept of a job. See `WorkerUtils.forget`."""
        return self._run_steps(forgetting.forget(self._schema, job_id=job_id, key=key), conn)
