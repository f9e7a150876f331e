"""Giving back jobs that were fetched and not run to an end, with their attempt."""

from collections.abc import Collection, Sequence
from typing import Final

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import fragments
from graphile_worker_py.sql.complete_jobs import ids

_RETURN: Final = (
    """
with changed as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set attempts = greatest(0, jobs.attempts - 1),
    locked_by = null,
    locked_at = null
  where jobs.id = any($2::int8[]) and jobs.locked_by = $1::text
  returning jobs.id, jobs.job_queue_id
),
"""  # noqa: S608  # all parts are constants
    + fragments.UNLOCK_QUEUES
    + "select changed.id from changed"
)


def return_jobs(jobs: Sequence[Job], *, pool_id: str) -> Query[set[int]]:
    """Give back jobs of a pool and free their queues; the ids that were still the pool's."""
    return Query(_RETURN, (pool_id, [job.id for job in jobs]), ids)


# A fetch whose answer was lost may have locked jobs all the same. This reads the whole table,
# which is why it is sent only after such a loss.
_RETURN_UNKNOWN: Final = (
    """
with changed as (
  update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  set attempts = greatest(0, jobs.attempts - 1),
    locked_by = null,
    locked_at = null
  where jobs.locked_by = $1::text and jobs.id <> all ($2::int8[])
  returning jobs.id, jobs.job_queue_id
),
"""  # noqa: S608  # all parts are constants
    + fragments.UNLOCK_QUEUES
    + "select changed.id from changed"
)


def return_unknown_jobs(known_ids: Collection[int], *, pool_id: str) -> Query[set[int]]:
    """Give back the jobs that a pool has locked without knowing of it; their ids."""
    return Query(_RETURN_UNKNOWN, (pool_id, list(known_ids)), ids)
