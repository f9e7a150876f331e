"""One worker: get a job, run its task, record the outcome."""

import asyncio
import logging
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from time import perf_counter
from typing import Any, Final, Protocol

from graphile_worker_py import events
from graphile_worker_py.errors import BatchJobError, one_line, presentable, users_frames
from graphile_worker_py.events import Events
from graphile_worker_py.fleet.suspects import Suspects
from graphile_worker_py.job import Job
from graphile_worker_py.outcomes import (
    NOTHING_RETURNED,
    Cancelled,
    Completed,
    Discard,
    Failed,
    Outcome,
    Returned,
    Settled,
    Snoozed,
    outcome_of,
)
from graphile_worker_py.processes.interrupts import as_failure, is_ctrl_c
from graphile_worker_py.sql.fail_jobs import retry_at
from graphile_worker_py.tasks.context import RunningJob
from graphile_worker_py.tasks.variables import JobVariables
from graphile_worker_py.workers.caller import Caller
from graphile_worker_py.workers.leftovers import Leftovers

logger = logging.getLogger(__name__)

LONGEST_TURN: Final = 0.01
"""Seconds after which a worker yields to the event loop before its next job."""


class Source(Protocol):
    """Where jobs come from: the local queue."""

    def take(self) -> Job | None:
        """A stored job; None if there is none."""

    async def get(self) -> Job | None:
        """Wait for the next job; None means that the worker is to stop."""


class Recorder(Protocol):
    """Where outcomes go to: the settler."""

    def record(self, job: Job, outcome: Outcome, duration: float = 0.0) -> None:
        """Record an outcome soon; `duration` is how many seconds the job ran."""

    def recorded(self, settled: Settled) -> None:
        """Note that the outcome of a job is recorded: its task has completed it."""


class Guard(Protocol):
    """What decides whether a job may begin, and whether it is being cut off: the pool."""

    @property
    def is_late(self) -> Callable[[], bool]:
        """Tells whether other pools may have declared this one dead by now."""

    async def confirm(self) -> bool:
        """Wait until fetched jobs are known to be the pool's; False if the pool is to stop."""

    @property
    def kill_reason(self) -> str | None:
        """Why the pool is being stopped by force; None if it is not."""


class End(StrEnum):
    """Why a run of a worker has ended."""

    NO_MORE_JOBS = "no more jobs"
    LEFTOVERS = "leftovers"
    """A job has left something in the asyncio task: the worker must be run in another one."""
    LEFT = "left"
    """A job did not end when it was cut off, and the worker was started anew without it."""


class Worker:
    """Runs one job after the other.

    Args:
        worker_id: Id for logs and events.
        pool_id: Id of its pool.
        source: Where its jobs come from.
        recorder: Where its outcomes go to.
        guard: Decides whether a job may begin.
        caller: Calls the task of a job.
        suspects: Jobs under which worker processes died, and how they are run.
        variables: The context variables of jobs.
        events: Where to emit events.
    """

    def __init__(
        self,
        worker_id: str,
        *,
        pool_id: str,
        source: Source,
        recorder: Recorder,
        guard: Guard,
        caller: Caller,
        suspects: Suspects,
        variables: JobVariables,
        events: Events,
    ) -> None:
        self.worker_id = worker_id
        self._pool_id = pool_id
        self._source = source
        self._record = recorder.record
        self._recorded = recorder.recorded
        self._guard = guard
        self._caller = caller
        self._call = caller.call
        self._suspects = suspects
        self._crashes = suspects.crashes
        self._variables = variables
        self._events = events
        self._heard_by = events.heard_by
        self.job_error: BaseException | None = None
        """What the task of the running job has raised; None before, and if it raised nothing."""
        self.restart: Callable[[], None] | None = None
        """Runs the worker in a new asyncio task, while the present one is stuck in a job."""
        self._job: Job | None = None
        self._run = object()
        """Stands for the present call of `run`."""
        caller.leave = self._leave

    @property
    def job(self) -> Job | None:
        """The running job; None between two jobs."""
        return self._job

    @property
    def running(self) -> RunningJob | None:
        """The running job once its task was called; None between two jobs."""
        running = self._caller.running
        return running if running is not None and running.job is self._job else None

    async def run(self) -> End:
        """Run jobs until the source has no more, or until this asyncio task can't be used again."""
        run = self._run = object()
        leftovers = Leftovers()
        take_job, get_job = self._source.take, self._source.get
        is_late, begin_job, heard_by = (
            self._guard.is_late,
            self._variables.begin_job,
            self._heard_by,
        )
        turn_ends = 0.0
        while True:
            if heard_by[events.WorkerGetJobStart]:
                self._events.emit(
                    events.WorkerGetJobStart(pool_id=self._pool_id, worker_id=self.worker_id)
                )
            job = take_job()
            if job is None:
                job = await get_job()
                if job is None:
                    return End.NO_MORE_JOBS
                turn_ends = perf_counter() + LONGEST_TURN
            self._job = job
            begin_job()
            if not is_late() or await self._is_ours():
                await self._run_job(job)
            if self._run is not run:
                return End.LEFT
            self._job = self.job_error = None
            if leftovers.exist():
                return End.LEFTOVERS
            if perf_counter() >= turn_ends:
                # With stored jobs and tasks that never wait, nothing else would have a turn.
                await asyncio.sleep(0)
                turn_ends = perf_counter() + LONGEST_TURN

    def cancel_job(self, reason: str | None) -> None:
        """Ask the running job to end because it was cancelled."""
        running = self.running
        if running is not None:
            running.cancel_reason = reason
            running.abort.set("cancelled")

    def give_up(self, job: Job) -> None:
        """Go on without a job that was cancelled and does not end."""
        if self._job is job:
            self._leave(CancelledError("the job was cancelled, and did not end"))

    def return_job(self, reason: str | None = None) -> None:
        """Return the running job, if there is one; what its task still does no longer counts.

        Args:
            reason: For the event; None means that of the pool's forced stop.
        """
        job, self._job = self._job, None
        if job is None:
            return
        reason = reason or self._guard.kill_reason or "the pool is being stopped"
        self._emit(events.JobReturned, job, reason=reason)
        self._record(job, Returned(reason))

    def fail_job(self, error: BaseException) -> None:
        """Fail the running job, if there is one: this worker broke down while it handled the job.

        The attempt counts. Otherwise a job that breaks its worker would break the next one, too,
        again and again.
        """
        job, self._job = self._job, None
        if job is None:
            return
        message = f"the worker broke down while it handled this job: {one_line(error)}"
        is_final = job.attempts >= job.max_attempts
        failed = Failed(error=error, message=message, is_final=is_final)
        self._record(job, failed)
        with suppress(Exception):  # what broke down may be the events
            self._emit_failure(job, failed, 0.0)

    async def _is_ours(self) -> bool:
        """Whether a job may begin although the process stood still since it was fetched."""
        is_ours = False
        try:
            is_ours = await self._guard.confirm()
        finally:
            if not is_ours:
                self.return_job("other pools may have declared its worker pool dead")
        return is_ours

    async def _run_job(self, job: Job) -> None:
        """Run a job to exactly one outcome."""
        if self._heard_by[events.JobStart]:
            self._emit(events.JobStart, job)
        run, suspects, started = self._run, self._suspects, perf_counter()
        returned: Any = None
        raised: BaseException | None = None
        try:
            if job.id in self._crashes or suspects.marks(job):
                returned = await suspects.run(job, self._call)
            else:
                returned = await self._call(job)
        except BaseException as error:  # SystemExit included: it is the task's failure
            raised = presentable(error)
        if self._run is not run:
            return  # it did not end in time, and its failure is recorded
        if raised is not None and self._ends_worker(raised):
            if self._caller.is_done:
                self._end_completed(job, None, perf_counter() - started)
            else:
                self.return_job()
            raise raised
        if isinstance(raised, KeyboardInterrupt):
            raised = as_failure(raised)
        if self._job is None:
            return  # returned meanwhile, because it did not end when it was cut off
        if self._caller.may_be_completed and await self._caller.is_completed():
            self._end_completed(job, raised, perf_counter() - started)
            return
        duration = perf_counter() - started
        if returned is None and raised is None:  # nearly every job: there is nothing to decide
            self._end_succeeded(job, NOTHING_RETURNED, duration)
        else:
            self._end(job, self._outcome(job, returned=returned, raised=raised), duration)

    def _outcome(
        self, job: Job, *, returned: Any = None, raised: BaseException | None = None
    ) -> Outcome:
        if raised is not None and self._caller.is_cancelled:
            return Cancelled(self._caller.cancel_reason)
        policy = self._caller.policy_of(job)
        outcome = outcome_of(job, returned=returned, raised=raised, policy=policy)
        most = self._caller.most_snoozes if isinstance(outcome, Snoozed) else None
        if most is None:
            return outcome
        raised = Discard(f"the job was snoozed {most} times, which is all that max_snoozes allows")
        return outcome_of(job, raised=raised, policy=policy)

    def _ends_worker(self, error: BaseException) -> bool:
        """Whether a forced stop or Ctrl-C ends the worker, and not its task the job."""
        if isinstance(error, asyncio.CancelledError):
            # Otherwise only user code can have cancelled: that is a failure of the job.
            return self._guard.kill_reason is not None
        return isinstance(error, KeyboardInterrupt) and is_ctrl_c(error)

    def _leave(self, error: BaseException) -> None:
        """Go on without the running job, which has failed and does not end."""
        job, running = self._job, self._caller.running
        if job is None or running is None or self.restart is None:
            return
        outcome = self._outcome(job, raised=error)
        self._end(job, outcome, perf_counter() - running.started)
        self._job = self.job_error = None
        self.restart()

    def _end_completed(self, job: Job, raised: BaseException | None, duration: float) -> None:
        """End a job that its task has completed in a transaction, whatever the task did then."""
        if raised is not None:
            logger.warning(
                "Job %d (%s) was completed by its task, which raised an error afterwards",
                job.id,
                job.task_identifier,
                exc_info=(type(raised), raised, users_frames(raised)),
                extra={"job_id": job.id, "pool_id": self._pool_id},
            )
        if self._events.wants(events.JobSuccess):
            self._emit(events.JobSuccess, job, duration=duration)
        self._recorded((job, NOTHING_RETURNED, perf_counter(), duration))
        if self._events.wants(events.JobComplete):
            self._emit(events.JobComplete, job, error=None)

    def _end_succeeded(self, job: Job, outcome: Completed, duration: float) -> None:
        if self._heard_by[events.JobSuccess]:
            self._emit(events.JobSuccess, job, duration=duration)
        self._record(job, outcome, duration)
        if self._heard_by[events.JobComplete]:
            self._emit(events.JobComplete, job, error=None)

    def _end(self, job: Job, outcome: Outcome, duration: float) -> None:
        error: BaseException | None = None
        match outcome:
            case Completed():
                self._end_succeeded(job, outcome, duration)
                return
            case Failed():
                self.job_error = error = outcome.error
                self._emit_failure(job, outcome, duration)
            case Cancelled():
                if self._events.wants(events.JobCancelled):
                    reason = outcome.reason
                    self._emit(events.JobCancelled, job, duration=duration, reason=reason)
            case Snoozed():
                if self._events.wants(events.JobSnoozed):
                    due_at = retry_at(job, outcome.delay)
                    self._emit(events.JobSnoozed, job, duration=duration, due_at=due_at)
            case Returned():
                self.return_job(outcome.reason)
                return
        self._record(job, outcome, duration)
        if self._events.wants(events.JobComplete):
            self._emit(events.JobComplete, job, error=error)

    def _emit_failure(self, job: Job, failed: Failed, duration: float) -> None:
        error = failed.error
        if failed.is_discarded:
            self._emit(events.JobDiscarded, job, duration=duration, error=error)
            return
        batch_errors = error.errors if isinstance(error, BatchJobError) else None
        if self._events.wants(events.JobError) or self._events.wants(events.JobFailed):
            about = {"error": error, "duration": duration, "batch_job_errors": batch_errors}
            next_try = None if failed.is_final else retry_at(job, failed.delay)
            self._emit(events.JobError, job, retry_at=next_try, **about)
            if failed.is_final:
                self._emit(events.JobFailed, job, retry_at=None, **about)

    def _emit(self, kind: Callable[..., events.JobEvent], job: Job, **about: Any) -> None:
        self._events.emit(kind(pool_id=self._pool_id, worker_id=self.worker_id, job=job, **about))
