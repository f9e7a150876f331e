"""Recurring jobs follow the time of the database, whatever the clock of a worker shows."""

import asyncio
import logging
from datetime import timedelta

import pytest

from graphile_worker_py.clock import utc_now
from graphile_worker_py.cron import Cron, parse_crontab
from graphile_worker_py.cron.server_clock import CHECK_INTERVAL, ServerClock
from graphile_worker_py.events import CronStarted, Events
from tests.cron_support import database, know, known


class WrongClock:
    """A clock that is off, and a monotonic clock; both can be changed."""

    def __init__(self, *, seconds: float = 0) -> None:
        self.off = timedelta(seconds=seconds)
        self.passed = 1000.0

    def __call__(self) -> object:
        """The time that it shows."""
        return utc_now() + self.off

    def monotonic(self) -> float:
        """Seconds that have passed."""
        return self.passed


@pytest.mark.parametrize("seconds", [3600, -3600, 3600 * 24 * 400])
async def test_a_worker_with_a_wrong_clock_schedules_by_the_time_of_the_database(
    dsn: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    events, started = Events(), asyncio.Event()
    events.subscribe(CronStarted, lambda _: started.set())
    async with database(dsn) as opened, asyncio.timeout(10), asyncio.TaskGroup() as group:
        clock = ServerClock(opened, clock=WrongClock(seconds=seconds))  # type: ignore[arg-type]
        cron = Cron(opened, parse_crontab("* * * * * task ?fill=1h"), events=events, clock=clock)
        group.create_task(cron.run())
        await started.wait()
        cron.close()
    since, last = known(dsn)["task"]
    assert abs(since - utc_now()) < timedelta(seconds=5)
    assert last is None or last <= utc_now()
    (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    side = "ahead of" if seconds > 0 else "behind"
    assert f"{side} the database's; recurring jobs are scheduled by" in warning.getMessage()


async def test_a_clock_that_differs_little_is_used_as_it_is(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with database(dsn) as opened:
        clock = ServerClock(opened, clock=WrongClock(seconds=2))  # type: ignore[arg-type]
        await clock.check()
        assert timedelta(seconds=1) < clock() - utc_now() < timedelta(seconds=3)
    assert caplog.records == []


async def test_a_clock_that_is_set_or_was_not_compared_for_long_is_compared_again(
    dsn: str,
) -> None:
    own = WrongClock()
    async with database(dsn) as opened:
        clock = ServerClock(opened, clock=own, monotonic=own.monotonic)  # type: ignore[arg-type]
        await clock.check()
        await clock.check()
        assert opened.sent == 1
        own.off = timedelta(hours=1)
        await clock.check()
        assert opened.sent == 2
        assert abs(clock() - utc_now()) < timedelta(seconds=1)
        own.off = timedelta()
        await clock.check()
        assert opened.sent == 3
        assert abs(clock() - utc_now()) < timedelta(seconds=1)
        own.passed += CHECK_INTERVAL
        own.off = timedelta(seconds=CHECK_INTERVAL)
        await clock.check()
        assert opened.sent == 4


async def test_a_run_in_the_future_is_warned_of(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    know(dsn, "task", utc_now(), utc_now() + timedelta(hours=1))
    know(dsn, "fine", utc_now(), utc_now())
    events, started = Events(), asyncio.Event()
    events.subscribe(CronStarted, lambda _: started.set())
    items = parse_crontab("0 0 1 1 * task\n0 0 1 1 * fine\n")
    async with database(dsn) as opened, asyncio.timeout(10), asyncio.TaskGroup() as group:
        cron = Cron(opened, items, events=events)
        group.create_task(cron.run())
        await started.wait()
        cron.close()
    (warning,) = [each.getMessage() for each in caplog.records]
    assert warning.startswith("Cron item 'task' last ran at ")
    assert "which is in the future: a worker had a wrong clock" in warning
