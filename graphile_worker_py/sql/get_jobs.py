"""Fetching: lock the next jobs, and the queues they belong to, for one worker pool."""

from collections.abc import Sequence
from datetime import datetime
from enum import IntFlag
from typing import Any, Final

from graphile_worker_py.job import ID, TASK_ID, Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql import fragments
from graphile_worker_py.sql.task_ids import TaskIds

KNOWN: Final = """
known as materialized (
  select pg_catalog.count(*) = pg_catalog.cardinality($2::pg_catalog.int4[]) as is_right
  from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
  where tasks.id = any($2::pg_catalog.int4[])
    and tasks.identifier = ($6::pg_catalog.text[])[
      pg_catalog.array_position($2::pg_catalog.int4[], tasks.id)
    ]
),
"""

# The jobs `next` become those of the pool.
TAKEN: Final = (
    """
taken as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  set attempts = job.attempts + 1,
    locked_by = $1::pg_catalog.text,
    locked_at = pg_catalog.now()
  where job.id = any (array(select next.id from next))
  returning """  # noqa: S608  # all parts are constants
    + fragments.JOB
    + """
)"""
)
LOCKED: Final = """
locked as (
  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  set locked_by = $1::pg_catalog.text,
    locked_at = pg_catalog.now()
  where queues.id = any (
    array(select taken.job_queue_id from taken where taken.job_queue_id is not null)
  )
)
"""

# Step by step:
#  known     checks that each id still stands for the task that the pool knows by it. Ids change
#            when the schema is dropped and installed again, or its tables are truncated. If one
#            differs, nothing is locked: another task would run the job.
#  sight     the first jobs in order of priority and time, without a queue or of free queues. It
#            locks nothing. It serves to find queues, and has more jobs than needed, because some
#            may turn out to be locked. If no queue is free it is not read, so that jobs that wait
#            for a locked queue cost nothing.
#  free      locks the queues in sight. While a queue's row is locked, its jobs are fetched by this
#            statement only, Node's workers included: two fetches never take jobs of one queue.
#  queued    locks the first jobs of these queues: several of each, because another transaction may
#            have locked the first one.
#  heads     of each queue only the first one, because a queue is serial.
#  unqueued  locks the first jobs without a queue. Their own index has no other jobs: it need not
#            pass over the jobs of queues that stand before them.
#  taken     marks the first ones of both.
#  locked    marks the queues of the jobs that were taken, and no others: a queue that is locked
#            although none of its jobs runs would stand still for hours.
#  found     what was in sight, also if nothing was taken. It is one number, because it comes with
#            each job.
# A job may change between sight and lock, so its conditions are checked again. Columns are named,
# because a prepared plan fails for good once the table has one more.
#
# Three constructs are for the planner, which must read the index in its order and stop at the
# limit, whatever it estimates for the table. Before the table is analysed, `task_id = any(…)` looks
# so selective that all jobs are read and sorted (measured: three times slower at half a million
# jobs); array_position() has no estimate. Ids in an array, instead of a join, are looked up by the
# primary key. `(… in (…)) is true` is looked up in a hash table; without the test it becomes a join
# that compares all with all. See also the settings in planning.py.
_SIGHT: Final = """
sight as materialized (
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
      and (select known.is_right from known)
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
"""
_UNQUEUED: Final = """
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
  where (select known.is_right from known)
    and jobs.job_queue_id is null
    and jobs.is_available = true
    and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
    and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
    and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
"""
_TAKE: Final = (
    """
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
),"""  # noqa: S608  # all parts are constants
    + TAKEN
    + ","
    + LOCKED
    + """,
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
    )::pg_catalog.int4
    + 8 * (known.is_right is not true)::pg_catalog.int4 as in_sight
  from known
)
select taken.*, found.in_sight
from found
left join taken on true
order by taken.priority, taken.run_at, taken.id
"""
)
_FROM_PLACE: Final = """
  and (jobs.priority, jobs.run_at) >= ($7::pg_catalog.int2, $8::pg_catalog.timestamptz)
"""
_GET_JOBS: Final = "with " + KNOWN + _SIGHT + _UNQUEUED + _TAKE
# The same from a place in their order on, because what stands before is left out of the fetch.
_GET_JOBS_SINCE: Final = "with " + KNOWN + _SIGHT + _FROM_PLACE + _UNQUEUED + _FROM_PLACE + _TAKE

# The same for jobs without a queue only, from a place in their order on. The jobs before it were
# fetched a moment ago and most of them are gone, but their index entries stay until a vacuum, and
# each scan from the start would pass over them. After a million jobs that takes longer than all
# else, and many times longer beside an old transaction, to which the jobs may still be visible.
_GET_FURTHER_JOBS: Final = (
    "with "  # noqa: S608  # all parts are constants
    + KNOWN
    + """
next as materialized (
  select jobs.id
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where (select known.is_right from known)
    and jobs.job_queue_id is null
    and jobs.is_available = true
    and (jobs.priority, jobs.run_at) >= ($7::pg_catalog.int2, $8::pg_catalog.timestamptz)
    and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
    and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
    and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
  order by jobs.priority, jobs.run_at
  limit $3::pg_catalog.int4
  for update skip locked
),"""
    + TAKEN
    + """
select taken.*
from taken
order by taken.priority, taken.run_at, taken.id
"""
)

# The same where most queues are free, which the last fetch has shown. The statement above looks at
# every queue there is before it reads the first job: with 10,000 queues that is a third of it. This
# one looks at the queues of the first jobs only, and also locks and sorts fewer rows.
#  head   the first jobs in order, whatever their queues. It locks nothing.
#  free   locks their queues, those that are free.
#  ready  locks those jobs that have no queue or one of these.
#  next   of each queue only the first one.
# If it finds less than was asked for, because too many of the queues are locked or have several
# jobs there, what is missing stands further on: the statement above has to look for it.
_GET_NEAR_JOBS: Final = (
    "with "  # noqa: S608  # all parts are constants
    + KNOWN
    + """
head as materialized (
  select jobs.id, jobs.job_queue_id
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where (select known.is_right from known)
    and jobs.is_available = true
    and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
    and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
    and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
  order by jobs.priority, jobs.run_at
  limit $3::pg_catalog.int4 + $3::pg_catalog.int4 / 4 + 8
),
free as materialized (
  select queues.id
  from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  where queues.is_available = true
    and queues.id = any (
      array(select head.job_queue_id from head where head.job_queue_id is not null)
    )
  for update skip locked
),
ready as materialized (
  select jobs.id, jobs.job_queue_id, jobs.priority, jobs.run_at
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.id = any (
      array(
        select head.id
        from head
        where head.job_queue_id is null
          or (head.job_queue_id in (select free.id from free)) is true
      )
    )
    and (jobs.job_queue_id is null or (jobs.job_queue_id in (select free.id from free)) is true)
    and jobs.is_available = true
    and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
    and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
    and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
  for update skip locked
),
next as (
  select first.id
  from (
    select distinct on (
        ready.job_queue_id, case when ready.job_queue_id is null then ready.id end
      )
      ready.id, ready.priority, ready.run_at
    from ready
    order by
      ready.job_queue_id,
      case when ready.job_queue_id is null then ready.id end,
      ready.priority,
      ready.run_at,
      ready.id
  ) as first
  order by first.priority, first.run_at
  limit $3::pg_catalog.int4
),"""
    + TAKEN
    + ","
    + LOCKED
    + """,
found as (
  select
    1 * exists (select from head where head.job_queue_id is not null)::pg_catalog.int4
    + 4
    + 8 * (known.is_right is not true)::pg_catalog.int4 as in_sight
  from known
)
select taken.*, found.in_sight
from found
left join taken on true
order by taken.priority, taken.run_at, taken.id
"""
)


class InSight(IntFlag):
    """What the statement reports about the jobs in sight."""

    QUEUED = 1
    HIDDEN = 2
    MORE = 4
    TASKS_CHANGED = 8


Place = tuple[int, datetime]
"""Where a job stands in the order of jobs: priority and time."""


class Fetched(Record, kw_only=False):
    """The result of a fetch.

    Args:
        jobs: The jobs, in the order in which they are to run.
        more: Whether the next fetch may return more: this one did not see all jobs.
        queued: Whether jobs of free queues were in sight.
        hidden: Whether another transaction had locked one of these queues.
    """

    jobs: list[Job]
    more: bool
    queued: bool = False
    hidden: bool = False


def get_jobs(
    *,
    pool_id: str,
    task_ids: TaskIds,
    count: int,
    forbidden_flags: Sequence[str] | None,
    now: datetime | None = None,
    after: Place | None = None,
    since: Place | None = None,
    near: bool = False,
) -> Query[Fetched | None]:
    """Lock up to `count` jobs for a pool, in the order in which they are to run.

    At most one job of a queue is among them.

    Args:
        pool_id: The pool.
        task_ids: The tasks whose jobs to fetch.
        count: Most jobs to lock.
        forbidden_flags: Jobs with one of these flags are not fetched; None forbids no flag.
        now: Jobs that are due at this time are fetched; None means the database's time.
        after: Fetch only jobs without a queue, from this place on; None means all jobs.
        since: Fetch jobs with and without a queue, from this place on; None means all jobs.
        near: Fetch from the first few jobs only, which costs less if most queues are free. There
            may be more even if it finds none.

    Returns:
        None if an id no longer stands for its task; nothing is locked then. With `after` the result
        is empty instead.
    """
    flags = list(forbidden_flags) if forbidden_flags else None
    values = (pool_id, task_ids.numbers, count, flags, now, task_ids.identifiers)
    if after is not None:

        def read_further(rows: list[tuple[Any, ...]]) -> Fetched:
            return Fetched([Job(row, task_ids[row[TASK_ID]]) for row in rows], more=True)

        return Query(_GET_FURTHER_JOBS, (*values, *after), read_further)

    def read(rows: list[tuple[Any, ...]]) -> Fetched | None:
        in_sight = InSight(rows[0][-1])
        if InSight.TASKS_CHANGED in in_sight:
            return None
        queued, hidden = InSight.QUEUED in in_sight, InSight.HIDDEN in in_sight
        if rows[0][ID] is None:
            return Fetched([], more=False, queued=queued, hidden=hidden)
        jobs = [Job(row, task_ids[row[TASK_ID]]) for row in rows]
        more = len(jobs) >= count or InSight.MORE in in_sight
        return Fetched(jobs, more=more, queued=queued, hidden=hidden)

    if since is not None:
        return Query(_GET_JOBS_SINCE, (*values, *since), read)
    return Query(_GET_NEAR_JOBS if near else _GET_JOBS, values, read)
