"""Run the scheduler on a clock that the test moves, and read what it wrote."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from graphile_worker_py.cron import Cron, ParsedCronItem
from graphile_worker_py.events import Event, Events
from graphile_worker_py.postgres.connecting import AsyncPool, opened_pool
from graphile_worker_py.postgres.database import Database
from tests.support.jobs import Jobs

SCHEMA = "graphile_worker"


def at(text: str) -> datetime:
    """A time of the day on which most tests take place, or of another day."""
    day = "" if "-" in text else "2026-01-05 "  # a Monday
    return datetime.fromisoformat(day + text).replace(tzinfo=UTC)


@dataclass
class TestClock:
    """Shows a time that passes only while the scheduler waits.

    Args:
        now: The time that it shows at first.
        until: When this is reached, the scheduler is closed.
        steps: What happens when a time is reached, in this order, each once. A function that
            returns a time puts the clock to it.
    """

    __test__ = False

    now: datetime
    until: datetime
    steps: Sequence[tuple[datetime, Callable[[], datetime | None]]] = ()
    close: Callable[[], None] = field(default=lambda: None)
    waits: int = 0

    def __call__(self) -> datetime:
        """The time that the clock shows."""
        return self.now

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        """Let the time pass at once."""
        assert timeout is not None
        self.waits += 1
        assert self.waits < 10_000, "the scheduler spins"
        await asyncio.sleep(0)
        self.now += timedelta(seconds=timeout)
        while self.steps and self.now >= self.steps[0][0]:
            (_, act), *self.steps = self.steps
            self.now = act() or self.now
        if not self.steps and self.now >= self.until:
            self.close()
        return event.is_set()


class SharedClock:
    """Shows the same time to several schedulers; it passes when all of them wait.

    Those that wait for the same time go on at the same moment, and compete.
    """

    def __init__(self, now: datetime, *, until: datetime, sharers: int) -> None:
        self.now = now
        self.crons: list[Cron] = []
        self._until = until
        self._sharers = sharers
        self._waiting: list[tuple[datetime, asyncio.Event]] = []

    def __call__(self) -> datetime:
        """The time that the clock shows."""
        return self.now

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        """Wait until the time is that much later."""
        assert timeout is not None
        reached = asyncio.Event()
        self._waiting.append((self.now + timedelta(seconds=timeout), reached))
        if len(self._waiting) == self._sharers:
            self._go_on()
        await reached.wait()
        return event.is_set()

    def _go_on(self) -> None:
        self.now = min(time for time, _ in self._waiting)
        if self.now >= self._until:
            for cron in self.crons:
                cron.close()
        for time, reached in self._waiting:
            if time <= self.now or self.now >= self._until:
                reached.set()
        self._waiting = [each for each in self._waiting if not each[1].is_set()]


class CountingDatabase(Database):
    """The database, and how many statements were sent to it."""

    def __init__(self, pool: AsyncPool) -> None:
        super().__init__(pool, schema=SCHEMA)
        self.sent = 0

    async def run(self, query: Any, *, conn: Any = None, within: float | None = None) -> Any:
        """Send one statement."""
        self.sent += 1
        return await super().run(query, conn=conn, within=within)


@asynccontextmanager
async def database(dsn: str) -> AsyncIterator[CountingDatabase]:
    """The database, with a pool of its own."""
    async with opened_pool(dsn, max_size=2) as pool:
        yield CountingDatabase(pool)


async def run_cron(
    dsn: str,
    items: Iterable[ParsedCronItem],
    *,
    start: datetime,
    until: datetime,
    steps: Sequence[tuple[datetime, Callable[[], datetime | None]]] = (),
) -> list[Event]:
    """Run a scheduler over a span of test time; what it told."""
    told: list[Event] = []
    events = Events()
    events.subscribe(Event, told.append)
    clock = TestClock(start, until, steps)
    async with database(dsn) as opened:
        cron = Cron(opened, items, events=events, clock=clock, wait=clock.wait)
        clock.close = cron.close
        await cron.run()
    return told


def added(dsn: str) -> list[tuple[str, datetime, bool]]:
    """The jobs there are: task, `_cron.ts`, `_cron.backfilled`; by minute and task."""
    found = [(job["task_identifier"], job["payload"]["_cron"]) for job in Jobs(dsn).all()]
    runs = [(task, datetime.fromisoformat(run["ts"]), run["backfilled"]) for task, run in found]
    return sorted(runs, key=lambda run: (run[1], run[0]))


def know(dsn: str, identifier: str, since: datetime, last: datetime | None = None) -> None:
    """Record an item as a worker that ran before would have done."""
    insert = "insert into graphile_worker._private_known_crontabs values (%s, %s, %s)"
    Jobs(dsn).query(insert, identifier, since, last)


def known(dsn: str) -> dict[str, tuple[datetime, datetime | None]]:
    """When the items were first known, and their last runs."""
    return {
        row["identifier"]: (row["known_since"], row["last_execution"])
        for row in Jobs(dsn).query("table graphile_worker._private_known_crontabs")
    }


def every(minutes: int, first: str, last: str) -> list[datetime]:
    """Times with a distance of so many minutes, from the first to the last one."""
    times = [at(first)]
    while times[-1] < at(last):
        times.append(times[-1] + timedelta(minutes=minutes))
    assert times[-1] == at(last)
    return times
