"""What is known of jobs while they have their rows: progress, cursors, requests to cancel."""

from typing import Final

from graphile_worker_py.postgres.query import Query, no_result

_FORGET_GONE: Final = """
delete from graphile_worker_py.job_state as states
where states.worker_schema = $1::pg_catalog.text
  and states.job_id = any(array(
    select gone.job_id
    from graphile_worker_py.job_state as gone
    where gone.worker_schema = $1::pg_catalog.text
      and not exists (
        select
        from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
        where jobs.id = gone.job_id and jobs.created_at = gone.job_created_at
      )
    limit $2::pg_catalog.int8
  ))
"""


def forget_gone(worker_schema: str, *, limit: int) -> Query[None]:
    """Delete rows of jobs that are gone, at most `limit`."""
    return Query(_FORGET_GONE, (worker_schema, limit), no_result, prepare=False)
