"""How a schema fares: what is due, what is locked for too long, and which pools have registered."""

from dataclasses import dataclass
from typing import Any, Final

from graphile_worker_py.job import LOCK_LIFETIME
from graphile_worker_py.postgres.query import Query, Steps
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What there is to do, and what nobody may do.

    Attributes:
        revision: Revision of the schema.
        due_jobs: Jobs that wait for a worker, or for the job before them in their queue.
        oldest_due: Seconds for which the first of them has been due.
        stale_jobs: Jobs that have been locked for more than four hours.
        stale_queues: Queues that have been.
    """

    revision: int
    due_jobs: int
    oldest_due: float
    stale_jobs: int
    stale_queues: int


def read_backlog() -> Query[Backlog]:
    """Look at all jobs that are due; with millions of them it takes a moment."""

    def read(rows: list[tuple[Any, ...]]) -> Backlog:
        revision, due_jobs, oldest_due, stale_jobs, stale_queues = rows[0]
        return Backlog(
            revision=revision,
            due_jobs=due_jobs,
            oldest_due=oldest_due,
            stale_jobs=stale_jobs,
            stale_queues=stale_queues,
        )

    return Query(_READ_BACKLOG, (LOCK_LIFETIME,), read, prepare=False)


# A pool that others have found dead, and whose jobs they have freed, is no trouble any more.
_READ_POOLS: Final = """
select
  pools.pool_id,
  pools.host,
  pools.pid,
  extract(epoch from pg_catalog.clock_timestamp() - pools.heartbeat_at)::pg_catalog.float8,
  pools.died_at is not null
    or pools.heartbeat_at < pg_catalog.clock_timestamp() - pools.dead_after * interval '1 second',
  pools.is_stopping
from graphile_worker_py.pools as pools
where pools.worker_schema = $1::pg_catalog.text and pools.unlocked_at is null
order by pools.started_at, pools.pool_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredPool:
    """A Python worker pool, as others see it.

    Attributes:
        pool_id: Its id.
        host: The machine it runs on.
        pid: Its process.
        heartbeat_age: Seconds since its last heartbeat.
        overdue: Whether that is longer ago than it may be.
        stopping: Whether it was told to stop.
    """

    pool_id: str
    host: str
    pid: int
    heartbeat_age: float
    overdue: bool
    stopping: bool


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
    if (yield read_strangers(own_schema.NAME, beside=schema)):
        return None  # reading it might run code of the role that planted it
    if not (yield Query(_POOLS_CAN_BE_READ, (), lambda rows: rows[0][0], prepare=False)):
        return None
    return (yield read_pools(schema))  # type: ignore[no-any-return]


def read_pools(schema: str) -> Query[list[RegisteredPool]]:
    """The pools that work on a schema; an error if pools do not register in this database."""

    def read(rows: list[tuple[Any, ...]]) -> list[RegisteredPool]:
        return [
            RegisteredPool(
                pool_id=pool_id,
                host=host,
                pid=pid,
                heartbeat_age=age,
                overdue=overdue,
                stopping=stopping,
            )
            for pool_id, host, pid, age, overdue, stopping in rows
        ]

    return Query(_READ_POOLS, (schema,), read, prepare=False)
