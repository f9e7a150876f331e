"""Which limits of its task keep a job from starting."""

from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql.breakers import Breaker, known_breakers
from graphile_worker_py.sql.limits import Limit, LimitKind, read_limits


def readable_limits(schema: str) -> Steps[list[Limit]]:
    """Read the limits; none where the tables are missing, or the role may not read them."""
    try:
        return (yield from read_limits(schema))
    except MissingTablesError:
        return []


def readable_breakers(schema: str) -> Steps[list[Breaker]]:
    """Read the breakers; none where the table is missing, or the role may not read it."""
    try:
        return (yield from known_breakers(schema))
    except MissingTablesError:
        return []


def limits_reached(schema: str, task: str) -> Steps[list[tuple[str, str]]]:
    """Read what lets no job of a task start now, limits and breakers: the facts, and what to do.

    Nothing where the tables are missing, or the role may not read them.
    """
    limits = yield from readable_limits(schema)
    breakers = yield from readable_breakers(schema)
    told = [
        (_fact(each, reason), _remedy(each))
        for each in limits
        if task in each.tasks and (reason := waiting_reason(each)) is not None
    ]
    return told + [
        _broken(each) for each in breakers if task in each.tasks and each.open_for is not None
    ]


def waiting_reason(limit: Limit) -> str | None:
    """Why a limit lets no job start now; None if it lets one start."""
    if limit.state == "free":
        return None
    if limit.amount == 0:
        return "the limit is 0"
    if limit.kind is LimitKind.RATE:
        return f"{limit.amount:g} jobs may start in {limit.per:g} s, and all tokens are used up"
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
