"""The registered worker pools: register, send heartbeats, and find dead pools."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.records import Record
from graphile_worker_py.sql.pool_locks import PoolLock
from graphile_worker_py.sql.suspects import HeldJob

# Rows of pools that sent no heartbeat for a week are deleted.
_REGISTER: Final = """
with forgotten as (
  delete from graphile_worker_py.pools as pools
  where pools.heartbeat_at < pg_catalog.clock_timestamp() - interval '7 days'
)
insert into graphile_worker_py.pools (pool_id, worker_schema, host, pid, dead_after, lock_key)
values (
  $1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.text, $4::pg_catalog.int4,
  $5::pg_catalog.float8, 0
)
on conflict (pool_id) do nothing
"""


def register_pool(
    pool_id: str, *, worker_schema: str, host: str, pid: int, dead_after: float
) -> Query[None]:
    """Register a pool; `dead_after` is by how many seconds its heartbeat may be late."""
    return Query(
        _REGISTER, (pool_id, worker_schema, host, pid, dead_after), no_result, prepare=False
    )


_LEAVE: Final = (
    "delete from graphile_worker_py.pools as pools where pools.pool_id = $1::pg_catalog.text"
)


def leave(pool_id: str) -> Query[None]:
    """Deregister a pool."""
    return Query(_LEAVE, (pool_id,), no_result, prepare=False)


class Standing(StrEnum):
    """What the table of pools says about a pool."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


class HeartbeatReply(Record, kw_only=False):
    """The answer to a heartbeat.

    Args:
        standing: What the table says about the pool itself.
        others_late: Whether there may be pools to recover.
        suspects: How often a worker died under a job, by the job's id.
        at: The server's clock, in seconds.
        changes: How often operators have changed what pools must read again.
        quiet: Whether the pool was told to fetch no more jobs.
    """

    standing: Standing
    others_late: bool
    suspects: dict[int, int]
    at: float
    changes: int = 0
    quiet: bool = False


class PoolReport(Record):
    """What a pool reports about itself with each heartbeat.

    Args:
        version: Version of this package.
        tasks: Identifiers of its tasks.
        forbidden_flags: Jobs with one of these flags are not fetched. None where a function decides
            at each fetch.
        concurrency: How many jobs it runs at a time.
        prefetches: Whether it may have locked more jobs than it has begun.
        running: How many run now.
        memory: Bytes that its process holds in memory; None where that can't be measured.
        loop_lag: By how many seconds the event loop was late for this heartbeat.
        name: The name of the pool in its runner.
        connections: How many connections it may open.
    """

    version: str
    tasks: Sequence[str]
    forbidden_flags: Sequence[str] | None
    concurrency: int
    prefetches: bool
    running: int
    memory: int | None
    loop_lag: float
    name: str
    connections: int


# All times are the server's. If another pool is declaring this one dead at this moment, the update
# waits for that pool's transaction, and the answer then says that it is dead. The time is that of
# the beginning of the statement: everything committed before it is in the answer.
_BEAT: Final = """
with beaten as (
  update graphile_worker_py.pools as pools
  set heartbeat_at = pg_catalog.statement_timestamp(),
    is_stopping = $3::pg_catalog.bool,
    lock_key = $4::pg_catalog.int8,
    lock_pid = $5::pg_catalog.int4,
    version = $6::pg_catalog.text,
    tasks = $7::pg_catalog.text[],
    forbidden_flags = $8::pg_catalog.text[],
    concurrency = $9::pg_catalog.int4,
    running = $10::pg_catalog.int4,
    memory = $11::pg_catalog.int8,
    loop_lag = $12::pg_catalog.float8,
    prefetches = $13::pg_catalog.bool,
    name = $14::pg_catalog.text,
    connections = $15::pg_catalog.int4
  where pools.pool_id = $1::pg_catalog.text and pools.died_at is null
  returning pools.is_quiet
)
select
  case
    when exists (select from beaten) then 'alive'
    when exists (
      select from graphile_worker_py.pools where pools.pool_id = $1::pg_catalog.text
    ) then 'dead'
    else 'unknown'
  end,
  exists (
    select
    from graphile_worker_py.pools as others
    where others.worker_schema = $2::pg_catalog.text
      and others.pool_id <> $1::pg_catalog.text
      and others.unlocked_at is null
      and (
        others.died_at is not null
        or others.heartbeat_at
          < pg_catalog.clock_timestamp() - others.dead_after * interval '1 second'
      )
  ),
  array(
    select suspects.job_id
    from graphile_worker_py.suspects as suspects
    where suspects.worker_schema = $2::pg_catalog.text and suspects.crashes > 0
    order by suspects.job_id
  ),
  array(
    select suspects.crashes
    from graphile_worker_py.suspects as suspects
    where suspects.worker_schema = $2::pg_catalog.text and suspects.crashes > 0
    order by suspects.job_id
  ),
  extract(epoch from pg_catalog.statement_timestamp())::pg_catalog.float8,
  coalesce(graphile_worker_py.last_change($2::pg_catalog.text), 0),
  coalesce((select beaten.is_quiet from beaten), false)
"""


def beat(
    pool_id: str,
    *,
    worker_schema: str,
    is_stopping: bool,
    lock: PoolLock | None,
    report: PoolReport,
) -> Query[HeartbeatReply]:
    """Send a heartbeat, and read what is new.

    Args:
        pool_id: The pool.
        worker_schema: The schema that it works on.
        is_stopping: Whether it was told to stop. If it is killed then, its jobs are not suspected.
        lock: The lock that its listening connection has taken; None if it has taken none.
        report: What it reports about itself.
    """

    def read(rows: list[tuple[Any, ...]]) -> HeartbeatReply:
        standing, others_late, job_ids, crashes, *rest = rows[0]
        suspects = dict(zip(job_ids, crashes, strict=True))
        return HeartbeatReply(Standing(standing), others_late, suspects, *rest)

    key, pid = (0, None) if lock is None else (lock.key, lock.pid)
    values = (
        pool_id,
        worker_schema,
        is_stopping,
        key,
        pid,
        report.version,
        list(report.tasks),
        None if report.forbidden_flags is None else list(report.forbidden_flags),
        report.concurrency,
        report.running,
        report.memory,
        report.loop_lag,
        report.prefetches,
        report.name,
        report.connections,
    )
    return Query(_BEAT, values, read)


class DeadPool(Record, kw_only=False):
    """A pool that was declared dead.

    Args:
        pool_id: Its id.
        host: Name of the machine that it ran on.
        pid: Number of its process there.
        is_stopping: Whether it was told to stop before it died.
        jobs: The jobs that it had locked, for plugins that release what it held.
    """

    pool_id: str
    host: str
    pid: int
    is_stopping: bool
    jobs: Sequence[HeldJob] = ()


# A session that still holds the lock protects a pool whose event loop is blocked, but not forever:
# a process that stands still keeps its session, too. By default the limit is longer than the
# watchdog of a worker lets it stand still.
_FIND_DEAD: Final = """
with late as materialized (
  select pools.pool_id,
    pools.lock_key,
    pools.lock_pid,
    pools.heartbeat_at
      < pg_catalog.clock_timestamp() - pools.dead_after * interval '40 seconds' as too_late
  from graphile_worker_py.pools as pools
  where pools.worker_schema = $2::pg_catalog.text
    and pools.pool_id <> $1::pg_catalog.text
    and pools.died_at is null
    and pools.dead_after <= $3::pg_catalog.float8
    and pools.heartbeat_at < pg_catalog.clock_timestamp() - pools.dead_after * interval '1 second'
  for update skip locked
)
update graphile_worker_py.pools as pools
set died_at = pg_catalog.clock_timestamp()
from late
where pools.pool_id = late.pool_id
  and (
    late.too_late
    or not exists (
      select
      from pg_catalog.pg_locks as locks
      where locks.locktype = 'advisory'
        and locks.granted
        and locks.pid = late.lock_pid
        and locks.database = (
          select databases.oid
          from pg_catalog.pg_database as databases
          where databases.datname = pg_catalog.current_database()
        )
        and locks.classid = ((late.lock_key >> 32) & 4294967295)::pg_catalog.oid
        and locks.objid = (late.lock_key & 4294967295)::pg_catalog.oid
        and locks.objsubid = 1
    )
  )
returning pools.pool_id, pools.host, pools.pid, pools.is_stopping
"""


def find_dead(pool_id: str, *, worker_schema: str, steady: float) -> Query[list[DeadPool]]:
    """Declare pools dead whose heartbeat is late and whose lock is free.

    Args:
        pool_id: The pool that declares them dead.
        worker_schema: The schema that it works on.
        steady: For how many seconds it has sent heartbeats without a gap. After an outage all
            pools look late, so only pools with a smaller `dead_after` are declared dead.
    """
    return Query(_FIND_DEAD, (pool_id, worker_schema, steady), _read_dead, prepare=False)


# The suspects are committed by now: each heartbeat after this moment reads them.
_MARK_RECORDED: Final = """
update graphile_worker_py.pools as pools
set recorded_at = pg_catalog.clock_timestamp()
where pools.worker_schema = $1::pg_catalog.text
  and pools.died_at is not null
  and pools.recorded_at is null
"""


def mark_recorded(worker_schema: str) -> Query[None]:
    """Record that the jobs of dead pools are recorded as suspects."""
    return Query(_MARK_RECORDED, (worker_schema,), no_result, prepare=False)


# The jobs of a dead pool are freed when all living pools have read which of them are suspects.
# A pool whose own heartbeat is late re-reads the suspects before its next fetch.
_TAKE_DEAD: Final = """
select dead.pool_id, dead.host, dead.pid, dead.is_stopping
from graphile_worker_py.pools as dead
where dead.worker_schema = $2::pg_catalog.text
  and dead.recorded_at is not null
  and dead.unlocked_at is null
  and (
    dead.recorded_at < pg_catalog.clock_timestamp() - $3::pg_catalog.float8 * interval '1 second'
    or not exists (
      select
      from graphile_worker_py.pools as others
      where others.worker_schema = $2::pg_catalog.text
        and others.pool_id <> $1::pg_catalog.text
        and others.died_at is null
        and others.heartbeat_at <= dead.recorded_at
        and others.heartbeat_at
          >= pg_catalog.clock_timestamp() - others.dead_after * interval '1 second'
    )
  )
for update of dead skip locked
"""


def take_dead(pool_id: str, *, worker_schema: str, patience: float) -> Query[list[DeadPool]]:
    """Lock and read the dead pools whose jobs may be freed now.

    Other pools get at most `patience` seconds to read the suspects.
    """
    return Query(_TAKE_DEAD, (pool_id, worker_schema, patience), _read_dead, prepare=False)


_MARK_UNLOCKED: Final = """
update graphile_worker_py.pools as pools
set unlocked_at = pg_catalog.clock_timestamp()
where pools.pool_id = any($1::pg_catalog.text[])
"""


def mark_unlocked(pool_ids: Sequence[str]) -> Query[None]:
    """Record that the jobs and queues of dead pools are free."""
    return Query(_MARK_UNLOCKED, (list(pool_ids),), no_result, prepare=False)


# Only one pool gets them.
_TAKE_UNLOCKED: Final = """
with due as materialized (
  select pools.pool_id
  from graphile_worker_py.pools as pools
  where pools.worker_schema = $1::pg_catalog.text
    and pools.died_at is not null
    and pools.unlocked_at
      < pg_catalog.clock_timestamp() - $2::pg_catalog.float8 * interval '1 second'
  for update skip locked
)
update graphile_worker_py.pools as pools
set unlocked_at = pg_catalog.clock_timestamp()
from due
where pools.pool_id = due.pool_id
returning pools.pool_id
"""


def take_unlocked(worker_schema: str, *, after: float) -> Query[list[str]]:
    """Read the dead pools that were unlocked that many seconds ago; marks them as unlocked now."""
    return Query(
        _TAKE_UNLOCKED, (worker_schema, after), lambda rows: [row[0] for row in rows], prepare=False
    )


def _read_dead(rows: list[tuple[Any, ...]]) -> list[DeadPool]:
    return [DeadPool(*row) for row in rows]
