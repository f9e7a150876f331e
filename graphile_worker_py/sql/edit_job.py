"""Change the payload of a job that does not run."""

from typing import Any, Final

from graphile_worker_py.checks import check_job_id
from graphile_worker_py.postgres.query import Query

# The payload is compared as text with the one that was shown, so that a change in between is not
# overwritten.
_EDIT: Final = """
update :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
set payload = $2::pg_catalog.json, updated_at = pg_catalog.now()
where jobs.id = $1::pg_catalog.int8
  and jobs.locked_at is null
  and ($3::pg_catalog.text is null or jobs.payload::pg_catalog.text = $3::pg_catalog.text)
returning jobs.id
"""


def edit_payload(job_id: int | str, payload: str, *, shown: str | None) -> Query[bool]:
    """Replace the payload; False if the job is locked, gone, or was changed meanwhile.

    Args:
        job_id: The job.
        payload: The new payload, JSON text.
        shown: The payload that the caller has seen; None replaces any.
    """

    def read(rows: list[tuple[Any, ...]]) -> bool:
        return bool(rows)

    return Query(_EDIT, (check_job_id("id", job_id), payload, shown), read, prepare=False)
