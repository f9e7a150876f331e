"""Statements that write runs, as a part of those that record outcomes.

Each is given the batch as arrays, of which an empty one counts as nulls. A job whose run is not to
be kept in any case has `keep` false; its run is kept if it is awaited, with its result. Programs
that wait for a job are notified in the same transaction. Times are the server's: `age` is how many
seconds ago the job ended.
"""

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Final

from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.records import Record
from graphile_worker_py.sql.outcomes import BoundRider
from graphile_worker_py.sql.suspects import HeldJob
from graphile_worker_py.sql.task_ids import TaskIds

_TRACE_ID: Final = """
  case when changed.flags is not null then (
    select pg_catalog.split_part(flags.flag, '-', 2)
    from pg_catalog.jsonb_object_keys(changed.flags) as flags (flag)
    where pg_catalog.starts_with(flags.flag, 'traceparent:')
    limit 1
  ) end
"""
_QUEUE_NAME: Final = """
  case when changed.job_queue_id is not null then (
    select queues.queue_name
    from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
    where queues.id = changed.job_queue_id
  ) end
"""
# The planner takes `changed` for one row, and would compare each job with each run: 50 ms for 500
# jobs. A full join can only be made by hashing or merging. It must not see that rows without a
# partner are left out again, or it makes an inner join of it; so the test is one that does not look
# as if it needed values. (Measured with 500 jobs: 6 µs each instead of 60.)
_KEPT: Final = """
left join graphile_worker_py.awaited as awaited
  on $r3::pg_catalog.bool
  and awaited.worker_schema = $r1::pg_catalog.text
  and awaited.job_id = changed.id
  and awaited.job_created_at = changed.created_at
where coalesce(changed.id, -1) = coalesce(run.job_id, -2)
  and (coalesce(run.keep, true) or awaited.job_id is not null)
returning case when $r3::pg_catalog.bool and exists (
  select
  from graphile_worker_py.awaited as awaited
  where awaited.worker_schema = runs.worker_schema
    and awaited.job_id = runs.job_id
    and awaited.job_created_at = runs.job_created_at
) then pg_catalog.pg_notify('graphile_worker_py', pg_catalog.json_build_object(
  's', runs.worker_schema, 't', 'ended', 'id', runs.job_id
)::pg_catalog.text) end
"""

# A job that was to be cancelled has all its attempts used up, so the one that it ran as is given.
_COMPLETED: Final = (
    """
insert into graphile_worker_py.runs_completed as runs (
  worker_schema, job_id, job_created_at, task, attempt, outcome, run_at, started_at, finished_at,
  duration, pool_id, queue_name, key, result, result_omitted, logs, payload, trace_id
)
select
  $r1::pg_catalog.text,
  changed.id,
  changed.created_at,
  coalesce(
    ($r6::pg_catalog.text[])[pg_catalog.array_position($r5::pg_catalog.int4[], changed.task_id)],
    (
      select tasks.identifier
      from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
      where tasks.id = changed.task_id
    ),
    ''
  ),
  coalesce(run.attempt, changed.attempts),
  'completed',
  changed.run_at,
  pg_catalog.statement_timestamp() - (run.age + run.duration) * interval '1 second',
  pg_catalog.statement_timestamp() - run.age * interval '1 second',
  run.duration,
  $r2::pg_catalog.text,"""  # noqa: S608  # all parts are constants
    + _QUEUE_NAME
    + """,
  changed.key,
  case when run.keep_result or awaited.job_id is not null then run.result::pg_catalog.json end,
  case when run.keep_result or awaited.job_id is not null then run.omitted end,
  run.logs,
  case when $r4::pg_catalog.bool then changed.payload end,"""
    + _TRACE_ID
    + """
from changed
full join rows from (
  pg_catalog.unnest($r7::pg_catalog.int8[]),
  pg_catalog.unnest($r8::pg_catalog.float8[]),
  pg_catalog.unnest($r9::pg_catalog.float8[]),
  pg_catalog.unnest($r10::pg_catalog.bool[]),
  pg_catalog.unnest($r11::pg_catalog.bool[]),
  pg_catalog.unnest($r12::pg_catalog.text[]),
  pg_catalog.unnest($r13::pg_catalog.text[]),
  pg_catalog.unnest($r14::pg_catalog.text[]),
  pg_catalog.unnest($r15::pg_catalog.int4[])
) as run (job_id, duration, age, keep, keep_result, result, omitted, logs, attempt)
  on run.job_id = changed.id
"""
    + _KEPT
)

# The change has set `run_at` and perhaps the payload anew, so the old ones are given.
_FAILED: Final = (
    """
insert into graphile_worker_py.runs_failed as runs (
  worker_schema, job_id, job_created_at, task, attempt, outcome, run_at, started_at, finished_at,
  duration, pool_id, queue_name, key, error, error_group, logs, payload, trace_id
)
select
  $r1::pg_catalog.text,
  changed.id,
  changed.created_at,
  run.task,
  run.attempt,
  run.outcome,
  run.run_at,
  pg_catalog.statement_timestamp() - (run.age + run.duration) * interval '1 second',
  pg_catalog.statement_timestamp() - run.age * interval '1 second',
  run.duration,
  $r2::pg_catalog.text,"""  # all parts are constants
    + _QUEUE_NAME
    + """,
  changed.key,
  run.error,
  run.error_group,
  run.logs,
  run.payload::pg_catalog.json,"""
    + _TRACE_ID
    + """
from changed
full join rows from (
  pg_catalog.unnest($r4::pg_catalog.int8[]),
  pg_catalog.unnest($r5::pg_catalog.float8[]),
  pg_catalog.unnest($r6::pg_catalog.float8[]),
  pg_catalog.unnest($r7::pg_catalog.bool[]),
  pg_catalog.unnest($r8::pg_catalog.text[]),
  pg_catalog.unnest($r9::pg_catalog.int4[]),
  pg_catalog.unnest($r10::pg_catalog.text[]),
  pg_catalog.unnest($r11::pg_catalog.timestamptz[]),
  pg_catalog.unnest($r12::pg_catalog.text[]),
  pg_catalog.unnest($r13::pg_catalog.text[]),
  pg_catalog.unnest($r14::pg_catalog.text[]),
  pg_catalog.unnest($r15::pg_catalog.text[])
) as run (
  job_id, duration, age, keep, task, attempt, outcome, run_at, error, error_group, logs, payload
) on run.job_id = changed.id
"""
    + _KEPT
)


def completed_runs(
    *,
    worker_schema: str,
    pool_id: str,
    awaited: bool,
    payloads: bool,
    tasks: TaskIds,
    ids: str,
    durations: str,
    ages: str,
    attempts: str,
    keep: Sequence[bool] = (),
    keep_result: Sequence[bool] = (),
    results: Sequence[str | None] = (),
    omitted: Sequence[str | None] = (),
    logs: Sequence[str | None] = (),
    covers: int | None = None,
) -> BoundRider:
    """Write runs of completed jobs.

    Args:
        worker_schema: The schema of the jobs.
        pool_id: The pool that ran them.
        awaited: Whether programs may be waiting for some of them.
        payloads: Whether payloads are kept.
        tasks: The tasks that the pool knows.
        ids: The jobs, as PostgreSQL writes an array; so are the next three.
        durations: Seconds that they ran.
        ages: Seconds since they ended.
        attempts: The attempts as which they ran.
        keep: Whether a run is kept in any case; empty means that all are.
        keep_result: Whether a result is kept in any case; empty means that none is.
        results: What they returned, as JSON.
        omitted: Why a result is missing.
        logs: What they logged.
        covers: As for `BoundRider`.
    """
    about = (worker_schema, pool_id, awaited, payloads, tasks.numbers, tasks.identifiers)
    values = (*about, ids, durations, ages)
    columns = [list(column) for column in (keep, keep_result, results, omitted, logs)]
    return BoundRider(_COMPLETED, (*values, *columns, attempts), covers)


class EndedRun(Record):
    """An attempt that ended, and not with success; see `JobRun` and the top of this module."""

    job_id: int
    duration: float
    age: float
    keep: bool
    task: str
    attempt: int
    outcome: str
    run_at: datetime
    error: str | None
    error_group: str | None
    logs: str | None
    payload: str | None


def failed_runs(
    runs: Sequence[EndedRun],
    *,
    worker_schema: str,
    pool_id: str,
    awaited: bool,
    covers: int | None = None,
) -> BoundRider:
    """Write runs of jobs that did not complete."""
    columns = [[getattr(run, each.name) for run in runs] for each in fields(EndedRun)]
    return BoundRider(_FAILED, (worker_schema, pool_id, awaited, *columns), covers)


# A job that is given up has its row, too; recovery has changed `attempts` by then.
_KILLED: Final = """
insert into graphile_worker_py.runs_failed (
  worker_schema, job_id, job_created_at, task, attempt, outcome, run_at, started_at, finished_at,
  pool_id, queue_name, key, error, error_group, payload
)
select
  $1::pg_catalog.text,
  jobs.id,
  jobs.created_at,
  tasks.identifier,
  killed.attempt,
  'killed',
  jobs.run_at,
  killed.locked_at,
  pg_catalog.now(),
  killed.pool_id,
  queues.queue_name,
  jobs.key,
  killed.error,
  'killed',
  case when $3::pg_catalog.bool then jobs.payload end
from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
join rows from (
  pg_catalog.unnest($4::pg_catalog.int8[]),
  pg_catalog.unnest($5::pg_catalog.int4[]),
  pg_catalog.unnest($6::pg_catalog.timestamptz[]),
  pg_catalog.unnest($7::pg_catalog.text[]),
  pg_catalog.unnest($8::pg_catalog.text[])
) as killed (job_id, attempt, locked_at, pool_id, error) on killed.job_id = jobs.id
join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = jobs.task_id
left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues on queues.id = jobs.job_queue_id
where tasks.identifier <> all ($2::pg_catalog.text[])
  or exists (
    select
    from graphile_worker_py.awaited as awaited
    where awaited.worker_schema = $1::pg_catalog.text
      and awaited.job_id = jobs.id
      and awaited.job_created_at = jobs.created_at
  )
"""


def killed_runs(
    killed: Sequence[tuple[HeldJob, str]],
    *,
    worker_schema: str,
    unkept_tasks: Sequence[str],
    payloads: bool,
) -> Query[None]:
    """Write runs of jobs under which their worker died, each with the message that says so."""
    columns = (
        [job.job_id for job, _ in killed],
        [job.attempt for job, _ in killed],
        [job.locked_at for job, _ in killed],
        [job.pool_id for job, _ in killed],
        [message for _, message in killed],
    )
    values = (worker_schema, list(unkept_tasks), payloads, *columns)
    return Query(_KILLED, values, no_result, prepare=False)
