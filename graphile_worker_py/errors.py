"""Every exception that this package raises; psycopg's errors pass through unwrapped."""

from asyncio import CancelledError
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final

_PACKAGE: Final = str(Path(__file__).parent)


class GraphileWorkerError(Exception):
    """Base of every error that this package raises itself."""


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
_HEAD: Final = 800_000
_TAIL: Final = 199_900
"""Characters of head and tail that are kept of a longer one."""
_DEEPEST: Final = 20
"""How deeply nested the errors of groups are whose messages are part of the group's."""
_MOST_PARTS: Final = 1000
"""Of how many errors of a group the messages are part of its message."""


def message_of(error: BaseException) -> str:
    """An error's message; its type where it has none or fails to produce one. Never raises.

    Of a long message, head and tail are kept.
    """
    return shortened(_message_of(error, depth=0))


def _message_of(error: BaseException, *, depth: int) -> str:
    try:
        message = str.__str__(str(error))  # which may be of a user's subclass of str
    except BaseException:  # a user's exception class may have a __str__ that even exits
        message = ""
    if isinstance(error, BaseExceptionGroup):
        if depth == _DEEPEST:
            return f"{message}\n- …"
        parts = [
            f"- {_message_of(part, depth=depth + 1)}" for part in error.exceptions[:_MOST_PARTS]
        ]
        return "\n".join([message, *parts])
    if not message:
        return type(error).__name__
    if isinstance(error, _SAYS_NOTHING):
        return f"{type(error).__name__}: {message}"
    return message


def shortened(text: str) -> str:
    """A text of at most `LONGEST_MESSAGE` characters: head and tail of a longer one."""
    if len(text) <= LONGEST_MESSAGE:
        return text
    left_out = len(text) - _HEAD - _TAIL
    return f"{text[:_HEAD]}\n… {left_out} characters left out …\n{text[-_TAIL:]}"


def one_line(error: BaseException) -> str:
    """An error as one line for the log: its type and the first line of its message."""
    kind = type(error).__name__
    said = message_of(error).strip().partition("\n")[0]
    return said if said.startswith(kind) else f"{kind}: {said}"


def users_frames(error: BaseException) -> TracebackType | None:
    """The traceback of an error without the frames of this package at its top."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frames = frames.tb_next
    return frames


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
        messages = "\n".join(message_of(error) for error in errors)
        super().__init__(f"Batch failures:\n{messages}")


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


class WorkerPoolError(GraphileWorkerError):
    """The worker pool could not run on, or could not stop cleanly."""
