"""Trying jobs again that have failed: with all their attempts, at once."""

from typing import Any, Final

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import fragments

# The SQL function leaves jobs alone that are running. Workers are told, so that they need not wait
# for the next poll.
_RETRY: Final = (
    """
with retried as materialized (
  select"""  # noqa: S608  # all parts are constants
    + fragments.JOB
    + """
  from :GRAPHILE_WORKER_SCHEMA.reschedule_jobs(
    job_ids => $1::pg_catalog.int8[],
    run_at => pg_catalog.now(),
    attempts => 0
  ) as job
),
told as (
  select pg_catalog.pg_notify('jobs:insert', pg_catalog.json_build_object(
    'r', pg_catalog.random(), 'count', pg_catalog.count(*)
  )::pg_catalog.text)
  from retried
  having pg_catalog.count(*) > 0
)
select retried.*, tasks.identifier
from retried
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = retried.task_id
where (select pg_catalog.count(*) from told) >= 0
order by retried.id
"""
)

_FIND: Final = """
select job.id
from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
where job.locked_at is null
  and case $1::pg_catalog.text
    when 'failed' then job.attempts >= job.max_attempts
    else job.attempts > 0 and job.attempts < job.max_attempts
  end
  and ($2::pg_catalog.text is null or job.task_id = (
    select tasks.id
    from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
    where tasks.identifier = $2::pg_catalog.text
  ))
  and ($3::pg_catalog.text is null or job.last_error like $3::pg_catalog.text)
order by job.id
limit $4::pg_catalog.int8
"""


def retry_jobs(job_ids: list[int]) -> Query[list[Job]]:
    """Give jobs all their attempts again, due now; those that are not running."""

    def read(rows: list[tuple[Any, ...]]) -> list[Job]:
        return [Job(row[:-1], row[-1] or "") for row in rows]

    return Query(_RETRY, (job_ids,), read, prepare=False)


def find_failed(*, state: str, task: str | None, error: str | None, limit: int) -> Query[list[int]]:
    """The ids of jobs that have failed, the oldest first.

    Args:
        state: `failed`: no attempts are left; `retrying`: failed at least once.
        task: Identifier of their task; None means any.
        error: Pattern of SQL's LIKE for their last error; None means any.
        limit: How many at the most.
    """
    values = (state, task, error, limit)
    return Query(_FIND, values, lambda rows: [row[0] for row in rows], prepare=False)
