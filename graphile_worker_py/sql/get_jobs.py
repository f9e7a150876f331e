"""Fetching: lock the next jobs, and the queues they belong to, for one worker pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from graphile_worker_py.db import Query
from graphile_worker_py.job import Job

# Step by step:
#  next    the first jobs in order of priority and time, of all free queues and without queue.
#          The sub-select locks the free queues before their jobs are looked at, as the Node
#          worker does: two fetches at once never see jobs of the same queue.
#  taken   marks the jobs; of each queue only the first one, because a queue is serial. Where the
#          others took places, there are jobs to be had from _GET_FREE_JOBS; further queues come
#          with the next fetch, when those taken now are locked.
#  locked  marks the queues, but only of jobs that were really taken: a queue that is locked with
#          nobody at work would stand still for hours.
#
# Two things are for the planner, which must read the index in its order and stop at the limit,
# whatever it believes about the table. `task_id = any(…)` looks so selective to it, before the
# table was analysed, that it reads and sorts all jobs instead (measured: three times slower at
# half a million jobs); array_position() tells it nothing. And ids in an array, instead of a join,
# make it go through the primary key.
_GET_JOBS: Final = """
with next as materialized (
  select jobs.id, jobs.job_queue_id, jobs.priority, jobs.run_at
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.is_available = true
    and jobs.run_at <= now()
    and array_position($2::int4[], jobs.task_id) is not null
    and ($4::text[] is null or (jobs.flags ?| $4::text[]) is not true)
    and (
      jobs.job_queue_id is null
      or jobs.job_queue_id in (
        select queues.id
        from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
        where queues.is_available = true
        for update skip locked
      )
    )
  order by jobs.priority, jobs.run_at
  limit $3::int4
  for update of jobs skip locked
),
taken as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set attempts = jobs.attempts + 1,
    locked_by = $1::text,
    locked_at = now()
  where jobs.id = any (
    array(
      select distinct on (coalesce(next.job_queue_id, -next.id)) next.id
      from next
      order by coalesce(next.job_queue_id, -next.id), next.priority, next.run_at, next.id
    )
  )
  returning jobs.*
),
locked as (
  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  set locked_by = $1::text,
    locked_at = now()
  where queues.id = any (
    array(select taken.job_queue_id from taken where taken.job_queue_id is not null)
  )
)
select taken.*, (select count(*) from next) >= $3::int4
from taken
order by taken.priority, taken.run_at, taken.id
"""


# Jobs without queue alone, through the index that has no others: many jobs of a queue that stand
# before them do not have to be passed.
_GET_FREE_JOBS: Final = """
with taken as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set attempts = jobs.attempts + 1,
    locked_by = $1::text,
    locked_at = now()
  where jobs.id = any (
    array(
      select next.id
      from :GRAPHILE_WORKER_SCHEMA._private_jobs as next
      where next.is_available = true
        and next.job_queue_id is null
        and next.run_at <= now()
        and array_position($2::int4[], next.task_id) is not null
        and ($4::text[] is null or (next.flags ?| $4::text[]) is not true)
      order by next.priority, next.run_at
      limit $3::int4
      for update skip locked
    )
  )
  returning jobs.*
)
select taken.*, false
from taken
order by taken.priority, taken.run_at, taken.id
"""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch brought.

    Args:
        jobs: The jobs, in the order in which they are to run.
        more: Whether the next fetch may bring more: this one did not see all there is.
        in_doubt: Whether more jobs may be locked than are known, because an answer was lost.
    """

    jobs: list[Job]
    more: bool
    in_doubt: bool = False


def get_jobs(
    *,
    pool_id: str,
    task_ids: Mapping[int, str],
    count: int,
    forbidden_flags: Sequence[str] | None,
) -> Query[Fetched]:
    """Lock up to `count` jobs for a pool, in the order in which they are to run.

    At most one job of a queue is among them.
    """
    return _query(_GET_JOBS, pool_id, task_ids, count, forbidden_flags)


def get_free_jobs(
    *,
    pool_id: str,
    task_ids: Mapping[int, str],
    count: int,
    forbidden_flags: Sequence[str] | None,
) -> Query[Fetched]:
    """Lock up to `count` jobs that have no queue."""
    return _query(_GET_FREE_JOBS, pool_id, task_ids, count, forbidden_flags)


def _query(
    text: LiteralString,
    pool_id: str,
    task_ids: Mapping[int, str],
    count: int,
    forbidden_flags: Sequence[str] | None,
) -> Query[Fetched]:
    flags = list(forbidden_flags) if forbidden_flags else None

    def read(rows: list[tuple[Any, ...]]) -> Fetched:
        jobs = [Job(row, task_ids[row[2]]) for row in rows]
        return Fetched(jobs, more=bool(rows) and rows[0][-1])

    return Query(text, (pool_id, list(task_ids), count, flags), read)
