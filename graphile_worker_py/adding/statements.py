"""How jobs are added, for callers with and without an event loop.

What is here makes the statements to send and reads their results; the async and the blocking API
send them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeAlias, TypeVar

from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus

from graphile_worker_py import json_codec
from graphile_worker_py.adding.copy import Copying
from graphile_worker_py.checks import check_whole
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.job import Job, JobKeyMode, JobSpec, as_timestamp
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.sql import add_jobs as sql
from graphile_worker_py.sql.add_jobs import Names

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]

CHUNK: Final = 1000
"""Most jobs that one statement adds."""
COPY_FROM: Final = 200
"""So many jobs without key, and more, are copied: for few the statements around it cost more."""
STREAM_CHUNK: Final = 10_000
"""Most jobs of a stream that are added at once, unless the caller says otherwise."""

# A key whose job is being fetched at that very moment is not written; by the next try the fetch
# is visible, and the key free. Only a fetch after each try could make us try again.
_TRIES: Final = 20

_id = itemgetter(0)
_all_but_payload = attrgetter(
    "identifier", "queue_name", "run_at", "priority", "max_attempts", "job_key", "flags"
)


def add_one(spec: JobSpec) -> Steps[Job]:
    """Add one job; a generator that yields the statements and is sent their results.

    Raises:
        GraphileWorkerError: The job with this key was fetched anew during each of many tries.
    """
    for _ in range(_TRIES):
        job: Job | None = yield sql.add_job(spec, spec.payload_json())
        if job is not None:
            return job
    raise _contended([spec])


class Addition:
    """Many jobs on their way into the database.

    It is to be done by `copying` where that can be. Else, while it is not `complete`, its
    `statements` are to be sent, and their results read.

    Of several specs with one key the last one counts; all of them get its job.

    Args:
        specs: The jobs.
        own_transaction: Whether they are added in a transaction of their own.
        first: What the first of them is called in messages.
    """

    def __init__(self, specs: Sequence[JobSpec], *, own_transaction: bool, first: int = 0) -> None:
        self._specs = specs
        self._own_transaction = own_transaction
        self._first = first
        self._jobs: list[Job | None] = [None] * len(specs)
        self._tries = 0
        self._has_keys = any(spec.job_key is not None for spec in specs)
        self._last: Mapping[int | str, int] = {}
        if self._has_keys:
            self._last = {spec.job_key or at: at for at, spec in enumerate(specs)}

    @property
    def is_one_statement(self) -> bool:
        """Whether one statement is sure to write all, so that no transaction is needed.

        It is not as soon as there is a key: its job may have to be added by a second try.
        """
        return len(self._specs) < (2 if self._has_keys else COPY_FROM)

    @property
    def is_complete(self) -> bool:
        """Whether all jobs are added."""
        return not self._missing()

    def copying(self, schema: str) -> Copying | None:
        """How all jobs are added by COPY; None if that is not for these."""
        if self._has_keys or len(self._specs) < COPY_FROM:
            return None
        return Copying(self._specs, self._payload, schema=schema)

    def statements(self) -> Iterator[Query[None]]:
        """Statements that add what is missing, each made when it is asked for.

        The next one may be asked for before the last one is sent.

        Raises:
            ConfigurationError: A payload can't be written as JSON.
            GraphileWorkerError: A job with one of the keys was fetched anew during each of many
                tries.
        """
        missing = self._missing()
        if self._tries == _TRIES:
            raise _contended([self._specs[at] for at in missing])
        self._tries += 1
        for mode, places in self._by_mode(missing).items():
            if mode is JobKeyMode.UNSAFE_DEDUPE:
                for at in places:
                    yield self._one(at)
                continue
            preserve = mode is JobKeyMode.PRESERVE_RUN_AT
            for start in range(0, len(places), CHUNK):
                yield from self._chunk(places[start : start + CHUNK], preserve_run_at=preserve)

    def jobs(self) -> list[Job]:
        """The jobs, in the order of the specs."""
        places = (self._last[spec.job_key or at] for at, spec in enumerate(self._specs))
        found = [self._jobs[at] for at in places] if self._has_keys else self._jobs
        return [job for job in found if job is not None]

    def _missing(self) -> Sequence[int]:
        if self._has_keys:
            return [at for at in self._last.values() if self._jobs[at] is None]
        # Without keys there is no second try.
        return range(0 if self._tries else len(self._specs))

    def _by_mode(self, places: Sequence[int]) -> Mapping[JobKeyMode, Sequence[int]]:
        """Places by what happens to a taken key; the SQL function takes one mode a call."""
        if not self._has_keys:
            return {JobKeyMode.REPLACE: places}
        groups: dict[JobKeyMode, list[int]] = defaultdict(list)
        for at in places:
            spec = self._specs[at]
            if spec.job_key is None or spec.job_key_mode is None:
                groups[JobKeyMode.REPLACE].append(at)
            else:
                groups[JobKeyMode(spec.job_key_mode)].append(at)
        return groups

    def _one(self, at: int) -> Query[None]:
        def note(job: Job | None) -> None:
            self._jobs[at] = job

        return _noting(sql.add_job(self._specs[at], self._payload(at)), note)

    def _chunk(self, places: Sequence[int], *, preserve_run_at: bool) -> Iterator[Query[None]]:
        specs = [self._specs[at] for at in places]
        payloads = [self._payload(at) for at in places]
        add = sql.add_jobs(
            specs,
            payloads,
            preserve_run_at=preserve_run_at,
            own_transaction=self._own_transaction,
        )
        rows: list[Row] = []

        def note(names: Names) -> None:
            for at, job in zip(places, _paired(specs, payloads, rows, names), strict=True):
                self._jobs[at] = job

        needed = _needed_names(specs)
        if needed is None:

            def note_at_once(added: list[Row]) -> None:
                rows.extend(added)
                note(Names(tasks={}, queues={}))

            yield _noting(add, note_at_once)
        else:
            yield _noting(add, rows.extend)
            yield _noting(needed, note)

    def _payload(self, at: int) -> str:
        try:
            return self._specs[at].payload_json()
        except ConfigurationError as error:
            raise ConfigurationError(f"jobs[{self._first + at}]: {error}") from error


def checked_specs(
    specs: Iterable[JobSpec], *, now: datetime | None, first: int = 0
) -> list[JobSpec]:
    """Check that specs are specs; those without a time get `now`, unless it is None."""
    check_iterable(specs)
    wanted = list(specs)
    for at, spec in enumerate(wanted):
        if not isinstance(spec, JobSpec):
            raise ConfigurationError(f"jobs[{first + at}] must be a JobSpec, not {spec!r}")
    if now is not None:
        return [replace(spec, run_at=now) if spec.run_at is None else spec for spec in wanted]
    return wanted


def chunks(specs: Iterable[JobSpec], size: int) -> Iterator[list[JobSpec]]:
    """Specs, so many at a time; asked for when they are needed."""
    check_iterable(specs)
    left = iter(specs)
    while chunk := list(islice(left, size)):
        yield chunk


def check_chunk_size(size: object) -> None:
    """Check how many jobs are to be added at a time."""
    check_whole("chunk_size", size, smallest=1)


def note_added(error: Exception, added: int) -> None:
    """Say on an exception what of a stream is added already."""
    error.add_note(f"add_jobs_from had added the {added} jobs before this chunk")


def ends_with_first_block(conn: AsyncConnection[Any] | Connection[Any]) -> bool:
    """Whether a `transaction()` block of ours would commit what is the caller's to commit.

    So it is with a connection that begins its transactions by itself, and has not yet.
    """
    return not conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE


def check_iterable(specs: object) -> None:
    """Check that what should be specs can be gone through, one by one."""
    if isinstance(specs, str | bytes | Mapping) or not isinstance(specs, Iterable):
        raise ConfigurationError(f"jobs must be a list of JobSpec, not {specs!r}")


def _noting(query: Query[T], note: Callable[[T], None]) -> Query[None]:
    """The same statement; what is read from its result is noted."""
    return Query(
        query.text, query.values, lambda rows: note(query.read(rows)), prepare=query.prepare
    )


def _needed_names(specs: Sequence[JobSpec]) -> Query[Names] | None:
    """Names of tasks and queues by id, if they are needed to tell rows apart."""
    free = [spec for spec in specs if spec.job_key is None]
    identifiers = {spec.identifier for spec in free}
    queue_names = {spec.queue_name for spec in free if spec.queue_name is not None}
    if len(identifiers) <= 1 and len(queue_names) <= 1:
        return None
    return sql.read_names(identifiers, queue_names)


def _paired(
    specs: Sequence[JobSpec], payloads: Sequence[str], rows: Sequence[Row], names: Names
) -> list[Job | None]:
    """Find each spec's row; the SQL function returns them in any order.

    A key tells its row. Rows without key are told by what they hold, and where they hold the
    same, it does not matter which is which.
    """
    if _differ_in_payload_only(specs):
        by_payload = {row[3]: row for row in rows}
        own_rows = [by_payload.get(payload.encode()) for payload in payloads]
        if len(by_payload) == len(specs) and None not in own_rows:
            identifier = specs[0].identifier
            return [Job(row, identifier) for row in own_rows if row is not None]
    by_key = {row[11]: row for row in rows if row[11] is not None}
    free = sorted((row for row in rows if row[11] is None), key=_id, reverse=True)
    now = free[0][9] if free else b""
    waiting: dict[Any, list[Row]] = defaultdict(list)
    for row in free:
        waiting[_content_of_row(row, names)].append(row)
    found: list[Row | None] = []
    for spec, payload in zip(specs, payloads, strict=True):
        if spec.job_key is not None:
            found.append(by_key.get(spec.job_key))
        else:
            alike = waiting[_content_of_spec(spec, payload, names, now)]
            found.append(alike.pop() if alike else None)
    # Here if a trigger in this database changes jobs on their way into the table.
    strays = sorted((row for rows in waiting.values() for row in rows), key=_id, reverse=True)
    jobs: list[Job | None] = []
    for spec, own in zip(specs, found, strict=True):
        if own is None and spec.job_key is None and strays:
            jobs.append(Job(strays.pop(), spec.identifier))
        else:
            jobs.append(None if own is None else Job(own, spec.identifier))
    return jobs


def _differ_in_payload_only(specs: Sequence[JobSpec]) -> bool:
    others = list(map(_all_but_payload, specs))
    return specs[0].job_key is None and others.count(others[0]) == len(others)


def _content_of_row(row: Row, names: Names) -> tuple[Any, ...]:
    queue = None if row[1] is None else names.queues.get(row[1], "")
    flags = None if row[15] is None else frozenset(json_codec.loads(row[15]))
    return names.tasks.get(row[2]), queue, row[3], row[5], row[4], row[7], flags


def _content_of_spec(spec: JobSpec, payload: str, names: Names, now: bytes) -> tuple[Any, ...]:
    """What the row of a spec holds; `now` is the time of a job that was not given one."""
    queue = spec.queue_name
    return (
        spec.identifier if names.tasks else None,
        queue if queue is None or names.tasks or names.queues else "",
        payload.encode(),
        now if spec.run_at is None else as_timestamp(spec.run_at),
        0 if spec.priority is None else spec.priority,
        25 if spec.max_attempts is None else spec.max_attempts,
        frozenset(spec.flags) if spec.flags else None,
    )


def _contended(specs: Sequence[JobSpec]) -> GraphileWorkerError:
    keys = ", ".join(repr(spec.job_key) for spec in specs[:5])
    return GraphileWorkerError(
        f"could not add {len(specs)} job(s): the jobs with key {keys} were fetched anew during "
        f"each of {_TRIES} tries"
    )
