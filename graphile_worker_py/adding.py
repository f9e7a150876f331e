"""How jobs are added, step by step, for callers with and without an event loop.

Each function here is a generator that yields the statements to send and is sent their results;
the async and the blocking API drive the same one.
"""

from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, TypeVar

from graphile_worker_py import json_codec
from graphile_worker_py.db import Query
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.job import Job, JobKeyMode, JobSpec
from graphile_worker_py.sql import add_jobs as sql
from graphile_worker_py.sql.add_jobs import Names

T = TypeVar("T")
Steps: TypeAlias = Generator[Query[Any], Any, T]

CHUNK: Final = 1000
"""Most jobs that one statement adds."""

# A key whose job is being fetched at that very moment is not written; by the next try the fetch
# is visible, and the key free. Only a fetch after each try could make us try again.
_TRIES: Final = 20


def add_one(spec: JobSpec) -> Steps[Job]:
    """Add one job.

    Raises:
        GraphileWorkerError: The job with this key was fetched anew during each of many tries.
    """
    for _ in range(_TRIES):
        job: Job | None = yield sql.add_job(spec)
        if job is not None:
            return job
    raise _contended([spec])


def add_many(specs: Sequence[JobSpec]) -> Steps[list[Job]]:
    """Add jobs; the results stand in the order of the specs.

    Of several specs with one key the last one counts; all of them get its job.

    Raises:
        GraphileWorkerError: A job with one of the keys was fetched anew during each of many tries.
    """
    last = {spec.job_key or at: at for at, spec in enumerate(specs)}
    added: dict[int, Job] = {}
    for mode, chosen in _by_mode(specs, last.values()).items():
        if mode is JobKeyMode.UNSAFE_DEDUPE:
            for at in chosen:
                added[at] = yield from add_one(specs[at])
            continue
        preserve = mode is JobKeyMode.PRESERVE_RUN_AT
        for start in range(0, len(chosen), CHUNK):
            chunk = chosen[start : start + CHUNK]
            added.update((yield from _add_chunk(specs, chunk, preserve_run_at=preserve)))
    return [added[last[spec.job_key or at]] for at, spec in enumerate(specs)]


def needs_transaction(specs: Sequence[JobSpec]) -> bool:
    """Whether `add_many` may write with more than one statement.

    It may as soon as there is a key: its job may have to be added by a second try.
    """
    return len(specs) > CHUNK or (
        len(specs) > 1 and any(spec.job_key is not None for spec in specs)
    )


def _by_mode(specs: Sequence[JobSpec], places: Iterable[int]) -> dict[JobKeyMode, list[int]]:
    """Places of specs by what happens to a taken key; the SQL function takes one mode a call."""
    groups: dict[JobKeyMode, list[int]] = defaultdict(list)
    for at in places:
        spec = specs[at]
        if spec.job_key is None or spec.job_key_mode is None:
            groups[JobKeyMode.REPLACE].append(at)
        else:
            groups[JobKeyMode(spec.job_key_mode)].append(at)
    return groups


def _add_chunk(
    specs: Sequence[JobSpec], places: Sequence[int], *, preserve_run_at: bool
) -> Steps[dict[int, Job]]:
    added: dict[int, Job] = {}
    missing = list(places)
    for _ in range(_TRIES):
        wanted = [specs[at] for at in missing]
        rows = yield sql.add_jobs(wanted, preserve_run_at=preserve_run_at)
        names = yield from _names(wanted)
        jobs = _paired(wanted, rows, names)
        added.update({at: job for at, job in zip(missing, jobs, strict=True) if job is not None})
        missing = [at for at in missing if at not in added]
        if not missing:
            return added
    raise _contended([specs[at] for at in missing])


def _names(specs: Sequence[JobSpec]) -> Steps[Names]:
    """Names of tasks and queues by id, as far as they are needed to tell rows apart."""
    free = [spec for spec in specs if spec.job_key is None]
    identifiers = {spec.identifier for spec in free}
    queue_names = {spec.queue_name for spec in free if spec.queue_name is not None}
    if len(identifiers) <= 1 and len(queue_names) <= 1:
        return Names(tasks={}, queues={})
    names: Names = yield sql.read_names(identifiers, queue_names)
    return names


def _paired(
    specs: Sequence[JobSpec], rows: Sequence[tuple[Any, ...]], names: Names
) -> list[Job | None]:
    """Find each spec's row; the SQL function returns them in any order.

    A key tells its row. Rows without key are told by what they hold, and where they hold the
    same, it does not matter which is which.
    """
    by_key = {row[11]: row for row in rows if row[11] is not None}
    by_content: dict[tuple[Any, ...], list[tuple[Any, ...]]] = defaultdict(list)
    now = b""
    for row in sorted(rows, key=lambda row: row[0], reverse=True):
        if row[11] is None:
            now = row[9]
            queue = None if row[1] is None else names.queues.get(row[1], "")
            flags = None if row[15] is None else frozenset(json_codec.loads(row[15]))
            content = (names.tasks.get(row[2]), queue, row[3], row[5], row[4], row[7], flags)
            by_content[content].append(row)
    jobs: list[Job | None] = []
    for spec in specs:
        if spec.job_key is not None:
            found = by_key.get(spec.job_key)
        else:
            queue = spec.queue_name
            content = (
                spec.identifier if names.tasks else None,
                queue if queue is None or names.tasks or names.queues else "",
                spec.payload_json().encode(),
                now if spec.run_at is None else _as_timestamp(spec.run_at),
                0 if spec.priority is None else spec.priority,
                25 if spec.max_attempts is None else spec.max_attempts,
                frozenset(spec.flags) if spec.flags else None,
            )
            found = by_content[content].pop()
        jobs.append(None if found is None else Job(found, spec.identifier))
    return jobs


def _as_timestamp(moment: datetime) -> bytes:
    """A time in PostgreSQL's binary form."""
    since = moment - datetime(2000, 1, 1, tzinfo=UTC)
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return microseconds.to_bytes(8, "big", signed=True)


def _contended(specs: Sequence[JobSpec]) -> GraphileWorkerError:
    keys = ", ".join(repr(spec.job_key) for spec in specs[:5])
    return GraphileWorkerError(
        f"could not add {len(specs)} job(s): the jobs with key {keys} were fetched anew during "
        f"each of {_TRIES} tries"
    )
