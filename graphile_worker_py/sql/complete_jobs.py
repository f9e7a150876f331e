"""Recording success: the jobs are deleted, their queues are free again."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import fragments

# Only jobs that are still ours: one that was taken from us, and is maybe running elsewhere, stays.
_COMPLETE: Final = """
delete from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
where jobs.id = any($2::int8[]) and jobs.locked_by = $1::text
returning jobs.id
"""

_COMPLETE_QUEUED: Final = (
    """
with changed as (
  delete from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.id = any($2::int8[]) and jobs.locked_by = $1::text
  returning jobs.id, jobs.job_queue_id
),
"""  # noqa: S608  # all parts are constants
    + fragments.UNLOCK_QUEUES
    + "select changed.id from changed"
)


def complete_jobs(jobs: Sequence[Job], *, pool_id: str) -> Query[set[int]]:
    """Delete jobs of a pool and free their queues; the ids that were still the pool's."""
    queued = any(job.job_queue_id is not None for job in jobs)
    text = _COMPLETE_QUEUED if queued else _COMPLETE
    return Query(text, (pool_id, id_array(jobs)), ids)


def ids(rows: list[tuple[Any, ...]]) -> set[int]:
    """Read the first column."""
    return {row[0] for row in rows}


def id_array(jobs: Iterable[Job]) -> str:
    """The jobs' ids as PostgreSQL writes an array; quicker than a list is sent."""
    return "{" + ",".join([str(job.id) for job in jobs]) + "}"
