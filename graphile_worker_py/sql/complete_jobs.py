"""Recording success: the jobs are deleted."""

from collections.abc import Iterable, Sequence
from typing import Final

from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql.outcomes import BoundRider, ids, record

_COMPLETE: Final = """
delete from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
where jobs.id = any($2::pg_catalog.int8[]) and jobs.locked_by = $1::pg_catalog.text
returning jobs.id, jobs.job_queue_id
"""


def complete_jobs(
    jobs: Sequence[Job], *, pool_id: str, riders: Sequence[BoundRider] = ()
) -> Query[set[int]]:
    """Delete jobs and release their queues; the ids of those that were still the pool's."""
    queued = any(job.job_queue_id is not None for job in jobs)
    return record(Query(_COMPLETE, (pool_id, id_array(jobs)), ids), queued=queued, riders=riders)


def id_array(jobs: Iterable[Job]) -> str:
    """The jobs' ids as PostgreSQL writes an array, which is sent faster than a list."""
    return "{" + ",".join([str(job.id) for job in jobs]) + "}"
