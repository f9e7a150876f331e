"""Let Node and Python workers share one database for a while, and see whether all went right.

Run it with `python -m compat_tests.soak --minutes 60`. Jobs are added from SQL, Python and Node:
plain ones, slow ones, in serial queues, with keys, failing at first, failing for good, and as
batches. All the while one worker after the other is told to stop, or killed, and replaced. Others
work from the beginning to the end: it is seen whether they, or the tables, grow. And some have
nothing to do but to be waked: it is measured how soon they are.

The module is longer than others for the statements that ask what became of the jobs.
"""

import argparse
import asyncio
import itertools
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
from typing import Any

from psycopg.conninfo import make_conninfo

from compat_tests.fleet import HERE, LEDGER, OVERLAPS, Fleet, Side, WorkerSettings
from compat_tests.soak_orders import Orders, batch_fits, outcome_fits, unlike
from compat_tests.soak_probes import Probes, keep_on
from compat_tests.soak_samples import Samples, spread
from graphile_worker_py import JobSpec, WorkerUtils, run_migrations
from graphile_worker_py.dev.postgres import EmbeddedPostgres
from tests.support.eventually import eventually
from tests.support.node import LATEST, Node
from tests.support.processes import Process, Processes

FEEDER = (HERE / "soak_feeder.mjs").read_text()
BACKLOG = 400  # due jobs, above which nobody adds more
ROUND = 0.1  # seconds between two rounds of an adder
RESTART_INTERVAL = 10.0
CLEANUP_INTERVAL = 60.0
TELL_INTERVAL = 300.0
# A killed worker is found dead after six seconds at the earliest. Before, what it has locked shows
# what it was at; that a moment later, too, because a statement may be on its way.
LAST_LOOK = 3.0
DRAIN_TIME = 120.0

WORKERS: list[tuple[Side, WorkerSettings]] = [
    ("python", {"jobs": 4, "poll": 1.0}),
    ("python", {"jobs": 4, "poll": 1.0, "prefetch": 10, "batch_delay": 0.0}),
    # With a delay, because without one it loses the outcomes of jobs that end during a stop.
    ("node", {"jobs": 4, "poll": 1.0, "batch_delay": 0.0}),
    ("node", {"jobs": 4, "poll": 1.0, "batch_delay": 0.0, "prefetch": 10}),
]
# Which of them is replaced next, and how. Node workers that are killed lose their jobs for hours.
STOPS = [(0, "kill"), (1, "stop"), (2, "stop"), (3, "stop")]
STOPS += [(0, "stop"), (1, "kill"), (2, "stop"), (3, "stop")]
# These work from the beginning to the end.
STEADY: dict[str, WorkerSettings] = {
    "worker": {"jobs": 4, "poll": 1.0},
    "worker with a local queue": {"jobs": 4, "poll": 1.0, "prefetch": 10, "batch_delay": 0.0},
}
POLL_INTERVAL = 2.0
# Where nobody else adds jobs a missed wake-up is not made good by the next one. With this interval
# it could not be overlooked.
QUIET_POLL_INTERVAL = 60.0

TABLES = """
create table ledger.requests (id bigint generated always as identity primary key, call json);
create index on ledger.runs (job_id);
create table ledger.killed (
  job_id bigint, name text, pid int, at timestamptz not null default clock_timestamp(),
  primary key (job_id, pid)
);
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
# What a killed worker had locked, for as long as it is not found dead.
NOTE_KILLED = """
insert into ledger.killed (job_id, name, pid)
select jobs.id, coalesce(payload ->> 'name', payload -> -1 ->> 'batch'), pools.pid
from graphile_worker._private_jobs as jobs
join graphile_worker_py.pools on pools.pool_id = jobs.locked_by
where pools.pid = %s and pools.died_at is null
on conflict do nothing
"""
HOLDS = """
select count(*) from graphile_worker._private_jobs as jobs
join graphile_worker_py.pools on pools.pool_id = jobs.locked_by
where pools.pid = %s
"""
END_KILLED = """
update ledger.runs
set error = 'killed', ended = greatest(began, (
  select min(at) from ledger.killed
  where killed.job_id = runs.job_id and began < at + interval '4 seconds'
))
where ended is null and exists (
  select from ledger.killed
  where killed.job_id = runs.job_id and began < at + interval '4 seconds'
)
"""
KILLED = "select name, count(*) from ledger.killed group by name"
KILLED_RUNS = "select count(*) from ledger.runs where error = 'killed'"
RESUMED = """
select coalesce(max(extract(epoch from resumed - at)), 0)::float8
from ledger.killed, lateral (
  select min(began) as resumed from ledger.runs
  where runs.job_id = killed.job_id and began > at + interval '4 seconds'
) as next
"""
REMOVE_FAILED = """
delete from graphile_worker._private_jobs
where attempts >= max_attempts and locked_at is null
returning coalesce(payload ->> 'name', '?')
"""
OUTCOMES = """
select name,
  count(*) filter (where error is null and ended is not null),
  count(*) filter (where error <> 'killed')
from ledger.runs where name is not null and name not like 'key %' group by name
"""
BATCHES = """
select payload -> -1 ->> 'batch', count(*)
from ledger.runs where task = 'batch' group by 1
"""
LAST_OF_KEYS = """
select name, max((payload ->> 'version')::int) filter (where error is null and ended is not null)
from ledger.runs where name like 'key %' group by name
"""
TRIED_TWICE = """
select count(*) from (
  select from ledger.runs where name not like 'key %' or name is null
  group by job_id, attempt having count(*) > 1
) as twice
"""
LEFT = "select count(*) from graphile_worker._private_jobs"
LOCKS = """
select
  (select count(*) from graphile_worker._private_jobs where locked_at is not null)
  + (select count(*) from graphile_worker._private_job_queues where locked_at is not null)
"""
SIDES_OF_RUNS = "select side, count(*) from ledger.runs group by side"


class Soak:
    """One run.

    Args:
        fleet: The database, and the workers on it.
        node: Runs the Node package.
        processes: Starts workers that are not of the fleet.
        quiet: A database where nobody else adds jobs.
        minutes: How long to add jobs.
        seed: Where chance comes from.
    """

    def __init__(
        self,
        fleet: Fleet,
        node: Node,
        processes: Processes,
        *,
        quiet: str,
        minutes: float,
        seed: int,
    ) -> None:
        self._fleet = fleet
        self._node = node
        self._processes = processes
        self._seconds = minutes * 60
        self._end = 0.0
        self._orders = {
            who: Orders(who, random.Random(f"{seed} {who}")) for who in ("SQL", "Python", "Node")
        }
        self._pauses = random.Random(f"{seed} pauses")
        self._probes = Probes(
            fleet.dsn, "beside others", poll_interval=POLL_INTERVAL, limit=POLL_INTERVAL
        )
        # Its limit is the same although it polls less often.
        self._quiet = Probes(quiet, "alone", poll_interval=QUIET_POLL_INTERVAL, limit=POLL_INTERVAL)
        self._workers: list[Process] = []
        self._replaced: Counter[str] = Counter()
        self._bad_exits: list[str] = []
        self._failed: set[str] = set()
        self._lost_by_node = 0

    async def run(self) -> bool:
        """Add, run, restart, kill; then let all become quiet and check. Whether all was right."""
        self._workers = [self._fleet.launch(side, **settings) for side, settings in WORKERS]
        steady = {name: self._fleet.launch("python", **given) for name, given in STEADY.items()}
        steady["idle worker"] = self._probes.launch(self._processes)
        steady["idle worker on its own"] = self._quiet.launch(self._processes)
        for worker in [*self._workers, *steady.values()]:
            await worker.seen("ready", 30)
        feeder = self._node.start(LATEST, FEEDER, self._fleet.dsn)
        await feeder.seen("ready", 20)
        self._end = time.monotonic() + self._seconds
        pids = {name: worker.pid for name, worker in steady.items()}
        samples = Samples(self._fleet.query, pids, self._seconds)
        async with WorkerUtils(self._fleet.dsn) as utils, asyncio.TaskGroup() as group:
            group.create_task(self._feed("SQL", self._add_with_sql))
            group.create_task(self._feed("Node", self._request_from_node))
            group.create_task(self._feed("Python", lambda some: add_with_python(utils, some)))
            group.create_task(keep_on(self._end, self._probes.add, self._pauses))
            group.create_task(keep_on(self._end, self._quiet.add_and_wait, self._pauses))
            group.create_task(samples.run())
            group.create_task(self._replace_workers())
            group.create_task(self._remove_failed())
            group.create_task(self._tell(samples))
        feeder.terminate()
        await ended(feeder)
        self._lost_by_node = int(feeder.lines("lost")[0].split()[1])
        # Whoever does not get done shows in the checks.
        with suppress(AssertionError):
            await eventually(lambda: self._fleet.query(UNFINISHED) == [0], timeout=DRAIN_TIME)
            await self._probes.all_begun()
        self._failed |= set(self._fleet.query(REMOVE_FAILED))
        samples.vacuum()
        running = [(side, worker) for (side, _), worker in zip(WORKERS, self._workers, strict=True)]
        everybody = running + [("python", worker) for worker in steady.values()]
        for side, worker in everybody:
            worker.terminate()
            await self._require_good_end(side, worker)
        self._fleet.query(END_KILLED)
        return self._report(samples)

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

    async def _replace_workers(self) -> None:
        for at, how in itertools.cycle(STOPS):
            if time.monotonic() + RESTART_INTERVAL >= self._end:
                return
            await asyncio.sleep(RESTART_INTERVAL)
            side, settings = WORKERS[at]
            if how == "kill":
                await self._kill(self._workers[at])
            else:
                self._workers[at].terminate()
                await self._require_good_end(side, self._workers[at])
            self._replaced[f"{side} workers {'killed' if how == 'kill' else 'stopped'}"] += 1
            self._workers[at] = self._fleet.launch(side, **settings)
            await self._workers[at].seen("ready", 30)

    async def _kill(self, worker: Process) -> None:
        # Idle, it would only be replaced.
        with suppress(AssertionError):
            await eventually(lambda: self._fleet.query(HOLDS, worker.pid) != [0], timeout=30)
        worker.kill()
        await ended(worker)
        self._fleet.query(NOTE_KILLED, worker.pid)
        await asyncio.sleep(LAST_LOOK)
        self._fleet.query(NOTE_KILLED, worker.pid)

    async def _remove_failed(self) -> None:
        """Do what administrators do, so that the table is as large as its work."""
        while time.monotonic() + CLEANUP_INTERVAL < self._end:
            await asyncio.sleep(CLEANUP_INTERVAL)
            self._failed |= set(self._fleet.query(REMOVE_FAILED))

    async def _tell(self, samples: Samples) -> None:
        while time.monotonic() + TELL_INTERVAL < self._end:
            await asyncio.sleep(TELL_INTERVAL)
            sample = samples.take()
            memory = spread([value / 1e3 for value in sample.memory.values()])
            dead = spread([table.dead for table in sample.tables.values()])
            print(f"{sample.at:6.0f} s: kB {memory}, dead rows {dead}", flush=True)

    async def _require_good_end(self, side: Side, worker: Process) -> None:
        await ended(worker)
        expected = 0 if side == "python" else -signal.SIGTERM
        if worker.returncode != expected:
            last = worker.stderr.strip().splitlines()[-1:]
            self._bad_exits.append(f"{side}: {worker.returncode} {last}")

    def _report(self, samples: Samples) -> bool:
        runs = dict(self._fleet.query(SIDES_OF_RUNS))
        killed = Counter(dict(self._fleet.query(KILLED)))
        kinds: Counter[str] = Counter()
        for orders in self._orders.values():
            kinds += orders.kinds
        rows: list[tuple[str, str]] = [
            *((f"jobs added from {who}", f"{o.number:,}") for who, o in self._orders.items()),
            *((f"... of them {kind}", f"{count:,}") for kind, count in sorted(kinds.items())),
            *((f"runs by {side.capitalize()} workers", f"{runs[side]:,}") for side in sorted(runs)),
            *((text, f"{count:,}") for text, count in sorted(self._replaced.items())),
            ("jobs that killed workers had locked", f"{killed.total():,}"),
            ("... of them running", f"{self._fleet.query(KILLED_RUNS)[0]:,}"),
            ("... s until one ran again, at most", f"{self._fleet.query(RESUMED)[0]:.1f}"),
            ("keyed jobs that Node had to add again", f"{self._lost_by_node:,}"),
            *self._probes.rows(),
            *self._quiet.rows(),
            *samples.rows(),
        ]
        checks = self._checks(killed)
        checks |= self._probes.checks() | self._quiet.checks() | samples.checks()
        for text, value in rows:
            print(f"{text:<48} {value:>9}")
        for text, wrong in checks.items():
            print(f"{text:<48} {'ok' if not wrong else f'WRONG: {wrong}':>9}")
        return not any(checks.values())

    def _checks(self, killed: Counter[str]) -> dict[str, list[Any]]:
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
        # Replaced while it ran, a keyed job is not tried again: it is given up with its worker.
        may_fail = {name for name in killed if name in versions}
        return {
            "every job ran as often as it was to": unlike(found, expected, killed, outcome_fits),
            "every batch was tried again with the rest": unlike(
                dict(query(BATCHES)), batches, killed, batch_fits
            ),
            "the last job of every key ran": unlike(
                dict(query(LAST_OF_KEYS)), versions, Counter(), lambda one, other, _: one == other
            ),
            "only what was to failed for good": sorted(self._failed - may_fail ^ doomed)[:5],
            "nothing is left": [n for n in query(LEFT) if n],
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


async def ended(process: Process) -> None:
    """Wait until a process has ended."""
    await eventually(lambda: process.returncode is not None, timeout=30, interval=0.05)


async def soak(minutes: float, seed: int) -> bool:
    """Run on a server of its own."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is not installed")
    processes = Processes()
    node = Node(processes)
    with EmbeddedPostgres() as server:
        quiet = make_conninfo(server.dsn, dbname="quiet")
        await run_migrations(server.dsn)
        fleet = Fleet(server.dsn, node, processes)
        try:
            fleet.query("create database quiet")
            await run_migrations(quiet)
            fleet.query(LEDGER)
            fleet.query(TABLES)
            print(f"seed {seed}, {minutes:g} minutes, Python {platform.python_version()}")
            print(
                f"graphile-worker {LATEST}, PostgreSQL {fleet.query('show server_version')[0]}",
                flush=True,
            )
            run = Soak(fleet, node, processes, quiet=quiet, minutes=minutes, seed=seed)
            return await run.run()
        finally:
            processes.end_all()
            fleet.connection.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m compat_tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    sys.exit(0 if asyncio.run(soak(given.minutes, given.seed)) else 1)


if __name__ == "__main__":
    main()
