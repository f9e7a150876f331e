"""Look at the limits and breakers of tasks, and change them, for users of the pages."""

from http import HTTPStatus
from typing import Any, Final

from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.limits.plugin import Limits
from graphile_worker_py.looking.limited import readable_limits, waiting_reason
from graphile_worker_py.postgres.masking import masked_text
from graphile_worker_py.sql.breakers import Breaker
from graphile_worker_py.sql.limits import Limit, LimitKind
from graphile_worker_py.web import audit
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.cache import Fact
from graphile_worker_py.web.facts import SHARED, breakers_fact
from graphile_worker_py.web.problems import ProblemError, unavailable
from graphile_worker_py.web.redact import Redaction
from graphile_worker_py.web.shown import moment
from graphile_worker_py.web.site import Site

LEAF: Final = Limits.leaf
"""The leaf whose tables it needs; they are registered where its plugin is."""


async def read(site: Site) -> list[Limit]:
    """The limits that pools have used; none where there are no tables of limits."""
    return await site.fact(limits_fact(site.schema))


def limits_fact(schema: str) -> Fact[list[Limit]]:
    """See `read`."""
    return Fact(key="limits", shared=SHARED, steps=lambda: readable_limits(schema))


async def breakers(site: Site) -> list[Breaker]:
    """The breakers that pools have had; none where there is no table of breakers."""
    return await site.fact(breakers_fact(site.schema))


async def reset(site: Site, access: Access, name: str) -> Breaker:
    """Close a breaker.

    Raises:
        ProblemError: There is no such breaker (404), or there is no table of breakers (503).
    """
    utils = await site.utils()
    try:
        known = {each.name for each in await utils.breakers()}
        if name not in known:
            raise ProblemError(HTTPStatus.NOT_FOUND, f"no worker pool has had a breaker {name!r}")
        await utils.reset_breaker(name)
        now = {each.name: each for each in await utils.breakers()}[name]
    except MissingTablesError as error:
        raise unavailable(str(error), retry_after=60) from error
    await audit.record(site, access, "reset_breaker", count=1, details={"breaker": name})
    await site.changed()
    return now


async def set_number(
    site: Site, access: Access, name: str, amount: int | None, *, kind: LimitKind | None
) -> Limit:
    """Set the number of a limit, or let that of the code count again (None).

    Raises:
        ProblemError: There is no such limit (404), or there are no tables of limits (503).
    """
    utils = await site.utils()
    try:
        known = await utils.limits()
        if not any(each.name == name and kind in {None, each.kind} for each in known):
            of_kind = "" if kind is None else f" of kind {str(kind)!r}"
            raise ProblemError(
                HTTPStatus.NOT_FOUND, f"no worker pool has used a limit {name!r}{of_kind}"
            )
        if amount is None:
            now = await utils.clear_limit(name, kind=kind)
        else:
            now = await utils.set_limit(name, amount, kind=kind)
    except MissingTablesError as error:
        raise unavailable(str(error), retry_after=60) from error
    details: dict[str, Any] = {"limit": now.name, "kind": str(now.kind)}
    details |= {} if amount is None else {"amount": amount}
    action = "clear_limit" if amount is None else "set_limit"
    await audit.record(site, access, action, count=1, details=details)
    await site.changed()
    return now


def as_json(limit: Limit) -> dict[str, Any]:
    """A limit as the API tells it."""
    return {
        "name": limit.name,
        "kind": str(limit.kind),
        "amount": limit.amount,
        "declared": limit.declared,
        "set_amount": limit.set_amount,
        "per": limit.per,
        "burst": limit.burst,
        "in_use": limit.in_use,
        "tokens": None if limit.burst is None else max(0, limit.burst - limit.in_use),
        "state": limit.state,
        "waiting_reason": waiting_reason(limit),
        "tasks": limit.tasks,
        "pools": limit.pools,
        "key": limit.key,
        "values": limit.values,
    }


def reason_of(breaker: Breaker, access: Access, redaction: Redaction) -> str | None:
    """The failure that has opened a breaker, as far as a user may see it."""
    if breaker.reason is None:
        return None
    if not access.payloads:
        return "[not shown to you]"
    return redaction.text(masked_text(breaker.reason))


def breaker_json(breaker: Breaker, access: Access, redaction: Redaction) -> dict[str, Any]:
    """A breaker as the API tells it."""
    return {
        "name": breaker.name,
        "state": breaker.state,
        "failures": breaker.failures,
        "opened_at": moment(breaker.opened_at),
        "open_until": moment(breaker.open_until),
        "open_for": breaker.open_for,
        "reason": reason_of(breaker, access, redaction),
        "tasks": breaker.tasks,
    }
