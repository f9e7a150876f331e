"""The sweep: free jobs and queues whose locks are so old that they count as abandoned."""

from datetime import datetime
from typing import Final

from graphile_worker_py.job import LOCK_LIFETIME
from graphile_worker_py.postgres.query import Query

_RESET: Final = """
with jobs_reset as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set locked_by = null,
    locked_at = null,
    run_at = greatest(jobs.run_at, coalesce($1::pg_catalog.timestamptz, pg_catalog.now()))
  where jobs.locked_at
    < coalesce($1::pg_catalog.timestamptz, pg_catalog.now())
      - $2::pg_catalog.float8 * interval '1 second'
  returning jobs.id
),
queues_reset as (
  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  set locked_by = null,
    locked_at = null
  where queues.locked_at
    < coalesce($1::pg_catalog.timestamptz, pg_catalog.now())
      - $2::pg_catalog.float8 * interval '1 second'
)
select jobs_reset.id from jobs_reset
"""


def reset_locked_at(now: datetime | None = None) -> Query[list[int]]:
    """Free all jobs and queues whose locks are older than `LOCK_LIFETIME`.

    Args:
        now: The current time; None means that of the database.

    Returns:
        The ids of the jobs.
    """
    return Query(_RESET, (now, LOCK_LIFETIME), lambda rows: [row[0] for row in rows])
