"""Tasks: the functions that run jobs, and the list of those that a worker pool has."""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from enum import StrEnum
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from graphile_worker_py.checks import check_one_of, check_seconds
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job.spec import JobSpec, PayloadT, PayloadT_contra, SpecOptions, TaskName
from graphile_worker_py.outcomes import RetryPolicy
from graphile_worker_py.tasks.locating import TaskPlace, check_has_place, place_of
from graphile_worker_py.tasks.settings import ADDING, TaskSettings, checked_settings
from graphile_worker_py.tasks.signature import arguments_of, unwrapped
from graphile_worker_py.tasks.typed_payloads import Decode, payload_decoder

if TYPE_CHECKING:  # A module of tasks needs no driver, which takes half of its time to import.
    from psycopg import AsyncConnection, Connection

R_co = TypeVar("R_co", covariant=True)
TaskFunction: TypeAlias = Callable[..., Any]

LEAST_MEMORY: Final = 64 * 1024**2
"""Bytes; a process of an interpreter that has done nothing yet may take half of it."""


class ExecutorKind(StrEnum):
    """Where a plain function is called. An async one is always called on the event loop."""

    THREAD = "thread"
    """In a thread of the worker, where it may block. The default."""
    INLINE = "inline"
    """On the event loop itself: for what ends within a millisecond and never waits."""
    PROCESS = "process"
    """In a separate process, which can be killed: for functions that keep the processor busy,
    leak or crash."""


CONTEXTS: Final = {
    None: "JobContext",
    ExecutorKind.INLINE: "JobContext",
    ExecutorKind.THREAD: "SyncJobContext",
    ExecutorKind.PROCESS: "ProcessJobContext",
}
"""Names of the classes of contexts, by executor; None is the event loop."""
ExecutorName: TypeAlias = Literal["thread", "inline", "process"]


class AddJobOptions(SpecOptions, total=False):
    """What `add_job` takes in addition to task and payload."""

    conn: "AsyncConnection[Any] | Connection[Any] | None"
    """Connection to use, as for `WorkerUtils.add_job`; contexts of tasks in threads take none."""


class AddsJobs(Protocol[R_co]):
    """Whatever has an `add_job`: `WorkerUtils`, `Runner`, `JobContext`, and those for threads."""

    @property
    def add_job(self) -> Callable[..., R_co]:
        """Adds a job, or returns an awaitable that does."""


class Task(TaskName[PayloadT_contra]):
    """A function under the name by which jobs ask for it. Made by `task`; still callable.

    Type checkers know the payload it takes: they compare it with what its jobs are given.

    Attributes:
        identifier: The name that jobs carry.
        function: What is called with the payload, and the context if it takes two arguments.
        timeout: Seconds after which the task is cancelled and the job fails; None means none.
        memory: Bytes that its process may take; None means no limit.
        is_async: Whether it is an async function.
        executor: Where it is called, if it is a plain one; None for an async function.
        is_inline, is_process: Whether that is inline, or in a process.
        arguments: How many of payload and context it takes.
        injected: Names of its other parameters, whose values the worker provides.
        settings: How its jobs are added, retried and remembered; what was not given is missing.
        retry: What a failed attempt leads to; None means Graphile Worker's retries.
    """

    def __init__(
        self,
        function: TaskFunction,
        identifier: str,
        *,
        timeout: float | None = None,
        executor: ExecutorKind | ExecutorName | None = None,
        memory: int | None = None,
        **settings: Unpack[TaskSettings],
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"task {identifier!r} must be callable, not {function!r}")
        super().__init__(identifier)
        if timeout is not None:
            check_seconds(f"timeout of task {identifier!r}", timeout, above_zero=True)
        target = unwrapped(function)
        if inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
            raise ConfigurationError(
                f"task {identifier!r} is a generator; a task is a function or an async function"
            )
        self.function = function
        self.timeout = timeout
        self.memory = memory
        self.is_async = inspect.iscoroutinefunction(target)
        self.executor = _executor(identifier, executor, is_async=self.is_async)
        self.is_inline = self.executor is ExecutorKind.INLINE
        self.is_process = self.executor is ExecutorKind.PROCESS
        context = CONTEXTS[self.executor]
        self.arguments, self.injected = arguments_of(function, identifier, context=context)
        self.settings = checked_settings(identifier, settings)
        self.retry: RetryPolicy | None = self.settings.get("retry")
        self._check_limits()
        functools.update_wrapper(self, function, updated=())

    def _check_limits(self) -> None:
        name = self.identifier
        if self.is_inline and self.timeout is not None:
            raise ConfigurationError(
                f"task {name!r} runs inline, where nothing can cut it off: it can have no timeout"
            )
        if self.is_process:
            check_has_place(self.function, name)
        if self.memory is None:
            return
        if not self.is_process:
            raise ConfigurationError(
                f'memory of task {name!r} can only be limited in a process: executor="process"'
            )
        if not isinstance(self.memory, int) or self.memory < LEAST_MEMORY:
            raise ConfigurationError(
                f"memory of task {name!r} must be a whole number of bytes, at least "
                f"{LEAST_MEMORY} (64 MiB), not {self.memory!r}"
            )

    @property
    def is_asked_to_end(self) -> bool:
        """Whether a cancelled job is asked to end first, instead of being cut off at once."""
        return self.executor in (ExecutorKind.THREAD, ExecutorKind.PROCESS)

    def renamed(self, identifier: str) -> "Task[PayloadT_contra]":
        """The same task, with all its settings, under another identifier."""
        return Task(
            self.function,
            identifier,
            timeout=self.timeout,
            executor=self.executor,
            memory=self.memory,
            **cast(TaskSettings, self.settings),
        )

    def calling(self, function: TaskFunction) -> "Task[PayloadT_contra]":
        """The same task, which calls another function with payload and context."""
        other = copy(self)
        other.function = function
        other.arguments, other.injected = 2, ()
        other.__dict__["decode"] = self.decode
        return other

    def adding_defaults(self, payload: Any) -> dict[str, Any]:
        """The options of a job with this payload that its task has defaults for."""
        settings = self.settings
        return {
            name: settings[name](payload) if callable(settings[name]) else settings[name]
            for name in ADDING
            if name in settings
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function directly, as a test would."""
        return self.function(*args, **kwargs)

    @functools.cached_property
    def decode(self) -> Decode | None:
        """How the payload is built from stored JSON; None if it is passed on as decoded.

        A worker reads this when it starts. A program that only adds jobs does not need the
        libraries that build payloads.

        Raises:
            ConfigurationError: Payloads can't be built as they are annotated.
        """
        return payload_decoder(self.function, self.identifier)

    @functools.cached_property
    def place(self) -> TaskPlace:
        """Where a process finds the function.

        Raises:
            ConfigurationError: It can't be found by its name.
        """
        return place_of(self.function, self.identifier)

    def spec(self, payload: PayloadT_contra, **options: Unpack[SpecOptions]) -> JobSpec:
        """A job of this task, for `add_jobs`."""
        return JobSpec(self, payload, **options)

    def add_job(
        self,
        adder: AddsJobs[R_co],
        payload: PayloadT_contra,
        **options: Unpack[AddJobOptions],
    ) -> R_co:
        """Add a job of this task: `await send_email.add_job(utils, SendEmail("ada@example.com"))`.

        Args:
            adder: `WorkerUtils`, `Runner` or `JobContext`, whose answer is awaited, or
                `SyncWorkerUtils` or `SyncJobContext`.
            payload: What the function takes.
            options: See `WorkerUtils.add_job`.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
            psycopg.Error: The database could not add it.
        """
        return adder.add_job(self, payload, **options)


Tasks: TypeAlias = Iterable[Task[Any]] | Mapping[str, Any]
"""Tasks as users give them: a list of `@task` functions, or callables by their identifiers.

The latter are not typed more closely, because type checkers find no common type for functions that
take different payloads.
"""


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[[PayloadT], Any], /) -> Task[PayloadT]: ...
    @overload
    def __call__(self, function: Callable[[PayloadT, Any], Any], /) -> Task[PayloadT]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[PayloadT, ...], Any], /
    ) -> Task[PayloadT]: ...
    @overload
    def __call__(self, function: Callable[[], Any], /) -> Task[None]: ...


@overload
def task(function: Callable[[PayloadT], Any], /) -> Task[PayloadT]: ...
@overload
def task(function: Callable[[PayloadT, Any], Any], /) -> Task[PayloadT]: ...
@overload
def task(function: Callable[Concatenate[PayloadT, ...], Any], /) -> Task[PayloadT]: ...
@overload
def task(function: Callable[[], Any], /) -> Task[None]: ...
@overload
def task(
    identifier: str | None = None,
    /,
    *,
    timeout: float | None = None,
    executor: ExecutorName | None = None,
    memory: int | None = None,
    **settings: Unpack[TaskSettings],
) -> _Decorator: ...
def task(
    function: TaskFunction | str | None = None,
    /,
    *,
    timeout: float | None = None,
    executor: ExecutorName | None = None,
    memory: int | None = None,
    **settings: Unpack[TaskSettings],
) -> Task[Any] | _Decorator:
    """Make a function a task.

    Use it bare (`@task`, the function's name is the identifier) or with the identifier
    (`@task("reports/render")`). The function takes the payload, or payload and `JobContext`. An
    async function runs on the event loop, a plain one in a thread or where `executor` says.

    A payload that is annotated with a dataclass, `TypedDict`, msgspec `Struct` or pydantic model
    is checked and built before the call; a job whose payload does not fit fails.

    Further parameters are provided by the worker if they are annotated with `Resource`, `Inject`
    or `State`.

    Args:
        function: The function, or the identifier that its jobs carry (at most 128 characters).
        timeout: Seconds after which the task is cancelled and the job fails; None means none. A
            plain function in a thread can't be cancelled: the thread runs on, its result is
            ignored. A process is killed.
        executor: For plain functions: `"thread"`, the default; `"inline"`, on the event loop,
            for what never waits; `"process"`, in a separate process. See `ExecutorKind`.
        memory: Bytes that the process, and what it has started, may take before it is killed and
            the job fails; at least 64 MiB. None means no limit.
        settings: How its jobs are added, retried and remembered: see `TaskSettings`.

    Raises:
        ConfigurationError: The identifier, function, or a setting is not one a task can have.
    """
    options: Any = {"timeout": timeout, "executor": executor, "memory": memory, **settings}
    if callable(function):
        name = _name_of(function)
        return Task(function, name, **options)

    def decorate(decorated: TaskFunction) -> Task[Any]:
        identifier = _name_of(decorated) if function is None else function
        return Task(decorated, identifier, **options)

    return decorate


def task_list(tasks: Tasks) -> dict[str, Task[Any]]:
    """Tasks by their identifiers.

    Raises:
        ConfigurationError: The list is empty, two tasks share a name, or one is not a task.
    """
    given: object = tasks
    if isinstance(given, Mapping):
        found: list[Any] = [
            # A task keeps its settings, whatever name it goes by in this list.
            function.renamed(identifier)
            if isinstance(function, Task)
            else Task(function, identifier)
            for identifier, function in given.items()
        ]
    elif isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigurationError(
            f"tasks must be a list of @task functions or a mapping of identifiers to callables, "
            f"not {given!r}"
        )
    else:
        found = list(given)
    by_name: dict[str, Task[Any]] = {}
    for each in found:
        if not isinstance(each, Task):
            raise ConfigurationError(
                f"{each!r} is not a task: decorate it with @task, or give a mapping "
                f'{{"identifier": function}}'
            )
        if each.identifier in by_name:
            raise ConfigurationError(f"two tasks are named {each.identifier!r}")
        by_name[each.identifier] = each
    if not by_name:
        raise ConfigurationError("there are no tasks: a worker without tasks has nothing to run")
    return by_name


def check_tasks(tasks: Iterable[Task[Any]]) -> None:
    """Look for what would fail each job of a task, before there is one.

    Raises:
        ConfigurationError: A payload can't be built as it is annotated, or the library for it is
            not installed; or a process could not find the function of its task.
    """
    for each in tasks:
        _ = each.decode
        if each.is_process:
            _ = each.place


def _executor(identifier: str, given: object, *, is_async: bool) -> ExecutorKind | None:
    if is_async:
        if given is not None:
            raise ConfigurationError(
                f"executor of task {identifier!r} is given, but an async function runs on the "
                f"event loop; only plain ones have a choice"
            )
        return None
    if given is None:
        return ExecutorKind.THREAD
    check_one_of(f"executor of task {identifier!r}", given, allowed=ExecutorKind)
    chosen = ExecutorKind(str(given))
    if chosen is ExecutorKind.PROCESS and os.name != "posix":
        raise ConfigurationError(
            f"task {identifier!r} can't run in a process on this platform: it needs process groups"
        )
    return chosen


def _name_of(function: TaskFunction) -> str:
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise ConfigurationError(f"{function!r} has no name; give one: task('name')(…)")
    return name
