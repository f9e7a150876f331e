"""A job as the database stores it, and a job to be added."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Generic, Never, TypedDict, TypeVar

from graphile_worker_py import clock, json_codec
from graphile_worker_py.checks import (
    check_aware,
    check_flag,
    check_identifier,
    check_one_of,
    check_seconds,
    check_smallint,
    check_text,
    check_texts,
    unknown_word,
)
from graphile_worker_py.errors import ConfigurationError

MAX_QUEUE_NAME_LENGTH: Final = 128
MAX_JOB_KEY_LENGTH: Final = 512
DEFAULT_PRIORITY: Final = 0
DEFAULT_MAX_ATTEMPTS: Final = 25
LOCK_LIFETIME: Final = 4 * 3600.0
"""Seconds after which a lock counts as abandoned: any worker, Node's too, then frees the job."""

_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_POSTGRES_EPOCH_SECONDS: Final = _POSTGRES_EPOCH.timestamp()
LATEST: Final = datetime.max.replace(tzinfo=UTC)
EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_UNREAD: Final = object()
_INFINITY: Final = 2**63 - 1
_MINUS_INFINITY: Final = -(2**63)


JOB_COLUMNS: Final = (
    "id", "job_queue_id", "task_id", "payload", "priority", "run_at", "attempts", "max_attempts",
    "last_error", "created_at", "updated_at", "key", "locked_at", "locked_by", "revision", "flags",
    "is_available",
)  # fmt: skip
"""Columns of the jobs table, in the order of a `Job`'s row."""
(
    ID, JOB_QUEUE_ID, TASK_ID, PAYLOAD, PRIORITY, RUN_AT, ATTEMPTS, MAX_ATTEMPTS,
    LAST_ERROR, CREATED_AT, UPDATED_AT, KEY, LOCKED_AT, LOCKED_BY, REVISION, FLAGS,
    IS_AVAILABLE,
) = range(len(JOB_COLUMNS))  # fmt: skip
"""Where each column stands in a `Job`'s row: plain numbers, which are the fastest to index with."""


class JobKeyMode(StrEnum):
    """What adding a job does when its `job_key` is taken, as Graphile Worker defines it."""

    REPLACE = "replace"
    """Overwrite the waiting job with that key, its `run_at` included. The default."""
    PRESERVE_RUN_AT = "preserve_run_at"
    """Overwrite it, but keep its `run_at` if it was not tried yet (a throttle, not a debounce)."""
    UNSAFE_DEDUPE = "unsafe_dedupe"
    """Keep the existing job as it is, even if it is running or has permanently failed."""


class Job:
    """A job as it is stored, read-only.

    The attributes are the columns of the jobs table under their own names, and `task_identifier`.
    Times and the payload are decoded when they are first read, so that a value that Python can't
    represent affects only programs that read it.

    Times are aware, in UTC. PostgreSQL's `infinity`, and times beyond Python's years, become the
    nearest `datetime`.
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
        """Number of the job; ids increase, with gaps."""
        return self._row[ID]  # type: ignore[no-any-return]

    @property
    def job_queue_id(self) -> int | None:
        """Id of the serial queue; None for a job without a queue."""
        return self._row[JOB_QUEUE_ID]  # type: ignore[no-any-return]

    @property
    def task_id(self) -> int:
        """Id of the task identifier in this database."""
        return self._row[TASK_ID]  # type: ignore[no-any-return]

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
        return bytes(self._row[PAYLOAD])

    @property
    def priority(self) -> int:
        """Smaller numbers run first."""
        return self._row[PRIORITY]  # type: ignore[no-any-return]

    @property
    def run_at(self) -> datetime:
        """The job does not run before this time."""
        return from_timestamp(self._row[RUN_AT])

    @property
    def is_first_run(self) -> bool:
        """Whether it was due when it was added, and was never tried: it was not snoozed, either."""
        return self._row[ATTEMPTS] <= 1 and self._row[RUN_AT] == self._row[CREATED_AT]  # type: ignore[no-any-return]

    @property
    def run_at_seconds(self) -> float:
        """`run_at` in seconds since 1970, which is read faster than the `datetime`."""
        microseconds = int.from_bytes(self._row[RUN_AT], "big", signed=True)
        return _POSTGRES_EPOCH_SECONDS + microseconds / 1_000_000

    @property
    def attempts(self) -> int:
        """How often the job was fetched; includes the current attempt while it runs."""
        return self._row[ATTEMPTS]  # type: ignore[no-any-return]

    @property
    def max_attempts(self) -> int:
        """A job that failed this often is not retried."""
        return self._row[MAX_ATTEMPTS]  # type: ignore[no-any-return]

    @property
    def last_error(self) -> str | None:
        """Message of the last failure; None if it never failed."""
        return self._row[LAST_ERROR]  # type: ignore[no-any-return]

    @property
    def created_at(self) -> datetime:
        """When the job was first added."""
        return from_timestamp(self._row[CREATED_AT])

    @property
    def updated_at(self) -> datetime:
        """When an SQL function last changed it; running the job does not change this."""
        return from_timestamp(self._row[UPDATED_AT])

    @property
    def key(self) -> str | None:
        """The job key, unique in the whole schema; None for a job without a key."""
        return self._row[KEY]  # type: ignore[no-any-return]

    @property
    def locked_at(self) -> datetime | None:
        """When a worker pool locked it; None while it is not locked."""
        value = self._row[LOCKED_AT]
        return None if value is None else from_timestamp(value)

    @property
    def locked_by(self) -> str | None:
        """Id of the worker pool that locked it; None while it is not locked."""
        return self._row[LOCKED_BY]  # type: ignore[no-any-return]

    @property
    def revision(self) -> int:
        """How often the job was replaced or deduplicated through its key."""
        return self._row[REVISION]  # type: ignore[no-any-return]

    @property
    def flags(self) -> dict[str, bool] | None:
        """The flags, as `{flag: True}`; None for a job without flags.

        Raises:
            ValueError: The stored JSON can't be decoded by Python (nested too deeply).
        """
        value = self._row[FLAGS]
        return None if value is None else json_codec.loads(value)

    @property
    def is_available(self) -> bool:
        """Whether a worker may fetch it: it is not locked, and has attempts left."""
        return self._row[IS_AVAILABLE]  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """All columns and `task_identifier` by name."""
        return {name: getattr(self, name) for name in (*JOB_COLUMNS, "task_identifier")}

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied and pickled as it is stored, without decoded values.
        return Job, (self._row, self.task_identifier)

    def __repr__(self) -> str:
        # Without the payload: jobs appear in logs, and payloads may contain secrets.
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
    """The identifier of a task and, for type checkers, the type of its payload.

    Every `Task` is one. For a task that runs elsewhere, for example in Node, make one:
    `TaskName[Invoice]("render_invoice")`.
    """

    def __init__(self, identifier: str) -> None:
        self.identifier = check_identifier("task identifier", identifier)

    def adding_defaults(self, payload: Any) -> Mapping[str, Any]:  # noqa: ARG002  # for tasks
        """The options that a job with this payload has by default; only a `Task` has some."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identifier!r})"


def _from_now(run_in: float | timedelta, run_at: datetime | None) -> datetime:
    if run_at is not None:
        raise ConfigurationError("run_at and run_in were both given; give one of them")
    seconds = run_in.total_seconds() if isinstance(run_in, timedelta) else run_in
    return clock.utc_now() + timedelta(seconds=check_seconds("run_in", seconds))


def _identifier_of(given: Any) -> Any:
    """The identifier of a task, or what was given in place of one."""
    if callable(given) and not hasattr(given, "identifier"):
        raise ConfigurationError(
            f"{getattr(given, '__name__', given)!r} is a function and no task: decorate it with "
            f"@task, or give the identifier of a task"
        )
    return getattr(given, "identifier", given)


class SpecOptions(TypedDict, total=False):
    """What a job may have in addition to task and payload; explained at `JobSpec`."""

    queue_name: str | None
    run_at: datetime | None
    run_in: float | timedelta | None
    priority: int | None
    max_attempts: int | None
    job_key: str | None
    job_key_mode: JobKeyMode | str | None
    flags: Iterable[str] | None
    awaited: bool


@dataclass(frozen=True, slots=True, init=False)
class JobSpec:
    """A job to be added.

    Args:
        identifier: The task that runs it, or its name; at most 128 characters.
        payload: Any JSON value, or an object of a type that `json_codec.dumps` writes; None means
            an empty object, as in Graphile Worker.
        queue_name: Serial queue, at most 128 characters: its jobs run one after the other. None
            means no queue.
        run_at: The job does not run before this time, an aware datetime; None means now.
        run_in: The same as a length of time from now, in seconds or as a `timedelta`, by the
            clock of this process. Give only one of the two.
        priority: Smaller numbers run first, -32768 to 32767; None means 0.
        max_attempts: The job is permanently failed after this many failures, 1 to 32767; None
            means 25.
        job_key: 1 to 512 characters, unique over all tasks; None means no key.
        job_key_mode: What happens if the key is taken; None means `replace`.
        flags: Workers that forbid one of these flags do not fetch the job.
        awaited: Keep a record of how the job ends, whatever the workers' option `history` says, so
            that a handle's `wait` finds it, for a day. Needs the tables of history in the side
            schema.

    Where the identifier is a `Task`, what is not given is what the task has as default.

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
    awaited: bool

    # Written out, so that type checkers compare the payload with the type that its task takes.
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
        *,
        run_in: float | timedelta | None = None,
        awaited: bool = False,
        **unknown: Never,
    ) -> None:
        for word in unknown:
            raise unknown_word(word, known=[*SpecOptions.__annotations__, "conn"])
        if isinstance(identifier, TaskName):
            default = identifier.adding_defaults(payload)
            if default:
                queue_name = default.get("queue_name") if queue_name is None else queue_name
                priority = default.get("priority") if priority is None else priority
                max_attempts = default.get("max_attempts") if max_attempts is None else max_attempts
                job_key = default.get("job_key") if job_key is None else job_key
                flags = default.get("flags") if flags is None else flags
        if not isinstance(identifier, str):
            identifier = _identifier_of(identifier)
        if run_in is not None:
            run_at = _from_now(run_in, run_at)
        check_identifier("identifier", identifier)
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
        if job_key_mode is not None:
            check_one_of("job_key_mode", job_key_mode, allowed=JobKeyMode)
            if job_key is None:
                raise ConfigurationError(f"job_key_mode {str(job_key_mode)!r} needs a job_key")
        if flags is not None:
            flags = check_texts("flags", flags)
        check_flag("awaited", awaited)
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
        put(self, "awaited", awaited)

    def payload_json(self, *, nan_as_null: bool = False) -> str:
        """The payload as JSON text.

        Args:
            nan_as_null: Whether NaN and infinities become null, instead of being refused.

        Raises:
            ConfigurationError: The payload can't be written as JSON.
        """
        if self.payload is None:
            return "{}"
        dumps = json_codec.dumps if nan_as_null else json_codec.dumps_finite
        try:
            return dumps(self.payload).decode()
        except ValueError as error:
            raise ConfigurationError(f"payload of task {self.identifier!r} is {error}") from error
