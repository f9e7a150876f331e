"""The crontab items that workers schedule: when they are due, and which runs were missed."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

from graphile_worker_py.clock import utc_now
from graphile_worker_py.cron.items import CronItemOptions, ParsedCronItem
from graphile_worker_py.cron.match import Timetable, floor_minute
from graphile_worker_py.cron.pattern import Pattern
from graphile_worker_py.cron.published import from_json, in_words
from graphile_worker_py.cron.schedule import PUBLISH_INTERVAL, cron_job
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.postgres.together import one, side_by_side
from graphile_worker_py.sql.crontab_items import PublishedItem, read_published
from graphile_worker_py.sql.known_crontabs import KnownCrontab, list_known
from graphile_worker_py.web import history
from graphile_worker_py.web.cache import Fact
from graphile_worker_py.web.shown import moment
from graphile_worker_py.web.site import Site

SHARED: Final = 5.0
LATE: Final = timedelta(minutes=2)
"""A run that is later than this was missed."""
LOOKED_BACK: Final = timedelta(days=7)
MOST_MISSED: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurring:
    """A crontab item.

    Attributes:
        identifier: Its identifier.
        known: When it was first seen, and when it last ran; None if it has not been recorded.
        item: What its workers have written of it; None if they have written nothing.
        is_scheduled: Whether a worker schedules it now, as far as that is known.
        next: When it is due next; None if that is not known, or never.
        missed: How many runs were due since its last one, at most `MOST_MISSED`.
    """

    identifier: str
    known: KnownCrontab | None
    item: ParsedCronItem | None
    is_scheduled: bool
    next: datetime | None
    missed: int

    @property
    def words(self) -> str:
        """When it is due, in words."""
        if self.item is None:
            return ""
        match = self.item.match
        if not isinstance(match, Pattern):
            return "when a function of the worker says so"
        return f"{in_words(match)} ({self.options.timezone or 'UTC'})"

    @property
    def options(self) -> CronItemOptions:
        """How its jobs are added."""
        return CronItemOptions() if self.item is None else self.item.options

    def as_json(self) -> dict[str, Any]:
        """The item for programs."""
        known, item = self.known, self.item
        return {
            "identifier": self.identifier,
            "task": None if item is None else item.task,
            "when": self.words or None,
            "timezone": self.options.timezone,
            "backfill_period": self.options.backfill_period,
            "is_scheduled": self.is_scheduled,
            "next_execution": moment(self.next),
            "missed": self.missed,
            "known_since": None if known is None else moment(known.known_since),
            "last_execution": None if known is None else moment(known.last_execution),
        }


async def items(site: Site) -> list[Recurring]:
    """All items that a worker ever registered."""

    def steps() -> Steps[list[Recurring]]:
        found, told = yield from side_by_side(
            one(list_known()), history.kept(read_published(site.schema))
        )
        known, published = {each.identifier: each for each in found}, told or {}
        names = sorted({*known, *published})
        return [_made(name, known.get(name), published.get(name)) for name in names]

    return await site.fact(Fact(key="recurring", shared=SHARED, steps=steps))


def run_of(item: ParsedCronItem) -> JobSpec:
    """The job of an item, due now."""
    at_once = replace(item, options=replace(item.options, jitter=0.0))
    return cron_job(at_once, floor_minute(utc_now()), backfilled=False).spec


def _made(
    identifier: str, known: KnownCrontab | None, published: PublishedItem | None
) -> Recurring:
    item = None if published is None else from_json(identifier, published.about)
    is_scheduled = published is not None and published.age < 2.5 * PUBLISH_INTERVAL
    following, missed = None, 0
    if item is not None and isinstance(item.match, Pattern):
        try:
            timetable = Timetable([item])
            following = timetable.next_after(utc_now()) if is_scheduled else None
            missed = _missed(timetable, known)
        except ConfigurationError:
            pass  # this machine does not know its time zone
    return Recurring(
        identifier=identifier,
        known=known,
        item=item,
        is_scheduled=is_scheduled,
        next=following,
        missed=missed,
    )


def _missed(timetable: Timetable, known: KnownCrontab | None) -> int:
    if known is None:
        return 0
    end = utc_now() - LATE
    since = known.last_execution or known.known_since
    begin = max(since + timedelta.resolution, end - LOOKED_BACK)
    return sum(1 for _ in islice(timetable.between(begin, end), MOST_MISSED)) if begin < end else 0
