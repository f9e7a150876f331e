"""What a worker and the process of a task say to each other."""

import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from graphile_worker_py.errors import GraphileWorkerError, message_of
from graphile_worker_py.job import Job, JobSpec
from graphile_worker_py.tasks.locating import TaskPlace

HEADER: Final = struct.Struct(">Q")
LONGEST: Final = 2**30
"""Bytes; more can't be a message, for PostgreSQL could not store the payload."""
_LARGEST_ERROR: Final = 2**20


class ProcessTaskError(GraphileWorkerError):
    """The process of a task ended before the task did, or its error could not be handed over.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error on its way: itself if it can travel, and what it says in any case."""

    pickled: bytes | None
    message: str
    traceback: str

    def error(self) -> Exception:
        """The error, with the place where it was raised as its cause."""
        error: Exception = ProcessTaskError(self.message)
        if self.pickled is not None:
            try:
                error = _unpickled(self.pickled)
            except Exception:  # noqa: S110  # its class may do anything, or not be known here
                pass
        error.__cause__ = RemoteTraceback(self.traceback)
        return error


def failure(error: BaseException, traceback: str = "") -> Failure:
    """Get an error ready for the journey."""
    message = message_of(error)
    pickled: bytes | None = None
    # StopIteration and those that are no Exception mean something to whoever awaits the task.
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        try:
            pickled = pickle.dumps(error)
            if len(pickled) > _LARGEST_ERROR or message_of(_unpickled(pickled)) != message:
                pickled = None
        except Exception:  # whatever its class does when it is pickled
            pickled = None
    return Failure(pickled=pickled, message=message, traceback=traceback)


# From the worker to the process.


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run a job."""

    place: TaskPlace
    job: Job
    worker_id: str
    pool_id: str
    logger: str
    levels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Abort:
    """The job should end."""


@dataclass(frozen=True, slots=True)
class End:
    """There are no more jobs."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to what the process asked."""

    value: Any


# From the process to the worker.


@dataclass(frozen=True, slots=True)
class Begun:
    """The task was imported, and is being called."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A log record."""

    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AddJobs:
    """The task adds jobs."""

    specs: list[JobSpec]


@dataclass(frozen=True, slots=True)
class GetQueueName:
    """The task asks for the name of a queue, its own if there is no id."""

    queue_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The task has returned: a list of so many results, or anything else."""

    results: int | None
    failed: Mapping[int, Failure]


Message: TypeAlias = (
    Run | Abort | End | Answer | Begun | Logged | AddJobs | GetQueueName | Done | Failure
)


def encode(message: Message) -> bytes:
    """A message with its length in front."""
    body = pickle.dumps(message)
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """The message, without its length.

    Raises:
        Exception: It is none.
    """
    message: Message = pickle.loads(body)  # noqa: S301  # a process of ours wrote it
    return message


def _unpickled(pickled: bytes) -> Exception:
    error = pickle.loads(pickled)  # noqa: S301  # a process of ours wrote it
    if not isinstance(error, Exception):
        raise TypeError(f"{error!r} is no error")
    return error
