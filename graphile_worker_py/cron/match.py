"""The timetable of cron items: which of them are due at a minute.

For each minute of the hour, hour, day and month, a timetable has one big integer, in which bit n
says whether item n matches. The items that are due at a minute are the intersection of a few of
these integers, computed for all items at once.

The integers are worth their classes where runs are backfilled. A year of minutes, measured:

| items | these integers | sets for each item, narrowed by day and hour | sets, minute by minute |
| --- | --- | --- | --- |
| 50 | 0.2 s | 0.55 s | 1.7 s |
| 1,000 | 0.3 s | 7 s | 41 s |

croniter steps through one item at a time, at 17 to 96 µs a step, and would need about an hour for
1,000 items (`benchmarks/cron.py`). The tests compare both.
"""

import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final

from graphile_worker_py.cron.items import CronDigest, Matcher, ParsedCronItem, zone_named
from graphile_worker_py.cron.pattern import FIELDS, Pattern
from graphile_worker_py.records import Record

logger = logging.getLogger(__name__)

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
# The longest gap is between two 29 February: eight years around a century without one.
HORIZON: Final = timedelta(days=8 * 366)

_REMEMBERED: Final = 4096
_ALL: Final = tuple(field.largest - field.smallest + 1 for field in FIELDS)

Occurrence = tuple[datetime, tuple[ParsedCronItem, ...]]


def floor_minute(moment: datetime) -> datetime:
    """The full minute at or before a moment."""
    return moment.replace(second=0, microsecond=0)


def ceil_minute(moment: datetime) -> datetime:
    """The full minute at or after a moment."""
    floor = floor_minute(moment)
    return floor if floor == moment else floor + MINUTE


class Timetable:
    """Finds the items that are due.

    Items are due by UTC, or by the local time of their `timezone`. When the local clock is put
    forward or back, there are two kinds of items. An item with particular hours is due once for
    each of its local times: the first time if the local time is repeated, and in the first minute
    after the gap if it is skipped (once for all times in the gap). An item that matches all 24
    hours follows elapsed time: it is due twice in a repeated hour, and not at all in a skipped one.

    A matcher function is called for every minute. If it raises, the error is logged and the item
    is not due.
    """

    def __init__(self, items: Sequence[ParsedCronItem]) -> None:
        self._items = tuple(items)
        calendars: dict[str | None, _Calendar] = {}
        for bit, item in enumerate(self._items):
            zone = item.options.timezone
            calendar = calendars.get(zone)
            if calendar is None:
                calendar = calendars[zone] = _Calendar() if zone is None else _ZonedCalendar(zone)
            calendar.add(1 << bit, item)
        self._calendars = tuple(calendars.values())
        self._of_mask = lru_cache(_REMEMBERED)(self._unpacked)

    def due(self, minute: datetime) -> tuple[ParsedCronItem, ...]:
        """The items that are due at this full minute, in the order of the timetable."""
        minute = minute.astimezone(UTC)
        mask = 0
        for calendar in self._calendars:
            mask |= calendar.hour(floor_hour(minute)).due(minute)
        return self._of_mask(mask)

    def between(self, start: datetime, end: datetime) -> Iterator[Occurrence]:
        """The minutes from `start` until before `end` at which items are due, with these items."""
        minute = ceil_minute(start.astimezone(UTC))
        end = end.astimezone(UTC)
        while minute < end:
            this_hour = floor_hour(minute)
            hours = [calendar.hour(this_hour) for calendar in self._calendars]
            active = [hour for hour in hours if hour.possible]
            next_hour = this_hour + HOUR
            if not active:
                minute = next_hour
                continue
            until = min(next_hour, end)
            while minute < until:
                mask = 0
                for hour in active:
                    mask |= hour.due(minute)
                if mask:
                    yield minute, self._of_mask(mask)
                minute += MINUTE

    def next_after(self, moment: datetime) -> datetime | None:
        """The first minute after a moment at which an item is due; None if there is none."""
        start = floor_minute(moment.astimezone(UTC)) + MINUTE
        for minute, _ in self.between(start, start + HORIZON):
            return minute
        return None

    def _unpacked(self, mask: int) -> tuple[ParsedCronItem, ...]:
        due: list[ParsedCronItem] = []
        while mask:
            lowest = mask & -mask
            due.append(self._items[lowest.bit_length() - 1])
            mask ^= lowest
        return tuple(due)


def floor_hour(moment: datetime) -> datetime:
    """The full hour at or before a moment."""
    return moment.replace(minute=0, second=0, microsecond=0)


class _Hour:
    """One hour of UTC, for a calendar in UTC."""

    __slots__ = ("_calendar", "_mask", "possible")

    def __init__(self, calendar: "_Calendar", hour: datetime) -> None:
        self._calendar = calendar
        self._mask = calendar.day(hour.date()) & calendar.hours[hour.hour]
        self.possible = bool(self._mask or calendar.matchers)

    def due(self, minute: datetime) -> int:
        calendar = self._calendar
        mask = self._mask & calendar.minutes[minute.minute]
        return mask | calendar.matched(minute, minute) if calendar.matchers else mask


class _ZonedHour:
    """One hour of UTC, for a time zone whose clock is not changed in it."""

    __slots__ = ("_calendar", "_first_minute", "_masks", "possible")

    def __init__(self, calendar: "_ZonedCalendar", first: datetime, last: datetime) -> None:
        self._calendar = calendar
        self._first_minute = first.minute
        # With an offset of half an hour, it is part of two hours of local time.
        self._masks = (calendar.in_hour(first), calendar.in_hour(last))
        self.possible = bool(any(self._masks) or calendar.matchers)

    def due(self, minute: datetime) -> int:
        calendar = self._calendar
        hours_on, local_minute = divmod(self._first_minute + minute.minute, 60)
        mask = self._masks[hours_on] & calendar.minutes[local_minute]
        if calendar.matchers:
            mask |= calendar.matched(minute, calendar.local(minute))
        return mask


class _UnevenHour:
    """One hour of UTC in or next to which a zone's clock is put forward or back."""

    __slots__ = ("_calendar", "possible")

    def __init__(self, calendar: "_ZonedCalendar") -> None:
        self._calendar = calendar
        self.possible = True

    def due(self, minute: datetime) -> int:
        calendar = self._calendar
        local = calendar.local(minute)
        mask = calendar.in_hour(local) & calendar.minutes[local.minute]
        if local.fold:
            mask &= calendar.elapsed
        wall, before = local.replace(tzinfo=None), calendar.local(minute - MINUTE)
        skipped = before.replace(tzinfo=None, fold=0) + MINUTE
        while skipped < wall:
            mask |= calendar.in_hour(skipped) & calendar.minutes[skipped.minute] & ~calendar.elapsed
            skipped += MINUTE
        return mask | calendar.matched(minute, local) if calendar.matchers else mask


class _CallableItem(Record, kw_only=False):
    bit: int
    identifier: str
    matcher: Matcher


class _Calendar:
    """Items of one time zone, and the sets of them that match each part of a date."""

    def __init__(self) -> None:
        self.minutes = [0] * 60
        self.hours = [0] * 24
        self.matchers: list[_CallableItem] = []
        self._dates = [0] * 32
        self._months = [0] * 13
        self._dows = [0] * 7
        self._on_each_day = 0
        self._on_dates = 0
        self._on_dows = 0
        # Items that follow elapsed time: due twice in a repeated hour, and not in a skipped one.
        self.elapsed = 0
        self.day = lru_cache(8)(self._day)

    def add(self, bit: int, item: ParsedCronItem) -> None:
        """Add an item, which this bit represents."""
        if not isinstance(item.match, Pattern):
            self.matchers.append(_CallableItem(bit, item.identifier, item.match))
            return
        pattern = item.match
        fields = (pattern.minutes, pattern.hours, pattern.dates, pattern.months, pattern.dows)
        columns = (self.minutes, self.hours, self._dates, self._months, self._dows)
        for values, column in zip(fields, columns, strict=True):
            for value in values:
                column[value] |= bit
        _, every_hour, every_date, _, every_dow = (
            len(values) == count for values, count in zip(fields, _ALL, strict=True)
        )
        if every_date and every_dow:
            self._on_each_day |= bit
        if not every_date:
            self._on_dates |= bit
        if not every_dow:
            self._on_dows |= bit
        if every_hour:
            self.elapsed |= bit

    def hour(self, hour: datetime) -> "_Hour | _ZonedHour | _UnevenHour":
        """An hour of UTC."""
        return _Hour(self, hour)

    def in_hour(self, local: datetime) -> int:
        """The items that match the hour and the day of a local time."""
        return self.day(local.date()) & self.hours[local.hour]

    def matched(self, minute: datetime, local: datetime) -> int:
        """The items whose matcher function returns true."""
        digest = CronDigest(
            min=local.minute,
            hour=local.hour,
            date=local.day,
            month=local.month,
            dow=local.isoweekday() % 7,
            timestamp=minute,
        )
        mask = 0
        for item in self.matchers:
            try:
                if item.matcher(digest):
                    mask |= item.bit
            except Exception:  # a user's function; the other items must stay on time
                logger.exception("Matcher of cron item %r failed", item.identifier)
        return mask

    def _day(self, day: date) -> int:
        by_date = self._on_dates & self._dates[day.day]
        by_dow = self._on_dows & self._dows[day.isoweekday() % 7]
        return self._months[day.month] & (self._on_each_day | by_date | by_dow)


class _ZonedCalendar(_Calendar):
    """Items of a time zone other than UTC."""

    def __init__(self, zone: str) -> None:
        super().__init__()
        self._zone = zone_named(zone)

    def hour(self, hour: datetime) -> _ZonedHour | _UnevenHour:
        before = self.local(hour - MINUTE)
        first = self.local(hour)
        last = self.local(hour + HOUR - MINUTE)
        offset = first.utcoffset()
        if offset != before.utcoffset() or offset != last.utcoffset() or first.fold or last.fold:
            return _UnevenHour(self)
        return _ZonedHour(self, first, last)

    def local(self, minute: datetime) -> datetime:
        """The local time of a minute, without seconds, which historical offsets have."""
        return floor_minute(minute.astimezone(self._zone))
