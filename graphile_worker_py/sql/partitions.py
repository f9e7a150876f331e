"""Partitions of tables in the side schema: add those of the next days, and drop old ones."""

from enum import StrEnum
from typing import Any, Final

from psycopg import sql

from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.records import Record

LOCK_TIMEOUT: Final = "50ms"
"""How long a chore waits for a lock: statements that come after it wait with it."""
STATEMENT_TIMEOUT: Final = "30s"

# Whether partitions can be detached concurrently: by a role that owns them, and where settings of
# the session are ours, which they are not behind a pooler.
_LIMIT: Final = """
select
  pg_catalog.current_setting('lock_timeout'),
  pg_catalog.current_setting('statement_timeout'),
  pg_catalog.set_config('lock_timeout', $2::pg_catalog.text, false),
  pg_catalog.set_config('statement_timeout', $3::pg_catalog.text, false)
from pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) as activity
where activity.pid = $1::pg_catalog.int4
  and pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 140000
  and pg_catalog.pg_has_role(
    (
      select classes.relowner
      from pg_catalog.pg_class as classes
      where classes.oid = pg_catalog.to_regclass($4::pg_catalog.text)::pg_catalog.oid
    ),
    'usage'
  )
"""


def limit_session(backend_pid: int, table: str) -> Query[tuple[str, str] | None]:
    """Let the session wait shortly for locks, if it may detach partitions of a table concurrently.

    Returns:
        The settings before, for `reset_session`; None if it may not.
    """
    values = (backend_pid, LOCK_TIMEOUT, STATEMENT_TIMEOUT, f"graphile_worker_py.{table}")
    return Query(
        _LIMIT, values, lambda rows: (rows[0][0], rows[0][1]) if rows else None, prepare=False
    )


def reset_session(before: tuple[str, str]) -> Query[None]:
    """Undo `limit_session`."""
    return Query(_RESET, before, no_result, prepare=False)


_RESET: Final = """
select
  pg_catalog.set_config('lock_timeout', $1::pg_catalog.text, false),
  pg_catalog.set_config('statement_timeout', $2::pg_catalog.text, false)
"""


_ADD: Final = "select graphile_worker_py.add_partitions($1::pg_catalog.text)"


def add_partitions(table: str) -> Query[None]:
    """Add the partitions of a table that are missing; see `history_tables`."""
    return Query(_ADD, (table,), no_result, prepare=False)


_DROP_AS_OWNER: Final = "select graphile_worker_py.drop_partition($1::pg_catalog.text)"


def drop_as_owner(part: str) -> Query[None]:
    """Detach and drop a partition with the rights of the owner; see `history_tables`."""
    return Query(_DROP_AS_OWNER, (part,), no_result, prepare=False)


class Attachment(StrEnum):
    """Whether a partition is a part of its table."""

    ATTACHED = "attached"
    PENDING = "pending"
    """Its detachment was cut off."""
    DETACHED = "detached"
    """It was detached, and not dropped."""


class Partition(Record, kw_only=False):
    """A partition whose rows are all older than wanted.

    Args:
        name: Name of the partition.
        attachment: Whether it is a part of its table.
    """

    name: str
    attachment: Attachment


# A name is the one of the table and the first day, which is all that a detached partition has.
# PostgreSQL 14 added `inhdetachpending`, which is why it is read through JSON.
_OLD: Final = """
select
  classes.relname::pg_catalog.text,
  case
    when parts.inhrelid is null then 'detached'
    when (pg_catalog.to_jsonb(parts) ->> 'inhdetachpending')::pg_catalog.bool then 'pending'
    else 'attached'
  end
from pg_catalog.pg_class as classes
left join pg_catalog.pg_inherits as parts on parts.inhrelid = classes.oid
where classes.relnamespace = pg_catalog.to_regnamespace('graphile_worker_py')::pg_catalog.oid
  and classes.relkind = 'r'
  and pg_catalog.regexp_match(
    classes.relname::pg_catalog.text, '^' || $1::pg_catalog.text || '_[0-9]{8}$'
  ) is not null
  and (
    pg_catalog.right(classes.relname::pg_catalog.text, 8)::pg_catalog.timestamp at time zone 'UTC'
  ) + ('1 ' || $2::pg_catalog.text)::interval
    <= pg_catalog.now() - $3::pg_catalog.float8 * interval '1 second'
order by 2 desc, 1
"""


def old_partitions(table: str, unit: str, *, older_than: float) -> Query[list[Partition]]:
    """Read which partitions have only rows older than a number of seconds."""

    def read(rows: list[tuple[Any, ...]]) -> list[Partition]:
        return [Partition(name, Attachment(attachment)) for name, attachment in rows]

    return Query(_OLD, (table, unit, older_than), read, prepare=False)


_DETACH: Final = sql.SQL("alter table {table} detach partition {part} concurrently")
_FINALIZE: Final = sql.SQL("alter table {table} detach partition {part} finalize")
_DROP: Final = sql.SQL("drop table {part}")


def detach_concurrently(table: str, part: Partition) -> sql.Composed:
    """Detach a partition, or bring a detachment that was cut off to its end.

    No other statement waits for it. It needs PostgreSQL 14, and must not be in a transaction.
    """
    text = _FINALIZE if part.attachment is Attachment.PENDING else _DETACH
    return text.format(table=_named(table), part=_named(part.name))


def drop(part: Partition) -> sql.Composed:
    """Drop a partition that was detached."""
    return _DROP.format(part=_named(part.name))


def _named(name: str) -> sql.Identifier:
    return sql.Identifier("graphile_worker_py", name)
