"""Suspects, the jobs under which a worker died: record, mark as started, forget."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query, no_result

# A job that is already a suspect counts another crash only if the dead pool had started it. Jobs
# that it had only fetched keep their count.
_RECORD: Final = """
insert into graphile_worker_py.suspects (worker_schema, job_id, crashes)
select $1::pg_catalog.text, jobs.id, 1
from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
where jobs.locked_by = any($2::pg_catalog.text[])
on conflict (worker_schema, job_id) do update
set crashes = suspects.crashes + 1,
  started_by = null
where suspects.started_by = any($2::pg_catalog.text[])
"""


def record_suspects(worker_schema: str, pool_ids: Sequence[str]) -> Query[None]:
    """Record all jobs that dead pools have locked as suspects."""
    return Query(_RECORD, (worker_schema, list(pool_ids)), no_result, prepare=False)


_MARK_STARTED: Final = """
update graphile_worker_py.suspects as suspects
set started_by = $3::pg_catalog.text
where suspects.worker_schema = $1::pg_catalog.text and suspects.job_id = $2::pg_catalog.int8
"""


def mark_started(worker_schema: str, job_id: int, pool_id: str) -> Query[None]:
    """Record that a pool is about to run a suspect."""
    return Query(_MARK_STARTED, (worker_schema, job_id, pool_id), no_result)


_CLEAR: Final = """
delete from graphile_worker_py.suspects as suspects
where suspects.worker_schema = $1::pg_catalog.text
  and suspects.started_by = $2::pg_catalog.text
  and suspects.job_id = any($3::pg_catalog.int8[])
"""


def clear_suspects(worker_schema: str, pool_id: str, job_ids: Sequence[int]) -> Query[None]:
    """Forget suspects that completed or failed in a pool."""
    return Query(_CLEAR, (worker_schema, pool_id, list(job_ids)), no_result, prepare=False)


_READ: Final = """
select suspects.job_id, suspects.crashes
from graphile_worker_py.suspects as suspects
where suspects.worker_schema = $1::pg_catalog.text
"""


def read_suspects(worker_schema: str) -> Query[dict[int, int]]:
    """Read how often a worker died under a job, by the job's id."""
    return Query(
        _READ, (worker_schema,), lambda rows: {row[0]: row[1] for row in rows}, prepare=False
    )


_FORGET: Final = """
delete from graphile_worker_py.suspects as suspects
where suspects.worker_schema = $1::pg_catalog.text
  and (
    suspects.job_id = any($2::pg_catalog.int8[])
    or not exists (
      select
      from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
      where jobs.id = suspects.job_id
    )
  )
"""


def forget_suspects(worker_schema: str, job_ids: Sequence[int] = ()) -> Query[None]:
    """Forget suspects: these jobs, and all jobs that no longer exist."""
    return Query(_FORGET, (worker_schema, list(job_ids)), no_result, prepare=False)


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that a dead pool has locked.

    Args:
        job_id: Its id.
        pool_id: The pool that has it locked.
        attempt: Number of its attempt, from 1.
        is_last_attempt: Whether no attempts are left.
        run_at: When it was due.
        locked_at: When the pool locked it.
        has_begun: Whether the pool is known to have begun it. A pool that prefetches has locked
            more jobs than it runs.
    """

    job_id: int
    pool_id: str
    attempt: int
    is_last_attempt: bool
    run_at: datetime
    locked_at: datetime
    has_begun: bool


# A pool begins jobs in the order in which it fetched them. The number of jobs that it runs at a
# time is read through JSON, because a table of an older release lacks that column.
_HELD: Final = """
select
  jobs.id,
  jobs.locked_by,
  jobs.attempts::pg_catalog.int4,
  jobs.attempts >= jobs.max_attempts,
  jobs.run_at,
  jobs.locked_at,
  coalesce(
    pg_catalog.row_number() over (
      partition by jobs.locked_by
      order by jobs.locked_at, jobs.priority, jobs.run_at, jobs.id
    ) <= (pg_catalog.to_jsonb(pools) ->> 'concurrency')::pg_catalog.int8,
    false
  )
from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
join graphile_worker_py.pools as pools on pools.pool_id = jobs.locked_by
where jobs.locked_by = any($1::pg_catalog.text[])
order by jobs.id
"""


def read_held_jobs(pool_ids: Sequence[str]) -> Query[list[HeldJob]]:
    """Read which jobs pools have locked; reads the whole table."""
    return Query(_HELD, (list(pool_ids),), _read_held, prepare=False)


def _read_held(rows: list[tuple[Any, ...]]) -> list[HeldJob]:
    return [
        HeldJob(job_id, pool_id, attempt, last, from_timestamp(due), from_timestamp(at), begun)
        for job_id, pool_id, attempt, last, due, at, begun in rows
    ]
