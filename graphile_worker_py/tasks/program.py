"""The functions that a program gives its workers: `setup`, called first, and `lifespan`."""

import asyncio
import inspect
import operator
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final

from graphile_worker_py import aio
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.records import Record
from graphile_worker_py.tasks.importing import import_fault, import_named
from graphile_worker_py.tasks.injection import NO_STATE, State


class SetUp(Record):
    """A call of `setup` that has been made.

    Attributes:
        state: What the function returned; empty if it returned nothing.
        path: Where the process of a task finds the function; None if it can't.
    """

    state: State
    path: str | None


class Provided(Record):
    """What the program provides for its tasks.

    Attributes:
        state: What `setup` returned and `lifespan` yielded.
        in_processes: What `setup` returned, which is what tasks in processes get.
        setup: Path of the function that the process of a task calls first; None means none.
    """

    state: State = NO_STATE
    in_processes: State = NO_STATE
    setup: str | None = None


NOTHING_PROVIDED: Final = Provided()


def set_up(given: object) -> SetUp:
    """Call the function `setup`, before tasks are imported.

    Args:
        given: The function, or its path `module:function`; or a call that was made before, which
            is not repeated.

    Raises:
        ConfigurationError: There is no such function, or it failed, or it returned something else
            than a `State` or None.
    """
    if isinstance(given, SetUp):
        return given
    function, path = _function(given, "setup")
    name = f"setup {path or _name_of(function)}"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"{name} must be a plain function: it is called before there is an event loop. For "
            f"what needs one there is lifespan"
        )
    try:
        returned = function()
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{name} failed: {import_fault(error)}") from error
    if not isinstance(returned, State | None):
        raise ConfigurationError(f"{name} must return a State(...) or None, not {returned!r}")
    return SetUp(state=State() if returned is None else returned, path=path)


@asynccontextmanager
async def living(given: object, runner: Any, forced: asyncio.Event) -> AsyncIterator[State]:
    """Enter the program's `lifespan` for the block, and leave it in the same asyncio task.

    Args:
        given: The function, or its path `module:function`. It takes the runner and returns an
            async context manager, or is an async generator.
        runner: What it is given.
        forced: Once this is set, its end is cut off.

    Raises:
        ConfigurationError: There is no such function, or it does not yield a `State` or None.
        GraphileWorkerError: It failed at the start or at the end.
    """
    function, path = _function(given, "lifespan")
    name = f"lifespan {path or _name_of(function)}"
    if inspect.isasyncgenfunction(function):
        function = asynccontextmanager(function)
    try:
        manager = function(runner)
    except Exception as error:
        raise GraphileWorkerError(f"{name} failed at the start: {import_fault(error)}") from error
    if not isinstance(manager, AbstractAsyncContextManager):
        if inspect.iscoroutine(manager):
            manager.close()
        raise ConfigurationError(
            f"{name} must be an async context manager (@asynccontextmanager), but returned "
            f"{manager!r}"
        )
    state = await _entered(manager, name)
    try:
        yield state
    finally:
        async with aio.until(forced):
            await _left(manager, name)


async def _entered(manager: AbstractAsyncContextManager[Any], name: str) -> State:
    try:
        state = await manager.__aenter__()
    except Exception as error:
        if _says(error, "generator didn't yield"):
            raise GraphileWorkerError(f"{name} failed at the start: it did not yield") from None
        raise GraphileWorkerError(f"{name} failed at the start: {import_fault(error)}") from error
    if not isinstance(state, State | None):
        await _left(manager, name)
        raise ConfigurationError(f"{name} must yield a State(...) or None, not {state!r}")
    return State() if state is None else state


async def _left(manager: AbstractAsyncContextManager[Any], name: str) -> None:
    try:
        await manager.__aexit__(None, None, None)
    except Exception as error:
        if _says(error, "generator didn't stop"):
            # Before Python 3.12 it is left open.
            generator: Any = getattr(manager, "gen", None)
            with suppress(Exception):
                await generator.aclose()
            raise GraphileWorkerError(f"{name} failed at the end: it yielded twice") from None
        raise GraphileWorkerError(f"{name} failed at the end: {import_fault(error)}") from error


def _says(error: Exception, message: str) -> bool:
    """Whether an error is the one that `asynccontextmanager` raises with this message."""
    return type(error) is RuntimeError and str(error) == message


def _function(given: object, option: str) -> tuple[Callable[..., Any], str | None]:
    """The function that an option gives, and its path; None if it can't be imported by one."""
    if callable(given):
        return given, _path_of(given)
    if not isinstance(given, str):
        raise ConfigurationError(
            f"{option} must be a function, or its path 'module:function', not {given!r}"
        )
    return imported(given, option), given


def imported(path: str, option: str) -> Callable[..., Any]:
    """The function at a path `module:function`.

    Raises:
        ConfigurationError: There is none.
    """
    module_name, _, name = path.partition(":")
    if not all(each.isidentifier() for each in (*module_name.split("."), *name.split("."))):
        raise ConfigurationError(
            f"{option} {path!r} must be MODULE:FUNCTION, as in myapp.boot:init"
        )
    module = import_named(module_name, what=f"{option} {path}")
    try:
        found: Any = operator.attrgetter(name)(module)
    except AttributeError as error:
        raise ConfigurationError(
            f"{option} {path}: module {module_name!r} has no function {name!r}"
        ) from error
    if not callable(found):
        raise ConfigurationError(f"{option} {path}: {found!r} is not a function")
    function: Callable[..., Any] = found
    return function


def _path_of(function: Any) -> str | None:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or module not in sys.modules:
        return None
    try:
        found = operator.attrgetter(name)(sys.modules[module])
    except (AttributeError, TypeError):
        return None
    return f"{module}:{name}" if found is function else None


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
