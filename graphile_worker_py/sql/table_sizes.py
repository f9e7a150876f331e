"""How much room the tables take, and what keeps the server from cleaning them."""

from dataclasses import dataclass, fields
from typing import Any, Final

from graphile_worker_py.postgres.query import Query


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSize:
    """A table.

    Args:
        schema: Its schema.
        name: Its name.
        size: Bytes, with indexes and TOAST.
        rows: Rows, as the statistics estimate them; not more than 0 before the first ones.
        dead: Dead rows.
        vacuumed: Seconds since it was last vacuumed; None if never.
    """

    schema: str
    name: str
    size: int
    rows: float
    dead: int
    vacuumed: float | None


_SIZES: Final = """
select
  namespaces.nspname::pg_catalog.text,
  classes.relname::pg_catalog.text,
  pg_catalog.pg_total_relation_size(classes.oid),
  classes.reltuples::pg_catalog.float8,
  coalesce(pg_catalog.pg_stat_get_dead_tuples(classes.oid), 0),
  extract(epoch from pg_catalog.clock_timestamp() - greatest(
    pg_catalog.pg_stat_get_last_vacuum_time(classes.oid),
    pg_catalog.pg_stat_get_last_autovacuum_time(classes.oid)
  ))::pg_catalog.float8
from pg_catalog.pg_class as classes
join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
where namespaces.nspname in ($1::pg_catalog.text, 'graphile_worker_py')
  and classes.relkind in ('r', 'm')
order by 3 desc
limit 50
"""


def read_table_sizes(schema: str) -> Query[list[TableSize]]:
    """Read the sizes of the tables of a schema and of the side schema, the largest first."""

    def read(rows: list[tuple[Any, ...]]) -> list[TableSize]:
        names = [field.name for field in fields(TableSize)]
        return [TableSize(**dict(zip(names, row, strict=True))) for row in rows]

    return Query(_SIZES, (schema,), read, prepare=False)


_OLDEST: Final = """
select
  extract(
    epoch from pg_catalog.clock_timestamp() - pg_catalog.min(activity.xact_start)
  )::pg_catalog.float8
from pg_catalog.pg_stat_activity as activity
where activity.xact_start is not null and activity.pid <> pg_catalog.pg_backend_pid()
"""


def read_oldest_transaction() -> Query[float | None]:
    """Read for how many seconds the oldest transaction that the role may see has been open."""
    return Query(_OLDEST, (), lambda rows: rows[0][0], prepare=False)
