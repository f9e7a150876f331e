"""When items are due: against croniter, against a plain reading of the rules, and over gaps."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from graphile_worker_py.cron import (
    CronDigest,
    CronItem,
    ParsedCronItem,
    parse_cron_item,
    parse_cron_items,
)
from graphile_worker_py.cron.match import MINUTE, Timetable
from graphile_worker_py.cron.pattern import Pattern


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def runs(pattern: str, start: str, end: str, zone: str | None = None) -> list[str]:
    """The runs of a pattern in a span, as `day hour:minute` of UTC."""
    item = parse_cron_item(CronItem("task", pattern, options={"timezone": zone}))
    found = Timetable([item]).between(utc(start), utc(end))
    return [f"{minute:%d %H:%M}" for minute, _ in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("* * * * *", ["01 00:00", "01 00:01"]),
        ("0 0 * * *", ["01 00:00", "02 00:00"]),
        ("30 4 1,15 * *", ["01 04:30", "15 04:30"]),
        ("0 0 * * 5", ["02 00:00", "09 00:00"]),
        ("0 0 13 * 5", ["02 00:00", "09 00:00"]),  # the 13th or a Friday
        ("0 0 1-31 * 5", ["02 00:00", "09 00:00"]),  # all days are no restriction
        ("0 0 13 * 0-6", ["13 00:00", "13 00:00"]),
        ("0 0 13 * 1-7", ["13 00:00", "13 00:00"]),
        ("0 0 */2 * 5", ["01 00:00", "02 00:00"]),  # a step is one
        ("0 0 * * 7", ["04 00:00", "11 00:00"]),
        ("0 0 31 * *", ["31 00:00", "31 00:00"]),
        ("0 0 29 2 *", ["29 00:00", "29 00:00"]),
    ],
)
def test_pattern_is_due_at_its_minutes(pattern: str, expected: list[str]) -> None:
    item = parse_cron_item(CronItem("task", pattern))
    first = Timetable([item]).next_after(utc("2025-12-31T23:59:59"))
    assert first is not None
    second = Timetable([item]).next_after(first)
    assert second is not None

    assert [f"{minute:%d %H:%M}" for minute in (first, second)] == expected


def test_leap_day_after_a_century_without_one_is_found() -> None:
    item = parse_cron_item(CronItem("task", "0 0 29 2 *"))

    assert Timetable([item]).next_after(utc("2096-02-29T00:00")) == utc("2104-02-29T00:00")


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_day_that_never_comes_is_never_due(zone: str | None) -> None:
    item = parse_cron_item(CronItem("task", "0 0 30 2 *", options={"timezone": zone}))

    assert Timetable([item]).next_after(utc("2026-01-01T00:00")) is None


def test_span_includes_its_start_and_not_its_end() -> None:
    assert runs("* * * * *", "2026-01-01T10:00:00", "2026-01-01T10:02:00") == [
        "01 10:00",
        "01 10:01",
    ]
    assert runs("* * * * *", "2026-01-01T10:00:01", "2026-01-01T10:02:01") == [
        "01 10:01",
        "01 10:02",
    ]
    assert runs("* * * * *", "2026-01-01T10:00:00", "2026-01-01T10:00:00") == []


def random_pattern(pick: random.Random) -> str:
    def field(low: int, high: int) -> str:
        kind = pick.random()
        if kind < 0.4:
            return "*"
        if kind < 0.6:
            return f"*/{pick.randrange(2, 20)}"
        first = pick.randrange(low, high)
        return f"{first}-{pick.randrange(first + 1, high + 1)},{pick.randrange(low, high + 1)}"

    return " ".join(field(*each) for each in ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7)))


def normalised(item: ParsedCronItem) -> str:
    """The pattern for croniter, which takes a full range for a restriction: that is a `*`."""
    assert isinstance(item.match, Pattern)
    pattern = item.match
    fields = (pattern.minutes, pattern.hours, pattern.dates, pattern.months, pattern.dows)
    return " ".join(
        "*" if len(values) == count else ",".join(str(value) for value in values)
        for values, count in zip(fields, (60, 24, 31, 12, 7), strict=True)
    )


def test_steps_to_the_next_runs_are_those_of_croniter() -> None:
    pick = random.Random(1)
    for _ in range(300):
        item = parse_cron_item(CronItem("task", random_pattern(pick)))
        start = utc("2020-01-01T00:00") + timedelta(minutes=pick.randrange(20 * 365 * 1440))
        theirs = croniter(normalised(item), start)
        timetable = Timetable([item])
        minute: datetime | None = start
        for _ in range(10):
            assert minute is not None
            minute = timetable.next_after(minute)
            assert minute == theirs.get_next(datetime), (normalised(item), start)


def test_many_items_together_are_due_as_each_alone() -> None:
    pick = random.Random(2)
    items = parse_cron_items(
        CronItem(
            "task",
            random_pattern(pick),
            identifier=f"item_{number}",
            options={"timezone": pick.choice((None, "Europe/Berlin", "Australia/Lord_Howe"))},
        )
        for number in range(100)
    )
    together = Timetable(items)
    start, end = utc("2026-03-28T22:00"), utc("2026-03-29T04:00")

    found = {
        (minute, item.identifier) for minute, due in together.between(start, end) for item in due
    }

    alone = {
        (minute, item.identifier)
        for item in items
        for minute, _ in Timetable([item]).between(start, end)
    }
    assert found == alone
    assert found
    for minute, due in together.between(start, end):
        assert together.due(minute) == due
        assert list(due) == sorted(due, key=items.index)


# The clocks of Berlin go from 02:00 to 03:00 on 29 March 2026 at 01:00 UTC, and from 03:00 back to
# 02:00 on 25 October 2026 at 01:00 UTC.


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("0 9 * * *", ["28 08:00", "29 07:00"]),
        ("30 2 * * *", ["28 01:30", "29 01:00"]),  # skipped: in the first minute after the gap
        ("*/20 2 * * *", ["28 01:00", "28 01:20", "28 01:40", "29 01:00"]),  # once for all
        ("30 1-3 * * *", ["28 00:30", "28 01:30", "28 02:30", "29 00:30", "29 01:00", "29 01:30"]),
        ("0 2,3 * * *", ["28 01:00", "28 02:00", "29 01:00"]),  # 02:00 is made up for at 03:00
    ],
)
def test_time_that_the_clock_skips_is_made_up_for_once(pattern: str, expected: list[str]) -> None:
    assert runs(pattern, "2026-03-27T23:00", "2026-03-29T22:00", "Europe/Berlin") == expected


def test_item_of_all_hours_has_no_run_for_a_skipped_hour() -> None:
    found = runs("30 * * * *", "2026-03-29T00:00", "2026-03-29T03:00", "Europe/Berlin")

    assert found == ["29 00:30", "29 01:30", "29 02:30"]  # 01:30, 03:30 and 04:30 in Berlin


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("30 2 * * *", ["25 00:30", "26 01:30"]),  # the first of the two
        ("0 3 * * *", ["25 02:00", "26 02:00"]),
        ("*/30 1-2 * * *", ["24 23:00", "24 23:30", "25 00:00", "25 00:30", "26 00:00", "26 00:30",
                            "26 01:00", "26 01:30"]),
    ],
)  # fmt: skip
def test_time_that_comes_twice_counts_once(pattern: str, expected: list[str]) -> None:
    assert runs(pattern, "2026-10-24T22:00", "2026-10-26T03:00", "Europe/Berlin") == expected


def test_item_of_all_hours_goes_on_in_an_hour_that_comes_twice() -> None:
    found = runs("30 * * * *", "2026-10-25T00:00", "2026-10-25T03:00", "Europe/Berlin")

    assert found == ["25 00:30", "25 01:30", "25 02:30"]  # 02:30, 02:30 and 03:30 in Berlin


def test_gap_of_half_an_hour_is_handled() -> None:
    # Lord Howe, 4 October 2026: from 02:00 to 02:30 at 15:30 UTC of the day before.
    span = ("2026-10-03T15:00", "2026-10-03T17:00")

    assert runs("15 2 * * *", *span, "Australia/Lord_Howe") == ["03 15:30"]
    assert runs("45 2 * * *", *span, "Australia/Lord_Howe") == ["03 15:45"]
    # 5 April 2026: from 02:00 back to 01:30 at 15:00 UTC of the day before.
    span = ("2026-04-04T14:00", "2026-04-04T17:00")
    assert runs("45 1 * * *", *span, "Australia/Lord_Howe") == ["04 14:45"]


def test_day_that_a_country_skips_is_made_up_for_once() -> None:
    # Samoa left out 30 December 2011, to go over the date line at midnight (10:00 UTC).
    found = runs("0 8,17 * * *", "2011-12-29T12:00", "2011-12-31T09:00", "Pacific/Apia")

    assert found == ["29 18:00", "30 03:00", "30 10:00", "30 18:00", "31 03:00"]


def zoned_by_the_rules(item: ParsedCronItem, start: datetime, end: datetime) -> Iterator[datetime]:
    """The runs of an item, minute by minute, by the policy as it is stated."""
    assert isinstance(item.match, Pattern)
    assert item.options.timezone is not None
    zone = ZoneInfo(item.options.timezone)
    pattern = item.match

    def matches(wall: datetime) -> bool:
        by_date, by_dow = len(pattern.dates) < 31, len(pattern.dows) < 7
        day = wall.day in pattern.dates, wall.isoweekday() % 7 in pattern.dows
        return (
            wall.minute in pattern.minutes
            and wall.hour in pattern.hours
            and wall.month in pattern.months
            and (any(day) if by_date and by_dow else all(day))
        )

    seen: set[datetime] = set()
    minute = start - timedelta(hours=30)  # so that what comes twice was seen before
    latest = minute.astimezone(zone).replace(tzinfo=None) - MINUTE
    while minute < end:
        wall = minute.astimezone(zone).replace(tzinfo=None, fold=0)
        skipped = []
        while latest + MINUTE < wall:
            latest += MINUTE
            skipped.append(latest)
        latest = max(latest, wall)
        if len(pattern.hours) == 24:
            due = matches(wall)
        else:
            due = (matches(wall) and wall not in seen) or any(matches(each) for each in skipped)
        seen.add(wall)
        if due and minute >= start:
            yield minute
        minute += MINUTE


@pytest.mark.parametrize(
    ("zone", "start"),
    [
        ("Europe/Berlin", "2026-03-28T20:00"),
        ("Europe/Berlin", "2026-10-24T20:00"),
        ("America/New_York", "2026-03-08T00:00"),
        ("America/New_York", "2026-11-01T00:00"),
        ("America/Sao_Paulo", "2018-11-03T20:00"),  # the gap is at midnight
        ("Australia/Lord_Howe", "2026-04-04T08:00"),
        ("Australia/Lord_Howe", "2026-10-03T08:00"),
        ("Asia/Kathmandu", "1985-12-31T12:00"),  # from +05:30 to +05:45 for good
        ("Pacific/Apia", "2011-12-30T04:00"),
        ("Asia/Kolkata", "2026-01-01T00:00"),
    ],
)
def test_random_patterns_follow_the_stated_policy_over_transitions(zone: str, start: str) -> None:
    pick = random.Random(3)
    first = utc(start)
    last = first + timedelta(hours=14)
    for _ in range(12):
        pattern = " ".join(
            (
                pick.choice(("*/7", "30", "0,59", "*")),
                pick.choice(("*", "1-3", "0,2", "2", "*/3", "0-23")),
                pick.choice(("*", "*", "*/2", "1-15")),
                "*",
                pick.choice(("*", "*", "0,6")),
            )
        )
        item = parse_cron_item(CronItem("task", pattern, options={"timezone": zone}))

        found = [minute for minute, _ in Timetable([item]).between(first, last)]

        assert found == list(zoned_by_the_rules(item, first, last)), pattern


def test_matcher_function_sees_the_local_time_of_its_item() -> None:
    seen: list[tuple[int, ...]] = []

    def matcher(digest: CronDigest) -> bool:
        seen.append((digest.min, digest.hour, digest.date, digest.month, digest.dow))
        return False

    item = parse_cron_item(CronItem("task", matcher, options={"timezone": "Asia/Kolkata"}))

    Timetable([item]).due(utc("2026-02-28T19:05"))

    assert seen == [(35, 0, 1, 3, 0)]  # Sunday, 1 March, 00:35
