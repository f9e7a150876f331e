"""Errors whose classes misbehave, and tasks that raise them; processes import both by name."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from graphile_worker_py import RetryIn, Snooze, Task, task
from graphile_worker_py.errors import BatchJobError


class UglyText(str):
    """A text whose methods exit."""

    __slots__ = ()

    def _exit(self, *_: Any) -> NoReturn:
        sys.exit("text")

    __len__ = __eq__ = __ne__ = __format__ = __add__ = __contains__ = _exit
    __hash__ = str.__hash__
    encode = strip = partition = startswith = replace = splitlines = _exit  # type: ignore[assignment]


class ExitingError(Exception):
    """Exits where it is asked for its text."""

    def __str__(self) -> str:
        raise SystemExit("str")


class InterruptingError(Exception):
    """Interrupts where it is asked for its text."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class InterruptingInterrupt(KeyboardInterrupt):
    """The same, as an interrupt."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class UglyError(Exception):
    """Returns a text whose methods exit."""

    def __str__(self) -> str:
        return UglyText("ugly")


class NumberError(Exception):
    """Returns no text."""

    def __str__(self) -> str:
        number: Any = 7
        return number  # type: ignore[no-any-return]


class EndlessError(Exception):
    """Recurses without end."""

    def __str__(self) -> str:
        return str(self)


class Exiting:
    """A value that exits where it is shown."""

    def __repr__(self) -> str:
        sys.exit("repr")


class NotedError(Exception):
    """Exits where its notes are read."""

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        sys.exit("notes")


class PickledError(Exception):
    """Exits where it is pickled."""

    def __reduce__(self) -> NoReturn:
        sys.exit("reduce")


class DisguisedError(Exception):
    """Exits where it is asked for its class."""

    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:  # type: ignore[override]
        sys.exit("class")


class Nameless(type):
    """A class that exits where it is asked for its name."""

    @property
    def __name__(cls) -> NoReturn:  # type: ignore[override]
        sys.exit("name")


class NamelessError(Exception, metaclass=Nameless):
    """An error of such a class."""


class HollowError(ExceptionGroup[Exception]):
    """Exits where it is asked for its members."""

    @property
    def exceptions(self) -> NoReturn:
        sys.exit("exceptions")


class SometimeSnooze(Snooze):
    """Has no proper delay."""

    def __init__(self) -> None:
        Exception.__init__(self)
        self.delay: Any = "sometime"


class SometimeRetry(RetryIn):
    """Has no delay."""

    def __init__(self) -> None:
        Exception.__init__(self)


def nested(depth: int, leaf: BaseException | None = None) -> BaseException:
    """A group in a group in a group."""
    error = ValueError("the leaf") if leaf is None else leaf
    for _ in range(depth):
        error = BaseExceptionGroup("unhandled errors", [error])
    return error


def chained(count: int) -> Exception:
    """An error with many causes, one of the other."""
    error = last = ValueError("first")
    for at in range(count):
        error = ValueError(f"cause {at}")
        error.__cause__, last = last, error
    return error


def cyclic() -> Exception:
    """An error that is its cause's cause, and its context's context."""
    one, two = ValueError("one"), ValueError("two")
    one.__cause__ = one.__context__ = two
    two.__cause__ = two.__context__ = one
    return one


ERRORS: dict[str, Callable[[], BaseException]] = {
    "nested 340 deep": lambda: nested(340),
    "nested 5000 deep": lambda: nested(5000),
    "wide": lambda: ExceptionGroup("wide", [ValueError(str(n)) for n in range(20_000)]),
    "nested, exits": lambda: nested(20, ExitingError()),
    "long": lambda: ValueError("x" * 20_000_000),
    "many causes": lambda: chained(5000),
    "cyclic": cyclic,
    "exits": ExitingError,
    "interrupts": InterruptingError,
    "interrupt that interrupts": InterruptingInterrupt,
    "cause exits": lambda: with_cause(ExitingError()),
    "ugly": UglyError,
    "number": NumberError,
    "endless": EndlessError,
    "argument exits": lambda: KeyError(Exiting()),
    "exit with a value that exits": lambda: SystemExit(Exiting()),
    "notes exit": lambda: NotedError("noted"),
    "ugly note": lambda: with_note(UglyText("note")),
    "pickling exits": PickledError,
    "class exits": DisguisedError,
    "name exits": NamelessError,
    "hollow": lambda: HollowError("hollow", [ValueError()]),
    "snooze without a delay": SometimeSnooze,
    "retry without a delay": SometimeRetry,
    "payload that is no JSON": lambda: BatchJobError([ValueError("item")], "no JSON"),
    "stops": lambda: StopIteration(UglyText("stop")),
}


def with_cause(cause: BaseException) -> Exception:
    """An innocent error with this cause."""
    error = ValueError("innocent")
    error.__cause__ = cause
    return error


def with_note(note: str) -> Exception:
    """An innocent error with this note."""
    error = ValueError("innocent")
    error.add_note(note)
    return error


def fail(name: str) -> NoReturn:
    """Raise the error with this name."""
    error = ERRORS[name]()
    raise error


@task
async def on_the_loop(name: str) -> None:
    """Raise an error in an async task."""
    if name != "fine":
        fail(name)


@task
async def limited(name: str) -> None:
    """Raise an error in an async task that has a time limit."""
    await on_the_loop.function(name)


@task
def in_a_thread(name: str) -> None:
    """Raise an error in a thread."""
    if name != "fine":
        fail(name)


@task(executor="inline")
def inline(name: str) -> None:
    """Raise an error in a plain function on the event loop."""
    in_a_thread.function(name)


@task(executor="process")
def in_a_process(name: str) -> None:
    """Raise an error in a process."""
    in_a_thread.function(name)


@task
async def batch(names: list[str]) -> list[Awaitable[None]]:
    """Raise an error in each item of a batch."""
    return [one(name) for name in names]


async def one(name: str) -> None:
    """Raise an error in an item of a batch."""
    await asyncio.sleep(0)
    await on_the_loop.function(name)


ALL = [value for value in vars().values() if isinstance(value, Task)]
