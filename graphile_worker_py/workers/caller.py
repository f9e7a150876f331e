"""Call the task of a job, with its context, within its time limit."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

from graphile_worker_py import events
from graphile_worker_py.errors import TaskTimeoutError, UnknownTaskError
from graphile_worker_py.events import Events
from graphile_worker_py.executors.thread import ThreadExecutor
from graphile_worker_py.job import Job
from graphile_worker_py.plugins import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.tasks.batches import batch_of
from graphile_worker_py.tasks.context import Abort, JobContext, SyncJobContext
from graphile_worker_py.tasks.queue_names import QueueNames
from graphile_worker_py.tasks.task import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSurroundings:
    """What the tasks of a pool are called with."""

    pool_id: str
    database: Database
    tasks: Mapping[str, Task[Any]]
    threads: ThreadExecutor
    run_in_process: Callable[[Task[Any], Job, JobContext], Awaitable[Any]]
    abort: Abort
    queue_names: QueueNames
    events: Events
    hooks: Hooks
    logger: logging.Logger


class Caller:
    """Calls tasks for one worker, within the plugins that wrap `run_job`.

    Args:
        worker_id: Id of the worker.
        around: What it calls them with.
    """

    def __init__(self, worker_id: str, around: TaskSurroundings) -> None:
        self._worker_id = worker_id
        self._around = around
        self._adding = around.hooks.around_adding(around.events)
        # Without plugins the task is called directly.
        self._call = around.hooks.run_job(self._call_task, partial(self._context, JobContext))

    async def call(self, job: Job) -> Any:
        """Call the job's task; returns and raises what it does, and what a batch comes to.

        Raises:
            UnknownTaskError: There is no such task.
            TaskTimeoutError: It took too long.
            BatchJobError: Items of a batch job failed, or did not end in time.
            BatchAnswerError: The task's answer to a batch job can't be matched with its items.
        """
        started = perf_counter()
        result = await self._call(job)
        if result is not None:
            await self._settle(job, result, started)
        return result

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
                lambda: task.function(*arguments), on_stuck=partial(self._emit_stuck, job)
            )
        return result if result is None else await _all_of(result)

    def _emit_stuck(self, job: Job) -> None:
        threads = self._around.threads
        self._around.events.emit(
            events.ThreadStuck(
                pool_id=self._around.pool_id,
                worker_id=self._worker_id,
                job=job,
                stuck=threads.stuck,
                most_stuck=threads.most_stuck,
            )
        )

    def _context(self, kind: type[Any], job: Job) -> Any:
        around = self._around
        return kind(
            job,
            database=around.database,
            abort=around.abort,
            logger=around.logger,
            worker_id=self._worker_id,
            pool_id=around.pool_id,
            queue_names=around.queue_names,
            adding=self._adding,
        )

    async def _settle(self, job: Job, result: Any, started: float) -> None:
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
