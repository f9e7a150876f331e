"""What worker pools take of limits and give back: permits to run jobs, tokens to start them."""

from collections.abc import Sequence
from typing import Any, Final

from graphile_worker_py.options.limits import ConcurrencyLimit, RateLimit
from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.records import Record

TOPIC: Final = "limit"
"""Topic of notifications that permits came free, are wanted, or that a limit was changed."""


class Permits(Record, kw_only=False):
    """The answer to a pool that asks for permits, or gives some back.

    Args:
        permits: How many it has now.
        amount: The limit: the operator's number, or the least one of the living pools.
        in_use: How many permits all pools have.
        waiting: How many other pools could use more than they have.
        claimants: How many pools use or want permits, this one included.
        least_declared: The least number in the code of a pool.
        most_declared: The largest one.
        is_set: Whether an operator has set the number.
    """

    permits: int
    amount: int
    in_use: int
    waiting: int
    claimants: int
    least_declared: int
    most_declared: int
    is_set: bool


_TAKE: Final = """
select taken.permits, taken.amount, taken.in_use, taken.waiting, taken.claimants,
  taken.least_declared, taken.most_declared, taken.is_set
from graphile_worker_py.take_permits(
  $1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.text, $4::pg_catalog.text[],
  $5::pg_catalog.int4, $6::pg_catalog.int4, $7::pg_catalog.int4
) as taken
"""


def take_permits(
    worker_schema: str,
    name: str,
    limit: ConcurrencyLimit,
    *,
    pool_id: str,
    tasks: Sequence[str],
    wanted: int,
    wants: int,
) -> Query[Permits]:
    """Take permits up to a number, or give back those above it.

    Args:
        worker_schema: The schema of the jobs.
        name: The limit's name.
        limit: The limit as the code of this pool has it.
        pool_id: The pool.
        tasks: Its tasks that have the limit.
        wanted: How many permits it wants to have now; not fewer than it has locked jobs.
        wants: How many it could use.
    """
    values = (worker_schema, name, pool_id, list(tasks), limit.amount, wanted, wants)
    return Query(_TAKE, values, lambda rows: Permits(*rows[0]))


_SET_KEY: Final = """
update graphile_worker_py.limits as limits
set key = $3::pg_catalog.text
where limits.worker_schema = $1::pg_catalog.text
  and limits.name = $2::pg_catalog.text
  and limits.key is distinct from $3::pg_catalog.text
"""


def set_key(worker_schema: str, name: str, key: str | None) -> Query[None]:
    """Note what a limit tells jobs apart by; None if it counts all together."""
    return Query(_SET_KEY, (worker_schema, name, key), no_result, prepare=False)


class Tokens(Record, kw_only=False):
    """The answer to a pool that wants to start jobs.

    Args:
        granted: How many it may start now.
        wait: Seconds until the next one.
        step: Seconds in which one token comes back; 0 if none does.
        taken_after: Names the time since which tokens were taken without a break.
        differs: Whether the numbers that count are those of another version of the code.
    """

    granted: int
    wait: float
    step: float
    taken_after: float
    differs: bool


_TAKE_TOKENS: Final = """
select taken.granted, taken.wait, taken.step, taken.taken_after, taken.differs
from graphile_worker_py.take_tokens(
  $1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.text[], $4::pg_catalog.float8,
  $5::pg_catalog.float8, $6::pg_catalog.int4, $7::pg_catalog.int4
) as taken
"""


def take_tokens(
    worker_schema: str, name: str, limit: RateLimit, *, tasks: Sequence[str], wanted: int
) -> Query[Tokens]:
    """Take as many tokens as there are now, and at most `wanted`."""
    values = (
        worker_schema,
        name,
        list(tasks),
        float(limit.rate),
        float(limit.per),
        limit.most_at_once,
        wanted,
    )
    return Query(_TAKE_TOKENS, values, lambda rows: Tokens(*rows[0]))


# Not after a break: what was taken before it is forgotten by then, and would come back twice.
_RETURN_TOKENS: Final = """
update graphile_worker_py.limit_rates as rates
set full_at = rates.full_at - $3::pg_catalog.float8
where rates.worker_schema = $1::pg_catalog.text
  and rates.name = $2::pg_catalog.text
  and rates.reset_at = $4::pg_catalog.float8
"""


def return_tokens(worker_schema: str, name: str, taken: Tokens, *, count: int) -> Query[None]:
    """Give back tokens with which no job was started."""
    values: tuple[Any, ...] = (worker_schema, name, count * taken.step, taken.taken_after)
    return Query(_RETURN_TOKENS, values, no_result)
