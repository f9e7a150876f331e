"""Which limits of its task keep a job from starting."""

from typing import Final, TypeVar

from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.postgres.together import side_by_side
from graphile_worker_py.records import Record
from graphile_worker_py.sql.breakers import Breaker, known_breakers, read_breakers
from graphile_worker_py.sql.keyed_values import value_of
from graphile_worker_py.sql.limits import TABLES, Limit, LimitKind, known_limits, read_limits
from graphile_worker_py.sql.side_tables import reading

T = TypeVar("T")

LONGEST_SHOWN: Final = 100
"""Characters of a value that are shown."""


def readable_limits(schema: str) -> Steps[list[Limit]]:
    """Read the limits; none where the tables are missing, or the role may not read them."""
    try:
        return (yield from known_limits(schema))
    except MissingTablesError:
        return []


def readable_breakers(schema: str) -> Steps[list[Breaker]]:
    """Read the breakers; none where the table is missing, or the role may not read it."""
    try:
        return (yield from known_breakers(schema))
    except MissingTablesError:
        return []


class Readable(Record):
    """Which tables can be read.

    Args:
        limits: Whether those of limits can be read.
        breakers: Whether that of breakers can be read.
    """

    limits: bool
    breakers: bool


def are_readable(schema: str) -> Steps[Readable]:
    """Whether the tables of limits and breakers are there, and the role may read them."""
    limits, breakers = yield from side_by_side(
        _is_readable(schema, *TABLES), _is_readable(schema, "breakers")
    )
    return Readable(limits=limits, breakers=breakers)


def _is_readable(schema: str, *tables: str) -> Steps[bool]:
    try:
        yield from reading(schema, *tables)
    except MissingTablesError:
        return False
    return True


def limits_reached(
    schema: str, task: str, job_id: int, readable: Readable
) -> Steps[list[tuple[str, str]]]:
    """Read what lets a job of a task not start now, limits and breakers: facts, and what to do."""
    known, breakers = yield from side_by_side(
        _rows(read_limits(schema), is_readable=readable.limits),
        _rows(read_breakers(schema), is_readable=readable.breakers),
    )
    limits: list[Limit] = [each for each in known if task in each.tasks]
    reasons = yield from side_by_side(*(_reason(each, job_id) for each in limits))
    told = [
        (_fact(each, reason), _remedy(each))
        for each, reason in zip(limits, reasons, strict=True)
        if reason is not None
    ]
    return told + [
        _broken(each) for each in breakers if task in each.tasks and each.open_for is not None
    ]


def _rows(query: Query[list[T]], *, is_readable: bool) -> Steps[list[T]]:
    return (yield query) if is_readable else []


def _reason(limit: Limit, job_id: int) -> Steps[str | None]:
    """Why a limit does not let a job start now; None if it does."""
    if limit.key is None or limit.state not in ("full", "draining"):
        return waiting_reason(limit)
    value = yield value_of(job_id, limit.key)
    if value is None or limit.values.get(value, 0) < limit.amount:
        return None
    return _reached_by(limit, value)


def _reached_by(limit: Limit, value: str) -> str:
    running = f"{limit.values[value]} of {limit.amount:g} jobs at once run"
    if not value:
        return f"{running} that have nothing at {limit.key!r}"
    return f"{running} with {value[:LONGEST_SHOWN]!r} at {limit.key!r}"


def waiting_reason(limit: Limit) -> str | None:
    """Why a limit lets no job start now, of one value at least; None if it lets one start."""
    if limit.state == "free":
        return None
    if limit.amount == 0:
        return "the limit is 0"
    if limit.kind is LimitKind.RATE:
        return f"{limit.amount:g} jobs may start in {limit.per:g} s, and all tokens are used up"
    if limit.key is not None:
        return _reached_by(limit, next(iter(limit.values)))
    return f"{limit.in_use} of {limit.amount:g} jobs at once are in use"


def _broken(breaker: Breaker) -> tuple[str, str]:
    fact = (
        f"breaker {breaker.name!r} of its task is open for another {breaker.open_for:.0f} s, "
        f"then one job is let through; it was opened by: {breaker.reason}"
    )
    return fact, f"wait, or run `graphile-worker-py limits reset {breaker.name}`"


def _fact(limit: Limit, reason: str) -> str:
    if limit.amount == 0:
        return f"limit {limit.name!r} of its task is 0 (which binds Python pools only)"
    return f"limit {limit.name!r} of its task is reached: {reason}"


def _remedy(limit: Limit) -> str:
    kind = "" if limit.kind is LimitKind.CONCURRENCY else " --kind rate"
    if limit.amount > 0:
        return f"wait, or run `graphile-worker-py limits set {limit.name} N{kind}`"
    if limit.set_amount is None:
        return "let a release raise it"
    return f"run `graphile-worker-py limits clear {limit.name}{kind}`"
