"""Call tasks with what they ask for besides payload and context."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
)
from types import TracebackType
from typing import Any, TypeAlias

from graphile_worker_py import aio
from graphile_worker_py.executors.planning import Kind, Plan
from graphile_worker_py.tasks.injection import State
from graphile_worker_py.tasks.task import ExecutorKind, Task

Waiting: TypeAlias = Callable[[Any, Coroutine[Any, Any, Any]], Any]
"""Given the context of a job, awaits a coroutine from outside the event loop."""


class _Calls:
    """How a task is called by a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def on_loop(self) -> Callable[[Any, Any], Awaitable[Any]]:
        """The task as a function of payload and context, for the event loop."""

        async def call(payload: Any, ctx: Any) -> Any:
            raised: BaseException | None = None
            stack: AsyncExitStack[bool] = AsyncExitStack()
            async with stack:
                try:
                    values = await self._made(payload, ctx, stack)
                    result = await aio.awaited(self._called(payload, ctx, values))
                    return await _finished(result, payload)
                except BaseException as error:
                    raised = error
                    raise
            assert raised is not None  # noqa: S101  # else it has returned
            raise raised  # a factory has suppressed the failure, which is the job's all the same

        return call

    def in_thread(self, waiting: Waiting) -> Callable[[Any, Any], Any]:
        """The task as a function of payload and context, for a thread or a process.

        Args:
            waiting: Awaits what async factories return.
        """

        def call(payload: Any, ctx: Any) -> Any:
            raised: BaseException | None = None
            stack: ExitStack[bool] = ExitStack()
            with stack:
                try:
                    values = self._made_outside(payload, ctx, stack, waiting)
                    result = self._called(payload, ctx, values)
                    if inspect.isawaitable(result):
                        result = waiting(ctx, aio.awaited(result))
                    if _is_unfinished(result, payload):
                        return waiting(ctx, _finished(result, payload))
                except BaseException as error:
                    raised = error
                    raise
                else:
                    return result
            assert raised is not None  # noqa: S101  # else it has returned
            raise raised

        return call

    def _called(self, payload: Any, ctx: Any, values: list[Any]) -> Any:
        given = {name: values[at] for name, at in self._plan.arguments.items()}
        return self._plan.task.function(*(payload, ctx)[: self._plan.task.arguments], **given)

    async def _made(self, payload: Any, ctx: Any, stack: AsyncExitStack) -> list[Any]:
        """The values of a job, made on the event loop."""
        values = [payload, ctx, ctx]
        for step in self._plan.steps:
            value = step.call(values)
            match step.kind:
                case Kind.ASYNC_FUNCTION:
                    value = await value
                case Kind.MANAGER:
                    value = stack.enter_context(value)
                case Kind.ASYNC_MANAGER:
                    value = await stack.enter_async_context(value)
            values.append(value)
        return values

    def _made_outside(
        self, payload: Any, ctx: Any, stack: ExitStack, waiting: Waiting
    ) -> list[Any]:
        """The values of a job, made in a thread; async factories run on the event loop."""
        values = [payload, ctx, getattr(ctx, "async_context", ctx)]
        for step in self._plan.steps:
            value = step.call(values)
            match step.kind:
                case Kind.ASYNC_FUNCTION:
                    value = waiting(ctx, value)
                case Kind.MANAGER:
                    value = stack.enter_context(value)
                case Kind.ASYNC_MANAGER:
                    value = stack.enter_context(_Blocking(value, ctx, waiting))
            values.append(value)
        return values


def bound(task: Task[Any], state: State) -> Task[Any]:
    """The same task, as a function of payload and context, for the event loop or a thread.

    Raises:
        ConfigurationError: See `Plan`.
    """
    plan = Plan(task, state)
    if task.executor is ExecutorKind.THREAD:
        return task.calling(_Calls(plan).in_thread(lambda ctx, work: ctx.wait(work)))
    return task.calling(_Calls(plan).on_loop())


def bound_in_process(task: Task[Any], state: State) -> Task[Any]:
    """The same for the process of a task."""
    plan = Plan(task, state)
    if plan.is_async:
        on_loop = _Calls(plan).on_loop()
        # All of it on one event loop, which ends with the job.
        return task.calling(lambda payload, ctx: asyncio.run(_awaiting(on_loop(payload, ctx))))
    return task.calling(_Calls(plan).in_thread(lambda _ctx, work: asyncio.run(work)))


class _Blocking(AbstractContextManager[Any]):
    """An async context manager, entered and left from a thread."""

    def __init__(
        self, manager: AbstractAsyncContextManager[Any], ctx: Any, waiting: Waiting
    ) -> None:
        self._manager = manager
        self._ctx = ctx
        self._waiting = waiting

    def __enter__(self) -> Any:
        return self._waiting(self._ctx, _awaiting(self._manager.__aenter__()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        left: bool | None = self._waiting(
            self._ctx, _awaiting(self._manager.__aexit__(kind, error, traceback))
        )
        return left


class _Ended:
    """The failure of an item of a batch job, which was awaited before."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __await__(self) -> Generator[Any, Any, None]:
        return self._raise().__await__()

    async def _raise(self) -> None:
        raise self._error


def _is_unfinished(result: Any, payload: Any) -> bool:
    """Whether a task returned awaitables for the items of a batch job."""
    return (
        isinstance(result, list | tuple)
        and isinstance(payload, list)
        and len(result) == len(payload)
        and any(map(inspect.isawaitable, result))
    )


async def _finished(result: Any, payload: Any) -> Any:
    """What a task returned; items of a batch job are awaited while their dependencies are there.

    Their failures are awaitables that raise, for the settlement of the batch.
    """
    if not _is_unfinished(result, payload):
        return result
    items = list(result)

    async def finish(at: int) -> None:
        try:
            items[at] = await items[at]
        except Exception as error:
            items[at] = _Ended(error)

    async with asyncio.TaskGroup() as group:
        for at, item in enumerate(result):
            if inspect.isawaitable(item):
                group.create_task(finish(at))
    return items


async def _awaiting(work: Awaitable[Any]) -> Any:
    """An awaitable as a coroutine."""
    return await work
