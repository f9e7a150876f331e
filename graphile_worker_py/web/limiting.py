"""Look at the limits of tasks, and set their numbers, for users of the pages."""

from http import HTTPStatus
from typing import Any, Final

from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.limits.plugin import Limits
from graphile_worker_py.looking.limited import readable_limits, waiting_reason
from graphile_worker_py.sql.limits import Limit, LimitKind
from graphile_worker_py.web import audit
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.facts import SHARED
from graphile_worker_py.web.problems import ProblemError, unavailable
from graphile_worker_py.web.site import Site

LEAF: Final = Limits.leaf
"""The leaf whose tables it needs; they are registered where its plugin is."""


async def read(site: Site) -> list[Limit]:
    """The limits that pools have used; none where there are no tables of limits."""
    return await site.cache.get("limits", SHARED, lambda: site.drive(readable_limits(site.schema)))


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
    }
