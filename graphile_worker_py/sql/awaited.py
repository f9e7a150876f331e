"""Jobs that are awaited: their runs are kept because a program waits for their end."""

from typing import Final

from graphile_worker_py.postgres.query import Query, no_result

_ARE_AWAITED: Final = """
select exists (
  select
  from graphile_worker_py.awaited as awaited
  where awaited.worker_schema = $1::pg_catalog.text
)
"""


def are_awaited(worker_schema: str) -> Query[bool]:
    """Whether any job is awaited."""
    return Query(_ARE_AWAITED, (worker_schema,), lambda rows: bool(rows[0][0]))


# A job that is awaited for longer than this has another row by then.
_FORGET: Final = """
delete from graphile_worker_py.awaited as awaited
where awaited.worker_schema = $1::pg_catalog.text
  and awaited.job_id = any(array(
    select over.job_id
    from graphile_worker_py.awaited as over
    where over.worker_schema = $1::pg_catalog.text
      and over.until < pg_catalog.now()
    limit $2::pg_catalog.int8
  ))
"""


def forget_awaited(worker_schema: str, *, limit: int) -> Query[None]:
    """Delete rows of jobs that are no longer awaited, at most `limit`."""
    return Query(_FORGET, (worker_schema, limit), no_result, prepare=False)
