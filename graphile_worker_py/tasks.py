"""Tasks: the functions that run jobs, and the list of those that a worker pool has."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol, TypeAlias, TypedDict, TypeVar, Unpack, overload

from psycopg import AsyncConnection, Connection

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import JobKeyMode, JobSpec, PayloadT, PayloadT_contra, TaskName
from graphile_worker_py.options import check_seconds
from graphile_worker_py.payloads import Decode, payload_decoder

R_co = TypeVar("R_co", covariant=True)
TaskFunction: TypeAlias = Callable[..., Any]


class SpecOptions(TypedDict, total=False):
    """What a job may have beside task and payload; explained at `JobSpec`."""

    queue_name: str | None
    run_at: datetime | None
    priority: int | None
    max_attempts: int | None
    job_key: str | None
    job_key_mode: JobKeyMode | str | None
    flags: Iterable[str] | None


class AddJobOptions(SpecOptions, total=False):
    """What `add_job` takes beside task and payload."""

    conn: AsyncConnection[Any] | Connection[Any] | None
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
        is_async: Whether it runs on the event loop; a plain function runs in a thread.
    """

    def __init__(
        self, function: TaskFunction, identifier: str, *, timeout: float | None = None
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"task {identifier!r} must be callable, not {function!r}")
        super().__init__(identifier)
        if timeout is not None:
            check_seconds(f"timeout of task {identifier!r}", timeout, above_zero=True)
        target = _unwrapped(function)
        if inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
            raise ConfigurationError(
                f"task {identifier!r} is a generator; a task is a function or an async function"
            )
        self.function = function
        self.timeout = timeout
        self.is_async = inspect.iscoroutinefunction(target)
        self.arguments = _argument_count(function, identifier)
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function directly, as a test would."""
        return self.function(*args, **kwargs)

    @functools.cached_property
    def decode(self) -> Decode | None:
        """How the payload is built from stored JSON; None if it is passed on as decoded.

        A worker looks at it when it starts, and not the program that adds jobs: only the former
        needs the libraries that build payloads.

        Raises:
            ConfigurationError: Payloads can't be built as they are annotated.
        """
        return payload_decoder(self.function, self.identifier)

    def spec(self, payload: PayloadT_contra, **options: Unpack[SpecOptions]) -> JobSpec:
        """A job of this task, to be added with others by `add_jobs`."""
        return JobSpec(self, payload, **options)

    def enqueue(
        self,
        adder: AddsJobs[R_co],
        payload: PayloadT_contra,
        **options: Unpack[AddJobOptions],
    ) -> R_co:
        """Add a job of this task: `await send_email.enqueue(utils, SendEmail("ada@example.com"))`.

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
    def __call__(self, function: Callable[[], Any], /) -> Task[None]: ...


@overload
def task(function: Callable[[PayloadT], Any], /) -> Task[PayloadT]: ...
@overload
def task(function: Callable[[PayloadT, Any], Any], /) -> Task[PayloadT]: ...
@overload
def task(function: Callable[[], Any], /) -> Task[None]: ...
@overload
def task(identifier: str | None = None, /, *, timeout: float | None = None) -> _Decorator: ...
def task(
    function: TaskFunction | str | None = None, /, *, timeout: float | None = None
) -> Task[Any] | _Decorator:
    """Make a function a task.

    Use it bare (`@task`, the function's name is the identifier) or with the identifier
    (`@task("reports/render")`). The function takes the payload, or payload and `JobContext`. An
    async function runs on the event loop, a plain one in a thread.

    A payload that is annotated with a dataclass, `TypedDict`, msgspec `Struct` or pydantic model
    is checked and built before the call; a job whose payload does not fit fails.

    Args:
        function: The function, or the identifier that its jobs carry (at most 128 characters).
        timeout: Seconds after which the task is cancelled and the job fails; None means none. A
            plain function can't be cancelled: its thread runs on, its result is ignored.

    Raises:
        ConfigurationError: The identifier, function or timeout is not one a task can have.
    """
    if callable(function):
        return Task(function, _name_of(function), timeout=timeout)

    def decorate(decorated: TaskFunction) -> Task[Any]:
        identifier = _name_of(decorated) if function is None else function
        return Task(decorated, identifier, timeout=timeout)

    return decorate


def task_list(tasks: Tasks) -> dict[str, Task[Any]]:
    """Tasks by their identifiers.

    Raises:
        ConfigurationError: There is none, two share a name, or one is not a task.
    """
    given: object = tasks
    if isinstance(given, Mapping):
        found: list[Any] = [
            # A task keeps its settings, whatever name it goes by in this list.
            Task(function.function, identifier, timeout=function.timeout)
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


def check_payload_types(tasks: Iterable[Task[Any]]) -> None:
    """Look whether all payloads can be built as they are annotated, before there is a job.

    Raises:
        ConfigurationError: One can't, or the library for it is not installed.
    """
    for each in tasks:
        _ = each.decode


def _unwrapped(function: TaskFunction) -> Any:
    """What decides how a callable runs: the inner function of a partial, an object's __call__."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__


def _name_of(function: TaskFunction) -> str:
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise ConfigurationError(f"{function!r} has no name; give one: task('name')(…)")
    return name


def _argument_count(function: TaskFunction, identifier: str) -> int:
    """How many of payload and context a function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # Some built-ins do not tell; the payload alone is the safest guess.
        return 1
    positional = 0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return 2
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            positional += 1
            if positional > 2 and parameter.default is parameter.empty:
                raise ConfigurationError(
                    f"task {identifier!r} takes more than payload and context: it also asks for "
                    f"{parameter.name!r}"
                )
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise ConfigurationError(
                f"task {identifier!r} asks for the keyword argument {parameter.name!r}, "
                f"which nobody passes"
            )
    return min(positional, 2)
