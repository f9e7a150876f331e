"""Fetching: lock the next jobs, and the queues they belong to, for one worker pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graphile_worker_py.db import Query
from graphile_worker_py.job import Job

# Step by step:
#  next    the first jobs in order of priority and time, of all free queues and without queue.
#          The sub-select locks the free queues before their jobs are looked at, as the Node
#          worker does: two fetches at once never see jobs of the same queue.
#  heads   of each queue only its first job, because a queue is serial.
#  more    if queues took several places of `next`, those places go to jobs without queue. Jobs
#          of further queues come with the next fetch, when the queues taken now are locked.
#  taken   marks the jobs. Ids in an array make the planner go through the primary key, at any
#          size of the table and without statistics.
#  locked  marks the queues, but only of jobs that were really taken: a queue that is locked with
#          nobody at work would stand still for hours.
_GET_JOBS: Final = """
with next as materialized (
  select jobs.id, jobs.job_queue_id, jobs.priority, jobs.run_at
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.is_available = true
    and jobs.run_at <= now()
    and jobs.task_id = any($2::int4[])
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
heads as materialized (
  select distinct on (next.job_queue_id) next.id
  from next
  where next.job_queue_id is not null
  order by next.job_queue_id, next.priority, next.run_at, next.id
),
more as materialized (
  select jobs.id
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.is_available = true
    and jobs.job_queue_id is null
    and jobs.run_at <= now()
    and jobs.task_id = any($2::int4[])
    and ($4::text[] is null or (jobs.flags ?| $4::text[]) is not true)
    and jobs.id <> all (array(select next.id from next))
    and (select count(*) from next where next.job_queue_id is not null)
      > (select count(*) from heads)
  order by jobs.priority, jobs.run_at
  limit (select count(*) from next where next.job_queue_id is not null)
    - (select count(*) from heads)
  for update of jobs skip locked
),
taken as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set attempts = jobs.attempts + 1,
    locked_by = $1::text,
    locked_at = now()
  where jobs.id = any (
    array(
      select next.id from next where next.job_queue_id is null
      union all
      select heads.id from heads
      union all
      select more.id from more
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


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch brought.

    Args:
        jobs: The jobs, in the order in which they are to run.
        more: Whether the next fetch may bring more: this one did not see all there is.
    """

    jobs: list[Job]
    more: bool


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
    flags = list(forbidden_flags) if forbidden_flags else None

    def read(rows: list[tuple[Any, ...]]) -> Fetched:
        jobs = [Job(row, task_ids[row[2]]) for row in rows]
        return Fetched(jobs, more=bool(rows) and rows[0][-1])

    return Query(_GET_JOBS, (pool_id, list(task_ids), count, flags), read)
