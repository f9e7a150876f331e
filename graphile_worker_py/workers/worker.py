"""One worker: get a job, run its task, tell the outcome."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final, TypeVar

from graphile_worker_py import aio, events
from graphile_worker_py.errors import CutOffError, TaskTimeoutError, UnknownTaskError, message_of
from graphile_worker_py.events import Events
from graphile_worker_py.executors.thread import ThreadExecutor
from graphile_worker_py.fleet.suspects import Suspects
from graphile_worker_py.job import Job
from graphile_worker_py.plugins import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.fail_jobs import Failure, retry_at
from graphile_worker_py.tasks.batches import BatchJobError, batch_of
from graphile_worker_py.tasks.context import Abort, JobContext, SyncJobContext
from graphile_worker_py.tasks.queue_names import QueueNames
from graphile_worker_py.tasks.task import Task

T = TypeVar("T")

LONGEST_TURN: Final = 0.01
"""Seconds after which a worker lets others have a turn, before its next job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all workers of a pool share."""

    pool_id: str
    database: Database
    tasks: Mapping[str, Task[Any]]
    threads: ThreadExecutor
    run_in_process: Callable[[Task[Any], Job, JobContext], Awaitable[Any]]
    abort: Abort
    queue_names: QueueNames
    events: Events
    hooks: Hooks
    suspects: Suspects
    logger: logging.Logger
    take_job: Callable[[], Job | None]
    get_job: Callable[[], Awaitable[Job | None]]
    is_late: Callable[[], bool]
    confirm: Callable[[], Awaitable[bool]]
    complete: Callable[[Job], None]
    fail: Callable[[Failure], None]
    give_back: Callable[[Job, str, str | None], None]
    is_killed: Callable[[], bool]


class Worker:
    """Runs one job after the other.

    Args:
        worker_id: Id for logs and events.
        around: What it shares with the other workers of its pool.
    """

    def __init__(self, worker_id: str, around: Surroundings) -> None:
        self.worker_id = worker_id
        self._around = around
        self._events = around.events
        # Without plugins the task is called directly.
        self._run_task = around.hooks.run_job(self._call_task, partial(self._context, JobContext))
        self._suspects = around.suspects.crashes
        self.job_error: BaseException | None = None
        """What the task of the running job has raised; None before, and if nothing."""
        self._job: Job | None = None
        self._running: asyncio.Task[Any] | None = None

    @property
    def job(self) -> Job | None:
        """The job that is running; None between two jobs."""
        return self._job

    async def run(self) -> None:
        """Run jobs until there are to be no more."""
        self._running = asyncio.current_task()
        take_job, get_job = self._around.take_job, self._around.get_job
        is_late = self._around.is_late
        turn_ends = 0.0
        while True:
            if self._events.wants(events.WorkerGetJobStart):
                self._events.emit(
                    events.WorkerGetJobStart(pool_id=self._around.pool_id, worker_id=self.worker_id)
                )
            job = take_job()
            if job is None:
                job = await get_job()
                if job is None:
                    return
                turn_ends = perf_counter() + LONGEST_TURN
            self._job = job
            if not is_late() or await self._is_ours(job):
                await self._run_job(job)
            self._job = self.job_error = None
            if perf_counter() >= turn_ends:
                # With jobs in store and tasks that never wait, nobody else would have a turn.
                await asyncio.sleep(0)
                turn_ends = perf_counter() + LONGEST_TURN

    def abandon(self) -> Job | None:
        """Give up on the running job: whatever its task does, its outcome counts no more."""
        job, self._job = self._job, None
        return job

    async def _is_ours(self, job: Job) -> bool:
        """Whether a job may begin, although the process stood still since it was fetched."""
        is_ours = False
        try:
            is_ours = await self._around.confirm()
        finally:
            if not is_ours:
                self._give_back(job, "others may have taken its worker pool for dead")
        return is_ours

    async def _run_job(self, job: Job) -> None:
        """Run a job to exactly one outcome: completed, failed or returned."""
        if self._events.wants(events.JobStart):
            self._emit(events.JobStart, job)
        started = perf_counter()
        error: BaseException | None = None
        try:
            if job.id in self._suspects:
                result = await self._around.suspects.run(job, self._run_task)
            else:
                result = await self._run_task(job)
            if result is not None:
                await self._settle(job, result, started)
        except asyncio.CancelledError as cancelled:
            if self._around.is_killed():
                self._give_back(job)
                raise
            # Nobody but user code can have cancelled: that is the job's failure, not our end.
            error = cancelled
        except KeyboardInterrupt:
            self._give_back(job)
            raise
        except CutOffError as cut_off:
            self._give_back(job, str(cut_off))
            return
        except BaseException as raised:  # SystemExit included: it is the task's failure
            error = raised
        if self._is_cancelled() and not self._around.is_killed():
            await aio.absorb_cancellation()
        if self._job is None:
            return  # abandoned meanwhile; the pool has given the job back
        duration = perf_counter() - started
        if error is None:
            if self._events.wants(events.JobSuccess):
                self._emit(events.JobSuccess, job, duration=duration)
            self._around.complete(job)
        else:
            self.job_error = error
            self._fail(job, error, duration)
        if self._events.wants(events.JobComplete):
            self._emit(events.JobComplete, job, error=error)

    def _is_cancelled(self) -> bool:
        """Whether the worker was cancelled, instead of its task having raised CancelledError."""
        return self._running is not None and self._running.cancelling() > 0

    def _call_task(self, job: Job) -> Awaitable[Any]:
        task = self._around.tasks.get(job.task_identifier)
        if task is None:
            raise UnknownTaskError(f"there is no task {job.task_identifier!r} here")
        if task.cut_after is None:
            return self._result(task, job)
        return _in_time(task, task.cut_after, self._result(task, job))

    async def _result(self, task: Task[Any], job: Job) -> Any:
        if task.is_process:
            return await self._around.run_in_process(task, job, self._context(JobContext, job))
        decode = task.decode
        payload = job.payload if decode is None else decode(job.payload_json)
        if task.is_async:
            if task.arguments == 2:
                result = await task.function(payload, self._context(JobContext, job))
            else:
                result = await task.function(*(payload,)[: task.arguments])
            return result if result is None else await _all_of(result)
        arguments: tuple[Any, ...] = (payload,)[: task.arguments]
        if task.arguments == 2:
            # What blocks until the loop has done something must not be called on the loop.
            kind = JobContext if task.is_inline else SyncJobContext
            arguments = (payload, self._context(kind, job))
        if task.is_inline:
            result = task.function(*arguments)
        else:
            result = await self._around.threads.run(
                lambda: task.function(*arguments), on_stuck=partial(self._tell_stuck, job)
            )
        return result if result is None else await _all_of(result)

    def _tell_stuck(self, job: Job) -> None:
        threads = self._around.threads
        self._emit(events.ThreadStuck, job, stuck=threads.stuck, most_stuck=threads.most_stuck)

    def _context(self, kind: type[Any], job: Job) -> Any:
        around = self._around
        return kind(
            job,
            database=around.database,
            abort=around.abort,
            logger=around.logger,
            worker_id=self.worker_id,
            pool_id=around.pool_id,
            queue_names=around.queue_names,
        )

    async def _settle(self, job: Job, result: Any, started: float) -> None:
        """Read what a task returned, which matters if the job is a batch.

        Raises:
            BatchJobError: Some items failed, or did not end in time.
            BatchAnswerError: It is no answer.
        """
        batch = batch_of(job.task_identifier, job.payload_json, result, self._around.logger)
        if batch is None:
            return
        task = self._around.tasks.get(job.task_identifier)
        if task is None or task.cut_after is None:
            await batch.settle()
        else:
            try:
                left = task.cut_after - (perf_counter() - started)
                await _in_time(task, left, batch.settle())
            except TaskTimeoutError as error:
                batch.cut_off(error)
        batch.check()

    def _fail(self, job: Job, error: BaseException, duration: float) -> None:
        payload: str | None = None
        batch_errors: Sequence[BaseException] | None = None
        if isinstance(error, BatchJobError):
            batch_errors = error.errors
            payload = error.payload
        if self._events.wants(events.JobError) or self._events.wants(events.JobFailed):
            next_try = retry_at(job)
            about = {"error": error, "duration": duration, "batch_job_errors": batch_errors}
            self._emit(events.JobError, job, retry_at=next_try, **about)
            if next_try is None:
                self._emit(events.JobFailed, job, retry_at=None, **about)
        self._around.fail(Failure(job, message_of(error), payload))

    def _give_back(self, job: Job, reason: str | None = None) -> None:
        if self._job is None:
            return
        self._around.give_back(job, self.worker_id, reason)

    def _emit(self, kind: Callable[..., events.JobEvent], job: Job, **about: Any) -> None:
        self._events.emit(
            kind(pool_id=self._around.pool_id, worker_id=self.worker_id, job=job, **about)
        )


async def _all_of(result: Any) -> Any:
    """The result itself, where a task returned something that is still to be awaited."""
    while inspect.isawaitable(result):
        result = await result
    return result


async def _in_time(task: Task[Any], left: float, work: Awaitable[T]) -> T:
    """Await the work of a task, and cancel it when the time that is left has run out."""
    try:
        async with asyncio.timeout(left) as limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TaskTimeoutError(
            f"task {task.identifier!r} ran longer than its timeout of {task.timeout:g} s"
        ) from error
