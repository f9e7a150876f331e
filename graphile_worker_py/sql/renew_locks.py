"""Refresh the locks of long-running jobs, so that they do not look abandoned."""

from collections.abc import Sequence
from typing import Final

from graphile_worker_py.postgres.query import Query, no_result

# Any worker, Node's too, frees a lock that is older than `LOCK_LIFETIME`.
_READ_OLD: Final = """
select exists (
  select
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues on queues.id = jobs.job_queue_id
  where jobs.id = any($2::pg_catalog.int8[])
    and jobs.locked_by = $1::pg_catalog.text
    and (
      jobs.locked_at < pg_catalog.now() - interval '1 hour'
      or (
        queues.locked_by = $1::pg_catalog.text
        and queues.locked_at < pg_catalog.now() - interval '1 hour'
      )
    )
)
"""


def read_old_locks(pool_id: str, job_ids: Sequence[int]) -> Query[bool]:
    """Read whether locks of a pool's jobs, or of their queues, are older than an hour."""
    return Query(_READ_OLD, (pool_id, list(job_ids)), lambda rows: bool(rows[0][0]), prepare=False)


# Rows that another session has locked are skipped; they are refreshed next time.
_RENEW: Final = """
with old as (
  select jobs.id
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.id = any($2::pg_catalog.int8[])
    and jobs.locked_by = $1::pg_catalog.text
    and jobs.locked_at < pg_catalog.now() - interval '1 hour'
  for update skip locked
),
old_queues as (
  select queues.id
  from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  where queues.id = any (
      array(
        select jobs.job_queue_id
        from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
        where jobs.id = any($2::pg_catalog.int8[]) and jobs.locked_by = $1::pg_catalog.text
      )
    )
    and queues.locked_by = $1::pg_catalog.text
    and queues.locked_at < pg_catalog.now() - interval '1 hour'
  for update skip locked
),
renewed as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set locked_at = pg_catalog.now()
  where jobs.id = any (array(select old.id from old))
)
update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
set locked_at = pg_catalog.now()
where queues.id = any (array(select old_queues.id from old_queues))
"""


def renew_locks(pool_id: str, job_ids: Sequence[int]) -> Query[None]:
    """Refresh the locks of a pool's jobs, and of their queues, that are older than an hour."""
    return Query(_RENEW, (pool_id, list(job_ids)), no_result, prepare=False)
