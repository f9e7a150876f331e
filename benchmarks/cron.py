"""Measure cron: `python benchmarks/cron.py` prints a table.

The database part runs on an embedded server with default durability, or on the database that the
only argument names. Its known crontabs and jobs are deleted.
"""

import asyncio
import contextlib
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from croniter import croniter

from graphile_worker_py import run_migrations
from graphile_worker_py.cron import Cron, CronItem, ParsedCronItem, parse_cron_items
from graphile_worker_py.cron.match import Timetable
from graphile_worker_py.cron.schedule import cron_job
from graphile_worker_py.dev.postgres import EmbeddedPostgres
from graphile_worker_py.events import Events
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql import known_crontabs

START = datetime(2026, 1, 1, tzinfo=UTC)
YEAR = timedelta(days=365)
TICKS = 50
CRONITER_STEPS = 300


def patterns(count: int) -> list[str]:
    """Typical patterns: some frequent, most hourly, daily, weekly or monthly."""
    pick = random.Random(1)

    def minute() -> int:
        return pick.randrange(60)

    def hour() -> int:
        return pick.randrange(24)

    kinds = (
        lambda: "* * * * *",
        lambda: f"*/{pick.choice((5, 10, 15))} * * * *",
        lambda: f"{minute()} * * * *",
        lambda: f"{minute()} * * * *",
        lambda: f"{minute()} {hour()} * * *",
        lambda: f"{minute()} {hour()} * * *",
        lambda: f"{minute()} {hour()} * * {pick.randrange(7)}",
        lambda: "*/20 9-17 * * 1-5",
        lambda: f"{minute()} {hour()} {pick.randrange(1, 29)} * *",
        lambda: f"{minute()} {hour()} 1 */3 5",
    )
    return [kinds[number % len(kinds)]() for number in range(count)]


def items_of(texts: Sequence[str], zones: Sequence[str | None] = (None,)) -> list[ParsedCronItem]:
    """Items with these patterns, in these zones in turn."""
    return parse_cron_items(
        CronItem(
            "task",
            text,
            identifier=f"item_{number}",
            options={"timezone": zones[number % len(zones)]},
        )
        for number, text in enumerate(texts)
    )


def row(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


def year_of(items: Sequence[ParsedCronItem]) -> tuple[float, int]:
    """Seconds to match a year of minutes, and the number of runs in it."""
    began = time.perf_counter()
    runs = sum(len(due) for _, due in Timetable(items).between(START, START + YEAR))
    return time.perf_counter() - began, runs


def croniter_step(texts: Sequence[str]) -> float:
    """Average seconds that croniter takes from one run of a pattern to the next."""
    spent = runs = 0.0
    for text in texts[:CRONITER_STEPS]:
        steps = croniter(text, START)
        began = time.perf_counter()
        for _ in range(10):
            steps.get_next(datetime)
        step = (time.perf_counter() - began) / 10
        _, count = year_of(items_of([text]))
        spent += step * count
        runs += count
    return spent / runs


def measure_matching() -> None:
    """Measure matching, without a database."""
    texts = patterns(1000)
    seconds, runs = year_of(items_of(texts))
    row("a year of minutes, 1,000 items in UTC", f"{seconds:.2f} s, {runs:,} runs")
    step = croniter_step(texts)
    row(
        "the same with croniter, extrapolated",
        f"{step * runs:.0f} s ({step * 1e6:.0f} µs a step)",
    )
    zones = (None, "Europe/Berlin", "America/New_York", "Asia/Tokyo")
    seconds, runs = year_of(items_of(texts, zones))
    row("a year of minutes, 1,000 items in 4 time zones", f"{seconds:.2f} s, {runs:,} runs")
    for count in (10, 1000, 10_000):
        timetable = Timetable(items_of(["0 0 1 1 *"] * count))
        minutes = [START + timedelta(minutes=number) for number in range(1, 1441)]
        began = time.perf_counter()
        for minute in minutes:
            timetable.due(minute)
        each = (time.perf_counter() - began) / len(minutes)
        row(f"finding the items due at a minute, {count:,} items, none due", f"{each * 1e6:.1f} µs")


class CountingDatabase(Database):
    """A database that counts the statements sent to it."""

    sent = 0

    async def run(self, query: Any, *, conn: Any = None) -> Any:
        """Send one statement."""
        self.sent += 1
        return await super().run(query, conn=conn)


async def measure_ticks(dsn: str) -> None:
    """Measure ticks, from finding the due items to the answer of the database."""
    async with opened_pool(dsn, max_size=2) as pool:
        database = CountingDatabase(pool, schema="graphile_worker")
        for count, due_count in ((10, 3), (1000, 3), (1000, 300), (1000, 1000)):
            texts = [
                "*/2 * * * *" if number < due_count else "1 1 1 1 *" for number in range(count)
            ]
            items = items_of(texts)
            timetable = Timetable(items)
            times: list[float] = []
            database.sent = 0
            for number in range(TICKS + 2):
                minute = START + timedelta(minutes=2 * number)
                began = time.perf_counter()
                due = timetable.due(minute)
                jobs = [cron_job(item, minute, backfilled=False) for item in due]
                added = await database.run(known_crontabs.add(minute, jobs))
                times.append(time.perf_counter() - began)
                assert len(added) == due_count
            each = statistics.median(times[2:]) * 1000  # the first ones prepare the statement
            row(
                f"a tick: {due_count:,} of {count:,} items due",
                f"{each:.1f} ms, {database.sent / (TICKS + 2):g} round trip",
            )
            clear(dsn)


async def measure_backfill(dsn: str) -> None:
    """Measure a start after a day without cron."""
    items = parse_cron_items(
        CronItem("task", "*/5 * * * *", identifier=f"item_{n}", options={"backfill_period": 86400})
        for n in range(100)
    )
    start = START + timedelta(days=1, seconds=30)
    clock = start - timedelta(days=2)
    began = 0.0
    async with opened_pool(dsn, max_size=2) as pool:
        database = CountingDatabase(pool, schema="graphile_worker")
        names = [item.identifier for item in items]
        await database.run(known_crontabs.register(names, clock))
        events = Events()
        cron = Cron(database, items, events=events, clock=lambda: start)
        events.subscribe("cron:started", lambda _: cron.close())
        began = time.perf_counter()
        await cron.run()
        seconds = time.perf_counter() - began
    with psycopg.connect(dsn) as connection:
        found = connection.execute("select count(*) from graphile_worker._private_jobs").fetchone()
    assert found is not None
    row(
        "backfill of a day, 100 items every 5 minutes",
        f"{seconds:.1f} s, {found[0]:,} jobs in {database.sent - 2:,} statements",
    )
    clear(dsn)


def clear(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "truncate graphile_worker._private_jobs, graphile_worker._private_known_crontabs"
        )


@contextlib.contextmanager
def server() -> Iterator[str]:
    if len(sys.argv) > 1:
        yield sys.argv[1]
    else:
        with EmbeddedPostgres() as postgres:
            yield postgres.dsn


async def main() -> None:
    print("| operation | result |\n|---|---|")
    measure_matching()
    with server() as dsn:
        await run_migrations(dsn)
        clear(dsn)
        await measure_ticks(dsn)
        await measure_backfill(dsn)


if __name__ == "__main__":
    asyncio.run(main())
