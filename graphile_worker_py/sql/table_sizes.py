"""How much room the tables take, and what keeps the server from cleaning them."""

from dataclasses import fields
from typing import Any, Final

from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record


class TableSize(Record):
    """A table, with all its partitions.

    Args:
        schema: Its schema.
        name: Its name.
        size: Bytes, with indexes and TOAST.
        rows: Rows, as the statistics estimate them; not more than 0 before the first ones.
        dead: Dead rows.
        vacuumed: Seconds since it was last vacuumed; None if never.
        partitions: How many partitions it has; 0 for a table that has none.
    """

    schema: str
    name: str
    size: int
    rows: float
    dead: int
    vacuumed: float | None
    partitions: int


_SIZES: Final = """
select
  namespaces.nspname::pg_catalog.text,
  coalesce(parents.relname, classes.relname)::pg_catalog.text,
  pg_catalog.sum(pg_catalog.pg_total_relation_size(classes.oid))::pg_catalog.int8,
  pg_catalog.sum(greatest(classes.reltuples, 0))::pg_catalog.float8,
  coalesce(pg_catalog.sum(pg_catalog.pg_stat_get_dead_tuples(classes.oid)), 0)::pg_catalog.int8,
  extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.max(greatest(
    pg_catalog.pg_stat_get_last_vacuum_time(classes.oid),
    pg_catalog.pg_stat_get_last_autovacuum_time(classes.oid)
  )))::pg_catalog.float8,
  pg_catalog.count(parents.oid)
from pg_catalog.pg_class as classes
join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
left join pg_catalog.pg_inherits as inherits on inherits.inhrelid = classes.oid
left join pg_catalog.pg_class as parents on parents.oid = inherits.inhparent
where namespaces.nspname in ($1::pg_catalog.text, 'graphile_worker_py')
  and classes.relkind in ('r', 'm')
group by 1, 2
order by 3 desc, 2
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
