"""What crosses the boundary to the database: a job as stored, and a job as asked for."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from graphile_worker_py import json_codec
from graphile_worker_py.checks import (
    check_aware,
    check_one_of,
    check_smallint,
    check_text,
    check_texts,
)
from graphile_worker_py.errors import ConfigurationError

MAX_IDENTIFIER_LENGTH: Final = 128
MAX_QUEUE_NAME_LENGTH: Final = 128
MAX_JOB_KEY_LENGTH: Final = 512
LOCK_LIFETIME: Final = 4 * 3600.0
"""Seconds after which a lock counts as abandoned: any worker, Node's too, then frees the job."""

_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
LATEST: Final = datetime.max.replace(tzinfo=UTC)
EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_UNREAD: Final = object()
_INFINITY: Final = 2**63 - 1
_MINUS_INFINITY: Final = -(2**63)


class JobKeyMode(StrEnum):
    """What adding a job does when its `job_key` is taken, as Graphile Worker defines it."""

    REPLACE = "replace"
    """Overwrite the job that waits with that key, its `run_at` included. The default."""
    PRESERVE_RUN_AT = "preserve_run_at"
    """Overwrite it, but keep its `run_at` if it was not tried yet (a throttle, not a debounce)."""
    UNSAFE_DEDUPE = "unsafe_dedupe"
    """Leave the existing job alone, even if it is running or has failed for good."""


class Job:
    """A job as it is stored, read-only.

    The attributes are the columns of the jobs table under their own names, and `task_identifier`.
    Times and the payload are decoded when they are first looked at, so that a value Python can't
    hold is the trouble of that one job, and of nobody who does not ask.

    Times are aware, in UTC. PostgreSQL's `infinity`, and times outside of Python's years, become
    the nearest `datetime` there is.
    """

    __slots__ = ("_payload", "_row", "task_identifier")

    _row: tuple[Any, ...]
    task_identifier: str
    """Name of the task that runs this job."""

    def __init__(self, row: tuple[Any, ...], task_identifier: str) -> None:
        self._row = row
        self._payload: Any = _UNREAD
        self.task_identifier = task_identifier

    @property
    def id(self) -> int:
        """Number of the job; grows, with gaps."""
        return self._row[0]  # type: ignore[no-any-return]

    @property
    def job_queue_id(self) -> int | None:
        """Id of the serial queue; None for a job without queue."""
        return self._row[1]  # type: ignore[no-any-return]

    @property
    def task_id(self) -> int:
        """Id of the task identifier in this database."""
        return self._row[2]  # type: ignore[no-any-return]

    @property
    def payload(self) -> Any:
        """The payload, decoded.

        Raises:
            ValueError: The stored JSON can't be decoded by Python (nested too deeply).
        """
        if self._payload is _UNREAD:
            self._payload = json_codec.loads(self.payload_json)
        return self._payload

    @property
    def payload_json(self) -> bytes:
        """The payload as stored, JSON text in UTF-8."""
        return bytes(self._row[3])

    @property
    def priority(self) -> int:
        """Smaller runs first."""
        return self._row[4]  # type: ignore[no-any-return]

    @property
    def run_at(self) -> datetime:
        """The job is not run before this time."""
        return from_timestamp(self._row[5])

    @property
    def attempts(self) -> int:
        """How often the job was fetched; counts the current attempt while it runs."""
        return self._row[6]  # type: ignore[no-any-return]

    @property
    def max_attempts(self) -> int:
        """A job that failed this often is not tried again."""
        return self._row[7]  # type: ignore[no-any-return]

    @property
    def last_error(self) -> str | None:
        """Message of the last failure; None if there was none."""
        return self._row[8]  # type: ignore[no-any-return]

    @property
    def created_at(self) -> datetime:
        """When the job was first added."""
        return from_timestamp(self._row[9])

    @property
    def updated_at(self) -> datetime:
        """When it was last changed by an SQL function; running it changes nothing here."""
        return from_timestamp(self._row[10])

    @property
    def key(self) -> str | None:
        """The job key, unique in the whole schema; None for a job without key."""
        return self._row[11]  # type: ignore[no-any-return]

    @property
    def locked_at(self) -> datetime | None:
        """When a worker took it; None while nobody has it."""
        value = self._row[12]
        return None if value is None else from_timestamp(value)

    @property
    def locked_by(self) -> str | None:
        """Id of the worker pool that has it; None while nobody has it."""
        return self._row[13]  # type: ignore[no-any-return]

    @property
    def revision(self) -> int:
        """How often the job was replaced or deduplicated through its key."""
        return self._row[14]  # type: ignore[no-any-return]

    @property
    def flags(self) -> dict[str, bool] | None:
        """The flags, as `{flag: True}`; None for a job without flags.

        Raises:
            ValueError: Somebody stored what can't be decoded by Python (nested too deeply).
        """
        value = self._row[15]
        return None if value is None else json_codec.loads(value)

    @property
    def is_available(self) -> bool:
        """Whether a worker may take it (nobody has it, attempts are left)."""
        return self._row[16]  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """All columns and `task_identifier` by name."""
        return {name: getattr(self, name) for name in (*JOB_COLUMNS, "task_identifier")}

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied and pickled as it is stored; what was decoded of it is not part of it.
        return Job, (self._row, self.task_identifier)

    def __repr__(self) -> str:
        # No payload: a job is printed in logs, a payload may hold what must not be there.
        return (
            f"Job(id={self.id}, task_identifier={self.task_identifier!r}, key={self.key!r}, "
            f"attempts={self.attempts}/{self.max_attempts})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job):
            return NotImplemented
        return self._row == other._row and self.task_identifier == other.task_identifier

    def __hash__(self) -> int:
        return hash((self.id, self.revision, self.attempts))


JOB_COLUMNS: Final = (
    "id",
    "job_queue_id",
    "task_id",
    "payload",
    "priority",
    "run_at",
    "attempts",
    "max_attempts",
    "last_error",
    "created_at",
    "updated_at",
    "key",
    "locked_at",
    "locked_by",
    "revision",
    "flags",
    "is_available",
)
"""Columns of the jobs table in their order, which is the order of a `Job`'s row."""


def from_timestamp(value: bytes) -> datetime:
    """Decode PostgreSQL's binary timestamptz: microseconds since 2000 in eight bytes."""
    microseconds = int.from_bytes(value, "big", signed=True)
    if microseconds == _INFINITY:
        return LATEST
    if microseconds == _MINUS_INFINITY:
        return EARLIEST
    try:
        return _POSTGRES_EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return LATEST if microseconds > 0 else EARLIEST


def as_timestamp(moment: datetime) -> bytes:
    """Encode an aware time as PostgreSQL's binary timestamptz."""
    since = moment - _POSTGRES_EPOCH
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return microseconds.to_bytes(8, "big", signed=True)


PayloadT = TypeVar("PayloadT")
PayloadT_contra = TypeVar("PayloadT_contra", contravariant=True)


class TaskName(Generic[PayloadT_contra]):
    """The identifier of a task and, for type checkers, what payload its jobs have.

    Every `Task` is one. For a task that runs elsewhere, in Node say, make one:
    `TaskName[Invoice]("render_invoice")`.
    """

    def __init__(self, identifier: str) -> None:
        self.identifier = check_text("task identifier", identifier, longest=MAX_IDENTIFIER_LENGTH)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identifier!r})"


@dataclass(frozen=True, slots=True, init=False)
class JobSpec:
    """A job to be added.

    Args:
        identifier: The task that is to run it, or its name; at most 128 characters.
        payload: Any JSON value, or an object of a type that `json_codec.dumps` writes; None means
            an empty object, as the Node worker has it.
        queue_name: Serial queue, at most 128 characters: its jobs run one after the other. None
            means no queue.
        run_at: Not before this time, an aware datetime; None means now.
        priority: Smaller runs first, -32768 to 32767; None means 0.
        max_attempts: 1 to 32767; None means 25.
        job_key: 1 to 512 characters, unique over all tasks; None means no key.
        job_key_mode: What happens if the key is taken; None means `replace`.
        flags: Names by which workers may refuse the job.

    Raises:
        ConfigurationError: A value is not allowed; the message names it.
    """

    identifier: str
    payload: Any
    queue_name: str | None
    run_at: datetime | None
    priority: int | None
    max_attempts: int | None
    job_key: str | None
    job_key_mode: JobKeyMode | str | None
    flags: list[str] | None

    # Written out, because type checkers then compare the payload with what its task takes.
    def __init__(
        self,
        identifier: str | TaskName[PayloadT],
        payload: PayloadT | None = None,
        queue_name: str | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        job_key: str | None = None,
        job_key_mode: JobKeyMode | str | None = None,
        flags: Iterable[str] | None = None,
    ) -> None:
        if not isinstance(identifier, str):
            # Whatever has an identifier will do; what has none is told by the check.
            identifier = getattr(identifier, "identifier", identifier)
        check_text("identifier", identifier, longest=MAX_IDENTIFIER_LENGTH)
        if queue_name is not None:
            check_text("queue_name", queue_name, longest=MAX_QUEUE_NAME_LENGTH)
        if run_at is not None:
            check_aware("run_at", run_at)
        if priority is not None:
            check_smallint("priority", priority)
        if max_attempts is not None:
            check_smallint("max_attempts", max_attempts, smallest=1)
        if job_key is not None:
            check_text("job_key", job_key, shortest=1, longest=MAX_JOB_KEY_LENGTH)
            # Without a key the mode means nothing and the SQL functions take any; so do we.
            if job_key_mode is not None:
                check_one_of("job_key_mode", job_key_mode, allowed=JobKeyMode)
        if flags is not None:
            flags = check_texts("flags", flags)
        put = object.__setattr__
        put(self, "identifier", identifier)
        put(self, "payload", payload)
        put(self, "queue_name", queue_name)
        put(self, "run_at", run_at)
        put(self, "priority", priority)
        put(self, "max_attempts", max_attempts)
        put(self, "job_key", job_key)
        put(self, "job_key_mode", job_key_mode)
        put(self, "flags", flags)

    def payload_json(self) -> str:
        """The payload as JSON text.

        Raises:
            ConfigurationError: The payload can't be written as JSON.
        """
        if self.payload is None:
            return "{}"
        try:
            return json_codec.dumps(self.payload).decode()
        except ValueError as error:
            raise ConfigurationError(f"payload of task {self.identifier!r} is {error}") from error
