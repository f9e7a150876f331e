"""Whether a pool still has a job."""

from typing import Final

from graphile_worker_py.postgres.query import Query

# The lock waits for a transaction that is about to delete the job.
_IS_HELD: Final = """
select job.id
from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
where job.id = $1::pg_catalog.int8 and job.locked_by = $2::pg_catalog.text
for update
"""


def is_held(job_id: int, *, pool_id: str) -> Query[bool]:
    """Whether a job is locked by the pool, once transactions that change it have ended."""
    return Query(_IS_HELD, (job_id, pool_id), bool, prepare=False)
