"""Snoozing: the jobs are available again, with their attempt, after a delay."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql.outcomes import BoundRider, ids, record

_SNOOZE: Final = """
update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
set run_at = coalesce(snooze.due, pg_catalog.now() + snooze.delay * interval '1 second'),
  attempts = greatest(0, jobs.attempts - 1),
  locked_by = null,
  locked_at = null
from rows from (
  pg_catalog.unnest($2::pg_catalog.int8[]),
  pg_catalog.unnest($3::pg_catalog.float8[]),
  pg_catalog.unnest($4::pg_catalog.timestamptz[])
) as snooze (job_id, delay, due)
where jobs.id = snooze.job_id and jobs.locked_by = $1::pg_catalog.text
returning jobs.id, jobs.job_queue_id
"""


def snooze_jobs(
    snoozes: Sequence[tuple[Job, float | datetime]],
    *,
    pool_id: str,
    riders: Sequence[BoundRider] = (),
) -> Query[set[int]]:
    """Snooze jobs and release their queues; the ids of those that were still the pool's.

    Args:
        snoozes: Jobs, each with the seconds until it is due, or when it is due.
        pool_id: Id of the pool.
        riders: What else is part of the statement.
    """
    queued = any(job.job_queue_id is not None for job, _ in snoozes)
    values = (
        pool_id,
        [job.id for job, _ in snoozes],
        [None if isinstance(delay, datetime) else delay for _, delay in snoozes],
        [delay if isinstance(delay, datetime) else None for _, delay in snoozes],
    )
    return record(Query(_SNOOZE, values, ids), queued=queued, riders=riders)
