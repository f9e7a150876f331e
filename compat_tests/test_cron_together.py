"""Python and Node workers with the same crontab on one database: each run is added once.

All of them live on a clock that starts at the same time and goes 200 times as fast.
"""

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from graphile_worker_py.aio import wait_for
from graphile_worker_py.cron import Cron, parse_crontab
from graphile_worker_py.cron.match import Timetable, ceil_minute
from graphile_worker_py.events import CronScheduled, CronStarting, Events
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from tests.support.eventually import eventually
from tests.support.node import LATEST, Node
from tests.support.processes import Process

SPEED = 200
SIMULATED = datetime(2026, 2, 28, 23, 40, 20, tzinfo=UTC)

CRONTAB = """\
* * * * * minutely ?id=a {a: 1.0, 'b c': [1, {d: null}], \u00e9: 'x', big: 12345678901234567890}
*/2 * * * * even ?queue=q&priority=-3&max=7 {_cron: 1, z: 2, a: 1}
*/3 * * * * third ?fill=1h
0 0 1 3 * spring ?fill=1d
"""

NODE = """
const [connectionString, crontab, real, simulated, speed] = process.argv.slice(2);
const RealDate = Date;
const realSetTimeout = setTimeout;
const now = () => Number(simulated) + (RealDate.now() - Number(real)) * Number(speed);
globalThis.Date = class extends RealDate {
  constructor(...given) {
    super(...(given.length === 0 ? [now()] : given));
  }
  static now() {
    return now();
  }
};
globalThis.setTimeout = (call, ms, ...given) => realSetTimeout(call, ms / Number(speed), ...given);
const { run } = await import("graphile-worker");
const { EventEmitter } = await import("node:events");
const events = new EventEmitter();
events.on("cron:started", () => console.log("started"));
events.on("cron:scheduled", ({ timestamp }) => console.log("scheduled", timestamp));
await run({
  connectionString, crontab, events, taskList: { other() {} }, pollInterval: 3_600_000,
  logger: undefined, noHandleSignals: true,
});
"""

JOBS = """
select
  tasks.identifier, (payload #>> '{_cron,ts}')::timestamptz, payload::text,
  run_at, priority, max_attempts, queues.queue_name, flags::text, revision
from graphile_worker._private_jobs as jobs
join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
order by jobs.id
"""


class FastClock:
    """The clock of all workers of a test."""

    def __init__(self) -> None:
        self.real = time.time()

    def __call__(self) -> datetime:
        """The time that it shows."""
        return SIMULATED + timedelta(seconds=(time.time() - self.real) * SPEED)

    async def wait(self, event: asyncio.Event, timeout: float | None) -> bool:
        """Wait for an event as long as this clock needs."""
        return await wait_for(event, None if timeout is None else timeout / SPEED)

    async def minutes_later(self, minutes: int) -> None:
        """Wait until the clock shows so much more."""
        end = self() + timedelta(minutes=minutes)
        await eventually(lambda: self() >= end, timeout=15)


class Workers:
    """Starts Python and Node workers on one clock, and keeps what Python's ones told."""

    def __init__(self, dsn: str, node: Node, clock: FastClock) -> None:
        self.clock = clock
        self.starts: list[datetime] = []
        self.ticks: list[datetime] = []
        self._dsn = dsn
        self._node = node

    @contextlib.asynccontextmanager
    async def python(self, count: int) -> AsyncIterator[None]:
        """Python schedulers, until the block ends."""
        events = Events()
        events.subscribe(CronStarting, lambda event: self.starts.append(event.start))
        events.subscribe(CronScheduled, lambda event: self.ticks.append(event.timestamp))
        async with contextlib.AsyncExitStack() as stack:
            crons = []
            for _ in range(count):
                pool = await stack.enter_async_context(opened_pool(self._dsn, max_size=1))
                crons.append(
                    Cron(
                        Database(pool, schema="graphile_worker"),
                        parse_crontab(CRONTAB),
                        events=events,
                        clock=self.clock,
                        wait=self.clock.wait,
                    )
                )
            async with asyncio.TaskGroup() as group:
                for cron in crons:
                    group.create_task(cron.run())
                yield
                for cron in crons:
                    cron.close()

    async def node(self) -> Process:
        """A Node worker that has started."""
        process = self._node.start(
            LATEST,
            NODE,
            self._dsn,
            CRONTAB,
            str(self.clock.real * 1000),
            str(SIMULATED.timestamp() * 1000),
            str(SPEED),
        )
        await process.seen("started")
        return process


async def test_two_python_and_two_node_workers_add_each_run_once(dsn: str, node: Node) -> None:
    node.binary, node.package(LATEST)  # installed before the clock starts
    workers = Workers(dsn, node, FastClock())
    async with workers.python(2):
        nodes = [await workers.node(), await workers.node()]
        await workers.clock.minutes_later(6)
    alone_from = workers.clock()
    await workers.clock.minutes_later(6)
    nodes[0].kill()
    await workers.clock.minutes_later(3)
    alone_until = workers.clock()
    async with workers.python(2):
        await workers.clock.minutes_later(6)
        nodes[1].kill()
        nodes[1].wait()
        await workers.clock.minutes_later(3)

    jobs = rows(dsn, JOBS)
    found = sorted((ts, task) for task, ts, *_ in jobs)
    first, last = ceil_minute(workers.starts[0]), max(workers.ticks)
    timetable = Timetable(parse_crontab(CRONTAB))
    expected = sorted(
        (minute, item.task)
        for minute, items in timetable.between(first, last + timedelta(minutes=1))
        for item in items
    )
    assert found == expected
    assert (datetime(2026, 3, 1, tzinfo=UTC), "spring") in found
    assert last - first > timedelta(minutes=20)
    assert sum(alone_from < ts < alone_until for ts, _ in found) > 5  # these are Node's
    assert dict(rows(dsn, KNOWN)) == {
        identifier: max(minute for minute, task in found if task == name)
        for identifier, name in (
            ("a", "minutely"),
            ("even", "even"),
            ("third", "third"),
            ("spring", "spring"),
        )
    }
    # Nobody can tell from a job which worker added it.
    for task in ("minutely", "even", "third"):
        assert len({shape(job) for job in jobs if job[0] == task}) == 1


KNOWN = "select identifier, last_execution from graphile_worker._private_known_crontabs"


def shape(job: tuple[Any, ...]) -> tuple[Any, ...]:
    """A job without what differs from minute to minute."""
    task, ts, payload, run_at, *columns = job
    masked = re.sub(
        r'"ts":"[^"]*","backfilled":(true|false)', '"ts":"","backfilled":', str(payload)
    )
    return task, masked, run_at == ts, *columns


def rows(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        connection.execute("set time zone 'UTC'")
        return connection.execute(statement.encode()).fetchall()


async def test_python_backfills_what_node_missed_and_the_other_way_round(
    dsn: str, node: Node
) -> None:
    node.binary, node.package(LATEST)  # installed before the clock starts
    workers = Workers(dsn, node, FastClock())
    process = await workers.node()
    await process.seen("scheduled")
    process.kill()
    process.wait()
    await workers.clock.minutes_later(7)
    async with workers.python(1):
        await eventually(lambda: workers.ticks)
    await workers.clock.minutes_later(7)
    process = await workers.node()
    await process.seen("scheduled")
    process.kill()
    process.wait()

    runs = sorted(ts for task, ts, *_ in rows(dsn, JOBS) if task == "third")
    steps = {later - earlier for earlier, later in itertools.pairwise(runs)}
    assert steps == {timedelta(minutes=3)}
    assert runs[-1] - runs[0] >= timedelta(minutes=12)
