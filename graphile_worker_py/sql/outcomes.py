"""Put together the statements that record outcomes.

Each begins with a *change*: a statement that deletes or updates those of the given jobs that the
pool still has locked (`$1` is its id), and ends with `returning jobs.id, jobs.job_queue_id`. A job
that was taken from the pool, and may be running elsewhere, stays as it is. Two things may follow in
the same statement: the release of the jobs' queues, and *riders*.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, LiteralString

from graphile_worker_py import json_codec
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record

_UNLOCK: Final = """
  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  set locked_by = null,
    locked_at = null
  where queues.id = any (
      array(select changed.job_queue_id from changed where changed.job_queue_id is not null)
    )
    and queues.locked_by = $1::pg_catalog.text
"""

_FACTS: Final = """,
  jobs.created_at, jobs.task_id, jobs.attempts, jobs.run_at, jobs.key, jobs.payload, jobs.flags
"""
_GIVEN: Final = """
select
  $1::pg_catalog.int8 as id,
  $2::pg_catalog.int4 as job_queue_id,
  $3::pg_catalog.timestamptz as created_at,
  $4::pg_catalog.int4 as task_id,
  $5::pg_catalog.int2 as attempts,
  $6::pg_catalog.timestamptz as run_at,
  $7::pg_catalog.text as key,
  $8::pg_catalog.text::pg_catalog.json as payload,
  $9::pg_catalog.text::pg_catalog.jsonb as flags
"""


class BoundRider(Record, kw_only=False):
    """A statement that rides on the one that records outcomes, for one batch.

    Args:
        text: A statement that returns rows. It may read `changed`, the jobs whose outcome this
            statement records, with the columns id, job_queue_id, created_at, task_id, attempts,
            run_at, key, payload and flags, as they are after it. Its parameters are `$r1`, `$r2`,
            and so on.
        values: One for each parameter.
        covers: How many jobs of the batch it is for, from the first one on, so that its values
            do not get too large. The others are recorded by further statements. None means all.
    """

    text: LiteralString
    values: Sequence[Any]
    covers: int | None = None


def record(
    change: Query[set[int]], *, queued: bool, riders: Sequence[BoundRider] = ()
) -> Query[set[int]]:
    """Record outcomes; the ids of the jobs that were still the pool's.

    Args:
        change: The change.
        queued: Whether jobs of queues are among them, whose queues are released.
        riders: What else is part of the statement.
    """
    if not queued and not riders:
        return change
    texts = tuple(rider.text for rider in riders)
    values = [*change.values, *(value for rider in riders for value in rider.values)]
    text = _composed(change.text, queued, len(change.values), texts)
    return replace(change, text=text, values=values)


def ride_alone(job: Job, rider: BoundRider) -> Query[set[int]]:
    """Run a rider for a job whose outcome is recorded already."""
    values = (
        job.id,
        job.job_queue_id,
        job.created_at,
        job.task_id,
        job.attempts,
        job.run_at,
        job.key,
        job.payload_json.decode(),
        None if job.flags is None else json_codec.dumps(job.flags).decode(),
    )
    given = Query(_GIVEN, values, ids, prepare=False)
    return record(given, queued=False, riders=[rider])


@lru_cache(maxsize=64)
def _composed(
    change: LiteralString,
    queued: bool,  # noqa: FBT001  # lru_cache
    taken: int,
    riders: tuple[LiteralString, ...],
) -> LiteralString:
    if riders and change is not _GIVEN:
        change = "".join((change.rstrip(), _FACTS))
    parts = [_named("changed", change)]
    columns = ["changed.id"]
    if queued:
        parts.append(_named("unlocked", _UNLOCK))
    for number, rider in enumerate(riders):
        name = f"rider_{number}"
        # A SELECT in a WITH clause that nothing refers to would not run.
        columns.append("".join(("(select pg_catalog.count(*) from ", name, ")")))
        parts.append(_named(name, _renumbered(rider, taken)))
        taken += len(set(re.findall(r"\$r\d+", rider)))
    return "".join(("with ", ", ".join(parts), " select ", ", ".join(columns), " from changed"))


def _named(name: str, text: str) -> str:
    return "".join((name, " as (", text, ")"))


def _renumbered(rider: str, taken: int) -> str:
    return re.sub(r"\$r(\d+)", lambda found: f"${taken + int(found[1])}", rider)


def ids(rows: list[tuple[Any, ...]]) -> set[int]:
    """Read the first column."""
    return {row[0] for row in rows}
