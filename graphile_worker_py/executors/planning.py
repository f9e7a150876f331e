"""Find what a task asks for besides payload and context: once, when a pool starts."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager, contextmanager
from enum import Enum, auto
from typing import Any, Final

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.records import Record
from graphile_worker_py.tasks.injection import Inject, State, marker_in, shown
from graphile_worker_py.tasks.signature import (
    contexts_in,
    is_marked,
    is_named_as_context,
    parameters_of,
    resolved,
    unwrapped,
)
from graphile_worker_py.tasks.task import CONTEXTS, ExecutorKind, Task

_PAYLOAD: Final = 0
_CONTEXT: Final = 1
_ASYNC_CONTEXT: Final = 2
"""Places of the values that each job has; those of the plan follow."""


class Kind(Enum):
    """What a factory is."""

    FUNCTION = auto()
    ASYNC_FUNCTION = auto()
    MANAGER = auto()
    ASYNC_MANAGER = auto()

    @property
    def is_async(self) -> bool:
        """Whether it needs an event loop."""
        return self in (Kind.ASYNC_FUNCTION, Kind.ASYNC_MANAGER)


class Step(Record):
    """The call of a factory.

    Attributes:
        make: The factory; of a generator, what makes a context manager of it.
        kind: What it is.
        arguments: Its parameters, with the places of their values.
    """

    make: Callable[..., Any]
    kind: Kind
    arguments: Mapping[str, int]

    def call(self, values: list[Any]) -> Any:
        """Call the factory."""
        return self.make(**{name: values[at] for name, at in self.arguments.items()})


class Plan:
    """How the parameters of a task are provided.

    Args:
        task: The task.
        state: The objects that it may ask for.

    Attributes:
        steps: The calls of factories, in their order. The values of a job are its payload, its
            context, its context for async factories, and what each step makes.
        arguments: The parameters of the task, with the places of their values.

    Raises:
        ConfigurationError: It asks for something that does not exist, a factory can't be called,
            or factories ask for each other in a circle.
    """

    def __init__(self, task: Task[Any], state: State) -> None:
        self.task = task
        self._state = state
        self.steps: list[Step] = []
        self._places: dict[Any, int] = {}
        self._pending: list[Callable[..., Any]] = []
        self.arguments = {
            parameter.name: self._place_of(parameter, task.function)
            for parameter in parameters_of(task.function) or ()
            if parameter.name in task.injected
        }

    @property
    def is_async(self) -> bool:
        """Whether a factory needs an event loop."""
        return any(step.kind.is_async for step in self.steps)

    def _place_of(self, parameter: inspect.Parameter, function: Callable[..., Any]) -> int:
        """The place of the value of a parameter that is marked."""
        annotation = self._resolved(parameter, function)
        marker = marker_in(annotation)
        if marker is None:
            raise self._refused(f"the annotation of {parameter.name!r} marks nothing")
        if isinstance(marker, Inject):
            return self._place_of_made(self._state.overrides.get(marker.factory, marker.factory))
        kind = annotation if marker is State else annotation.__origin__
        if kind not in self._places:
            try:
                found = self._state if kind is State else self._state.get(kind)
            except LookupError as error:
                raise self._refused(
                    f"{_described(function)} asks for {shown(kind)} as {parameter.name!r}: "
                    f"{error}. {_example(kind, self.task)}"
                ) from None
            self._places[kind] = self._add(lambda: found, Kind.FUNCTION, {})
        return self._places[kind]

    def _place_of_made(self, factory: Callable[..., Any]) -> int:
        """The place of what a factory makes."""
        if factory in self._places:
            return self._places[factory]
        if factory in self._pending:
            circle = [*self._pending[self._pending.index(factory) :], factory]
            raise self._refused(
                f"its factories ask for each other in a circle: "
                f"{' → '.join(_name_of(each) for each in circle)}"
            )
        self._pending.append(factory)
        make, kind = _kind_of(factory)
        arguments = {
            parameter.name: place
            for parameter in self._parameters(factory)
            if (place := self._argument(parameter, factory, kind)) is not None
        }
        if list(arguments.values()).count(_PAYLOAD) > 1:
            names = [name for name, place in arguments.items() if place == _PAYLOAD]
            raise self._refused(
                f"{_described(factory)} takes {' and '.join(map(repr, names))}; one of them gets "
                f"the payload, the others need Inject or Resource"
            )
        self._pending.pop()
        self._places[factory] = self._add(make, kind, arguments)
        return self._places[factory]

    def _argument(
        self, parameter: inspect.Parameter, factory: Callable[..., Any], kind: Kind
    ) -> int | None:
        """The place of the value of a factory's parameter; None if it keeps its default."""
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None
        has_default = parameter.default is not parameter.empty
        if parameter.kind is parameter.POSITIONAL_ONLY:
            if has_default:
                return None
            raise self._refused(
                f"{_described(factory)} takes {parameter.name!r} by position only, but values are "
                f"passed by keyword"
            )
        if is_marked(parameter.annotation, factory):
            return self._place_of(parameter, factory)
        asked_for = contexts_in(parameter.annotation, factory)
        if asked_for or is_named_as_context(parameter):
            return self._context_for(factory, kind, asked_for)
        return None if has_default and parameter.name != "payload" else _PAYLOAD

    def _context_for(self, factory: Callable[..., Any], kind: Kind, asked_for: set[str]) -> int:
        is_moved = kind.is_async and self.task.executor is ExecutorKind.THREAD
        given = CONTEXTS[None if is_moved else self.task.executor]
        if asked_for and given not in asked_for:
            raise self._refused(
                f"{_described(factory)} asks for a {' or '.join(sorted(asked_for))}, but gets a "
                f"{given}"
            )
        return _ASYNC_CONTEXT if is_moved else _CONTEXT

    def _parameters(self, factory: Callable[..., Any]) -> list[inspect.Parameter]:
        parameters = parameters_of(factory)
        if parameters is None:
            raise self._refused(f"{_described(factory)} does not say what it takes")
        return parameters

    def _resolved(self, parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
        try:
            return resolved(parameter.annotation, function)
        except (NameError, AttributeError, SyntaxError, TypeError) as error:
            raise self._refused(
                f"the annotation {parameter.annotation!r} of {parameter.name!r} can't be "
                f"resolved: {error}; its names must be there at run time"
            ) from error

    def _add(self, make: Callable[..., Any], kind: Kind, arguments: Mapping[str, int]) -> int:
        self.steps.append(Step(make=make, kind=kind, arguments=arguments))
        return _ASYNC_CONTEXT + len(self.steps)

    def _refused(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"task {self.task.identifier!r} can't run here: {why}")


def _kind_of(factory: Callable[..., Any]) -> tuple[Callable[..., Any], Kind]:
    """How to call a factory, and what it is."""
    target = unwrapped(factory)
    if inspect.isasyncgenfunction(target):
        return asynccontextmanager(factory), Kind.ASYNC_MANAGER
    if inspect.isgeneratorfunction(target):
        return contextmanager(factory), Kind.MANAGER
    # A function that @asynccontextmanager or @contextmanager has decorated.
    inner = inspect.unwrap(target)
    if inspect.isasyncgenfunction(inner):
        return factory, Kind.ASYNC_MANAGER
    if inspect.isgeneratorfunction(inner):
        return factory, Kind.MANAGER
    is_async = inspect.iscoroutinefunction(target)
    return factory, Kind.ASYNC_FUNCTION if is_async else Kind.FUNCTION


def _example(kind: Any, task: Task[Any]) -> str:
    """How to provide an object of a class."""
    state = f"State({shown(kind)}(...))"
    if task.is_process:
        return f"Its process has what setup returns: def setup(): return {state}"
    return (
        f"Let the lifespan of the worker yield it: @asynccontextmanager async def "
        f"lifespan(runner): yield {state}; in tests, use gw.provide({shown(kind)}(...))"
    )


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _described(function: Any) -> str:
    return f"function {_name_of(function)!r}"
