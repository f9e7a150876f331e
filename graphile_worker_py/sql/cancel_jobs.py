"""Cancelling: waiting jobs are deleted, running ones are asked to end and never tried again."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record


class CancelState(StrEnum):
    """What has become of a job that is to be cancelled."""

    CANCELLED = "cancelled"
    """It was waiting, and is deleted."""
    REQUESTED = "requested"
    """It runs in a Python worker pool, which was asked to end it. It is not tried again."""
    RUNNING_ELSEWHERE = "running_elsewhere"
    """It runs in a Node worker, or there is no side schema: it can't be ended, only not retried."""
    NOT_FOUND = "not_found"
    """There is no such job, or no more."""


class Cancellation(Record):
    """What has become of a job that is to be cancelled.

    Attributes:
        job_id: Id of the job.
        state: What has become of it.
    """

    job_id: int
    state: CancelState


# target: locks the jobs first, so that each is in one of the two states for the whole statement.
# waiting: deletes those that no worker has.
# running: does for the others what `remove_job` does: whatever becomes of this attempt, it is the
#   last one, in Node, too.
_CHANGE: Final = """
with target as materialized (
  select job.id, job.locked_at, job.created_at
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  where job.id = any($1::pg_catalog.int8[])
  order by job.id
  for update
),
waiting as (
  delete from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  using target
  where job.id = target.id and target.locked_at is null
  returning
    job.id, job.created_at, job.task_id, job.attempts, job.run_at, job.key, job.job_queue_id
),
running as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  set key = null, attempts = job.max_attempts
  from target
  where job.id = target.id and target.locked_at is not null
  returning job.id, job.created_at, job.locked_by
)
"""

_CANCEL_HERE: Final = (
    _CHANGE
    + """
select waiting.id, 'cancelled' from waiting
union all
select running.id, 'running_elsewhere' from running
"""
)

# runs: what history keeps of waiting jobs.
# requests: tells the pools, of which each reads them with its heartbeat, too.
_CANCEL: Final = (
    _CHANGE  # noqa: S608  # all parts are constants
    + """,
runs as (
  insert into graphile_worker_py.runs_failed (
    worker_schema, job_id, job_created_at, task, attempt, outcome, run_at, finished_at, queue_name,
    key, error
  )
  select
    $2::pg_catalog.text,
    waiting.id,
    waiting.created_at,
    (
      select tasks.identifier
      from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
      where tasks.id = waiting.task_id
    ),
    waiting.attempts,
    'cancelled',
    waiting.run_at,
    pg_catalog.statement_timestamp(),
    (
      select queues.queue_name
      from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
      where queues.id = waiting.job_queue_id
    ),
    waiting.key,
    $3::pg_catalog.text
  from waiting
  returning 1
),
requests as (
  insert into graphile_worker_py.job_state as state (
    worker_schema, job_id, job_created_at, cancel_reason, cancel_by, cancel_at, cancel_grace
  )
  select
    $2::pg_catalog.text,
    running.id,
    running.created_at,
    coalesce($3::pg_catalog.text, ''),
    current_user::pg_catalog.text,
    pg_catalog.now(),
    $4::pg_catalog.float8
  from running
  on conflict (worker_schema, job_id) do update
  set job_created_at = excluded.job_created_at,
    cancel_reason = excluded.cancel_reason,
    cancel_by = excluded.cancel_by,
    cancel_at = excluded.cancel_at,
    cancel_grace = excluded.cancel_grace
  returning 1
),
told as (
  select pg_catalog.pg_notify('graphile_worker_py', pg_catalog.json_build_object(
    's', $2::pg_catalog.text, 't', 'cancel', 'ids', pg_catalog.json_agg(running.id)
  )::pg_catalog.text)
  from running
  having pg_catalog.count(*) > 0
)
select waiting.id, 'cancelled' from waiting
union all
select
  running.id,
  case when exists (
    select
    from graphile_worker_py.pools as pools
    where pools.pool_id = running.locked_by
  ) then 'requested' else 'running_elsewhere' end
from running
where (select pg_catalog.count(*) from told) >= 0
  and (select pg_catalog.count(*) from runs) + (select pg_catalog.count(*) from requests) >= 0
"""
)


def cancel_jobs(
    job_ids: Sequence[int], *, worker_schema: str, reason: str | None, grace: float
) -> Query[list[Cancellation]]:
    """Cancel jobs, and ask the pools that run them to end them.

    Args:
        job_ids: The jobs, at most a few hundred: a notification has their ids.
        worker_schema: Schema of the job tables.
        reason: Why.
        grace: Seconds that a job gets to end after it was asked to.
    """
    values = (list(job_ids), worker_schema, reason, grace)
    return Query(_CANCEL, values, lambda rows: _read(job_ids, rows), prepare=False)


def cancel_jobs_here(job_ids: Sequence[int]) -> Query[list[Cancellation]]:
    """Cancel jobs where there are no tables of history: no pool is asked."""
    return Query(_CANCEL_HERE, (list(job_ids),), lambda rows: _read(job_ids, rows), prepare=False)


def _read(job_ids: Sequence[int], rows: list[tuple[Any, ...]]) -> list[Cancellation]:
    found = {row[0]: CancelState(row[1]) for row in rows}
    return [
        Cancellation(job_id=job_id, state=found.get(job_id, CancelState.NOT_FOUND))
        for job_id in job_ids
    ]


class CancelRequest(Record):
    """A running job that is to end.

    Attributes:
        job_id: Id of the job.
        reason: Why; None if no reason was given.
        grace: Seconds that it gets to end after it was asked to.
    """

    job_id: int
    reason: str | None
    grace: float


_READ_REQUESTS: Final = """
select state.job_id, state.cancel_reason, state.cancel_grace
from graphile_worker_py.job_state as state
join :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  on job.id = state.job_id
  and job.created_at = state.job_created_at
  and job.locked_by = $3::pg_catalog.text
where state.worker_schema = $1::pg_catalog.text
  and state.job_id = any($2::pg_catalog.int8[])
  and state.cancel_at is not null
"""


def read_cancel_requests(
    worker_schema: str, job_ids: Sequence[int], *, pool_id: str
) -> Query[list[CancelRequest]]:
    """Which of a pool's running jobs are to end."""
    return Query(
        _READ_REQUESTS,
        (worker_schema, list(job_ids), pool_id),
        lambda rows: [
            CancelRequest(job_id=row[0], reason=row[1] or None, grace=row[2]) for row in rows
        ],
    )


# Of jobs whose pool has died, or that failed before they were asked: they are not tried again.
_DELETE_LEFT: Final = """
with target as materialized (
  select job.id, state.cancel_reason
  from graphile_worker_py.job_state as state
  join :GRAPHILE_WORKER_SCHEMA._private_jobs as job
    on job.id = state.job_id and job.created_at = state.job_created_at
  where state.worker_schema = $1::pg_catalog.text
    and state.cancel_at is not null
    and job.locked_at is null
    and job.attempts >= job.max_attempts
  limit $2::pg_catalog.int8
  for update of job skip locked
),
gone as (
  delete from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  using target
  where job.id = target.id and job.locked_at is null
  returning job.id, job.created_at, job.task_id, job.attempts, job.run_at, target.cancel_reason
)
insert into graphile_worker_py.runs_failed (
  worker_schema, job_id, job_created_at, task, attempt, outcome, run_at, finished_at, error
)
select
  $1::pg_catalog.text,
  gone.id,
  gone.created_at,
  (
    select tasks.identifier
    from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
    where tasks.id = gone.task_id
  ),
  gone.attempts,
  'cancelled',
  gone.run_at,
  pg_catalog.statement_timestamp(),
  nullif(gone.cancel_reason, '')
from gone
returning 1
"""


def delete_cancelled(worker_schema: str, *, limit: int) -> Query[int]:
    """Delete jobs that were cancelled and lost their worker; returns how many."""
    return Query(_DELETE_LEFT, (worker_schema, limit), len, prepare=False)
