"""Have pools fetch no more jobs and run on."""

from typing import Final

from graphile_worker_py.postgres.query import Query

_QUIET: Final = """
update graphile_worker_py.pools as pools
set is_quiet = true
where pools.worker_schema = $1::pg_catalog.text
  and pools.died_at is null
  and (
    $2::pg_catalog.text is null
    or pools.name = $2::pg_catalog.text
    or pools.pool_id = $2::pg_catalog.text
  )
returning pools.pool_id
"""


def quiet(worker_schema: str, pool: str | None) -> Query[list[str]]:
    """Have pools fetch no more jobs: those of a name, one by its id, or all; returns their ids."""
    return Query(
        _QUIET, (worker_schema, pool), lambda rows: [row[0] for row in rows], prepare=False
    )
