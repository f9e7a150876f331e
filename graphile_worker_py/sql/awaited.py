"""Jobs that are awaited: their runs are kept because a program waits for their end."""

from collections.abc import Sequence
from typing import Final

from graphile_worker_py.postgres.query import Query, no_result

KEPT_FOR: Final = 24 * 3600.0
"""Seconds for which a job that has failed for good stays awaited: it may be tried again."""

_ARE_AWAITED: Final = """
select exists (
  select
  from graphile_worker_py.awaited as awaited
  where awaited.worker_schema = $1::pg_catalog.text
)
"""


def are_awaited(worker_schema: str) -> Query[bool]:
    """Whether any job is awaited."""
    return Query(_ARE_AWAITED, (worker_schema,), lambda rows: bool(rows[0][0]))


# The end of a job whose row is gone is recorded. A job that has failed for good may be tried again.
_FORGET: Final = """
delete from graphile_worker_py.awaited as awaited
where awaited.worker_schema = $1::pg_catalog.text
  and awaited.job_id = any(array(
    select over.job_id
    from graphile_worker_py.awaited as over
    where over.worker_schema = $1::pg_catalog.text
      and not exists (
        select
        from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
        where job.id = over.job_id
          and job.created_at = over.job_created_at
          and (
            over.until > pg_catalog.now()
            or job.attempts < job.max_attempts
            or job.locked_at is not null
          )
      )
    limit $2::pg_catalog.int8
  ))
returning 1
"""


def forget_awaited(worker_schema: str, *, limit: int) -> Query[int]:
    """Delete rows of jobs that are no longer awaited, at most `limit`; returns how many."""
    return Query(_FORGET, (worker_schema, limit), len, prepare=False)


# Pools learn it at once, and keep the runs of these jobs.
_AWAIT: Final = """
with added as (
  insert into graphile_worker_py.awaited as awaited (
    worker_schema, job_id, job_created_at, until
  )
  select
    $1::pg_catalog.text,
    job.id,
    job.created_at,
    pg_catalog.now() + $3::pg_catalog.float8 * interval '1 second'
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  where job.id = any($2::pg_catalog.int8[])
  order by job.id
  on conflict (worker_schema, job_id) do update
  set job_created_at = excluded.job_created_at,
    until = greatest(awaited.until, excluded.until)
  returning 1
)
select pg_catalog.pg_notify('graphile_worker_py', pg_catalog.json_build_object(
  's', $1::pg_catalog.text, 't', 'await'
)::pg_catalog.text)
from added
having pg_catalog.count(*) > 0
"""


def await_jobs(
    worker_schema: str, job_ids: Sequence[int], *, seconds: float = KEPT_FOR
) -> Query[None]:
    """Have a record kept of the end of these jobs."""
    return Query(_AWAIT, (worker_schema, list(job_ids), seconds), no_result, prepare=False)
