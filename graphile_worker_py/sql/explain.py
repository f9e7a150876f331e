"""What stands between a job and its run: the facts that `explaining` makes reasons of."""

from dataclasses import fields
from datetime import datetime
from typing import Any, Final

from graphile_worker_py.checks import check_job_id
from graphile_worker_py.job import LOCK_LIFETIME, from_timestamp
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql import fragments

MOST_AHEAD: Final = 10_000
"""How many jobs before a job are counted at most."""


class JobFacts(Record):
    """A job as far as it matters for when it runs. Durations are seconds.

    Args:
        state: Its state, as `JobState` has it.
        task: Identifier of its task; empty if the row of the task was deleted.
        flags: Its flags.
        attempts: How often it was fetched.
        max_attempts: How often it may be.
        run_at: When it is due.
        due_in: Seconds until then; negative if it is due.
        last_error: Its last error.
        locked_by: The pool that has locked it.
        locked_for: Since how long.
        queue_name: Its queue.
        queue_locked_by: The pool that has locked its queue.
        queue_locked_for: Since how long.
        queue_runs: Id of the job of its queue that is locked.
        ahead: How many jobs are before it, at most `MOST_AHEAD`.
        lock_lifetime: Seconds after which a lock counts as abandoned.
    """

    state: str
    task: str
    flags: list[str]
    attempts: int
    max_attempts: int
    run_at: datetime
    due_in: float
    last_error: str | None
    locked_by: str | None
    locked_for: float | None
    queue_name: str | None
    queue_locked_by: str | None
    queue_locked_for: float | None
    queue_runs: int | None
    ahead: int
    lock_lifetime: float = LOCK_LIFETIME


# The jobs before it are read from the index that fetches use, and only if it is ready. No index
# helps to find the job of the queue that runs, so it is looked for among the newest 20,000 jobs,
# and only if the queue is locked.
_FACTS: Final = (
    "select"  # noqa: S608  # all parts are constants
    + fragments.STATE
    + """,
  coalesce(tasks.identifier, ''),
  array(
    select flags.flag
    from pg_catalog.jsonb_object_keys(coalesce(job.flags, '{}')) as flags (flag)
    order by flags.flag
  ),
  job.attempts,
  job.max_attempts,
  job.run_at,
  extract(epoch from job.run_at - pg_catalog.now())::pg_catalog.float8,
  job.last_error,
  job.locked_by,
  extract(epoch from pg_catalog.now() - job.locked_at)::pg_catalog.float8,
  queues.queue_name,
  queues.locked_by,
  extract(epoch from pg_catalog.now() - queues.locked_at)::pg_catalog.float8,
  (
    select runs.id
    from (
      select others.id, others.job_queue_id, others.locked_at
      from :GRAPHILE_WORKER_SCHEMA._private_jobs as others
      where queues.locked_at is not null
      order by others.id desc
      limit 20000
    ) as runs
    where runs.job_queue_id = job.job_queue_id and runs.locked_at is not null
    limit 1
  ),
  (
    select pg_catalog.count(*)
    from (
      select
      from :GRAPHILE_WORKER_SCHEMA._private_jobs as others
      where job.is_available
        and job.run_at <= pg_catalog.now()
        and others.is_available = true
        and others.run_at <= pg_catalog.now()
        and (others.priority, others.run_at) < (job.priority, job.run_at)
      limit $2::pg_catalog.int8
    ) as ahead
  )
from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = job.task_id
left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues on queues.id = job.job_queue_id
where job.id = $1::pg_catalog.int8
"""
)


def read_facts(job_id: int | str) -> Query[JobFacts | None]:
    """Read what matters for when a job runs; None if there is no such job."""
    return Query(_FACTS, (check_job_id("id", job_id), MOST_AHEAD), _read_facts, prepare=False)


def _read_facts(rows: list[tuple[Any, ...]]) -> JobFacts | None:
    if not rows:
        return None
    columns = (each.name for each in fields(JobFacts) if each.name != "lock_lifetime")
    facts: dict[str, Any] = dict(zip(columns, rows[0], strict=True))
    facts["run_at"] = from_timestamp(facts["run_at"])
    return JobFacts(**facts)


_CRASHES: Final = """
select suspects.crashes
from graphile_worker_py.suspects as suspects
where suspects.worker_schema = $1::pg_catalog.text and suspects.job_id = $2::pg_catalog.int8
"""


def read_crashes(worker_schema: str, job_id: int | str) -> Query[int]:
    """Read how often a worker died under a job; an error where the side schema is missing."""
    values = (worker_schema, check_job_id("id", job_id))
    return Query(_CRASHES, values, lambda rows: rows[0][0] if rows else 0, prepare=False)


# The first jobs of each task are read from the index that fetches use; a loose scan of it would
# need the task in front. So the newest ids are looked at, which is bounded.
_DUE_TASKS: Final = """
select distinct tasks.identifier
from (
  select jobs.task_id
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.is_available = true and jobs.run_at <= pg_catalog.now()
  order by jobs.priority, jobs.run_at
  limit 20000
) as due
join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = due.task_id
order by 1
"""


def read_due_tasks() -> Query[list[str]]:
    """Read which tasks the first 20,000 due jobs have."""
    return Query(_DUE_TASKS, (), lambda rows: [row[0] for row in rows], prepare=False)
