"""Pause and resume what users of the pages choose."""

from datetime import datetime
from typing import Any, Final

from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.looking.paused import readable_pauses
from graphile_worker_py.pausing.plugin import Pausing
from graphile_worker_py.sql.pauses import Pause
from graphile_worker_py.web import audit
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.cache import Fact
from graphile_worker_py.web.facts import SHARED
from graphile_worker_py.web.problems import unavailable
from graphile_worker_py.web.site import Site

LEAF: Final = Pausing.leaf
"""The leaf whose tables it needs; they are registered where its plugin is."""


async def read(site: Site) -> list[Pause]:
    """What is paused; nothing where there is no table of pauses."""
    return await site.fact(fact(site.schema))


def fact(schema: str) -> Fact[list[Pause]]:
    """See `read`."""
    return Fact(key="pauses", shared=SHARED, steps=lambda: readable_pauses(schema))


async def pause(
    site: Site,
    access: Access,
    targets: dict[str, Any],
    *,
    reason: str | None,
    until: datetime | None,
) -> Pause:
    """Pause one thing.

    Raises:
        ProblemError: There is no table of pauses (503).
    """
    utils = await site.utils()
    try:
        made = await utils.pause(**targets, reason=reason, until=until, by=access.user[:200])
    except MissingTablesError as error:
        raise unavailable(str(error), retry_after=60) from error
    details = {"what": made.what, "reason": reason}
    await audit.record(site, access, "pause", count=1, details=details)
    await site.changed()
    return made


async def resume(site: Site, access: Access, targets: dict[str, Any]) -> Pause | None:
    """End a pause; None if there is none.

    Raises:
        ProblemError: There is no table of pauses (503).
    """
    utils = await site.utils()
    try:
        ended = await utils.resume(**targets)
    except MissingTablesError as error:
        raise unavailable(str(error), retry_after=60) from error
    if ended is not None:
        await audit.record(site, access, "resume", count=1, details={"what": ended.what})
        await site.changed()
    return ended
