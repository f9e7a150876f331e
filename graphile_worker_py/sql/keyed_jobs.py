"""Fetching under limits that count the jobs of each value of a key apart."""

from collections.abc import Sequence
from datetime import datetime
from enum import IntFlag
from functools import lru_cache
from typing import Any, Final, LiteralString

from graphile_worker_py.job import ID, TASK_ID, Job
from graphile_worker_py.options.limits import FLAG_KEY
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql.get_jobs import KNOWN, LOCKED, TAKEN, Fetched
from graphile_worker_py.sql.task_ids import TaskIds

MOST_PASSED: Final = 10_000
"""Jobs that one fetch passes: those of values that have all they may have."""

# The value of a job `jobs` under a limit, `''` if it has none. `<path>` stands for the names of
# fields, one within the other, or for how a flag begins. A payload with escapes goes through a
# function, because some can't be read.
_IN_PAYLOAD: Final = """
coalesce(
  case
    when pg_catalog.strpos(jobs.payload::pg_catalog.text, pg_catalog.chr(92) || 'u') = 0
    then pg_catalog.json_extract_path_text(jobs.payload, variadic <path>::pg_catalog.text[])
    else graphile_worker_py.limit_key(jobs.payload, <path>::pg_catalog.text[])
  end,
  ''
)"""
_IN_FLAGS: Final = """
coalesce(
  (
    select pg_catalog.min(pg_catalog.substr(
      flags.name, pg_catalog.length((<path>::pg_catalog.text[])[1]) + 1
    ))
    from pg_catalog.jsonb_object_keys(
      case when pg_catalog.jsonb_typeof(jobs.flags) = 'object' then jobs.flags end
    ) as flags (name)
    where pg_catalog.left(
      flags.name, pg_catalog.length((<path>::pg_catalog.text[])[1])
    ) = (<path>::pg_catalog.text[])[1]
  ),
  ''
)"""

# Step by step:
#  known     as for other fetches.
#  locked_jobs, full_keys    the values that had all they may have when the statement began.
#  sight     the first jobs of other values, in order of priority and time. It locks nothing. The
#            last job that it may read is always there: if it is of a full value, `open` drops it.
#  room      locks the rows of the limits, so that of two such fetches the second one sees what the
#            first one has taken; and what each value may have now. See `keyed_room`.
#  open      the jobs that are still there, of values that may have more; of a queue the first one.
#  picked    of each value as many as it may have.
#  free      locks their queues.
#  fitting   locks the jobs.
#  next      those whose values are still the same: a job may change between sight and lock.
#  taken, locked, found    as for other fetches.
#  leased    notes the values of the jobs that were taken.
# `{…}` stands for what is there once for each limit.
_FETCH: Final = (
    "with "  # noqa: S608  # all parts are constants
    + KNOWN
    + """
locked_jobs as materialized (
  select jobs.id, jobs.locked_by
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.id = any (
    array(
      select leases.job_id
      from graphile_worker_py.limit_leases as leases
      where leases.worker_schema = $7::pg_catalog.text
        and leases.name = any($8::pg_catalog.text[])
    )
  )
),
full_keys as materialized (
  select leases.name, leases.key
  from graphile_worker_py.limit_leases as leases
  join graphile_worker_py.limits as limits
    on limits.worker_schema = leases.worker_schema and limits.name = leases.name
  where leases.worker_schema = $7::pg_catalog.text
    and leases.name = any($8::pg_catalog.text[])
    and (
      (leases.job_id, leases.pool_id) in (
        select locked_jobs.id, locked_jobs.locked_by from locked_jobs
      )
    ) is true
  group by leases.name, leases.key, limits.set_amount, limits.amount
  having pg_catalog.count(*) >= coalesce(limits.set_amount, limits.amount)
),
sight as materialized (
  select
    passing.*,
    pg_catalog.row_number() over (
      partition by passing.job_queue_id order by passing.priority, passing.run_at, passing.id
    ) as place
  from (
    select jobs.id, jobs.job_queue_id, jobs.priority, jobs.run_at, jobs.number{values}
    from (
      select jobs.*, pg_catalog.row_number() over () as number
      from (
        select jobs.id, jobs.job_queue_id, jobs.priority, jobs.run_at, jobs.payload, jobs.flags
        from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
        where (select known.is_right from known)
          and jobs.is_available = true
          and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
          and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
          and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
          and (
            jobs.job_queue_id is null
            or jobs.job_queue_id in (
              select queues.id
              from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
              where queues.is_available = true
            )
          )
        order by jobs.priority, jobs.run_at
        offset $9::pg_catalog.int4
        limit $10::pg_catalog.int4
      ) as jobs
    ) as jobs
    where jobs.number = $10::pg_catalog.int4 or (true{not full})
    limit 4 * $3::pg_catalog.int4 + 100
  ) as passing
),
room as materialized (
  select room.amounts, room.free, room.waiting
  from graphile_worker_py.keyed_room(
    $7::pg_catalog.text, $8::pg_catalog.text[], array(select sight.id from sight)
  ) as room
  where exists (select from sight)
),
open as (
  select sight.*{free}
  from sight
  cross join room
  where (sight.id in (select pg_catalog.unnest(room.waiting) from room)) is true
    and (sight.job_queue_id is null or sight.place = 1)
),
placed as (
  select open.*{place}
  from open
  where true{some room}
),
picked as materialized (
  select placed.*
  from placed
  where true{within}
  order by placed.priority, placed.run_at, placed.id
  limit $3::pg_catalog.int4
),
free as materialized (
  select queues.id
  from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  where queues.is_available = true
    and queues.id = any (
      array(select picked.job_queue_id from picked where picked.job_queue_id is not null)
    )
  for update skip locked
),
fitting as materialized (
  select jobs.id{values}
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.id = any (
      array(
        select picked.id
        from picked
        where picked.job_queue_id is null
          or (picked.job_queue_id in (select free.id from free)) is true
      )
    )
    and (
      jobs.job_queue_id is null or (jobs.job_queue_id in (select free.id from free)) is true
    )
    and jobs.is_available = true
    and jobs.run_at <= coalesce($5::pg_catalog.timestamptz, pg_catalog.now())
    and pg_catalog.array_position($2::pg_catalog.int4[], jobs.task_id) is not null
    and ($4::pg_catalog.text[] is null or (jobs.flags ?| $4::pg_catalog.text[]) is not true)
  for update skip locked
),
next as materialized (
  select fitting.*
  from fitting
  join picked on picked.id = fitting.id
  where true{same}
),"""
    + TAKEN
    + ","
    + LOCKED
    + """,
leased as (
  insert into graphile_worker_py.limit_leases as leases (
    worker_schema, name, job_id, key, pool_id
  )
  select $7::pg_catalog.text, lease.name, next.id, lease.key, $1::pg_catalog.text
  from next
  cross join lateral rows from (
    pg_catalog.unnest($8::pg_catalog.text[]), pg_catalog.unnest(array[{keys}])
  ) as lease (name, key)
  on conflict (worker_schema, name, job_id)
  do update set key = excluded.key, pool_id = excluded.pool_id
),
found as (
  select
    1 * (
      (select pg_catalog.count(*) from sight) >= 4 * $3::pg_catalog.int4 + 100
    )::pg_catalog.int4
    + 2 * exists (
      select from picked
      where picked.job_queue_id is not null
        and (picked.job_queue_id in (select free.id from free)) is not true
    )::pg_catalog.int4
    + 4 * (
      exists (select from full_keys)
      or (select pg_catalog.count(*) from sight) > (select pg_catalog.count(*) from next)
    )::pg_catalog.int4
    + 8 * (known.is_right is not true)::pg_catalog.int4
    + 16 * exists (
      select from sight where sight.number = $10::pg_catalog.int4
    )::pg_catalog.int4{empty} as in_sight
  from known
)
select taken.*, found.in_sight
from found
left join taken on true
order by taken.priority, taken.run_at, taken.id
"""
)

# What is there once for each limit: `<n>` stands for its number, from 1 on.
_EACH: Final[dict[LiteralString, LiteralString]] = {
    "{values}": ", <value> as key_<n>",
    "{not full}": """
      and (<value> in (
        select full_keys.key from full_keys
        where full_keys.name = ($8::pg_catalog.text[])[<n>]
      )) is not true""",
    "{free}": """,
    coalesce(
      ((room.free)[<n>] ->> sight.key_<n>)::pg_catalog.int4, (room.amounts)[<n>]
    ) as free_<n>""",
    "{some room}": " and open.free_<n> > 0",
    "{place}": """,
    pg_catalog.row_number() over (
      partition by open.key_<n> order by open.priority, open.run_at, open.id
    ) as place_<n>""",
    "{within}": " and placed.place_<n> <= placed.free_<n>",
    "{same}": " and fitting.key_<n> = picked.key_<n>",
    "{empty}": """
    + 16 * (1 << <n>) * exists (select from next where next.key_<n> = '')::pg_catalog.int4""",
}
_NUMBERS: Final[Sequence[LiteralString]] = ("1", "2", "3", "4")
_PATHS: Final[Sequence[LiteralString]] = ("$11", "$12", "$13", "$14")


def _each_filled(text: LiteralString, keys: Sequence[str]) -> LiteralString:
    """A part of the statement once for each limit."""
    filled: LiteralString = ""
    for number, path, key in zip(_NUMBERS, _PATHS, keys, strict=False):
        value = _IN_FLAGS if key.startswith(FLAG_KEY) else _IN_PAYLOAD
        each = text.replace("<value>", value).replace("<path>", path)
        filled += each.replace("<n>", number)
    return filled


@lru_cache
def _text(keys: Sequence[str]) -> LiteralString:
    text: LiteralString = _FETCH
    for name, each in _EACH.items():
        text = text.replace(name, _each_filled(each, keys))
    each_key: list[LiteralString] = ["next.key_" + number for number in _NUMBERS[: len(keys)]]
    return text.replace("{keys}", ", ".join(each_key))


def _path(key: str) -> list[str]:
    """What `<path>` stands for."""
    return [key.removeprefix(FLAG_KEY)] if key.startswith(FLAG_KEY) else key.split(".")


class InSight(IntFlag):
    """What the statement reports about the jobs in sight."""

    MORE = 1
    HIDDEN = 2
    WAITS = 4
    TASKS_CHANGED = 8
    DEEPER = 16


class KeyedFetched(Fetched, kw_only=False):
    """The result of a fetch under limits with a key.

    Args:
        waits: Whether jobs may wait until others of their value have ended.
        deeper: Whether as many jobs were passed as one fetch may, so that more may stand behind.
        without: The limits under which a job was fetched that has no value.
    """

    waits: bool = False
    deeper: bool = False
    without: Sequence[str] = ()


def get_keyed_jobs(
    worker_schema: str,
    limits: Sequence[tuple[str, str]],
    passed: int,
    *,
    pool_id: str,
    task_ids: TaskIds,
    count: int,
    forbidden_flags: Sequence[str] | None,
    now: datetime | None = None,
) -> Query[Fetched | None]:
    """Lock up to `count` jobs for a pool; of each value no more than its limits allow.

    Args:
        worker_schema: The schema of the jobs.
        limits: Name and key of each limit, at most four.
        passed: How many jobs to leave out at the start of their order.
        pool_id: As for other fetches.
        task_ids: The tasks, all with these limits.
        count: As for other fetches.
        forbidden_flags: As for other fetches.
        now: As for other fetches.

    Returns:
        A `KeyedFetched`, or None as for other fetches.
    """
    names = [name for name, _ in limits]
    keys = tuple(key for _, key in limits)
    flags = list(forbidden_flags) if forbidden_flags else None
    values = (
        *(pool_id, task_ids.numbers, count, flags, now, task_ids.identifiers),
        *(worker_schema, names, passed, MOST_PASSED),
        *map(_path, keys),
    )

    def read(rows: list[tuple[Any, ...]]) -> Fetched | None:
        bits = rows[0][-1]
        in_sight = InSight(bits & 31)
        if InSight.TASKS_CHANGED in in_sight:
            return None
        jobs = [] if rows[0][ID] is None else [Job(row, task_ids[row[TASK_ID]]) for row in rows]
        return KeyedFetched(
            jobs,
            more=bool(jobs) and (len(jobs) >= count or InSight.MORE in in_sight),
            hidden=InSight.HIDDEN in in_sight,
            waits=InSight.WAITS in in_sight,
            deeper=InSight.DEEPER in in_sight,
            without=[name for at, name in enumerate(names, 5) if bits >> at & 1],
        )

    return Query(_text(keys), values, read)


# Under a limit with a key: what the job's value is, and how many jobs run that have it.
_VALUE: Final = """
select {value}
from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
where jobs.id = $1::pg_catalog.int8
"""


def value_of(job_id: int, key: str) -> Query[str | None]:
    """The value of a job under a limit with a key; None if there is no such job."""
    value = _IN_FLAGS if key.startswith(FLAG_KEY) else _IN_PAYLOAD
    text = _VALUE.replace("{value}", value.replace("<path>", "$2"))
    return Query(
        text, (job_id, _path(key)), lambda rows: rows[0][0] if rows else None, prepare=False
    )
