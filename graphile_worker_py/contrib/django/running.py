"""How a worker calls Django's tasks, and the tasks of a project."""

import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, cast

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.apps import apps
from django.db import close_old_connections, connections
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules

from graphile_worker_py.contrib.django import api, results
from graphile_worker_py.contrib.django.backend import GraphileWorkerBackend
from graphile_worker_py.contrib.django.project import read_project
from graphile_worker_py.job import Job
from graphile_worker_py.tasks.settings import TaskSettings
from graphile_worker_py.tasks.task import Task


@contextmanager
def fresh_connections() -> Iterator[None]:
    """Close connections of this thread that are broken or too old, before and after the block.

    Django does this around requests. Without it, a connection that was cut once would fail each
    later job of its thread.
    """
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


@asynccontextmanager
async def own_thread() -> AsyncIterator[None]:
    """Give an async task a thread of its own for what it calls by `sync_to_async`.

    Otherwise all tasks of a process would share one, and wait for each other there.
    """
    async with ThreadSensitiveContext():
        try:
            yield
        finally:
            await sync_to_async(connections.close_all)()


def tasks_of_project() -> list[Task[Any]]:
    """The tasks that a worker of this project runs.

    These are Django's tasks with our backend in all modules that are imported by then, and our own
    `@task` functions in the modules `tasks` of apps and in `GRAPHILE_WORKER["MODULES"]`.
    """
    autodiscover_modules("tasks")
    modules = read_project().modules
    for name in modules:
        import_module(name)
    named = {*modules, *(f"{app.name}.tasks" for app in apps.get_app_configs())}
    djangos: dict[str, Any] = {}
    ours: dict[str, Task[Any]] = {}
    for name, module in list(sys.modules.items()):
        for value in list(getattr(module, "__dict__", {}).values()):
            if isinstance(value, api.Task) and is_ours(value):
                djangos[value.module_path] = value
            elif isinstance(value, Task) and name in named:
                ours[value.identifier] = value
    own = [with_fresh_connections(task) for task in ours.values()]
    return [*map(as_task, djangos.values()), *own]


def is_ours(task: Any) -> bool:
    """Whether a task of Django uses our backend."""
    return isinstance(api.task_backends()[task.backend], GraphileWorkerBackend)


def with_fresh_connections(task: Task[Any]) -> Task[Any]:
    """A task of ours that closes Django's old connections around each of its jobs."""
    if task.is_process or task.is_inline:
        return task
    function = task.function
    wrapped: Callable[..., Any]
    if task.is_async:

        @wraps(function)
        async def wrapped(*args: Any) -> Any:
            async with own_thread():
                return await function(*args)

    else:

        @wraps(function)
        def wrapped(*args: Any) -> Any:
            with fresh_connections():
                return function(*args)

    settings = cast(TaskSettings, task.settings)
    return Task(wrapped, task.identifier, timeout=task.timeout, executor=task.executor, **settings)


def as_task(task: Any) -> Task[Any]:
    """A task of Django as one of ours."""
    if inspect.iscoroutinefunction(task.func):

        async def call_async(_payload: Any, ctx: Any) -> Any:
            call = _Call(task, ctx.job, ctx.pool_id)
            async with own_thread():
                await api.task_started.asend(call.sender, task_result=call.result)
                try:
                    returned = api.normalize_json(await task.func(*call.args, **call.kwargs))
                except BaseException as error:
                    if call.fails():
                        await api.task_finished.asend(call.sender, task_result=call.result)
                    results.keep_traceback(error, ctx.logger.capture)
                    raise
                call.succeeds(returned)
                await api.task_finished.asend(call.sender, task_result=call.result)
                return returned

        return Task(call_async, task.module_path, keep_result=True, capture_logs="ERROR")

    def call(_payload: Any, ctx: Any) -> Any:
        call = _Call(task, ctx.job, ctx.pool_id)
        with fresh_connections():
            api.task_started.send(call.sender, task_result=call.result)
            try:
                returned = api.normalize_json(task.func(*call.args, **call.kwargs))
            except BaseException as error:
                if call.fails():
                    api.task_finished.send(call.sender, task_result=call.result)
                results.keep_traceback(error, ctx.logger.capture)
                raise
            call.succeeds(returned)
            api.task_finished.send(call.sender, task_result=call.result)
            return returned

    return Task(call, task.module_path, keep_result=True, capture_logs="ERROR")


class _Call:
    """An attempt of a task."""

    def __init__(self, task: Any, job: Job, pool_id: str) -> None:
        self._job = job
        self.result = results.running(task, job, pool_id, now=timezone.now())
        self.sender = type(api.task_backends()[self.result.backend])
        self.kwargs: dict[str, Any] = dict(self.result.kwargs)
        context = (api.TaskContext(task_result=self.result),) if task.takes_context else ()
        self.args: tuple[Any, ...] = (*context, *self.result.args)

    def succeeds(self, returned: Any) -> None:
        self._ends(api.TaskResultStatus.SUCCESSFUL)
        object.__setattr__(self.result, "_return_value", returned)

    def fails(self) -> bool:
        """Whether this was the last attempt."""
        is_last = self._job.attempts >= self._job.max_attempts
        if is_last:
            self._ends(api.TaskResultStatus.FAILED)
        return is_last

    def _ends(self, status: Any) -> None:
        object.__setattr__(self.result, "status", status)
        object.__setattr__(self.result, "finished_at", timezone.now())
