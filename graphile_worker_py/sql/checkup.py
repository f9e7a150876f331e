"""What `doctor` reads of the server: its settings, what holds back vacuum, queues, large tables."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from graphile_worker_py.json_codec import loads
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record


class ServerFacts(Record):
    """The server and the session, as they are now.

    Args:
        version: Version of the server, 180006 for 18.6.
        backend_pid: Process of the server that serves the session.
        now: The server's clock, in seconds since 1970.
        in_recovery: Whether it is a standby.
        connections: How many client connections there are.
        settings: Settings of this session, by name.
    """

    version: int
    backend_pid: int
    now: float
    in_recovery: bool
    connections: int
    settings: Mapping[str, str]


_SERVER: Final = """
select
  pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
  pg_catalog.pg_backend_pid(),
  extract(epoch from pg_catalog.clock_timestamp())::pg_catalog.float8,
  pg_catalog.pg_is_in_recovery(),
  (
    select pg_catalog.count(*)
    from pg_catalog.pg_stat_activity as activity
    where activity.backend_type = 'client backend'
  ),
  (
    select pg_catalog.json_object_agg(settings.name, settings.setting)::pg_catalog.text
    from pg_catalog.pg_settings as settings
    where settings.name in (
      'autovacuum', 'default_transaction_isolation', 'default_transaction_read_only',
      'max_connections', 'statement_timeout', 'synchronous_commit', 'track_counts',
      'transaction_timeout'
    )
  )
"""


def read_server() -> Query[ServerFacts]:
    """Read what the server says of itself."""

    def read(rows: list[tuple[Any, ...]]) -> ServerFacts:
        names = [field.name for field in fields(ServerFacts)]
        *values, settings = rows[0]
        return ServerFacts(**dict(zip(names, [*values, loads(settings.encode())], strict=True)))

    return Query(_SERVER, (), read, prepare=False)


class Holder(Record):
    """What keeps old rows from being removed.

    Args:
        kind: `transaction`, `prepared transaction` or `replication slot`.
        name: Process id of the transaction's session, or the name.
        age: Seconds since it began; None for a replication slot.
        about: Role, application and state of the session.
    """

    kind: str
    name: str
    age: float | None
    about: str


_HOLDERS: Final = """
select holders.kind, holders.name, holders.age, holders.about
from (
  select 'transaction' as kind, activity.pid::pg_catalog.text as name,
    extract(
      epoch from pg_catalog.clock_timestamp() - activity.xact_start
    )::pg_catalog.float8 as age,
    pg_catalog.concat_ws(
      ', ',
      'role ' || activity.usename::pg_catalog.text,
      nullif(activity.application_name, ''),
      activity.state
    ) as about
  from pg_catalog.pg_stat_activity as activity
  where activity.xact_start is not null
    and activity.pid <> pg_catalog.pg_backend_pid()
    and activity.backend_type = 'client backend'
    and activity.datname = pg_catalog.current_database()
  union all
  select 'prepared transaction', prepared.gid,
    extract(epoch from pg_catalog.clock_timestamp() - prepared.prepared)::pg_catalog.float8,
    'role ' || prepared.owner::pg_catalog.text
  from pg_catalog.pg_prepared_xacts as prepared
  where prepared.database = pg_catalog.current_database()
  union all
  select 'replication slot', slots.slot_name::pg_catalog.text, null, 'without a client'
  from pg_catalog.pg_replication_slots as slots
  where slots.xmin is not null and not slots.active
) as holders
where coalesce(holders.age, $1::pg_catalog.float8) >= $1::pg_catalog.float8
order by holders.age desc nulls last
limit 20
"""


def read_holders(*, longest: float) -> Query[list[Holder]]:
    """Read the transactions that are older than some seconds, and what else holds back vacuum."""

    def read(rows: list[tuple[Any, ...]]) -> list[Holder]:
        names = [field.name for field in fields(Holder)]
        return [Holder(**dict(zip(names, row, strict=True))) for row in rows]

    return Query(_HOLDERS, (longest,), read, prepare=False)


_UNVACUUMED: Final = """
select namespaces.nspname::pg_catalog.text || '.' || classes.relname::pg_catalog.text
from pg_catalog.pg_class as classes
join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
where namespaces.nspname in ($1::pg_catalog.text, 'graphile_worker_py')
  and classes.relkind = 'r'
  and classes.reloptions && '{autovacuum_enabled=false,autovacuum_enabled=off}'
order by 1
"""


def read_unvacuumed(schema: str) -> Query[list[str]]:
    """Read which tables autovacuum leaves out because they say so."""
    return Query(_UNVACUUMED, (schema,), lambda rows: [row[0] for row in rows], prepare=False)


_QUEUES: Final = """
select
  pg_catalog.count(*),
  pg_catalog.count(*) filter (where not exists (
    select
    from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
    where jobs.job_queue_id = queues.id
  ))
from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
"""


def count_queues() -> Query[tuple[int, int]]:
    """Count the queues, and those without jobs."""
    return Query(_QUEUES, (), lambda rows: (rows[0][0], rows[0][1]), prepare=False)


# `reserved_connections` is there from PostgreSQL 16 on.
_ALLOWED: Final = """
select
  pg_catalog.current_setting('max_connections')::pg_catalog.int4
  - pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int4
  - coalesce(
    pg_catalog.current_setting('reserved_connections', true)::pg_catalog.int4, 0
  )
"""


def read_allowed_connections() -> Query[int]:
    """Read how many connections the server allows to roles that are no superusers."""
    return Query(_ALLOWED, (), lambda rows: int(rows[0][0]), prepare=False)
