"""Many jobs without key on their way into the table, by COPY."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.job import Job, JobSpec, as_timestamp, from_timestamp
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.sql.add_jobs import Names, read_names
from graphile_worker_py.sql.copy_jobs import OPTIONAL, copy_jobs, register_queues, reserve
from graphile_worker_py.sql.task_ids import register_tasks

BLOCK: Final = 500
"""Jobs that are written at a time; the server works on some while the next ones are made."""
NULL: Final = "\\N"
ESCAPES: Final = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
"""The backslash comes first, because the others bring some in."""


class Copying:
    """Adds jobs in one transaction: `prepared`, then `statement` with all `blocks`, then `jobs`.

    Args:
        specs: The jobs; none has a key.
        payload: Tells the payload of one of them as JSON text, by its place.
        schema: Name of the schema.
    """

    def __init__(
        self, specs: Sequence[JobSpec], payload: Callable[[int], str], *, schema: str
    ) -> None:
        self._specs = specs
        self._payload = payload
        self._schema = schema
        self._given = [
            name
            for name in OPTIONAL
            if any(value is not None for value in map(attrgetter(name), specs))
        ]
        self._ids: Sequence[int] = ()
        self._now = b""
        self._tasks: dict[str, int] = {}
        self._queues: dict[str, int] = {}
        self.jobs: list[Job] = []
        """The jobs in the order of the specs, as far as they are written."""

    @property
    def statement(self) -> Query[None]:
        """The COPY statement."""
        return copy_jobs(self._given)

    def prepared(self) -> Steps[bool]:
        """Take ids and register names; False if jobs are to be added in another way here."""
        identifiers = {spec.identifier for spec in self._specs}
        queue_names = {spec.queue_name for spec in self._specs if spec.queue_name is not None}
        if not self._know(identifiers, queue_names, (yield read_names(identifiers, queue_names))):
            yield register_tasks(list(identifiers))
            yield register_queues(queue_names)
            found = yield read_names(identifiers, queue_names)
            if not self._know(identifiers, queue_names, found):
                return False  # names of which this transaction can't know
        reserved = yield reserve(self._schema, len(self._specs))
        if reserved is None:
            return False
        self._ids, self._now = reserved.ids, reserved.now
        return True

    def _know(self, identifiers: set[str], queue_names: set[str], names: Names) -> bool:
        self._tasks = {name: number for number, name in names.tasks.items()}
        self._queues = {name: number for number, name in names.queues.items()}
        return self._tasks.keys() >= identifiers and self._queues.keys() >= queue_names

    def blocks(self) -> Iterator[str]:
        """What is to be written, each block made when it is asked for.

        Raises:
            ConfigurationError: A payload can't be written as JSON.
        """
        for start in range(0, len(self._specs), BLOCK):
            specs = self._specs[start : start + BLOCK]
            payloads = [self._payload(at) for at in range(start, start + len(specs))]
            ids = self._ids[start : start + BLOCK]
            task_ids = [self._tasks[spec.identifier] for spec in specs]
            queue_ids, rests, columns = self._rest_of(specs)
            rows = zip(ids, queue_ids, task_ids, map(str.encode, payloads), rests, strict=True)
            self.jobs += [
                Job((number, queue_id, task_id, payload, *rest), spec.identifier)
                for spec, (number, queue_id, task_id, payload, rest) in zip(
                    specs, rows, strict=True
                )
            ]
            lines = zip(ids, task_ids, _escaped(payloads), columns, strict=True)
            yield "".join(
                [f"{number}\t{task_id}\t{text}{more}\n" for number, task_id, text, more in lines]
            )

    def _rest_of(
        self, specs: Sequence[JobSpec]
    ) -> tuple[list[int | None], list[tuple[Any, ...]], list[str]]:
        """For each job its queue, what follows the payload in its row, and in the COPY."""
        if not self._given:
            plain = self._row_after_payload(JobSpec("", None))
            return [None] * len(specs), [plain] * len(specs), [""] * len(specs)
        now = from_timestamp(self._now)
        return (
            [None if spec.queue_name is None else self._queues[spec.queue_name] for spec in specs],
            [self._row_after_payload(spec) for spec in specs],
            [
                "".join(["\t" + self._value(spec, name, now) for name in self._given])
                for spec in specs
            ],
        )

    def _value(self, spec: JobSpec, name: str, now: datetime) -> str:
        """The value of a column in COPY's text format."""
        match name:
            case "queue_name":
                return NULL if spec.queue_name is None else str(self._queues[spec.queue_name])
            case "run_at":
                return (spec.run_at or now).astimezone(UTC).isoformat()
            case "priority":
                return str(spec.priority or 0)
            case "max_attempts":
                return str(spec.max_attempts or 25)
            case _:
                return _escaped([_flags_of(spec).decode()])[0] if spec.flags else NULL

    def _row_after_payload(self, spec: JobSpec) -> tuple[Any, ...]:
        now = self._now
        return (
            spec.priority or 0,
            now if spec.run_at is None else as_timestamp(spec.run_at),
            0,
            spec.max_attempts or 25,
            None,
            now,
            now,
            None,
            None,
            None,
            0,
            _flags_of(spec) if spec.flags else None,
            True,
        )


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
