"""Let Node and Python workers share one database for a while, and see whether all went right.

Run it with `python -m compat_tests.soak --minutes 10`. Jobs are added from SQL, Python and Node:
plain ones, slow ones, in serial queues, with keys, failing at first, failing for good, and as
batches. All the while one worker after the other is told to stop and replaced.
"""

import argparse
import asyncio
import json
import platform
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from compat_tests.fleet import HERE, LEDGER, OVERLAPS, Fleet, Side, WorkerSettings
from graphile_worker_py import JobSpec, WorkerUtils, run_migrations
from graphile_worker_py.dev.postgres import EmbeddedPostgres
from tests.support.eventually import eventually
from tests.support.node import LATEST, Node
from tests.support.processes import Process, Processes

FEEDER = (HERE / "soak_feeder.mjs").read_text()
BACKLOG = 400  # due jobs, above which nobody adds more
ROUND = 0.05  # seconds between two rounds of an adder
RESTART_INTERVAL = 10.0
DRAIN_TIME = 120.0
QUEUES = 20
KEYS = 10

WORKERS: list[tuple[Side, WorkerSettings]] = [
    ("python", {"jobs": 4, "poll": 1.0}),
    ("python", {"jobs": 4, "poll": 1.0, "prefetch": 10, "batch_delay": 0.0}),
    # With a delay, because without one it loses the outcomes of jobs that end during a stop.
    ("node", {"jobs": 4, "poll": 1.0, "batch_delay": 0.0}),
    ("node", {"jobs": 4, "poll": 1.0, "batch_delay": 0.0, "prefetch": 10}),
]

TABLES = """
create table ledger.requests (id bigint generated always as identity primary key, call json);
create index on ledger.runs (job_id);
"""
DUE = "select count(*) from graphile_worker._private_jobs where is_available and run_at <= now()"
UNFINISHED = """
select count(*) from graphile_worker._private_jobs
where attempts < max_attempts or locked_at is not null
"""
ADD_JOB = """
select graphile_worker.add_job(
  %(identifier)s, %(payload)s::json,
  queue_name => %(queue_name)s, priority => %(priority)s, max_attempts => %(max_attempts)s,
  job_key => %(job_key)s
)
"""
OUTCOMES = """
select name, count(*) filter (where error is null), count(*) filter (where error is not null)
from ledger.runs where name is not null and name not like 'key %' group by name
"""
BATCHES = """
select payload -> -1 ->> 'batch', count(*)
from ledger.runs where task = 'batch' group by 1
"""
LAST_OF_KEYS = """
select name, max((payload ->> 'version')::int) filter (where error is null)
from ledger.runs where name like 'key %' group by name
"""
TRIED_TWICE = """
select count(*) from (
  select from ledger.runs where name not like 'key %' or name is null
  group by job_id, attempt having count(*) > 1
) as twice
"""
DOOMED = "select payload ->> 'name' from graphile_worker._private_jobs"
LOCKS = """
select
  (select count(*) from graphile_worker._private_jobs where locked_at is not null)
  + (select count(*) from graphile_worker._private_job_queues where locked_at is not null)
"""
SIDES_OF_RUNS = "select side, count(*) from ledger.runs group by side"


@dataclass
class Orders:
    """Jobs that one adder adds, at random, and what is to become of them.

    Args:
        who: The adder: SQL, Python or Node.
        dice: Where chance comes from.
    """

    who: str
    dice: random.Random
    number: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    # By name: how often it is to succeed, and how often to fail before.
    expected: dict[str, tuple[int, int]] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def next(self) -> dict[str, Any]:
        """One more job, as keyword arguments of `add_job` with `identifier` and `payload`."""
        self.number += 1
        name = f"{self.who} {self.number}"
        kind = self.dice.choices(
            ["plain", "slow", "queued", "keyed", "flaky", "doomed", "batch"],
            [30, 10, 35, 15, 4, 2, 4],
        )[0]
        self.kinds[kind] += 1
        payload: Any = {"name": name}
        spec: dict[str, Any] = {"identifier": "step", "priority": self.dice.choice([0, 0, -1, 5])}
        self.expected[name] = (1, 0)
        match kind:
            case "slow":
                payload["ms"] = self.dice.randint(1, 60)
            case "queued":
                spec["queue_name"] = f"queue {self.dice.randrange(QUEUES)}"
            case "keyed":
                del self.expected[name]
                key = f"key {self.who} {self.dice.randrange(KEYS)}"
                version = self.versions[key] = self.versions.get(key, 0) + 1
                payload = {"name": key, "version": version, "ms": self.dice.randint(0, 30)}
                spec["job_key"] = key
            case "flaky":
                payload["fail_until"] = 2
                self.expected[name] = (1, 1)
                spec["queue_name"] = self.dice.choice([None, f"queue {self.number % QUEUES}"])
            case "doomed":
                payload["fail"] = "no"
                spec["max_attempts"] = 1
                self.expected[name] = (0, 1)
            case "batch":
                del self.expected[name]
                # The last item is the one that fails at first and is tried again alone.
                payload = [{}, {}, {"batch": name, "fail_until": 2}]
                spec["identifier"] = "batch"
                self.batches[name] = 2
        return {**spec, "payload": payload}


class Soak:
    """One run."""

    def __init__(self, fleet: Fleet, node: Node, *, minutes: float, seed: int) -> None:
        self._fleet = fleet
        self._node = node
        self._end = time.monotonic() + minutes * 60
        self._orders = {
            who: Orders(who, random.Random(f"{seed} {who}")) for who in ("SQL", "Python", "Node")
        }
        self._workers: list[Process] = []
        self._restarts: Counter[str] = Counter()
        self._bad_exits: list[str] = []
        self._lost_by_node = 0

    async def run(self) -> bool:
        """Add, run, restart; then let all become quiet and check. Whether all was right."""
        self._workers = [self._fleet.launch(side, **settings) for side, settings in WORKERS]
        for worker in self._workers:
            await worker.seen("ready", 20)
        feeder = self._node.start(LATEST, FEEDER, self._fleet.dsn)
        await feeder.seen("ready", 20)
        async with WorkerUtils(self._fleet.dsn) as utils, asyncio.TaskGroup() as group:
            group.create_task(self._feed("SQL", self._add_with_sql))
            group.create_task(self._feed("Node", self._request_from_node))
            group.create_task(self._feed("Python", lambda some: add_with_python(utils, some)))
            group.create_task(self._restart_workers())
        feeder.terminate()
        await ended(feeder)
        self._lost_by_node = int(feeder.lines("lost")[0].split()[1])
        # Whoever does not get done shows in the checks.
        with suppress(AssertionError):
            await eventually(lambda: self._fleet.query(UNFINISHED) == [0], timeout=DRAIN_TIME)
        for (side, _), worker in zip(WORKERS, self._workers, strict=True):
            worker.terminate()
            await self._require_good_end(side, worker)
        return self._report()

    async def _feed(self, who: str, add: Callable[[list[dict[str, Any]]], Awaitable[None]]) -> None:
        orders = self._orders[who]
        while time.monotonic() < self._end:
            if self._fleet.query(DUE)[0] < BACKLOG:
                await add([orders.next() for _ in range(orders.dice.randint(1, 5))])
            await asyncio.sleep(ROUND)

    async def _add_with_sql(self, jobs: list[dict[str, Any]]) -> None:
        with self._fleet.connection.transaction():
            for job in jobs:
                values = dict.fromkeys(("queue_name", "max_attempts", "job_key"))
                values |= {**job, "payload": json.dumps(job["payload"])}
                self._fleet.connection.execute(ADD_JOB.encode(), values)

    async def _request_from_node(self, jobs: list[dict[str, Any]]) -> None:
        for job in jobs:
            spec = {camel: job[name] for name, camel in NODE_NAMES.items() if name in job}
            call = json.dumps(["addJob", job["identifier"], job["payload"], spec])
            self._fleet.query("insert into ledger.requests (call) values (%s)", call)

    async def _restart_workers(self) -> None:
        at = 0
        while time.monotonic() + RESTART_INTERVAL < self._end:
            await asyncio.sleep(RESTART_INTERVAL)
            side, settings = WORKERS[at]
            self._workers[at].terminate()
            await self._require_good_end(side, self._workers[at])
            self._workers[at] = self._fleet.launch(side, **settings)
            await self._workers[at].seen("ready", 20)
            self._restarts[side] += 1
            at = (at + 1) % len(WORKERS)

    async def _require_good_end(self, side: Side, worker: Process) -> None:
        await ended(worker)
        expected = 0 if side == "python" else -signal.SIGTERM
        if worker.returncode != expected:
            last = worker.stderr.strip().splitlines()[-1:]
            self._bad_exits.append(f"{side}: {worker.returncode} {last}")

    def _report(self) -> bool:
        runs = dict(self._fleet.query(SIDES_OF_RUNS))
        kinds: Counter[str] = Counter()
        for orders in self._orders.values():
            kinds += orders.kinds
        rows: list[tuple[str, object]] = [
            *((f"jobs added from {who}", o.number) for who, o in self._orders.items()),
            *((f"... of them {kind}", count) for kind, count in sorted(kinds.items())),
            *((f"runs by {side.capitalize()} workers", runs[side]) for side in sorted(runs)),
            *((f"{side} workers restarted", n) for side, n in sorted(self._restarts.items())),
            ("keyed jobs that Node had to add again", self._lost_by_node),
        ]
        checks = self._checks()
        for text, value in rows:
            print(f"{text:<48} {value:>9}")
        for text, wrong in checks.items():
            print(f"{text:<48} {'ok' if not wrong else f'WRONG: {wrong}':>9}")
        return not any(checks.values())

    def _checks(self) -> dict[str, list[Any]]:
        query = self._fleet.query
        found = {name: (good, bad) for name, good, bad in query(OUTCOMES)}
        expected: dict[str, tuple[int, int]] = {}
        batches: dict[str, int] = {}
        versions: dict[str, int] = {}
        for orders in self._orders.values():
            expected |= orders.expected
            batches |= orders.batches
            versions |= orders.versions
        doomed = {name for name, outcome in expected.items() if outcome == (0, 1)}
        return {
            "every job ran as often as it was to": different(found, expected),
            "every batch was tried again with the rest": different(dict(query(BATCHES)), batches),
            "the last job of every key ran": different(dict(query(LAST_OF_KEYS)), versions),
            "only what failed for good is left": sorted(set(query(DOOMED)) ^ doomed),
            "no job or queue ran twice at once": query(OVERLAPS)[:5],
            "no attempt was made twice": [n for n in query(TRIED_TWICE) if n],
            "no lock is left": [n for n in query(LOCKS) if n],
            "every worker ended well": self._bad_exits,
        }


NODE_NAMES = {
    "queue_name": "queueName",
    "priority": "priority",
    "max_attempts": "maxAttempts",
    "job_key": "jobKey",
}


async def add_with_python(utils: WorkerUtils, jobs: list[dict[str, Any]]) -> None:
    """Add jobs with `add_job`, or, if there are many, with `add_jobs`."""
    if len(jobs) > 2:
        await utils.add_jobs([JobSpec(**job) for job in jobs])
        return
    for job in jobs:
        await utils.add_job(**job)


def different(found: dict[str, Any], expected: dict[str, Any]) -> list[Any]:
    """Some of the names with another value than expected: name, found, expected."""
    names = sorted(found.keys() | expected.keys())
    pairs = [(name, found.get(name), expected.get(name)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]][:5]


async def ended(process: Process) -> None:
    """Wait until a process has ended."""
    await eventually(lambda: process.returncode is not None, timeout=30, interval=0.05)


async def soak(minutes: float, seed: int) -> bool:
    """Run on a server of its own."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not installed")
    processes = Processes()
    node = Node(npm, processes)
    with EmbeddedPostgres() as server:
        await run_migrations(server.dsn)
        fleet = Fleet(server.dsn, node, processes)
        try:
            fleet.query(LEDGER)
            fleet.query(TABLES)
            print(f"seed {seed}, {minutes:g} minutes, Python {platform.python_version()}")
            print(f"graphile-worker {LATEST}, PostgreSQL {fleet.query('show server_version')[0]}")
            return await Soak(fleet, node, minutes=minutes, seed=seed).run()
        finally:
            processes.end_all()
            fleet.connection.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m compat_tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    sys.exit(0 if asyncio.run(soak(given.minutes, given.seed)) else 1)


if __name__ == "__main__":
    main()
