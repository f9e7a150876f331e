"""What statements that read tables of the side schema have in common."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from graphile_worker_py.checks import check_aware, check_duration, check_seconds
from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.postgres.together import together
from graphile_worker_py.sql import own_schema
from graphile_worker_py.sql.trust import read_strangers, untrusted

Moment: TypeAlias = datetime | timedelta | float
"""A point in time: an aware datetime, or how long ago it was, also in seconds."""

# Asked of the catalogs alone: a statement that fails would end a caller's transaction.
_LOOK: Final = """
select
  array(
    select names.name
    from pg_catalog.unnest($1::pg_catalog.text[]) as names (name)
    where not exists (
      select
      from pg_catalog.pg_class as classes
      join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
      where namespaces.nspname = 'graphile_worker_py'
        and classes.relname = names.name::pg_catalog.name
        and pg_catalog.has_schema_privilege(namespaces.oid, 'usage')
        and pg_catalog.has_table_privilege(classes.oid, $2::pg_catalog.text)
    )
  ),
  pg_catalog.now()
"""


def reading(worker_schema: str, *tables: str, right: str = "select") -> Steps[datetime]:
    """Check that tables can be read, or whatever `right` says; returns the database's time.

    Where another role has planted the side schema, it is as if the tables were missing.

    Raises:
        MissingTablesError: A table is missing or not to be trusted, or the role lacks the right.
    """
    values = (list(tables), right)
    look = Query(_LOOK, values, lambda rows: rows[0], prepare=False, lasts=10.0)
    strangers, (missing, now) = yield together(
        [read_strangers(own_schema.NAME, beside=worker_schema), look]
    )
    if strangers:
        raise MissingTablesError(untrusted(own_schema.NAME, strangers))
    if missing:
        raise MissingTablesError(_message(missing, right))
    return from_timestamp(now)


def _message(missing: Sequence[str], right: str) -> str:
    names = ", ".join(f"graphile_worker_py.{name}" for name in missing)
    return (
        f"there is no {names}, or this role has no right to {right} there: worker pools "
        f"with the side schema create it (no_side_schema must be off), or "
        f"`graphile-worker-py migrate --side-schema`"
    )


def as_moment(name: str, given: Moment, now: datetime) -> datetime:
    """The point in time that was given.

    Raises:
        ConfigurationError: It is none, or lies too far back.
    """
    if isinstance(given, datetime):
        return check_aware(name, given)
    if isinstance(given, timedelta):
        return now - timedelta(seconds=check_duration(name, given))
    return now - timedelta(seconds=check_seconds(name, given))
