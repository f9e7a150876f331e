"""Fetching under limits that count the jobs of each value of a key apart."""

from collections.abc import Sequence
from datetime import datetime
from enum import IntFlag
from functools import lru_cache
from typing import Any, Final, LiteralString

from graphile_worker_py.job import ID, TASK_ID, Job
from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.sql.get_jobs import KNOWN, LOCKED, TAKEN, Fetched
from graphile_worker_py.sql.keyed_values import path_of, value_at
from graphile_worker_py.sql.task_ids import TaskIds

MOST_PASSED: Final = 10_000
"""Jobs that one fetch passes: those of values that have all they may have."""

# Sent first, in the same transaction. The second of two such fetches waits here, and the statement
# after it sees what the first one has taken; a count in the statement that waits for the lock would
# miss it. If no job is due, nothing is locked. In a session that reads from one snapshot the lock
# fails instead, because each fetch that takes jobs changes the rows. The setting ends with the
# transaction: by it, the fetch knows that it holds the lock.
_LOCK: Final = """
with locked as materialized (
  select limits.name
  from graphile_worker_py.limits as limits
  where limits.worker_schema = $1::pg_catalog.text
    and limits.name = any($2::pg_catalog.text[])
    and exists (
      select from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
      where jobs.is_available = true
        and jobs.run_at <= coalesce($4::pg_catalog.timestamptz, pg_catalog.now())
        and pg_catalog.array_position($3::pg_catalog.int4[], jobs.task_id) is not null
      order by jobs.priority, jobs.run_at
      limit 1
    )
  order by limits.name
  for update
)
select pg_catalog.set_config(
  'graphile_worker_py.limits_locked_by', pg_catalog.txid_current()::pg_catalog.text, true
)
where exists (select from locked)
"""

# Step by step:
#  known     as for other fetches.
#  amounts   the limits; none if their rows are not locked.
#  noted … used    how many jobs of each value run. A lease counts if its pool has locked its job.
#  full_keys    the values that have all they may have.
#  room      the amounts, and how many more jobs each value with leases may have.
#  sight     the first jobs of other values, in order of priority and time. It locks nothing. The
#            last job that it may read is always there, also if it is of a full value.
#  placed    of a queue the first one.
#  picked    of each value as many as it may have.
#  free      locks their queues.
#  fitting   locks the jobs.
#  next      those whose values are still the same: a job may change between sight and lock.
#  taken, locked, found    as for other fetches.
#  leased    notes the values of the jobs that were taken.
#  ended     deletes leases that do not count.
#  counted   changes the rows of the limits.
# `{…}` stands for what is there once for each limit.
_FETCH: Final = (
    "with "  # noqa: S608  # all parts are constants
    + KNOWN
    + """
noted as materialized (
  select leases.ctid as place, leases.name, leases.job_id, leases.key, leases.pool_id
  from graphile_worker_py.limit_leases as leases
  where leases.worker_schema = $7::pg_catalog.text
    and leases.name = any($8::pg_catalog.text[])
),
locked_jobs as materialized (
  select jobs.id, jobs.locked_by
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.id = any (array(select noted.job_id from noted))
),
amounts as materialized (
  select limits.name, coalesce(limits.set_amount, limits.amount) as amount
  from graphile_worker_py.limits as limits
  where limits.worker_schema = $7::pg_catalog.text
    and limits.name = any($8::pg_catalog.text[])
    and pg_catalog.current_setting('graphile_worker_py.limits_locked_by', true)
      = pg_catalog.txid_current_if_assigned()::pg_catalog.text
),
leases as materialized (
  select noted.place, noted.name, noted.job_id, noted.key, (
      (noted.job_id, noted.pool_id) in (
        select locked_jobs.id, locked_jobs.locked_by from locked_jobs
      )
    ) is true as counts
  from noted
),
used as materialized (
  select leases.name, leases.key, pg_catalog.count(*)::pg_catalog.int4 as jobs
  from leases
  where leases.counts
  group by leases.name, leases.key
),
full_keys as materialized (
  select used.name, used.key
  from amounts
  join used on used.name = amounts.name
  where used.jobs >= amounts.amount
),
room as materialized (
  select
    pg_catalog.array_agg(amounts.amount order by named.place) as amounts,
    pg_catalog.array_agg(
      (
        select pg_catalog.jsonb_object_agg(used.key, amounts.amount - used.jobs)
        from used
        where used.name = named.name
      )
      order by named.place
    ) as free
  from pg_catalog.unnest($8::pg_catalog.text[]) with ordinality as named (name, place)
  left join amounts on amounts.name = named.name
),
sight as materialized (
  select
    passing.*,
    pg_catalog.row_number() over (
      partition by passing.job_queue_id order by passing.priority, passing.run_at, passing.id
    ) as place
  from (
    select jobs.*
    from (
      select
        jobs.id,
        jobs.job_queue_id,
        jobs.priority,
        jobs.run_at,
        pg_catalog.row_number() over () as number{values}
      from (
        select jobs.id, jobs.job_queue_id, jobs.priority, jobs.run_at, jobs.payload, jobs.flags
        from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
        where (select known.is_right from known)
          and exists (select from amounts)
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
    limit 2 * $3::pg_catalog.int4 + 50
  ) as passing
),
placed as (
  select open.*{place}
  from (
    select sight.*{free}
    from sight
    cross join room
    where sight.job_queue_id is null or sight.place = 1
  ) as open
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
  where (
      (fitting.id{fitting keys}) in (select picked.id{picked keys} from picked)
    ) is true
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
ended as (
  delete from graphile_worker_py.limit_leases as ended
  where ended.ctid = any (
    array(
      select leases.place
      from leases
      where not leases.counts
        and exists (select from next)
        and (leases.job_id in (select next.id from next)) is not true
    )
  )
),
counted as (
  update graphile_worker_py.limits as limits
  set in_use = (
    (select coalesce(pg_catalog.sum(used.jobs), 0) from used where used.name = limits.name)
    + (select pg_catalog.count(*) from next)
  )
  where limits.worker_schema = $7::pg_catalog.text
    and limits.name = any($8::pg_catalog.text[])
    and exists (select from next)
),
found as (
  select
    1 * (
      (select pg_catalog.count(*) from sight) >= 2 * $3::pg_catalog.int4 + 50
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
      and (jobs.key_<n> in (
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
    "{fitting keys}": ", fitting.key_<n>",
    "{picked keys}": ", picked.key_<n>",
    "{empty}": """
    + 16 * (1 << <n>) * exists (select from next where next.key_<n> = '')::pg_catalog.int4""",
}
_NUMBERS: Final[Sequence[LiteralString]] = ("1", "2", "3", "4")
_PATHS: Final[Sequence[LiteralString]] = ("$11", "$12", "$13", "$14")


def _each_filled(text: LiteralString, keys: Sequence[str]) -> LiteralString:
    """A part of the statement once for each limit."""
    filled: LiteralString = ""
    for number, path, key in zip(_NUMBERS, _PATHS, keys, strict=False):
        each = text.replace("<value>", value_at(key)).replace("<path>", path)
        filled += each.replace("<n>", number)
    return filled


@lru_cache
def _text(keys: Sequence[str]) -> LiteralString:
    text: LiteralString = _FETCH
    for name, each in _EACH.items():
        text = text.replace(name, _each_filled(each, keys))
    each_key: list[LiteralString] = ["next.key_" + number for number in _NUMBERS[: len(keys)]]
    return text.replace("{keys}", ", ".join(each_key))


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
        *map(path_of, keys),
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

    lock = Query(_LOCK, (worker_schema, names, task_ids.numbers, now), no_result)
    return Query(_text(keys), values, read, after=lock)
