"""The limits of tasks as operators see and set them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Any, Final, LiteralString

from graphile_worker_py.checks import check_one_of, check_text, check_whole
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.records import Record
from graphile_worker_py.sql.side_tables import reading

TABLES: Final = ("limits", "limit_permits", "limit_rates", "limit_leases")

MOST_VALUES: Final = 100
"""Values of a limit with a key that are listed."""


class LimitKind(StrEnum):
    """What a limit counts."""

    CONCURRENCY = "concurrency"
    """Jobs that run at once."""
    RATE = "rate"
    """Jobs that start in a time."""


class Limit(Record):
    """A limit of tasks, and how much of it is used.

    Attributes:
        name: Its name.
        kind: What it counts.
        amount: The number that counts: jobs at once, or starts in `per` seconds.
        declared: The number in the code: the smallest of all versions that run.
        set_amount: The number that an operator has set; None if none has.
        per: Seconds; None for jobs at once.
        burst: Most starts at once after a quiet time; None for jobs at once.
        in_use: Permits that the pools have for jobs at once, or tokens that are used up. A pool
            has a permit for each job that it has locked, and keeps unused ones for a second. With
            a key, the jobs that are locked.
        tasks: Identifiers of the tasks that have it, as far as pools have reported them.
        pools: Permits of each pool; with a key, its jobs.
        key: What it tells jobs apart by; None if it counts all jobs together.
        values: With a key, how many jobs of each value are locked: those that have most come
            first, at most 100.
    """

    name: str
    kind: LimitKind
    amount: float
    declared: float
    set_amount: float | None
    per: float | None
    burst: int | None
    in_use: int
    tasks: list[str]
    pools: dict[str, int]
    key: str | None = None
    values: dict[str, int] = field(default_factory=dict)

    @property
    def most_in_use(self) -> int:
        """How much is used of what `amount` limits: with a key, by the value that has most."""
        return self.in_use if self.key is None else max(self.values.values(), default=0)

    @property
    def state(self) -> str:
        """In a word: `paused`, `draining` (lowered below what runs), `full` or `free`."""
        if self.amount == 0:
            return "paused"
        if self.kind is LimitKind.RATE:
            return "full" if self.in_use >= (self.burst or 1) else "free"
        if self.most_in_use > self.amount:
            return "draining"
        return "full" if self.most_in_use == self.amount else "free"


# Permits of pools whose jobs were freed no longer count, although their rows may still be there.
_READ: Final = """
select limits.name, 'concurrency', coalesce(limits.set_amount, held.declared, limits.amount),
  coalesce(held.declared, limits.amount), limits.set_amount, null::pg_catalog.float8,
  null::pg_catalog.int4, coalesce(held.permits, 0), limits.tasks,
  coalesce(held.pools, '{}'), coalesce(held.each, '{}'), limits.key,
  coalesce(leased.keys, '{}'), coalesce(leased.pools, '{}')
from graphile_worker_py.limits as limits
left join lateral (
  select pg_catalog.min(permits.declared) as declared, pg_catalog.sum(permits.permits) as permits,
    pg_catalog.array_agg(permits.pool_id order by permits.pool_id) as pools,
    pg_catalog.array_agg(permits.permits order by permits.pool_id) as each
  from graphile_worker_py.limit_permits as permits
  where permits.worker_schema = limits.worker_schema
    and permits.name = limits.name
    and exists (
      select
      from graphile_worker_py.pools as pools
      where pools.pool_id = permits.pool_id and pools.unlocked_at is null
    )
) as held on true
left join lateral (
  select pg_catalog.array_agg(leases.key) as keys, pg_catalog.array_agg(leases.pool_id) as pools
  from graphile_worker_py.limit_leases as leases
  where leases.worker_schema = limits.worker_schema
    and leases.name = limits.name
    and exists (
      select from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
      where jobs.id = leases.job_id and jobs.locked_by = leases.pool_id
    )
) as leased on limits.key is not null
where limits.worker_schema = $1::pg_catalog.text
union all
select rates.name, 'rate', coalesce(rates.set_rate, rates.rate), rates.rate, rates.set_rate,
  rates.per, rates.burst,
  case when coalesce(rates.set_rate, rates.rate) > 0::pg_catalog.float8 then
    least(rates.burst, greatest(0::pg_catalog.float8, pg_catalog.ceil((
      rates.full_at - extract(epoch from pg_catalog.clock_timestamp())::pg_catalog.float8
    ) * coalesce(rates.set_rate, rates.rate) / rates.per)))::pg_catalog.int4
  else rates.burst end,
  rates.tasks, '{}', '{}', null, '{}', '{}'
from graphile_worker_py.limit_rates as rates
where rates.worker_schema = $1::pg_catalog.text
order by 1, 2
"""


def _read(rows: list[tuple[Any, ...]]) -> list[Limit]:
    return [_limit(*row) for row in rows]


def _limit(*row: Any) -> Limit:
    name, kind, amount, declared, set_amount, per, burst, in_use, tasks, *held = row
    pools, permits, key, keys_leased, pools_leased = held
    return Limit(
        name=name,
        kind=LimitKind(kind),
        amount=amount,
        declared=declared,
        set_amount=set_amount,
        per=per,
        burst=burst,
        in_use=int(in_use) if key is None else len(keys_leased),
        tasks=tasks,
        pools=dict(zip(pools, permits, strict=True))
        if key is None
        else dict(Counter(pools_leased)),
        key=key,
        values=dict(Counter(keys_leased).most_common(MOST_VALUES)),
    )


def read_limits(worker_schema: str) -> Query[list[Limit]]:
    """Read the limits of a schema, by name."""
    return Query(_READ, (worker_schema,), _read, prepare=False)


def known_limits(worker_schema: str) -> Steps[list[Limit]]:
    """Read the limits of a schema, by name.

    Raises:
        MissingTablesError: The tables of limits are missing.
    """
    yield from reading(worker_schema, *TABLES)
    return (yield read_limits(worker_schema))  # type: ignore[no-any-return]


# The pools are told in the same transaction.
_SET: Final = """
with changed as (
  update graphile_worker_py.limits as limits
  set set_amount = $3::pg_catalog.int4, set_at = pg_catalog.now()
  where limits.worker_schema = $1::pg_catalog.text and limits.name = $2::pg_catalog.text
  returning limits.name
)
select pg_catalog.pg_notify('graphile_worker_py', pg_catalog.json_build_object(
  's', $1::pg_catalog.text, 't', 'limit', 'n', changed.name
)::pg_catalog.text)
from changed
"""
_SET_RATE: Final = """
with changed as (
  update graphile_worker_py.limit_rates as rates
  set set_rate = $3::pg_catalog.float8, set_at = pg_catalog.now()
  where rates.worker_schema = $1::pg_catalog.text and rates.name = $2::pg_catalog.text
  returning rates.name
)
select pg_catalog.pg_notify('graphile_worker_py', pg_catalog.json_build_object(
  's', $1::pg_catalog.text, 't', 'limit', 'n', changed.name
)::pg_catalog.text)
from changed
"""
_STATEMENTS: Final[Mapping[LimitKind, LiteralString]] = {
    LimitKind.CONCURRENCY: _SET,
    LimitKind.RATE: _SET_RATE,
}


def set_limit(
    worker_schema: str, name: str, amount: int | None, *, kind: str | None
) -> Steps[Limit]:
    """Set the number of a limit, or let that of the code count again (None).

    Raises:
        ConfigurationError: There is no such limit, or the number is not allowed.
        MissingTablesError: The tables of limits are missing.
    """
    check_text("name", name, shortest=1)
    if amount is not None:
        check_whole(f"the number of limit {name!r}", amount, smallest=0)
    if kind is not None:
        check_one_of("kind", kind, allowed=LimitKind)
    known = yield from known_limits(worker_schema)
    chosen = _chosen(known, name, kind)
    yield from reading(worker_schema, *TABLES, right="update")
    yield Query(_STATEMENTS[chosen], (worker_schema, name, amount), len, prepare=False)
    now: list[Limit] = yield read_limits(worker_schema)
    return next(each for each in now if (each.name, each.kind) == (name, chosen))


def _chosen(known: Sequence[Limit], name: str, kind: str | None) -> LimitKind:
    for each in known:  # of one name, that of jobs at once comes first
        if each.name == name and kind in (None, each.kind):
            return each.kind
    names = ", ".join(sorted({repr(each.name) for each in known})) or "none"
    of_kind = "" if kind is None else f" of kind {kind!r}"
    raise ConfigurationError(
        f"there is no limit {name!r}{of_kind}; limits that workers have used are: {names}"
    )
