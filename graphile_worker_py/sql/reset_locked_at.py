"""The sweep: locks older than four hours are taken from whoever held them."""

from datetime import datetime
from typing import Final

from graphile_worker_py.postgres.query import Query

_RESET: Final = """
with jobs_reset as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set locked_by = null,
    locked_at = null,
    run_at = greatest(jobs.run_at, coalesce($1::timestamptz, now()))
  where jobs.locked_at < coalesce($1::timestamptz, now()) - interval '4 hours'
  returning jobs.id
),
queues_reset as (
  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  set locked_by = null,
    locked_at = null
  where queues.locked_at < coalesce($1::timestamptz, now()) - interval '4 hours'
)
select jobs_reset.id from jobs_reset
"""


def reset_locked_at(now: datetime | None = None) -> Query[list[int]]:
    """Free all jobs and queues that were locked more than four hours ago; the ids of the jobs.

    `now` is the time to reckon from; None means that of the database.
    """
    return Query(_RESET, (now,), lambda rows: [row[0] for row in rows])
