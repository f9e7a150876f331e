"""A job as the database stores it."""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from graphile_worker_py import json_codec

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
    def payload_size(self) -> int:
        """Length of `payload_json` in bytes, which is not copied for this."""
        return len(self._row[PAYLOAD])

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


def run_at_seconds_of(jobs: Sequence[Job]) -> list[float]:
    """`Job.run_at_seconds` of many jobs, which are read faster together."""
    stored = b"".join([job._row[RUN_AT] for job in jobs])  # of this module
    microseconds = struct.unpack(f">{len(jobs)}q", stored)
    return [_POSTGRES_EPOCH_SECONDS + each / 1_000_000 for each in microseconds]


def as_timestamp(moment: datetime) -> bytes:
    """Encode an aware time as PostgreSQL's binary timestamptz."""
    since = moment - _POSTGRES_EPOCH
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return microseconds.to_bytes(8, "big", signed=True)
