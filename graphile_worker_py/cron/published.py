"""Crontab items as JSON, for programs that do not have the crontab, and patterns in words."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from graphile_worker_py.cron.items import CronItemOptions, Matcher, ParsedCronItem
from graphile_worker_py.cron.pattern import FIELDS, Pattern

DAYS: Final = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
MOST_TIMES: Final = 4
"""More times a day than this are not written one by one."""
_DEFAULTS: Final = CronItemOptions()
_OPTIONS: Final = tuple(CronItemOptions.__dataclass_fields__)


def as_json(item: ParsedCronItem) -> dict[str, Any]:
    """An item as JSON; options that have their default are left out."""
    match = item.match
    options = {name: getattr(item.options, name) for name in _OPTIONS}
    return {
        "task": item.task,
        "pattern": _as_lists(match) if isinstance(match, Pattern) else None,
        "options": {
            name: str(value) if isinstance(value, str) else value
            for name, value in options.items()
            if value != getattr(_DEFAULTS, name)
        },
        "payload": item.payload,
    }


def _as_lists(pattern: Pattern) -> list[Sequence[int]]:
    return [pattern.minutes, pattern.hours, pattern.dates, pattern.months, pattern.dows]


def from_json(identifier: str, about: Mapping[str, Any]) -> ParsedCronItem:
    """The item that was written as JSON; one whose times a function decides is never due."""
    pattern = about.get("pattern")
    match: Pattern | Matcher = _never
    if pattern is not None:
        match = Pattern(*(tuple(values) for values in pattern))
    known = {name: value for name, value in about["options"].items() if name in _OPTIONS}
    return ParsedCronItem(
        identifier=identifier,
        task=about["task"],
        match=match,
        options=CronItemOptions(**known),
        payload=about.get("payload"),
    )


def _never(_digest: object) -> bool:
    return False


def in_words(pattern: Pattern) -> str:
    """When a pattern is due: `at 04:00`, `every 15 minutes`, `at 09:00 on Monday`."""
    when = [_times(pattern), _days(pattern)]
    if len(pattern.months) < 12:
        when.append("in " + _listed([MONTHS[month - 1] for month in pattern.months]))
    return " ".join(part for part in when if part)


def _times(pattern: Pattern) -> str:
    minutes, hours = pattern.minutes, pattern.hours
    every_hour = len(hours) == 24
    if len(minutes) * len(hours) <= MOST_TIMES:
        return "at " + _listed([f"{hour:02}:{minute:02}" for hour in hours for minute in minutes])
    step = _step(minutes, 60)
    if step is not None:
        text = "every minute" if step == 1 else f"every {step} minutes"
    elif minutes == (0,):
        step = _step(hours, 24)
        if step is not None:
            return "every hour" if step == 1 else f"every {step} hours"
        return "on the hour, at " + _listed([f"{hour:02}:00" for hour in hours])
    else:
        text = "at minute " + _listed([str(minute) for minute in minutes])
        if every_hour:
            return f"{text} of each hour"
    return text if every_hour else f"{text}, {_hours(hours)}"


def _hours(hours: Sequence[int]) -> str:
    if hours[-1] - hours[0] == len(hours) - 1:
        return f"from {hours[0]:02}:00 to {hours[-1]:02}:59"
    return "in the hours " + _listed([str(hour) for hour in hours])


def _step(values: Sequence[int], size: int) -> int | None:
    """The step of values that begin with 0 and are spread evenly; None if they are not."""
    if len(values) < 2 or values[0] != 0 or size % len(values):
        return None
    step = size // len(values)
    return step if list(values) == list(range(0, size, step)) else None


def _days(pattern: Pattern) -> str:
    dates, dows = pattern.dates, pattern.dows
    by_date = len(dates) < FIELDS[2].largest
    by_day = len(dows) < len(DAYS)
    days = ""
    if by_day:
        is_week = dows == (1, 2, 3, 4, 5)
        days = "on weekdays" if is_week else "on " + _listed([DAYS[day] for day in dows])
    if not by_date:
        return days
    on_dates = "on day " + _listed([str(date) for date in dates]) + " of the month"
    return f"{on_dates} and {days}" if by_day else on_dates


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
