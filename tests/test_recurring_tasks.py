"""Tasks that say when they recur: `@task(cron="0 4 * * *", timezone="Europe/Vienna")`."""

import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from graphile_worker_py import (
    ConfigurationError,
    CronItem,
    CrontabError,
    Runner,
    Task,
    parse_cron_item,
    parse_cron_items,
    run_once,
    task,
)
from graphile_worker_py.cron.match import Timetable
from graphile_worker_py.cron.pattern import Pattern
from graphile_worker_py.events import CronStarted
from graphile_worker_py.runner_options import Setup
from tests.support.processes import Processes
from tests.support.running import Jobs, Told

VIENNA = "Europe/Vienna"


@task(cron="0 4 * * *", timezone=VIENNA)
async def rollup(payload: Any) -> None: ...


@task("reports/weekly", cron="30 6 * * 1")
async def weekly(payload: Any) -> None: ...


@task
async def other(payload: Any) -> None: ...


async def test_a_pool_that_has_the_task_schedules_it_like_other_items(
    dsn: str, stored: Jobs
) -> None:
    told = Told()
    given = parse_cron_items([CronItem("other", "0 0 1 1 *")])
    tasks = [rollup, weekly, other]
    async with Runner(dsn, tasks=tasks, parsed_cron_items=given, events=told.events) as runner:
        await told.seen(CronStarted)
        known = stored.query("select identifier from graphile_worker._private_known_crontabs")
        assert {row["identifier"] for row in known} == {"other", "reports/weekly", "rollup"}
        assert runner.pool_id
    (last,) = Setup("", {"tasks": [rollup]}).cron_items
    assert Timetable([last]).next_after(datetime(2026, 7, 1, tzinfo=UTC)) == datetime(
        2026, 7, 1, 2, tzinfo=UTC
    )
    assert Timetable([last]).next_after(datetime(2026, 12, 1, tzinfo=UTC)) == datetime(
        2026, 12, 1, 3, tzinfo=UTC
    )


async def test_a_pool_without_the_task_and_a_single_run_do_not_schedule_it(
    dsn: str, stored: Jobs
) -> None:
    async with Runner(dsn, tasks=[other]):
        pass
    await run_once(dsn, tasks=[rollup])
    assert stored.query("select identifier from graphile_worker._private_known_crontabs") == []


def test_the_command_line_schedules_them(processes: Processes, tmp_path: Path, dsn: str) -> None:
    (tmp_path / "timed.py").write_text(
        "from graphile_worker_py import task\n"
        "@task(cron='* * * * *', timezone='Mars/Olympus')\n"
        "async def work(payload): ...\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "graphile_worker_py", "--tasks", "timed"]
    worker = processes.start(command, cwd=tmp_path, env={"DATABASE_URL": dsn})
    assert worker.wait() == 2
    assert "cron item 'work': timezone 'Mars/Olympus' is not known here" in worker.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timezone": VIENNA}, "timezone of task 'work' needs cron"),
        ({"cron": ""}, "cron of task 'work' must be a string that is not empty"),
        ({"cron": 4}, "cron of task 'work' must be a string"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_the_definition(
    settings: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        task("work", **settings)(print)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cron": "0 4 * *"}, "cron item 'work': pattern '0 4 . .': .* expected five fields"),
        ({"cron": "0 25 * * *"}, "hour '25' is out of range: allowed are 0 to 23"),
        ({"cron": "0 4 * * *", "timezone": "Vienna"}, "timezone 'Vienna' is not known here"),
        ({"cron": "0 4 * * *", "timezone": "../zones"}, "timezone '../zones' is not known here"),
    ],
)
def test_a_pattern_or_zone_that_is_none_is_refused_at_the_start(
    settings: Any, message: str
) -> None:
    work: Task[Any] = task("work", **settings)(lambda payload: None)
    with pytest.raises(CrontabError, match=message):
        Runner("", tasks=[work])


def test_an_item_of_a_crontab_can_not_have_the_name_of_a_task_that_recurs() -> None:
    with pytest.raises(CrontabError, match="cron item 'rollup': an earlier item has the same"):
        Runner(
            "",
            tasks=[rollup],
            parsed_cron_items=parse_cron_items([CronItem("rollup", "0 0 * * *")]),
        )
    Runner("", tasks=[rollup], crontab="0 0 * * * rollup ?id=midnight")


ZONES = [
    (VIENNA, "2026-03-28T00:00"),
    (VIENNA, "2026-10-24T00:00"),
    ("America/New_York", "2026-03-07T00:00"),
    ("America/New_York", "2026-10-31T00:00"),
]


def of_croniter(text: str, zone: str, start: datetime, end: datetime) -> Iterator[datetime]:
    runs = croniter(text, (start - timedelta(minutes=1)).astimezone(ZoneInfo(zone)))
    while (run := runs.get_next(datetime)) < end:
        yield run


@pytest.mark.parametrize(("zone", "start"), ZONES)
def test_runs_over_transitions_are_those_of_croniter_but_for_hours_that_occur_twice(
    zone: str, start: str
) -> None:
    """An item that names its hours runs once in a repeated hour; croniter lets it run twice."""
    begin = datetime.fromisoformat(start).replace(tzinfo=UTC)
    end = begin + timedelta(days=3)
    pick = random.Random(f"{zone} {start}")
    for _ in range(15):
        minutes = pick.choice(["0", "30", "*/20", "5,35"])
        hours = pick.choice(["*", "1", "2", "3", "1-3", "2,4", "*/2", "0-6"])
        text = f"{minutes} {hours} * * *"
        item = parse_cron_item(CronItem("task", text, options={"timezone": zone}))
        assert isinstance(item.match, Pattern)
        names_hours = len(item.match.hours) < 24
        theirs = [
            run.astimezone(UTC)
            for run in of_croniter(text, zone, begin, end)
            if not (names_hours and run.fold)
        ]
        ours = [minute for minute, _ in Timetable([item]).between(begin, end)]
        assert ours == theirs, text
