"""Long jobs: their locks are made young, lest they be taken for those of a dead worker."""

from collections.abc import Sequence
from typing import Final

from graphile_worker_py.db import Query

# After four hours any worker, of Node too, would free them.
_RENEW: Final = """
with renewed as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set locked_at = now()
  where jobs.id = any($2::int8[])
    and jobs.locked_by = $1::text
    and jobs.locked_at < now() - interval '1 hour'
  returning jobs.id, jobs.job_queue_id
),
renewed_queues as (
  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  set locked_at = now()
  where queues.id = any (
      array(select renewed.job_queue_id from renewed where renewed.job_queue_id is not null)
    )
    and queues.locked_by = $1::text
)
select renewed.id from renewed
"""


def renew_locks(pool_id: str, job_ids: Sequence[int]) -> Query[list[int]]:
    """Renew the locks of a pool's jobs, and of their queues, that are older than an hour."""
    return Query(
        _RENEW, (pool_id, list(job_ids)), lambda rows: [row[0] for row in rows], seldom=True
    )
