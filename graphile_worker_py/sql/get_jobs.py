"""Fetching: lock the next jobs, and the queues they belong to, for one worker pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntFlag
from typing import Any, Final

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import fragments

# Step by step:
#  sight     the first jobs in order of priority and time, of free queues and without queue, as they
#            are at the moment: nothing is locked. It is for finding queues, and reaches further
#            than needed because some may turn out to be locked. With no queue free it is not
#            looked at, so that jobs that wait for a locked queue cost nothing.
#  free      locks the queues in sight. Whoever has a queue's row locked is alone with its jobs, the
#            Node worker too: two fetches at once never take jobs of the same queue.
#  queued    locks the first jobs of these queues: more than one of each, because somebody's
#            transaction may have the first one locked.
#  heads     of each queue only the first one, because a queue is serial.
#  unqueued  locks the first jobs without queue. Their index has no others: many jobs of a queue
#            that stand before them need not be passed.
#  taken     marks the first ones of both.
#  locked    marks the queues, but only of jobs that were really taken: a queue that is locked with
#            nobody at work would stand still for hours.
#  found     what was in sight, told also if nothing was taken; in one number, for it comes with
#            each job.
# Between sight and lock a job may have changed; so its conditions are looked at again. Columns are
# named, because a plan is kept, and fails for good once there is one more in the table.
#
# Three things are for the planner, which must read the index in its order and stop at the limit,
# whatever it believes about the table. `task_id = any(…)` looks so selective to it, before the
# table was analysed, that it reads and sorts all jobs instead (measured: three times slower at
# half a million jobs); array_position() tells it nothing. And ids in an array, instead of a join,
# make it go through the primary key. `(… in (…)) is true` is looked up in a hash table; without
# the test it would become a join that compares all with all. See also the settings in planning.py.
_GET_JOBS: Final = (
    """
with sight as materialized (
  select
    jobs.id,
    jobs.job_queue_id,
    pg_catalog.row_number() over (
      partition by jobs.job_queue_id order by jobs.priority, jobs.run_at, jobs.id
    ) as place
  from (
    select jobs.id, jobs.job_queue_id, jobs.priority, jobs.run_at
    from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
    where exists (
        select from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
        where queues.is_available = true
      )
      and jobs.is_available = true
      and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
      and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
      and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
      and (
        jobs.job_queue_id is null
        or jobs.job_queue_id in (
          select queues.id
          from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
          where queues.is_available = true
        )
      )
    order by jobs.priority, jobs.run_at
    limit 2 * $3::pg_catalog.int4 + 8
  ) as jobs
),
free as materialized (
  select queues.id
  from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  where queues.is_available = true
    and queues.id = any (
      array(select sight.job_queue_id from sight where sight.job_queue_id is not null)
    )
  for update skip locked
),
queued as materialized (
  select jobs.id, jobs.job_queue_id, jobs.priority, jobs.run_at
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.id = any (
      array(
        select sight.id
        from sight
        where sight.place <= 3 and (sight.job_queue_id in (select free.id from free)) is true
      )
    )
    and (jobs.job_queue_id in (select free.id from free)) is true
    and jobs.is_available = true
    and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
    and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
    and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
  for update skip locked
),
heads as materialized (
  select distinct on (queued.job_queue_id) queued.id, queued.priority, queued.run_at
  from queued
  order by queued.job_queue_id, queued.priority, queued.run_at, queued.id
),
unqueued as materialized (
  select jobs.id, jobs.priority, jobs.run_at
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.job_queue_id is null
    and jobs.is_available = true
    and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
    and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
    and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
  order by jobs.priority, jobs.run_at
  limit $3::pg_catalog.int4
  for update skip locked
),
next as (
  select heads.id, heads.priority, heads.run_at from heads
  union all
  select unqueued.id, unqueued.priority, unqueued.run_at from unqueued
  order by priority, run_at
  limit $3::pg_catalog.int4
),
taken as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  set attempts = job.attempts + 1,
    locked_by = $1::pg_catalog.text,
    locked_at = pg_catalog.now()
  where job.id = any (array(select next.id from next))
  returning """  # noqa: S608  # all parts are constants
    + fragments.JOB
    + """
),
locked as (
  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  set locked_by = $1::pg_catalog.text,
    locked_at = pg_catalog.now()
  where queues.id = any (
    array(select taken.job_queue_id from taken where taken.job_queue_id is not null)
  )
),
found as (
  select
    1 * exists (select from sight where sight.job_queue_id is not null)::pg_catalog.int4
    + 2 * exists (
      select from sight
      where sight.job_queue_id is not null
        and (sight.job_queue_id in (select free.id from free)) is not true
    )::pg_catalog.int4
    + 4 * (
      (select pg_catalog.count(*) from sight) >= 2 * $3::pg_catalog.int4 + 8
    )::pg_catalog.int4 as in_sight
)
select taken.*, found.in_sight
from found
left join taken on true
order by taken.priority, taken.run_at, taken.id
"""
)

# The same for jobs without queue alone, from a place in their order on. What stands before it was
# passed a moment ago, and most of it is gone; but its entries stay in the index until a vacuum, and
# would be gone through by each fetch. After a million jobs that takes longer than all else, and
# beside an old transaction, for which each of them might still matter, many times longer.
_GET_FURTHER_JOBS: Final = (
    """
with next as materialized (
  select jobs.id
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.job_queue_id is null
    and jobs.is_available = true
    and (jobs.priority, jobs.run_at) >= ($6::pg_catalog.int2, $7::pg_catalog.timestamptz)
    and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
    and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
    and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
  order by jobs.priority, jobs.run_at
  limit $3::pg_catalog.int4
  for update skip locked
),
taken as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  set attempts = job.attempts + 1,
    locked_by = $1::pg_catalog.text,
    locked_at = pg_catalog.now()
  where job.id = any (array(select next.id from next))
  returning """  # noqa: S608  # all parts are constants
    + fragments.JOB
    + """
)
select taken.*
from taken
order by taken.priority, taken.run_at, taken.id
"""
)


class InSight(IntFlag):
    """What the statement tells of the jobs that it saw."""

    QUEUED = 1
    HIDDEN = 2
    MORE = 4


Place = tuple[int, datetime]
"""Where a job stands in the order of jobs: priority and time."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch brought.

    Args:
        jobs: The jobs, in the order in which they are to run.
        more: Whether the next fetch may bring more: this one did not see all there is.
        queued: Whether jobs of free queues were in sight.
        hidden: Whether one of these queues was locked by somebody for the moment.
    """

    jobs: list[Job]
    more: bool
    queued: bool = False
    hidden: bool = False


def get_jobs(
    *,
    pool_id: str,
    task_ids: Mapping[int, str],
    count: int,
    forbidden_flags: Sequence[str] | None,
    now: datetime | None = None,
    after: Place | None = None,
) -> Query[Fetched]:
    """Lock up to `count` jobs for a pool, in the order in which they are to run.

    At most one job of a queue is among them.

    Args:
        pool_id: The pool.
        task_ids: Whose jobs are wanted, with their names.
        count: How many at the most.
        forbidden_flags: Jobs with one of these flags are left; None means none are.
        now: The time up to which they are due; None means that of the database.
        after: Look for jobs without queue only, from this place on; None means all.
    """
    flags = list(forbidden_flags) if forbidden_flags else None
    if after is not None:

        def read_further(rows: list[tuple[Any, ...]]) -> Fetched:
            return Fetched([Job(row, task_ids[row[2]]) for row in rows], more=True)

        values = (pool_id, list(task_ids), count, flags, now, *after)
        return Query(_GET_FURTHER_JOBS, values, read_further)

    def read(rows: list[tuple[Any, ...]]) -> Fetched:
        in_sight = InSight(rows[0][-1])
        queued, hidden = InSight.QUEUED in in_sight, InSight.HIDDEN in in_sight
        if rows[0][0] is None:
            return Fetched([], more=False, queued=queued, hidden=hidden)
        jobs = [Job(row, task_ids[row[2]]) for row in rows]
        more = len(jobs) >= count or InSight.MORE in in_sight
        return Fetched(jobs, more=more, queued=queued, hidden=hidden)

    return Query(_GET_JOBS, (pool_id, list(task_ids), count, flags, now), read)
