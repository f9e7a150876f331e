"""Run the jobs of a test until none is due, and report what happened to them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from graphile_worker_py import events
from graphile_worker_py.clock import utc_now
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.once import RunOnceResult, run_once
from graphile_worker_py.plugins import Plugin, Plugins
from graphile_worker_py.sql.inspect import JobState, ListedJob
from graphile_worker_py.tasks.context import JobContext
from graphile_worker_py.tasks.injection import NO_STATE, State
from graphile_worker_py.tasks.task import Task
from graphile_worker_py.testing.clock import TestClock
from graphile_worker_py.worker_utils import WorkerUtils


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened to jobs.

    Attributes:
        completed: The jobs that completed, in this order. They are deleted.
        failed: The event of each attempt that failed, with `job`, `error` and `retry_at`.
        discarded: The jobs that their task gave up.
        snoozed: The jobs that their task put off.
        results: What the tasks of completed jobs returned, by the id of the job.
    """

    completed: tuple[Job, ...]
    failed: tuple[events.JobError, ...]
    discarded: tuple[Job, ...]
    snoozed: tuple[Job, ...]
    results: Mapping[int, Any]

    def raise_errors(self) -> None:
        """Raise the error of the attempt that failed; if several did, a group of their errors.

        Raises:
            BaseException: The error of a task.
        """
        RunOnceResult(
            completed=len(self.completed),
            failed=self.failed,
            returned=0,
            snoozed=len(self.snoozed),
            discarded=len(self.discarded),
        ).raise_errors()


class _Results(Plugin):
    """Keeps what tasks return."""

    def __init__(self) -> None:
        self.returned: dict[int, Any] = {}

    async def run_job(
        self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
    ) -> Any:
        """Keep the result of the task."""
        result = self.returned[ctx.job.id] = await proceed(ctx)
        return result


class Drain:
    """Runs jobs until none is due.

    Args:
        dsn: The database.
        utils: Reads and reschedules the jobs.
        clock: The clock of the test.
        tasks: The tasks whose jobs are run, by identifier.
        state: What a `lifespan` would yield.
    """

    def __init__(
        self,
        dsn: str,
        utils: WorkerUtils,
        clock: TestClock,
        tasks: Mapping[str, Task[Any]],
        state: State = NO_STATE,
    ) -> None:
        self._dsn = dsn
        self._utils = utils
        self._clock = clock
        self._tasks = tasks
        self._state = state
        self._results = _Results()
        self._completed: list[Job] = []
        self._failed: list[events.JobError] = []
        self._discarded: list[Job] = []
        self._snoozed: list[Job] = []
        self._events = Events()
        # By its name, because a subscriber of the class would hear a final failure twice.
        self._events.subscribe(events.JobError.name, self._failed.append)
        for kind, jobs in (
            (events.JobSuccess, self._completed),
            (events.JobDiscarded, self._discarded),
            (events.JobSnoozed, self._snoozed),
        ):
            self._events.subscribe(kind, _keeping(jobs))

    async def run(self, *, with_scheduled: bool, hooks: Plugins) -> Report:
        """Run all jobs that are due, and those that they add. A failed job is not tried again.

        Args:
            with_scheduled: Whether jobs count as due whose time has not come.
            hooks: Plugins of the run.
        """
        before: set[int] = set()
        while True:
            await self._make_due(None if with_scheduled else self._clock.now(), but=before)
            await run_once(
                self._dsn,
                tasks=self._tasks,
                hooks=[*hooks, self._results],
                lifespan=self._lifespan,
                events=self._events,
                concurrent_jobs=1,
                no_handle_signals=True,
                no_side_schema=True,
            )
            put_off = {event.job.id for event in self._failed} | {job.id for job in self._snoozed}
            await self._shift(put_off - before)
            before |= put_off
            if not await self._waiting(None if with_scheduled else self._clock.now(), but=before):
                return self._report()

    @asynccontextmanager
    async def _lifespan(self, _runner: Any) -> AsyncIterator[State]:
        yield self._state

    async def _waiting(self, until: datetime | None, *, but: Iterable[int]) -> list[ListedJob]:
        """The scheduled jobs that are to be run, the one that is due first in front."""
        jobs = await self._utils.list_jobs(state=JobState.SCHEDULED, limit=None)
        wanted = [
            job
            for job in jobs
            if job.task_identifier in self._tasks
            and job.id not in set(but)
            and (until is None or job.run_at <= until)
        ]
        return sorted(wanted, key=lambda job: (job.run_at, job.id))

    async def _make_due(self, until: datetime | None, *, but: Iterable[int]) -> None:
        waiting = await self._waiting(until, but=but)
        # A moment ago, each a little later than the one before, which keeps their order.
        start = utc_now() - timedelta(seconds=1)
        for place, job in enumerate(waiting):
            run_at = start + timedelta(microseconds=place)
            await self._utils.reschedule_jobs([job.id], run_at=run_at)

    async def _shift(self, ids: Iterable[int]) -> None:
        """Let jobs that were put off wait by the clock of the test."""
        if not self._clock.offset:
            return
        for job_id in ids:
            job = await self._utils.get_job(job_id)
            if job is not None:
                run_at = job.run_at + self._clock.offset
                await self._utils.reschedule_jobs([job_id], run_at=run_at)

    def _report(self) -> Report:
        returned = self._results.returned
        return Report(
            completed=tuple(self._completed),
            failed=tuple(self._failed),
            discarded=tuple(self._discarded),
            snoozed=tuple(self._snoozed),
            results={job.id: returned[job.id] for job in self._completed if job.id in returned},
        )


def _keeping(jobs: list[Job]) -> Callable[[events.JobEvent], None]:
    return lambda event: jobs.append(event.job)
