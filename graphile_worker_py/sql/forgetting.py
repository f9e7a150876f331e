"""Remove what is kept of a job, for example because of personal data in it."""

from typing import Final

from graphile_worker_py.checks import check_job_id, check_text
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job.spec import MAX_JOB_KEY_LENGTH
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.sql.side_tables import reading

_TABLES: Final = ("runs_completed", "runs_failed", "job_state", "awaited")

_FORGET: Final = """
with completed as (
  delete from graphile_worker_py.runs_completed as runs
  where runs.worker_schema = $1::pg_catalog.text
    and (runs.job_id = $2::pg_catalog.int8 or runs.key = $3::pg_catalog.text)
  returning 1
),
failed as (
  delete from graphile_worker_py.runs_failed as runs
  where runs.worker_schema = $1::pg_catalog.text
    and (runs.job_id = $2::pg_catalog.int8 or runs.key = $3::pg_catalog.text)
  returning 1
),
states as (
  delete from graphile_worker_py.job_state as states
  where states.worker_schema = $1::pg_catalog.text and states.job_id = $2::pg_catalog.int8
  returning 1
),
waited_for as (
  delete from graphile_worker_py.awaited as awaited
  where awaited.worker_schema = $1::pg_catalog.text and awaited.job_id = $2::pg_catalog.int8
  returning 1
)
select (select pg_catalog.count(*) from completed) + (select pg_catalog.count(*) from failed)
  + (select pg_catalog.count(*) from states) + (select pg_catalog.count(*) from waited_for)
"""


def forget(worker_schema: str, *, job_id: int | str | None, key: str | None) -> Steps[int]:
    """Delete all rows about a job; see `WorkerUtils.forget`."""
    if (job_id is None) == (key is None):
        raise ConfigurationError("forget takes either a job_id or a key")
    number = None if job_id is None else check_job_id("job_id", job_id)
    if key is not None:
        check_text("key", key, shortest=1, longest=MAX_JOB_KEY_LENGTH)
    yield from reading(worker_schema, *_TABLES, right="delete")
    values = (worker_schema, number, key)
    query = Query(_FORGET, values, lambda rows: int(rows[0][0]), prepare=False)
    return (yield query)  # type: ignore[no-any-return]
