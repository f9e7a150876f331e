"""Pages of jobs, with cursors that belong to their filter."""

import hashlib
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from graphile_worker_py.checks import BIGINT_MAX
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.postgres.together import together
from graphile_worker_py.sql.inspect import JobState, ListedJob
from graphile_worker_py.sql.windows import Filter, Window, list_window, read_by_ids
from graphile_worker_py.web import filters
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.cache import Fact
from graphile_worker_py.web.problems import Fault, ProblemError
from graphile_worker_py.web.site import Site

MOST: Final = 200
CACHED: Final = 1.0
"""Seconds that a page of jobs is shared between requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some jobs, the newest first.

    Attributes:
        jobs: The jobs.
        ends_window: Whether these are all that were found, and older jobs were not looked at.
        next: Cursor of the next page; None if there is none.
        complete: Whether no older jobs could follow.
        from_id: The smallest id that was looked at; None if there was none.
        sampled: Whether only those were looked at whose ids the census keeps.
    """

    jobs: list[ListedJob]
    next: str | None
    complete: bool
    from_id: int | None
    ends_window: bool = False
    sampled: bool = False


def check_allowed(wanted: Filter, access: Access, site: Site) -> None:
    """Refuse searches in what a user may not see.

    Raises:
        ProblemError: The filter reads payloads or errors (403).
    """
    hidden = wanted.path is not None and site.redaction.hides(wanted.path)
    reads = wanted.text is not None or wanted.error is not None or wanted.path is not None
    if hidden or (reads and not access.payloads):
        raise ProblemError(
            HTTPStatus.FORBIDDEN, "you may not search in payloads and errors, or in this value"
        )


async def list_page(site: Site, wanted: Filter, *, limit: int, cursor: str | None = None) -> Page:
    """Read a page of jobs."""
    return await site.fact(await page_fact(site, wanted, limit=limit, cursor=cursor))


async def page_fact(
    site: Site, wanted: Filter, *, limit: int, cursor: str | None = None
) -> Fact[Page]:
    """See `list_page`."""
    before = None if cursor is None else _read_cursor(cursor, wanted)
    kept = (await _kept(site, wanted))[:limit]
    return Fact(
        key=("jobs", filters.written(wanted), before, limit),
        shared=CACHED,
        steps=lambda: _list(wanted, kept, before=before, limit=limit),
    )


def _list(wanted: Filter, kept: list[int], *, before: int | None, limit: int) -> Steps[Page]:
    found, sample = yield from _found(wanted, kept, before=before, limit=limit)
    jobs = found.jobs
    if found.more:
        following = jobs[-1].id
    elif not found.complete and found.from_id is not None:
        following = found.from_id
    else:
        following = None
    if sample and not jobs and following is not None:
        return Page(jobs=sample, next=None, complete=False, from_id=found.from_id, sampled=True)
    return Page(
        jobs=jobs,
        next=None if following is None else _cursor(following, wanted),
        complete=following is None,
        from_id=found.from_id,
        ends_window=not found.more and not found.complete,
    )


def _found(
    wanted: Filter, kept: list[int], *, before: int | None, limit: int
) -> Steps[tuple[Window, list[ListedJob]]]:
    """What a window has, and the jobs of the census, for when the window has none."""
    window = list_window(wanted, before_id=before, limit=limit)
    if not kept or before is not None:
        return (yield window), []
    found, jobs = yield together([window, read_by_ids(kept)])
    return found, [job for job in jobs if job.state is wanted.state]


async def _kept(site: Site, wanted: Filter) -> list[int]:
    """The ids of jobs of a state that the census keeps, for when the newest ids have none."""
    if wanted not in {Filter(state=JobState.RUNNING), Filter(state=JobState.FAILED)}:
        return []
    counts = (await (await site.census()).look(patience=0)).counts
    if counts is None:
        return []
    return counts.running if wanted.state is JobState.RUNNING else counts.failed


def _mark(wanted: Filter) -> str:
    # Times may be given as an age, and then differ each time.
    wanted = replace(wanted, before=None, after=None)
    return hashlib.sha256(filters.written(wanted).encode()).hexdigest()[:8]


def _cursor(job_id: int, wanted: Filter) -> str:
    return f"{job_id}-{_mark(wanted)}"


def _read_cursor(cursor: str, wanted: Filter) -> int:
    number, _, mark = cursor.rpartition("-")
    is_number = number.removeprefix("-").isdecimal() and len(number) <= 20
    if not is_number or abs(int(number)) > BIGINT_MAX or mark != _mark(wanted):
        raise ProblemError(
            HTTPStatus.BAD_REQUEST,
            "the cursor is of another filter, or damaged; begin with the first page",
            faults=[Fault("after", "not a cursor of this filter")],
        )
    return int(number)
