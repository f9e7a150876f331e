"""How the tasks of a pool are called: chosen once for each task, when the pool starts."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from graphile_worker_py import aio, events
from graphile_worker_py.errors import TaskTimeoutError
from graphile_worker_py.events import Events
from graphile_worker_py.executors.executable import Executable, ExecutableExecutor
from graphile_worker_py.executors.guarding import Guard
from graphile_worker_py.executors.process_use import ProcessUse
from graphile_worker_py.executors.thread import Threads
from graphile_worker_py.executors.time_limit import TimeLimits
from graphile_worker_py.forks import Origin
from graphile_worker_py.tasks.batches import batch_of
from graphile_worker_py.tasks.context import RunningJob
from graphile_worker_py.tasks.pool_context import PoolContext
from graphile_worker_py.tasks.sync_context import SyncJobContext
from graphile_worker_py.tasks.task import ExecutorKind, Task

if TYPE_CHECKING:
    from graphile_worker_py.executors.process import ProcessExecutor

LARGE: Final = 2**18
"""Bytes of a payload that may take a millisecond and more to decode."""

Call: TypeAlias = Callable[[RunningJob], Awaitable[Any]]
"""Calls a task for a job. Awaited, it returns what the task returned."""


class Executor(Protocol):
    """One way to call tasks."""

    def call_of(self, task: Task[Any]) -> Call:
        """How a task is called."""


class Executors:
    """All ways in which a pool calls its tasks.

    Args:
        pool: What the jobs of the pool share.
        most_processes: Most processes of tasks at a time.
        observed: Where to report tasks that run on after they were cut off.
        patience: Seconds that a task gets to end after it was cancelled at its time limit.
        process_use: How long processes of tasks are used.
        exit_codes: Whether executables can discard their jobs by exit codes.

    Attributes:
        calls: How each task is called, by its identifier.
        threads: The threads of plain functions.
        time_limits: Cuts off tasks that have a timeout.

    Raises:
        ConfigurationError: A task can't run here in the way that it asks for.
    """

    def __init__(
        self,
        pool: PoolContext,
        *,
        most_processes: int,
        observed: Events,
        patience: float,
        process_use: ProcessUse,
        exit_codes: bool = False,
    ) -> None:
        self.threads = Threads()
        self.time_limits = TimeLimits(observed, patience=patience)
        self._pool = pool
        self._guard = Guard()
        self._processes = self._process_executor(most_processes, process_use)
        large = LargePayloads()
        # What a task forks must neither record an outcome nor run the event loop.
        origin = Origin(asyncio.get_running_loop())
        self._on_loop = LoopExecutor(large, origin)
        self._inline = InlineExecutor(large, origin)
        self._in_threads = ThreadExecutor(self.threads, observed, large)
        self._executables = ExecutableExecutor(self._guard, exit_codes=exit_codes)
        self.calls = {name: self._call_of(task) for name, task in pool.tasks.items()}

    async def settle(self, running: RunningJob, result: Any) -> None:
        """Await what a task returned for the items of a batch job; nothing for other jobs.

        Raises:
            BatchJobError: Some items failed, or did not end in time.
            BatchAnswerError: The result is not an answer to a batch job.
        """
        job = running.job
        batch = batch_of(job.task_identifier, job.payload_json, result, self._pool.logger)
        if batch is None:
            return
        work = batch.settle()
        try:
            await self.time_limits.in_time(running, work, failure=batch.failure_after)
        except TaskTimeoutError as error:
            raise batch.failure_after(error) from None
        batch.check()

    async def close(self) -> int:
        """End what has no job.

        Returns:
            How many threads run on, because their functions have not returned.
        """
        if self._processes is not None:
            await self._processes.close()
        await self._guard.close()
        self._pool.thread_sessions.close()
        return self.threads.close()

    def _call_of(self, task: Task[Any]) -> Call:
        if task.injected:
            task = self._bound(task)
        call = self._executor_of(task).call_of(task)
        # The process of a task is killed by its executor, which lets it start first.
        if task.timeout is None or task.is_process:
            return call
        return self.time_limits.limited(call, task.timeout)

    def _bound(self, task: Task[Any]) -> Task[Any]:
        """A task as a function of payload and context, where more is injected."""
        # A pool without such tasks does not pay for the import.
        from graphile_worker_py.executors.injecting import bound  # noqa: PLC0415
        from graphile_worker_py.executors.planning import Plan  # noqa: PLC0415

        provided = self._pool.provided
        if task.is_process:
            # Its process makes its own plan; this one is made for the errors.
            Plan(task, provided.in_processes)
            return task
        return bound(task, provided.state)

    def _executor_of(self, task: Task[Any]) -> Executor:
        if isinstance(task.function, Executable):
            return self._executables
        match task.executor:
            case ExecutorKind.THREAD:
                return self._in_threads
            case ExecutorKind.INLINE:
                return self._inline
            case ExecutorKind.PROCESS:
                assert self._processes is not None  # noqa: S101  # there is such a task
                return self._processes
            case None:
                return self._on_loop

    def _process_executor(self, most: int, use: ProcessUse) -> "ProcessExecutor | None":
        if not any(task.is_process for task in self._pool.tasks.values()):
            return None
        # A pool without such tasks does not pay for the import.
        from graphile_worker_py.executors.process import ProcessExecutor  # noqa: PLC0415

        return ProcessExecutor(
            self._pool.tasks.values(),
            most=most,
            use=use,
            logger=self._pool.logger,
            guard=self._guard,
        )


class LargePayloads:
    """Lets the event loop have a turn between two large payloads, which take long to decode."""

    def __init__(self) -> None:
        self._one_at_a_time = asyncio.Lock()

    async def turn(self) -> None:
        """Wait until a large payload may be decoded."""
        async with self._one_at_a_time:
            await asyncio.sleep(0)


class LoopExecutor:
    """Calls async functions on the event loop."""

    def __init__(self, large: LargePayloads, origin: Origin) -> None:
        self._large = large
        self._origin = origin

    def call_of(self, task: Task[Any]) -> Call:
        """How a task is called."""
        function, decode, origin = task.function, task.decode, self._origin
        takes_context = task.arguments == 2

        # Each job of such a task goes this way, so it is written without helpers.
        async def call(running: RunningJob) -> Any:
            job = running.job
            if job.payload_size > LARGE:
                await self._large.turn()
            payload = job.payload if decode is None else decode(job.payload_json)
            try:
                if takes_context:
                    result = await function(payload, running.context)
                else:
                    result = await function(payload)
            finally:
                if origin.is_left:
                    origin.end()
            return result if result is None else await aio.awaited(result)

        async def call_without_payload(_running: RunningJob) -> Any:
            try:
                result = await function()
            finally:
                if origin.is_left:
                    origin.end()
            return await aio.awaited(result)

        return call if task.arguments else call_without_payload


class InlineExecutor:
    """Calls plain functions on the event loop."""

    def __init__(self, large: LargePayloads, origin: Origin) -> None:
        self._large = large
        self._origin = origin

    def call_of(self, task: Task[Any]) -> Call:
        """How a task is called."""
        arguments = _arguments_of(task, lambda running: running.context)
        origin = self._origin

        async def call(running: RunningJob) -> Any:
            if running.job.payload_size > LARGE:
                await self._large.turn()
            try:
                result = task.function(*arguments(running))
            finally:
                if origin.is_left:
                    origin.end()
            return result if result is None else await aio.awaited(result)

        return call


class ThreadExecutor:
    """Calls plain functions in threads, each with a copy of the context."""

    def __init__(self, threads: Threads, observed: Events, large: LargePayloads) -> None:
        self._threads = threads
        self._large = large
        self._events = observed

    def call_of(self, task: Task[Any]) -> Call:
        """How a task is called."""
        # The methods of its context wait for the event loop, so they can't be called on it.
        arguments = _arguments_of(task, SyncJobContext)

        async def call(running: RunningJob) -> Any:
            if running.job.payload_size > LARGE:
                await self._large.turn()
            function = partial(copy_context().run, task.function, *arguments(running))
            result = await self._threads.run(
                function, on_stuck=partial(self._report_stuck, running)
            )
            return result if result is None else await aio.awaited(result)

        return call

    def _report_stuck(self, running: RunningJob) -> None:
        self._events.emit(
            events.ThreadStuck(
                pool_id=running.pool.pool_id,
                worker_id=running.worker_id,
                job=running.job,
                stuck=self._threads.stuck,
                most_stuck=self._threads.most_stuck,
            )
        )


def _arguments_of(
    task: Task[Any], context_of: Callable[[RunningJob], Any]
) -> Callable[[RunningJob], tuple[Any, ...]]:
    """What a task is called with for a job: its payload, and its context if it takes two."""
    decode, count = task.decode, task.arguments

    def arguments(running: RunningJob) -> tuple[Any, ...]:
        job = running.job
        payload = job.payload if decode is None else decode(job.payload_json)
        return (payload, context_of(running)) if count == 2 else (payload,)[:count]

    return arguments
