"""The messages between a worker and the process of a task.

The worker's messages are pickled. What a process sends is data, and never unpickled: the code of a
task may write anything there. Each of its messages carries the number of the run that it belongs
to, so that nothing late can be taken for the outcome of another job.
"""

import builtins
import pickle
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from graphile_worker_py import json_codec
from graphile_worker_py.checks import check_progress
from graphile_worker_py.errors import GraphileWorkerError, message_of
from graphile_worker_py.job import Job
from graphile_worker_py.job.results import OmittedResult
from graphile_worker_py.records import Record
from graphile_worker_py.tasks.abort import AbortReason
from graphile_worker_py.tasks.locating import TaskPlace

HEADER: Final = struct.Struct(">Q")
LONGEST: Final = 2**30
"""Bytes; a message can't be longer, because PostgreSQL could not store the payload."""
CALLABLE: Final = frozenset({"add_jobs", "checkpoint", "get_queue_name"})
"""The methods of a `JobContext` that a process may call."""
_LARGEST_STATE: Final = 2**20


class ProcessTaskError(GraphileWorkerError):
    """The process of a task ended before the task did, or raised an error of an unknown class.

    Attributes:
        returncode: The exit code, or minus the number of the signal; None if it did not end.
    """

    def __init__(self, message: str, *, returncode: int | None = None) -> None:
        super().__init__(message)
        self.returncode = returncode


class RemoteTraceback(Exception):  # noqa: N818  # it is shown as the cause of an error
    """Where in its process a task has failed; the cause of the error that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# From the worker to the process.


class Setting(Record):
    """What is the same for all jobs of a task. A process gets it with the first of them."""

    setup: str | None
    place: TaskPlace
    pool_id: str
    logger: str


class Run(NamedTuple):
    """Run a job.

    Attributes:
        number: Number of the run.
        setting: About its task; None if the process knows it.
        levels: Levels of loggers; None if they are those of the run before.
        job: The job.
        cursor: What `checkpoint` has left.
        worker_id: Id of the worker that runs it.
    """

    number: int
    setting: Setting | None
    levels: Mapping[str, int] | None
    job: Job
    cursor: Any
    worker_id: str


@dataclass(frozen=True, slots=True)
class Abort:
    """The job of a run should end."""

    number: int
    reason: AbortReason | None


@dataclass(frozen=True, slots=True)
class End:
    """The process should end: no jobs follow."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call returned, or a `Failure`."""

    value: Any


@dataclass(frozen=True, slots=True)
class Show:
    """The process should tell where the task of a run is."""

    number: int


Order: TypeAlias = Run | Abort | End | Answer | Show


# From the process to the worker.


@dataclass(frozen=True, slots=True)
class Logged:
    """A log record."""

    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """The task calls a method of its `JobContext`."""

    method: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reported:
    """How far the task is; it needs no answer."""

    done: float
    total: float | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Shown:
    """The calls that the task makes at this moment."""

    calls: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as data.

    Attributes:
        kind: Module and name of its class.
        args: Its arguments; None if they can't be sent as data.
        state: Its attributes; None if they can't.
        message: What it says.
        traceback: Where it was raised.
    """

    kind: tuple[str, str]
    args: list[Any] | None
    state: dict[str, Any] | None
    message: str
    traceback: str

    def error(self) -> Exception:
        """The error, if its class is known here and it says the same; else a `ProcessTaskError`.

        The place where it was raised is its cause.
        """
        error: Exception | None = None
        try:
            error = self._rebuilt()
        except BaseException:  # noqa: S110  # its class may do anything
            pass
        if error is None or message_of(error) != self.message:
            error = ProcessTaskError(self.message)
        error.__cause__ = RemoteTraceback(self.traceback)
        return error

    def _rebuilt(self) -> Exception | None:
        if self.args is None or self.state is None:
            return None
        # Nothing is imported for it, and its own code is not run to make it.
        kind: Any = sys.modules[self.kind[0]]
        for name in self.kind[1].split("."):
            kind = getattr(kind, name)
        # StopIteration means something to the code that awaits the task.
        if not issubclass(kind, Exception) or issubclass(kind, StopIteration):
            return None
        base = next(each for each in kind.__mro__ if each.__module__ == builtins.__name__)
        args = tuple(map(_untagged, self.args))
        error: Exception = base.__new__(kind, *args)
        error.args = args
        for name, value in self.state.items():
            error.__dict__[name] = _untagged(value)
        return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The task has returned.

    Attributes:
        result: What it returned or set, as JSON; None if nothing.
        omitted: Why a result is missing.
        is_set: Whether it returned nothing, and the result is what it set.
        items: How many items a batch job has, if they had to be awaited or decided for themselves;
            None for other jobs.
        failed: Of these items, those that failed.
    """

    result: str | None = None
    omitted: str | None = None
    is_set: bool = False
    items: int | None = None
    failed: Mapping[int, Failure] = field(default_factory=dict)

    @property
    def value(self) -> Any:
        """The result, decoded."""
        if self.omitted is not None:
            return OmittedResult(self.omitted)
        return None if self.result is None else json_codec.loads(self.result)


Said: TypeAlias = Logged | Reported | Shown | Call | Done | Failure


def failure(error: BaseException, traceback: str = "") -> Failure:
    """An error as data."""
    kind = ("", "")
    args: list[Any] | None = None
    state: dict[str, Any] | None = None
    try:
        kind = (type(error).__module__, type(error).__qualname__)
        args = [_tagged(value) for value in error.args]
        state = {name: _tagged(value) for name, value in vars(error).items()}
        if len(json_codec.dumps([args, state])) > _LARGEST_STATE:
            args = state = None
    except BaseException:  # whatever its class does, and its attributes are
        args = state = None
    return Failure(
        kind=kind,
        args=args,
        state=state,
        message=message_of(error),
        traceback=traceback,
    )


def encode_order(order: Order) -> bytes:
    """A message of the worker, with its length in front."""
    body = pickle.dumps(order, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


def decode_order(body: bytes) -> Order:
    """A message of the worker, without its length."""
    order: Order = pickle.loads(body)  # noqa: S301  # the worker wrote it
    return order


def encode_said(number: int, said: Said) -> bytes:
    """A message of the process about a run, with its length in front."""
    body = json_codec.dumps([number, type(said).__name__, _fields(said)])
    return HEADER.pack(len(body)) + body


def decode_said(body: bytes) -> tuple[int, Said]:
    """A message of the process with the number of its run, without its length.

    Raises:
        Exception: It is no such message.
    """
    number, kind, fields = json_codec.loads(body)
    return int(number), _READERS[kind](fields)


def _fields(said: Said) -> Any:
    match said:
        case Logged(record):
            return dict(record)
        case Call(method, arguments):
            return [method, dict(arguments)]
        case Failure():
            return [said.kind, said.args, said.state, said.message, said.traceback]
        case Reported(done, total, message):
            return [done, total, message]
        case Shown(calls):
            return calls
        case Done():
            failed = [[at, _fields(each)] for at, each in said.failed.items()]
            return [said.result, said.omitted, said.is_set, said.items, failed]


def _read_call(fields: Any) -> Call:
    method, arguments = fields
    if method not in CALLABLE:
        raise ValueError(f"a process may not call {method!r}")
    return Call(method, arguments)


def _read_failure(fields: Any) -> Failure:
    (module, name), args, state, message, traceback = fields
    return Failure(
        kind=(str(module), str(name)),
        args=args,
        state=state,
        message=str(message),
        traceback=str(traceback),
    )


def _read_done(fields: Any) -> Done:
    result, omitted, is_set, items, failed = fields
    return Done(
        result=None if result is None else str(result),
        omitted=None if omitted is None else str(omitted),
        is_set=bool(is_set),
        items=None if items is None else int(items),
        failed={int(at): _read_failure(each) for at, each in failed},
    )


_READERS: Final[Mapping[str, Any]] = {
    "Logged": lambda record: Logged(dict(record)),
    "Reported": lambda fields: Reported(*check_progress(*fields)),
    "Shown": lambda calls: Shown(str(calls)),
    "Call": _read_call,
    "Failure": _read_failure,
    "Done": _read_done,
}


def is_plain(value: Any) -> bool:
    """Whether a value is the same after its way through JSON."""
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(each) for key, each in value.items())
    return value is None or type(value) in (str, int, float, bool)


def _tagged(value: Any) -> list[Any]:
    """A value for its way through JSON."""
    if isinstance(value, datetime):
        return ["time", value.isoformat()]
    if type(value) is tuple:
        return ["tuple", [_tagged(each) for each in value]]
    if not is_plain(value):
        raise TypeError
    return ["plain", value]


def _untagged(tagged: Any) -> Any:
    tag, value = tagged
    match tag:
        case "time":
            return datetime.fromisoformat(value)
        case "tuple":
            return tuple(map(_untagged, value))
    return value
