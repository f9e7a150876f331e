"""How a schema fares: what is due, what is locked for too long, and which pools have registered."""

from dataclasses import fields
from typing import Any, Final

from graphile_worker_py.job import LOCK_LIFETIME
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.postgres.together import together
from graphile_worker_py.records import Record
from graphile_worker_py.sql import own_schema
from graphile_worker_py.sql.trust import read_strangers

_READ_BACKLOG: Final = """
select
  (select pg_catalog.max(migrations.id) from :GRAPHILE_WORKER_SCHEMA.migrations as migrations),
  due.jobs,
  due.age,
  (
    select pg_catalog.count(*)
    from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
    where jobs.locked_at < pg_catalog.now() - $1::pg_catalog.float8 * interval '1 second'
  ),
  (
    select pg_catalog.count(*)
    from :GRAPHILE_WORKER_SCHEMA._private_job_queues as job_queues
    where job_queues.locked_at < pg_catalog.now() - $1::pg_catalog.float8 * interval '1 second'
  ),
  (
    select jobs.id
    from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
    where jobs.is_available and jobs.run_at <= pg_catalog.now()
    order by jobs.run_at, jobs.id
    limit 1
  ),
  (
    select jobs.id
    from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
    where jobs.locked_at < pg_catalog.now() - $1::pg_catalog.float8 * interval '1 second'
    order by jobs.locked_at, jobs.id
    limit 1
  )
from (
  select
    pg_catalog.count(*) as jobs,
    coalesce(
      extract(epoch from pg_catalog.now() - pg_catalog.min(jobs.run_at))::pg_catalog.float8, 0
    ) as age
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.is_available and jobs.run_at <= pg_catalog.now()
) as due
"""


class Backlog(Record):
    """The work that is due, and the locks that are too old.

    Attributes:
        revision: Revision of the schema.
        due_jobs: Jobs that wait for a worker, or for the job before them in their queue.
        oldest_due: Seconds for which the first of them has been due.
        stale_jobs: Jobs that have been locked for more than four hours.
        stale_queues: Queues that have been.
        oldest_due_job: Id of the job that has been due for the longest time.
        oldest_stale_job: Id of the job with the oldest of these locks.
    """

    revision: int
    due_jobs: int
    oldest_due: float
    stale_jobs: int
    stale_queues: int
    oldest_due_job: int | None
    oldest_stale_job: int | None


def read_backlog() -> Query[Backlog]:
    """Look at all jobs that are due; with millions of them it takes a moment."""

    def read(rows: list[tuple[Any, ...]]) -> Backlog:
        names = [field.name for field in fields(Backlog)]
        return Backlog(**dict(zip(names, rows[0], strict=True)))

    return Query(_READ_BACKLOG, (LOCK_LIFETIME,), read, prepare=False)


# The rows of dead pools whose jobs were freed are left out. What pools report is read through JSON,
# because an older release may have created the table, without these columns.
_READ_POOLS: Final = """
select
  pools.pool_id,
  pools.host,
  pools.pid,
  extract(epoch from pg_catalog.clock_timestamp() - pools.heartbeat_at)::pg_catalog.float8,
  pools.died_at is not null
    or pools.heartbeat_at < pg_catalog.clock_timestamp() - pools.dead_after * interval '1 second',
  pools.is_stopping,
  extract(epoch from pg_catalog.clock_timestamp() - pools.started_at)::pg_catalog.float8,
  extract(epoch from pg_catalog.clock_timestamp() - pools.died_at)::pg_catalog.float8,
  pools.dead_after,
  pools.about ->> 'version',
  case when pg_catalog.jsonb_typeof(pools.about -> 'tasks') = 'array'
    then array(select pg_catalog.jsonb_array_elements_text(pools.about -> 'tasks')) end,
  case when pg_catalog.jsonb_typeof(pools.about -> 'forbidden_flags') = 'array'
    then array(select pg_catalog.jsonb_array_elements_text(pools.about -> 'forbidden_flags')) end,
  (pools.about ->> 'concurrency')::pg_catalog.int4,
  (pools.about ->> 'running')::pg_catalog.int4,
  (pools.about ->> 'memory')::pg_catalog.int8,
  (pools.about ->> 'loop_lag')::pg_catalog.float8,
  pools.about ->> 'name',
  coalesce((pools.about ->> 'is_quiet')::pg_catalog.bool, false),
  (pools.about ->> 'connections')::pg_catalog.int4
from (
  select pools.*, pg_catalog.to_jsonb(pools) as about
  from graphile_worker_py.pools as pools
  where pools.worker_schema = $1::pg_catalog.text and pools.unlocked_at is null
) as pools
order by pools.started_at, pools.pool_id
"""


class RegisteredPool(Record):
    """A Python worker pool, as the table of pools shows it.

    Attributes:
        pool_id: Its id.
        host: The machine it runs on.
        pid: Its process.
        heartbeat_age: Seconds since its last heartbeat.
        overdue: Whether that is longer ago than it may be.
        stopping: Whether it was told to stop.
        age: Seconds since it registered.
        dead_for: Seconds since another pool declared it dead; None if none did.
        dead_after: By how many seconds its heartbeat may be late.
        version: Version of the package. This and what follows is None for pools of older releases.
        tasks: Identifiers of its tasks.
        forbidden_flags: It fetches no jobs with one of these flags; None also where a function
            decides at each fetch.
        concurrency: How many jobs it runs at a time.
        running: How many ran at its last heartbeat.
        memory: Bytes that its process held in memory.
        loop_lag: By how many seconds its event loop was late.
        name: Its name in its runner; `default` unless the runner has several pools.
        quiet: Whether it was told to fetch no more jobs.
        connections: How many connections it may open.
    """

    pool_id: str
    host: str
    pid: int
    heartbeat_age: float
    overdue: bool
    stopping: bool
    age: float
    dead_for: float | None
    dead_after: float
    version: str | None
    tasks: list[str] | None
    forbidden_flags: list[str] | None
    concurrency: int | None
    running: int | None
    memory: int | None
    loop_lag: float | None
    name: str | None = None
    quiet: bool = False
    connections: int | None = None


# Asked for first, of the catalogs alone: a statement that fails would end a caller's transaction.
_POOLS_CAN_BE_READ: Final = """
select exists (
  select
  from pg_catalog.pg_class as classes
  join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
  where namespaces.nspname = 'graphile_worker_py'
    and classes.relname = 'pools'
    and pg_catalog.has_schema_privilege(namespaces.oid, 'usage')
    and pg_catalog.has_table_privilege(classes.oid, 'select')
)
"""


def registered_pools(schema: str) -> Steps[list[RegisteredPool] | None]:
    """Read the pools that work on a schema; None where they do not register, or not readably."""
    if not (yield from can_read_pools(schema)):
        return None
    return (yield read_pools(schema))  # type: ignore[no-any-return]


def can_read_pools(schema: str) -> Steps[bool]:
    """Whether pools register, and the tables where they do may be read."""
    can_be_read = Query(_POOLS_CAN_BE_READ, (), lambda rows: rows[0][0], prepare=False, lasts=10.0)
    strangers, is_readable = yield together(
        [read_strangers(own_schema.NAME, beside=schema), can_be_read]
    )
    # Reading a table might run code of a role that has planted it.
    return bool(is_readable and not strangers)


def read_pools(schema: str) -> Query[list[RegisteredPool]]:
    """The pools that work on a schema; an error if pools do not register in this database."""

    def read(rows: list[tuple[Any, ...]]) -> list[RegisteredPool]:
        names = [field.name for field in fields(RegisteredPool)]
        return [RegisteredPool(**dict(zip(names, row, strict=True))) for row in rows]

    return Query(_READ_POOLS, (schema,), read, prepare=False)
