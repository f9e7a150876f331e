"""Suspects, the jobs under which a worker died: record, mark as started, forget.

A job that has begun its last attempt is marked too, with 0 crashes, where its pool prefetches.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.records import Record

# A job that is already a suspect counts another crash only if the dead pool had started it. Jobs
# that it had only fetched keep their count.
_RECORD: Final = """
insert into graphile_worker_py.suspects (worker_schema, job_id, crashes)
select $1::pg_catalog.text, jobs.id, 1
from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
where jobs.locked_by = any($2::pg_catalog.text[])
on conflict (worker_schema, job_id) do update
set crashes = suspects.crashes + 1
where suspects.started_by = any($2::pg_catalog.text[])
"""


def record_suspects(worker_schema: str, pool_ids: Sequence[str]) -> Query[None]:
    """Record all jobs that dead pools have locked as suspects."""
    return Query(_RECORD, (worker_schema, list(pool_ids)), no_result, prepare=False)


_MARK_STARTED: Final = """
insert into graphile_worker_py.suspects (worker_schema, job_id, crashes, started_by)
values ($1::pg_catalog.text, $2::pg_catalog.int8, 0, $3::pg_catalog.text)
on conflict (worker_schema, job_id) do update
set started_by = excluded.started_by
"""


def mark_started(worker_schema: str, job_id: int, pool_id: str) -> Query[None]:
    """Record that a pool is about to run a suspect, or the last attempt of a job."""
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
where suspects.worker_schema = $1::pg_catalog.text and suspects.crashes > 0
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


_FORGET_MARKS: Final = """
delete from graphile_worker_py.suspects as suspects
where suspects.worker_schema = $1::pg_catalog.text
  and suspects.started_by = any($2::pg_catalog.text[])
  and suspects.crashes = 0
"""


def forget_marks(worker_schema: str, pool_ids: Sequence[str]) -> Query[None]:
    """Forget which jobs dead pools have begun, of those that are no suspects."""
    return Query(_FORGET_MARKS, (worker_schema, list(pool_ids)), no_result, prepare=False)


class HeldJob(Record, kw_only=False):
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
        keeps_attempt: Whether the pool never began its last attempt, and has not been told to
            give the job up: it gets the attempt back.
    """

    job_id: int
    pool_id: str
    attempt: int
    is_last_attempt: bool
    run_at: datetime
    locked_at: datetime
    has_begun: bool
    keeps_attempt: bool


# A pool begins jobs in the order in which it fetched them. Exactly known is only which jobs have
# begun their last attempt. A job that was removed or replaced through its key has lost its attempts
# and its key since it was locked. The number of jobs that a pool runs at a time is read through
# JSON, because a table of an older release lacks that column.
_HELD: Final = """
with held as materialized (
  select
    jobs.id,
    jobs.locked_by,
    jobs.attempts,
    jobs.attempts >= jobs.max_attempts as is_last,
    jobs.run_at,
    jobs.locked_at,
    pg_catalog.row_number() over (
      partition by jobs.locked_by
      order by jobs.locked_at, jobs.priority, jobs.run_at, jobs.id
    ) as place,
    jobs.key is null and jobs.updated_at > jobs.locked_at as is_given_up
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.locked_by = any($1::pg_catalog.text[])
)
select
  held.id,
  held.locked_by,
  held.attempts::pg_catalog.int4,
  held.is_last,
  held.run_at,
  held.locked_at,
  marks.job_id is not null
    or (held.is_last and pools.prefetches) is not true
    and coalesce(
      held.place <= (pg_catalog.to_jsonb(pools) ->> 'concurrency')::pg_catalog.int8,
      false
    ),
  held.is_last and pools.prefetches and marks.job_id is null and not held.is_given_up
from held
join graphile_worker_py.pools as pools on pools.pool_id = held.locked_by
left join graphile_worker_py.suspects as marks
  on marks.worker_schema = pools.worker_schema
  and marks.job_id = held.id
  and marks.started_by = held.locked_by
order by held.id
"""


def read_held_jobs(pool_ids: Sequence[str]) -> Query[list[HeldJob]]:
    """Read which jobs pools have locked; reads the whole table."""
    return Query(_HELD, (list(pool_ids),), _read_held, prepare=False)


def _read_held(rows: list[tuple[Any, ...]]) -> list[HeldJob]:
    return [
        HeldJob(job_id, pool, attempt, last, from_timestamp(due), from_timestamp(at), begun, keeps)
        for job_id, pool, attempt, last, due, at, begun, keeps in rows
    ]


_RETURN_ATTEMPTS: Final = """
update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
set attempts = jobs.attempts - 1
where jobs.id = any($1::pg_catalog.int8[]) and jobs.attempts > 0
"""


def return_attempts(job_ids: Sequence[int]) -> Query[None]:
    """Return an attempt to jobs that never began it."""
    return Query(_RETURN_ATTEMPTS, (list(job_ids),), no_result, prepare=False)
