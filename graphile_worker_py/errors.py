"""Every exception that this package raises, and how any exception becomes text.

psycopg's errors pass through unwrapped.
"""

import traceback
from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final

_PACKAGE: Final = str(Path(__file__).parent)


class GraphileWorkerError(Exception):
    """Base of every error that this package raises itself; each of them can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        # As it was made: `args` has the message, which is not what every class is made from. An
        # error that can't be unpickled would break the pool of processes that a task uses.
        return _remade, (type(self), self.args), vars(self)


def _remade(kind: type[GraphileWorkerError], args: tuple[object, ...]) -> GraphileWorkerError:
    return kind.__new__(kind, *args)


class StoppedError(GraphileWorkerError):
    """A signal stopped a runner before it had started.

    Attributes:
        signal: Name of the signal.
    """

    def __init__(self, signal: str) -> None:
        super().__init__(f"{signal} stopped the worker before it had started")
        self.signal = signal


_SAYS_NOTHING: Final = (KeyError, StopIteration, SystemExit, CancelledError)
"""Errors whose message is a bare value: `KeyError: 'x'` says more than `'x'`."""
LONGEST_MESSAGE: Final = 1_000_000
"""Most characters of an error's message; a row of 50 MB slows down all who read the table."""
LONGEST_LOGGED: Final = 2**16
"""Characters of a message or traceback in the log."""
_LONGEST_LINE: Final = 2_000
_LONGEST_PART: Final = 10_000
"""Characters of the message of one of several errors."""
_MOST_PARTS: Final = 1_000
_DEEPEST: Final = 10
"""Levels of nested groups whose own messages are listed; errors are listed at every level."""
_MOST_VISITED: Final = 10_000
"""Errors and groups that are looked at in a group."""
_MOST_RELATED: Final = 500
"""Causes, contexts and members of groups up to which a traceback shows all of them."""

_name_of: Final = type.__dict__["__name__"].__get__  # a metaclass can't override it


def message_of(error: BaseException, *, most: int = LONGEST_MESSAGE) -> str:
    """An error's message; its type where it has none or fails to produce one.

    This never raises: the class of an error may do anything, such as exit in `__str__`.

    Args:
        error: The error.
        most: Characters; the middle of a longer message is left out.
    """
    try:
        message = _message_of(error)
        if isinstance(error, BaseExceptionGroup):
            message = "\n".join((message, *_parts_of(error)))
        return shortened(message, most)
    except BaseException:
        return kind_of(error)


def messages_of(errors: Sequence[BaseException]) -> str:
    """The messages of several errors, each on a new line."""
    lines = [message_of(error, most=_LONGEST_PART) for error in errors[:_MOST_PARTS]]
    if len(errors) > _MOST_PARTS:
        lines.append(f"… and {len(errors) - _MOST_PARTS} more")
    return "\n".join(lines)


def one_line(error: BaseException) -> str:
    """An error as one line for the log: its type and the first line of its message."""
    kind = kind_of(error)
    said = message_of(error).strip().partition("\n")[0]
    line = said if said.startswith(kind) else f"{kind}: {said}"
    return shortened(line, _LONGEST_LINE).replace("\n", " ")


def kind_of(error: BaseException) -> str:
    """The name of an error's type."""
    return str.__str__(_name_of(type(error)))


def presentable(error: BaseException) -> BaseException:
    """The error that a task raised; another one in its place if `isinstance` fails on it."""
    try:
        isinstance(error, _SAYS_NOTHING)
    except BaseException:
        return GraphileWorkerError(f"the task raised {kind_of(error)}, whose `__class__` fails")
    return error


def users_frames(error: BaseException) -> TracebackType | None:
    """The traceback of an error without the frames of this package at its top."""
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            frames = frames.tb_next
    except BaseException:  # see `message_of`
        return None
    return frames


def traceback_of(error: BaseException) -> str:
    """What Python prints for an error, from the first frame outside this package on.

    This never raises. Of an error with hundreds of causes or members, only its own traceback and
    message are shown.
    """
    frames = users_frames(error)
    try:
        if _has_few_related(error):
            lines = traceback.format_exception(type(error), error, frames)
            text = "".join(map(str.__str__, lines)).removesuffix("\n")
            return shortened(text, LONGEST_LOGGED)
    except BaseException:  # noqa: S110  # see `message_of`
        pass
    text = f"{''.join(traceback.format_tb(frames))}{kind_of(error)}: {message_of(error)}"
    return f"Traceback (most recent call last):\n{shortened(text, LONGEST_LOGGED)}"


def shortened(text: str, most: int = LONGEST_MESSAGE) -> str:
    """A text cut to a number of characters: head and tail of a longer one."""
    if len(text) <= most:
        return text
    head, tail = most * 4 // 5, most // 5 - 50
    left_out = len(text) - head - tail
    return f"{text[:head]}\n… {left_out} characters left out …\n{text[-tail:]}"


def _message_of(error: BaseException) -> str:
    """The message of an error alone, also if it is a group."""
    try:
        # The class may return an instance of a subclass of `str` with methods that misbehave.
        message = str.__str__(str(error))
    except BaseException:
        message = ""
    if not message:
        return kind_of(error)
    if isinstance(error, _SAYS_NOTHING):
        return f"{kind_of(error)}: {message}"
    return message


def _parts_of(group: BaseExceptionGroup[BaseException]) -> Iterator[str]:
    """The messages of what is in a group, however deep, but not of too much of it."""
    waiting = [(1, part) for part in reversed(group.exceptions[:_MOST_VISITED])]
    visited = listed = 0
    while waiting:
        if visited >= _MOST_VISITED or listed >= _MOST_PARTS:
            yield "… and more"
            return
        depth, part = waiting.pop()
        visited += 1
        if not isinstance(part, BaseExceptionGroup) or depth < _DEEPEST:
            listed += 1
            yield f"- {shortened(_message_of(part), _LONGEST_PART)}"
        if isinstance(part, BaseExceptionGroup):
            inner = part.exceptions[:_MOST_VISITED]
            waiting += [(depth + 1, each) for each in reversed(inner)]


def _has_few_related(error: BaseException) -> bool:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if len(seen) > _MOST_RELATED:
            return False
        waiting += [other for other in (each.__cause__, each.__context__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions[: _MOST_RELATED + 1]
    return True


class ConfigurationError(GraphileWorkerError, ValueError):
    """A setting or argument has a value that is not allowed.

    The message names the setting, its value and what is allowed.
    """


class CrontabError(ConfigurationError):
    """A crontab line or cron item could not be understood.

    All faults of a crontab are reported at once: `errors` holds one error for each, and the
    error that is raised shows them all and has line and column of the first.

    Attributes:
        line: 1-based line number in the crontab; None for items made in code.
        column: 1-based column of the offending text; None where it has no single place.
    """

    def __init__(
        self,
        message: str,
        *,
        line: int | None = None,
        column: int | None = None,
        errors: Sequence["CrontabError"] = (),
    ) -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self._errors = tuple(errors)

    @property
    def errors(self) -> tuple["CrontabError", ...]:
        """The single faults; this error itself if there is but one."""
        return self._errors or (self,)


class UnknownTaskError(GraphileWorkerError):
    """A job's task identifier has no task here."""


class TaskTimeoutError(GraphileWorkerError, TimeoutError):
    """A task ran longer than its `timeout`."""


class CutOffError(GraphileWorkerError):
    """A stop of the worker ended what ran for a job; the job is returned with its attempt."""


class BatchJobError(GraphileWorkerError):
    """Items of a batch job failed; they alone are tried again.

    Attributes:
        errors: What the failed items raised, in the order of the payload.
        payload: The failed items, as JSON text.
        delay: Seconds until the next attempt, or when it is due, if items asked for one; else None.
    """

    def __init__(
        self,
        errors: Sequence[BaseException],
        payload: str,
        delay: float | datetime | None = None,
    ) -> None:
        self.errors = errors
        self.payload = payload
        self.delay = delay
        super().__init__(f"Batch failures:\n{messages_of(errors)}")


class PayloadError(GraphileWorkerError, ValueError):
    """A job's payload does not fit what its task is annotated with; the job fails.

    Attributes:
        faults: What is wrong, each with its place: `$.to: expected str, got int`.
    """

    def __init__(self, message: str, *, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class MigrationError(GraphileWorkerError):
    """The schema could not be installed or upgraded."""


class IncompatibleSchemaError(MigrationError):
    """The schema in the database is of a revision that this release can't work on."""


class MissingRightsError(MigrationError):
    """The role may not do what is needed; the message names what is missing, and the way out."""


class RowsHiddenError(MissingRightsError):
    """Row-level security hides rows from the role; statements change nothing and do not fail."""


class MissingTablesError(GraphileWorkerError):
    """Tables of the side schema are missing, or the role may not use them."""


class UnsupportedPostgresError(MigrationError):
    """The PostgreSQL server is older than the schema needs (12)."""


class JobLostError(GraphileWorkerError):
    """The job is no longer locked by this worker pool: another pool may be running it."""


class JobFailedError(GraphileWorkerError):
    """The job whose result was asked for has failed, or was discarded."""


class JobCancelledError(GraphileWorkerError):
    """The job whose result was asked for was cancelled."""


class JobGoneError(GraphileWorkerError):
    """The job whose result was asked for has ended, and no record of how was kept."""


class WorkerPoolError(GraphileWorkerError):
    """The worker pool could not run on, or could not stop cleanly."""
