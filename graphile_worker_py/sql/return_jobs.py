"""Returning jobs that were fetched and not run to an end."""

from collections.abc import Collection, Sequence
from typing import Final

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query, array_text
from graphile_worker_py.sql.complete_jobs import id_array
from graphile_worker_py.sql.outcomes import BoundRider, ids, record

# A job that was removed or replaced through its key since the fetch has lost key and attempts, and
# must not get an attempt back: it would run again.
_RETURN: Final = """
update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
set attempts = case
    when jobs.attempts = fetched.attempts and jobs.key is not distinct from fetched.key
    then greatest(0, jobs.attempts - 1)
    else jobs.attempts
  end,
  locked_by = null,
  locked_at = null
from rows from (
  pg_catalog.unnest($2::pg_catalog.int8[]),
  pg_catalog.unnest($3::pg_catalog.int2[]),
  pg_catalog.unnest($4::pg_catalog.text[])
) as fetched (id, attempts, key)
where jobs.id = fetched.id and jobs.locked_by = $1::pg_catalog.text
returning jobs.id, jobs.job_queue_id
"""

# A fetch whose answer was lost may have locked jobs. What they were at the fetch is unknown; but
# removing or replacing a job sets `updated_at`, and a fetch does not. This reads the whole table,
# which is why it is sent only after such a loss.
_RETURN_UNKNOWN: Final = """
update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
set attempts = case
    when jobs.key is null
      and jobs.attempts >= jobs.max_attempts
      and jobs.updated_at > jobs.locked_at
    then jobs.attempts
    else greatest(0, jobs.attempts - 1)
  end,
  locked_by = null,
  locked_at = null
where jobs.locked_by = $1::pg_catalog.text and jobs.id <> all ($2::pg_catalog.int8[])
returning jobs.id, jobs.job_queue_id
"""


def return_jobs(
    jobs: Sequence[Job], *, pool_id: str, riders: Sequence[BoundRider] = ()
) -> Query[set[int]]:
    """Return jobs and release their queues; the ids of those that were still the pool's.

    A job gets its attempt back, unless it was removed or replaced since it was fetched.
    """
    queued = any(job.job_queue_id is not None for job in jobs)
    values = (
        pool_id,
        id_array(jobs),
        array_text(job.attempts for job in jobs),
        [job.key for job in jobs],
    )
    return record(Query(_RETURN, values, ids), queued=queued, riders=riders)


def return_unknown_jobs(known_ids: Collection[int], *, pool_id: str) -> Query[set[int]]:
    """Return the jobs that a pool has locked without knowing it; their ids."""
    return record(Query(_RETURN_UNKNOWN, (pool_id, list(known_ids)), ids), queued=True)
