"""Call the tasks of one worker's jobs, within the plugins that wrap them."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from graphile_worker_py.errors import UnknownTaskError
from graphile_worker_py.executors.executor import Executors
from graphile_worker_py.job import Job
from graphile_worker_py.outcomes import DEFAULT_POLICY, RetryPolicy
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.tasks.completing import Completion, still_held
from graphile_worker_py.tasks.context import JobContext, RunningJob, cannot_leave
from graphile_worker_py.tasks.current import CURRENT
from graphile_worker_py.tasks.pool_context import PoolContext

MOST_SNOOZES: Final = 1000
"""How often a job may be snoozed, unless its task says otherwise."""


class Caller:
    """Calls tasks for one worker, within the plugins that wrap `run_job`.

    Args:
        worker_id: Id of the worker.
        pool: What the jobs of the pool share.
        executors: How tasks are called.
        hooks: The plugins.

    Attributes:
        running: The job whose task was called last.
        leave: Called with an error if that job does not end: it has failed, and the worker is to
            go on without it.
    """

    def __init__(
        self, worker_id: str, *, pool: PoolContext, executors: Executors, hooks: Hooks
    ) -> None:
        self.running: RunningJob | None = None
        self.leave: Callable[[BaseException], None] = cannot_leave
        self._worker_id = worker_id
        self._pool = pool
        self._calls = executors.calls
        self._settle = executors.settle
        self._call = hooks.run_job(self._call_task, self._context_of)
        self._has_plugins = self._call != self._call_task

    async def call(self, job: Job) -> Any:
        """Call the job's task; returns and raises what it does, and what a batch comes to.

        Raises:
            UnknownTaskError: There is no such task.
            TaskTimeoutError: It took too long.
            BatchJobError: Items of a batch job failed, or did not end in time.
            BatchAnswerError: The task's answer to a batch job can't be matched with its items.
        """
        self.running = running = RunningJob(self._pool, job, self._worker_id, self.leave)
        token = CURRENT.set(job)
        find_left = self._pool.find_left
        try:
            if find_left is not None and not job.is_first_run:
                running.left = await find_left(job)
            # Without plugins the task is called directly.
            call = None if self._has_plugins else self._calls.get(job.task_identifier)
            result = await (self._call(job) if call is None else call(running))
            if result is None:
                return running.result
            await self._settle(running, result)
            return result
        finally:
            running.end()
            CURRENT.reset(token)

    @property
    def is_cancelled(self) -> bool:
        """Whether the last job was cancelled while it ran."""
        return self.running is not None and self.running.is_cancelled

    @property
    def cancel_reason(self) -> str | None:
        """Why the last job was cancelled."""
        return None if self.running is None else self.running.cancel_reason

    @property
    def most_snoozes(self) -> int | None:
        """How often the last job may be snoozed, if it was snoozed so often; None if it may be."""
        running = self.running
        if running is None or running.job.task_identifier not in self._pool.tasks:
            return None
        most = int(running.task.settings.get("max_snoozes", MOST_SNOOZES))
        return most if running.left.snoozes >= most else None

    @property
    def is_done(self) -> bool:
        """Whether the task of the last job has completed it."""
        return self.running is not None and self.running.completion is Completion.DONE

    @property
    def may_be_completed(self) -> bool:
        """Whether the task of the last job has tried to complete it."""
        running = self.running
        return (
            running is not None
            and running.completion is not Completion.OPEN
            and running.completion is not Completion.UNDERWAY
        )

    async def is_completed(self) -> bool:
        """Whether the task of the last job has completed it; asks the database if need be."""
        running = self.running
        if running is None or not self.may_be_completed:
            return False
        if running.completion is Completion.ASKED:
            held = await still_held(running)
            running.completion = Completion.OPEN if held else Completion.DONE
        return running.completion is Completion.DONE

    def policy_of(self, job: Job) -> RetryPolicy:
        """What a failed attempt of the job's task leads to."""
        task = self._pool.tasks.get(job.task_identifier)
        return DEFAULT_POLICY if task is None or task.retry is None else task.retry

    def _call_task(self, job: Job) -> Awaitable[Any]:
        call = self._calls.get(job.task_identifier)
        if call is None or self.running is None:
            raise UnknownTaskError(f"there is no task {job.task_identifier!r} here")
        return call(self.running)

    def _context_of(self, _job: Job) -> JobContext:
        assert self.running is not None  # noqa: S101  # `call` sets it
        return self.running.context
