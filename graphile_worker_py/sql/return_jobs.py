"""Returning jobs that were fetched and not run to an end, with their attempt."""

from collections.abc import Collection, Sequence
from typing import Final

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql.outcomes import BoundRider, ids, record

_RETURN: Final = """
update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
set attempts = greatest(0, jobs.attempts - 1),
  locked_by = null,
  locked_at = null
where jobs.id = any($2::pg_catalog.int8[]) and jobs.locked_by = $1::pg_catalog.text
returning jobs.id, jobs.job_queue_id
"""

# A fetch whose answer was lost may have locked jobs. This reads the whole table, which is why it
# is sent only after such a loss.
_RETURN_UNKNOWN: Final = """
update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
set attempts = greatest(0, jobs.attempts - 1),
  locked_by = null,
  locked_at = null
where jobs.locked_by = $1::pg_catalog.text and jobs.id <> all ($2::pg_catalog.int8[])
returning jobs.id, jobs.job_queue_id
"""


def return_jobs(
    jobs: Sequence[Job], *, pool_id: str, riders: Sequence[BoundRider] = ()
) -> Query[set[int]]:
    """Return jobs and release their queues; the ids of those that were still the pool's."""
    queued = any(job.job_queue_id is not None for job in jobs)
    change = Query(_RETURN, (pool_id, [job.id for job in jobs]), ids)
    return record(change, queued=queued, riders=riders)


def return_unknown_jobs(known_ids: Collection[int], *, pool_id: str) -> Query[set[int]]:
    """Return the jobs that a pool has locked without knowing it; their ids."""
    return record(Query(_RETURN_UNKNOWN, (pool_id, list(known_ids)), ids), queued=True)
