"""Add many jobs without a key by COPY, with the effects that the SQL function has for them."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.job import (
    ATTEMPTS,
    CREATED_AT,
    FLAGS,
    ID,
    IS_AVAILABLE,
    JOB_COLUMNS,
    JOB_QUEUE_ID,
    MAX_ATTEMPTS,
    PAYLOAD,
    PRIORITY,
    REVISION,
    RUN_AT,
    TASK_ID,
    UPDATED_AT,
    Job,
    as_timestamp,
    from_timestamp,
)
from graphile_worker_py.job.spec import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, JobSpec
from graphile_worker_py.postgres.query import CopyIn, Steps
from graphile_worker_py.sql.add_jobs import Names, read_names
from graphile_worker_py.sql.copy_jobs import (
    OPTIONAL,
    Reserved,
    copy_jobs,
    register_queues,
    reserve,
)
from graphile_worker_py.sql.task_ids import register_tasks

BLOCK: Final = 500
"""Jobs that are written at once: the server works on a block while the next one is made."""
NULL: Final = "\\N"
ESCAPES: Final = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
"""The backslash comes first, because the others add backslashes."""


def copied(
    specs: Sequence[JobSpec], payload: Callable[[int], str], *, schema: str
) -> Steps[list[Job] | None]:
    """Add jobs within one transaction; the generator returns them in the order of the specs.

    It returns None, and has added nothing, if this database needs the SQL function.

    Args:
        specs: The jobs; none has a key.
        payload: The payload of one of them as JSON text, by its place.
        schema: Name of the schema.

    Raises:
        ConfigurationError: A payload can't be written as JSON.
    """
    ids = yield from _registered(specs)
    if ids is None:
        return None
    reserved = yield reserve(schema, len(specs))
    if reserved is None:
        return None
    given = [
        name
        for name in OPTIONAL
        if any(value is not None for value in map(attrgetter(name), specs))
    ]
    copy = _Copy(specs, payload, given, ids, reserved)
    yield CopyIn(copy_jobs(given), copy.blocks())
    return copy.jobs


class _Ids:
    """Ids of tasks and queues by their names."""

    def __init__(self, names: Names) -> None:
        self.tasks = {name: number for number, name in names.tasks.items()}
        self.queues = {name: number for number, name in names.queues.items()}


def _registered(specs: Sequence[JobSpec]) -> Steps[_Ids | None]:
    """Register tasks and queues; None if the transaction can't see what others registered."""
    identifiers = {spec.identifier for spec in specs}
    queue_names = {spec.queue_name for spec in specs if spec.queue_name is not None}

    def complete(names: Names) -> _Ids | None:
        ids = _Ids(names)
        is_complete = ids.tasks.keys() >= identifiers and ids.queues.keys() >= queue_names
        return ids if is_complete else None

    ids = complete((yield read_names(identifiers, queue_names)))
    if ids is None:
        yield register_tasks(list(identifiers))
        yield register_queues(queue_names)
        ids = complete((yield read_names(identifiers, queue_names)))
    return ids


class _Copy:
    """The jobs as COPY reads them, and as rows.

    Args:
        specs: The jobs.
        payload: The payload of one of them, by its place.
        given: Those of `OPTIONAL` that any of them has.
        ids: Ids of their tasks and queues.
        reserved: Ids of the jobs, and the time at which they are added.
    """

    def __init__(
        self,
        specs: Sequence[JobSpec],
        payload: Callable[[int], str],
        given: Sequence[str],
        ids: _Ids,
        reserved: Reserved,
    ) -> None:
        self._specs = specs
        self._payload = payload
        self._given = given
        self._ids = ids
        self._job_ids = reserved.ids
        self._now = from_timestamp(reserved.now)
        self._plain = _plain_row(reserved.now)
        self.jobs: list[Job] = []
        """The jobs in the order of the specs, as far as they are written."""

    def blocks(self) -> Iterator[str]:
        """The data to write; each block is made when it is asked for."""
        for start in range(0, len(self._specs), BLOCK):
            specs = self._specs[start : start + BLOCK]
            payloads = [self._payload(at) for at in range(start, start + len(specs))]
            ids = self._job_ids[start : start + BLOCK]
            self.jobs += map(self._job, specs, ids, payloads)
            task_ids = [self._ids.tasks[spec.identifier] for spec in specs]
            optional = [self._optional(spec) for spec in specs] if self._given else [""] * len(ids)
            lines = zip(ids, task_ids, _escaped(payloads), optional, strict=True)
            yield "".join(
                [f"{number}\t{task_id}\t{text}{more}\n" for number, task_id, text, more in lines]
            )

    def _job(self, spec: JobSpec, job_id: int, payload: str) -> Job:
        row = self._plain.copy()
        row[ID] = job_id
        row[TASK_ID] = self._ids.tasks[spec.identifier]
        row[PAYLOAD] = payload.encode()
        if self._given:
            self._set_optional(row, spec)
        return Job(tuple(row), spec.identifier)

    def _set_optional(self, row: list[Any], spec: JobSpec) -> None:
        if spec.queue_name is not None:
            row[JOB_QUEUE_ID] = self._ids.queues[spec.queue_name]
        if spec.run_at is not None:
            row[RUN_AT] = as_timestamp(spec.run_at)
        if spec.priority is not None:
            row[PRIORITY] = spec.priority
        if spec.max_attempts is not None:
            row[MAX_ATTEMPTS] = spec.max_attempts
        if spec.flags:
            row[FLAGS] = _flags_of(spec)

    def _optional(self, spec: JobSpec) -> str:
        return "".join(["\t" + self._value(spec, name) for name in self._given])

    def _value(self, spec: JobSpec, name: str) -> str:
        """The value of a column in COPY's text format."""
        match name:
            case "queue_name":
                return NULL if spec.queue_name is None else str(self._ids.queues[spec.queue_name])
            case "run_at":
                run_at: datetime = self._now if spec.run_at is None else spec.run_at
                return run_at.astimezone(UTC).isoformat()
            case "priority":
                return str(DEFAULT_PRIORITY if spec.priority is None else spec.priority)
            case "max_attempts":
                return str(DEFAULT_MAX_ATTEMPTS if spec.max_attempts is None else spec.max_attempts)
            case _:
                return _escaped([_flags_of(spec).decode()])[0] if spec.flags else NULL


def _plain_row(now: bytes) -> list[Any]:
    """The row of a new job that was given nothing but its payload."""
    row: list[Any] = [None] * len(JOB_COLUMNS)
    row[PRIORITY] = DEFAULT_PRIORITY
    row[RUN_AT] = row[CREATED_AT] = row[UPDATED_AT] = now
    row[ATTEMPTS] = row[REVISION] = 0
    row[MAX_ATTEMPTS] = DEFAULT_MAX_ATTEMPTS
    row[IS_AVAILABLE] = True
    return row


def _flags_of(spec: JobSpec) -> bytes:
    """The flags as PostgreSQL writes them: without repetition, short ones first."""
    flags = sorted({flag.encode() for flag in spec.flags or ()}, key=lambda flag: (len(flag), flag))
    return b"{%b}" % b", ".join(b"%b: true" % json_codec.dumps(flag.decode()) for flag in flags)


def _escaped(texts: list[str]) -> list[str]:
    """Texts as COPY reads them; only a payload that was JSON text already has line breaks."""
    for special, written in ESCAPES.items():
        if any(special in text for text in texts):
            texts = [text.replace(special, written) for text in texts]
    return texts
