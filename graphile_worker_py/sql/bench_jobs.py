"""The schema that measurements are made in: made for them, marked, and dropped."""

from typing import Final

from graphile_worker_py.postgres.query import Query, no_result

# The mark stands in both statements, because the text of a comment can't be a parameter.
_FIND: Final = """
select coalesce(
  pg_catalog.obj_description(namespaces.oid, 'pg_namespace')
    = 'made and dropped by graphile-worker-py bench'::pg_catalog.text,
  false
)
from pg_catalog.pg_namespace as namespaces
where namespaces.nspname = $1::pg_catalog.text
"""


def find_schema(name: str) -> Query[bool | None]:
    """Whether a schema is marked as one of ours; None if it does not exist."""
    return Query(_FIND, (name,), lambda rows: rows[0][0] if rows else None)


_CREATE: Final = "create schema :GRAPHILE_WORKER_SCHEMA"


def create_schema() -> Query[None]:
    """Make the schema; fails if it is there."""
    return Query(_CREATE, (), no_result)


_MARK: Final = """
comment on schema :GRAPHILE_WORKER_SCHEMA is 'made and dropped by graphile-worker-py bench'
"""


def mark_schema() -> Query[None]:
    """Note that it may be dropped."""
    return Query(_MARK, (), no_result)


_DROP: Final = "drop schema :GRAPHILE_WORKER_SCHEMA cascade"


def drop_schema() -> Query[None]:
    """Remove the schema with all that is in it."""
    return Query(_DROP, (), no_result)


_CLEAR: Final = "truncate :GRAPHILE_WORKER_SCHEMA._private_jobs"


def clear_jobs() -> Query[None]:
    """Remove all jobs at once, and what they left in the indexes."""
    return Query(_CLEAR, (), no_result)


_PING: Final = "select 1"


def ping() -> Query[None]:
    """Do nothing."""
    return Query(_PING, (), no_result)
