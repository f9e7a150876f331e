"""Who works: worker pools register, prove to be alive, and find those that do not any more."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from graphile_worker_py.postgres.query import Query, no_result

# Rows of pools that nobody has heard of for a week are of no use to anybody.
_REGISTER: Final = """
with forgotten as (
  delete from graphile_worker_py.pools as pools
  where pools.heartbeat_at < clock_timestamp() - interval '7 days'
)
insert into graphile_worker_py.pools (pool_id, worker_schema, host, pid, dead_after, lock_key)
values ($1::text, $2::text, $3::text, $4::int4, $5::float8, $6::int8)
on conflict (pool_id) do nothing
"""


def register_pool(
    pool_id: str, *, worker_schema: str, host: str, pid: int, dead_after: float, lock_key: int
) -> Query[None]:
    """Make a pool known; `dead_after` is by how many seconds its heartbeat may be late."""
    return Query(
        _REGISTER,
        (pool_id, worker_schema, host, pid, dead_after, lock_key),
        no_result,
        prepare=False,
    )


_LEAVE: Final = "delete from graphile_worker_py.pools as pools where pools.pool_id = $1::text"


def leave(pool_id: str) -> Query[None]:
    """Take a pool off the list."""
    return Query(_LEAVE, (pool_id,), no_result, prepare=False)


# The settings are for a host that vanishes: its session, and with it the lock, must not outlive it
# by hours. They do nothing on connections that are not TCP. The lock is a shared one, because
# after a broken connection the old session may still have it when the new one asks.
_HOLD_LOCK: Final = """
select
  set_config('tcp_keepalives_idle', $2::text, false),
  set_config('tcp_keepalives_interval', $2::text, false),
  set_config('tcp_keepalives_count', '3', false),
  set_config('tcp_user_timeout', $3::text, false),
  pg_try_advisory_lock_shared($1::int8)
"""


def hold_lock(lock_key: int, *, dead_after: float) -> Query[bool]:
    """Take the lock that tells others, for as long as this session lasts, that the pool lives."""
    seconds = max(1, round(dead_after / 4))
    values = (lock_key, str(seconds), str(max(1000, round(dead_after * 1000))))
    return Query(_HOLD_LOCK, values, lambda rows: bool(rows[0][-1]), prepare=False)


class Standing(StrEnum):
    """What others know of a pool."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The answer to a heartbeat.

    Args:
        standing: What is known of the pool itself.
        others_late: Whether there may be pools to recover.
        suspects: How often a worker died under a job, by the job's id.
        at: The server's clock when it was given, in seconds.
    """

    standing: Standing
    others_late: bool
    suspects: dict[int, int]
    at: float


# All times are the server's. A pool that is being found dead at this moment waits in the update
# for the one that finds it, and then sees that it is dead. The time is that of the statement's
# beginning: whatever was there by then is in the answer.
_BEAT: Final = """
with beaten as (
  update graphile_worker_py.pools as pools
  set heartbeat_at = statement_timestamp(),
    is_stopping = $3::bool
  where pools.pool_id = $1::text and pools.died_at is null
  returning pools.pool_id
)
select
  case
    when exists (select from beaten) then 'alive'
    when exists (select from graphile_worker_py.pools where pools.pool_id = $1::text) then 'dead'
    else 'unknown'
  end,
  exists (
    select
    from graphile_worker_py.pools as others
    where others.worker_schema = $2::text
      and others.pool_id <> $1::text
      and others.unlocked_at is null
      and (
        others.died_at is not null
        or others.heartbeat_at < clock_timestamp() - others.dead_after * interval '1 second'
      )
  ),
  array(
    select suspects.job_id
    from graphile_worker_py.suspects as suspects
    where suspects.worker_schema = $2::text
    order by suspects.job_id
  ),
  array(
    select suspects.crashes
    from graphile_worker_py.suspects as suspects
    where suspects.worker_schema = $2::text
    order by suspects.job_id
  ),
  extract(epoch from statement_timestamp())::float8
"""


def beat(pool_id: str, *, worker_schema: str, is_stopping: bool) -> Query[HeartbeatReply]:
    """Prove to be alive, and hear what is new.

    Args:
        pool_id: The pool.
        worker_schema: The schema that it works on.
        is_stopping: Whether it was told to stop: should it be killed then, its jobs are not to
            blame.
    """

    def read(rows: list[tuple[Any, ...]]) -> HeartbeatReply:
        standing, others_late, job_ids, crashes, at = rows[0]
        suspects = dict(zip(job_ids, crashes, strict=True))
        return HeartbeatReply(Standing(standing), others_late, suspects, at)

    return Query(_BEAT, (pool_id, worker_schema, is_stopping), read)


@dataclass(frozen=True, slots=True)
class DeadPool:
    """A pool that was found dead.

    Args:
        pool_id: Its id.
        host: Name of the machine that it ran on.
        pid: Number of its process there.
        is_stopping: Whether it had been told to stop.
    """

    pool_id: str
    host: str
    pid: int
    is_stopping: bool


# A session that still holds the lock speaks for a pool whose event loop is kept from beating, but
# not for ever: a process that stands still keeps its session, too. By default that is longer than
# the watchdog of a worker lets it stand still.
_FIND_DEAD: Final = """
with late as materialized (
  select pools.pool_id,
    pools.lock_key,
    pools.heartbeat_at < clock_timestamp() - 40 * pools.dead_after * interval '1 second' as too_late
  from graphile_worker_py.pools as pools
  where pools.worker_schema = $2::text
    and pools.pool_id <> $1::text
    and pools.died_at is null
    and pools.dead_after <= $3::float8
    and pools.heartbeat_at < clock_timestamp() - pools.dead_after * interval '1 second'
  for update skip locked
)
update graphile_worker_py.pools as pools
set died_at = clock_timestamp()
from late
where pools.pool_id = late.pool_id
  and (late.too_late or pg_try_advisory_xact_lock(late.lock_key))
returning pools.pool_id, pools.host, pools.pid, pools.is_stopping
"""


def find_dead(pool_id: str, *, worker_schema: str, steady: float) -> Query[list[DeadPool]]:
    """Mark the pools as dead whose heartbeat is late and whose lock is free.

    `steady` says for how many seconds the pool that looks has beaten without a gap. Only whom it
    could have heard in that time may be dead: after an outage nobody has beaten for a while.
    """
    return Query(_FIND_DEAD, (pool_id, worker_schema, steady), _read_dead, prepare=False)


# Only what is committed is seen here: from this moment on, whoever asks hears of the suspects.
_MARK_RECORDED: Final = """
update graphile_worker_py.pools as pools
set recorded_at = clock_timestamp()
where pools.worker_schema = $1::text
  and pools.died_at is not null
  and pools.recorded_at is null
"""


def mark_recorded(worker_schema: str) -> Query[None]:
    """Note that the jobs of dead pools are known to be suspects."""
    return Query(_MARK_RECORDED, (worker_schema,), no_result, prepare=False)


# What a dead pool had locked is freed when all others have heard which of these jobs are suspects.
# Whoever is late himself asks before his next fetch.
_TAKE_DEAD: Final = """
select dead.pool_id, dead.host, dead.pid, dead.is_stopping
from graphile_worker_py.pools as dead
where dead.worker_schema = $2::text
  and dead.recorded_at is not null
  and dead.unlocked_at is null
  and (
    dead.recorded_at < clock_timestamp() - $3::float8 * interval '1 second'
    or not exists (
      select
      from graphile_worker_py.pools as others
      where others.worker_schema = $2::text
        and others.pool_id <> $1::text
        and others.died_at is null
        and others.heartbeat_at <= dead.recorded_at
        and others.heartbeat_at
          >= clock_timestamp() - others.dead_after * interval '1 second'
    )
  )
for update of dead skip locked
"""


def take_dead(pool_id: str, *, worker_schema: str, patience: float) -> Query[list[DeadPool]]:
    """The dead pools whose jobs may be freed now, kept from others until the transaction ends.

    Others are waited for no longer than `patience`, in seconds.
    """
    return Query(_TAKE_DEAD, (pool_id, worker_schema, patience), _read_dead, prepare=False)


_MARK_UNLOCKED: Final = """
update graphile_worker_py.pools as pools
set unlocked_at = clock_timestamp()
where pools.pool_id = any($1::text[])
"""


def mark_unlocked(pool_ids: Sequence[str]) -> Query[None]:
    """Record that what dead pools had locked is free."""
    return Query(_MARK_UNLOCKED, (list(pool_ids),), no_result, prepare=False)


# One of all pools has the turn.
_TAKE_UNLOCKED: Final = """
with due as materialized (
  select pools.pool_id
  from graphile_worker_py.pools as pools
  where pools.worker_schema = $1::text
    and pools.died_at is not null
    and pools.unlocked_at < clock_timestamp() - $2::float8 * interval '1 second'
  for update skip locked
)
update graphile_worker_py.pools as pools
set unlocked_at = clock_timestamp()
from due
where pools.pool_id = due.pool_id
returning pools.pool_id
"""


def take_unlocked(worker_schema: str, *, after: float) -> Query[list[str]]:
    """The dead pools that were unlocked that many seconds ago; they count as unlocked now."""
    return Query(
        _TAKE_UNLOCKED, (worker_schema, after), lambda rows: [row[0] for row in rows], prepare=False
    )


def _read_dead(rows: list[tuple[Any, ...]]) -> list[DeadPool]:
    return [DeadPool(*row) for row in rows]
