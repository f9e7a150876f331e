"""Limits hold while workers are killed, stopped, cut off and unlocked, and the limit is changed.

The tasks themselves say when they begin and end, so nothing depends on what our tables say. A look
at the jobs table counts the jobs that are locked in all pools together, those of dead ones
included.
"""

import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import psycopg
import pytest

from graphile_worker_py import WorkerUtils, run_migrations
from tests.faults.conftest import ROOT
from tests.support.eventually import eventually
from tests.support.processes import Process, Processes
from tests.support.proxy import Proxy
from tests.support.running import Jobs

LOOK: Final = """
select count(*) filter (where jobs.locked_at is not null)
from graphile_worker._private_jobs as jobs
"""
ADD: Final = """
select (graphile_worker.add_job(
  'work', json_build_object('seconds', 0.05 * random(), 'tenant', 'the only one')
)).id
from generate_series(1, %s)
"""
OPTIONS: Final = {
    "concurrent_jobs": 4,
    "poll_interval": 0.2,
    "heartbeat_interval": 0.1,
    "max_crashes": 0,
}
MORTAL: Final = {"dead_after": 0.5}
# It must not be taken for dead: its jobs would run elsewhere while it has not heard of that.
PATIENT: Final = {"dead_after": 60}
AMOUNT: Final = 5
AMOUNTS: Final = (3, 7, 1, 9)
FAULTS: Final = ("stop", "cut", "black hole", "unlock")
DURATION: Final = 0.4
"""Seconds that a fault lasts."""


class Watch:
    """Looks all the time how many jobs are locked, and knows what the limit allows."""

    def __init__(self, dsn: str) -> None:
        self.looks: list[tuple[float, int]] = []
        self._allowed = [(0.0, AMOUNT)]
        self._dsn = dsn
        self._ended = threading.Event()

    def run(self) -> None:
        """Look until ended."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            while not self._ended.is_set():
                began = time.monotonic()
                row = conn.execute(LOOK).fetchone()
                assert row is not None
                self.looks.append((began, row[0]))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look in a thread."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    @asynccontextmanager
    async def limit_set(self, utils: WorkerUtils, amount: int) -> AsyncIterator[None]:
        """Within the block an operator has set the limit."""
        self._allow(max(amount, AMOUNT))
        await utils.set_limit("stripe", amount)
        await self._drained(utils, amount)
        yield
        self._allow(max(amount, AMOUNT))
        await utils.clear_limit("stripe")
        await self._drained(utils, AMOUNT)

    def _allow(self, amount: int) -> None:
        self._allowed.append((time.monotonic(), amount))

    async def _drained(self, utils: WorkerUtils, amount: int) -> None:
        """Wait until the pools have no more permits than that; from then on the limit holds."""

        async def is_drained() -> bool:
            (limit,) = await utils.limits()
            return limit.in_use <= amount

        await eventually(is_drained)
        self._allow(amount)

    def too_many(self, counts: Sequence[tuple[float, int]]) -> list[tuple[float, int, int]]:
        """The moments with more than the limit allowed then: when, how many, how many it did."""
        found = []
        for at, count in counts:
            allowed = next(amount for since, amount in reversed(self._allowed) if since <= at)
            if count > allowed:
                found.append((at, count, allowed))
        return found


class Crew:
    """Two workers that are killed, and two that reach the database through a proxy."""

    def __init__(self, dsn: str, limit: str, proxy: Proxy, processes: Processes) -> None:
        self._dsn = dsn
        self._limit = limit
        self._proxy = proxy
        self._processes = processes
        self._killed: dict[Process, float] = {}
        self._mortals = [self._start(dsn, MORTAL), self._start(dsn, MORTAL | {"local_queue": 10})]
        self._others = [
            self._start(proxy.dsn, PATIENT),
            self._start(proxy.dsn, PATIENT | {"local_queue": 10}),
        ]

    def _start(self, dsn: str, options: dict[str, Any]) -> Process:
        command = [sys.executable, "-m", "tests.faults.limited_worker", dsn, self._limit]
        return self._processes.start([*command, json.dumps(OPTIONS | options)], cwd=ROOT)

    async def up(self) -> None:
        """Wait until all run."""
        for worker in (*self._mortals, *self._others):
            await worker.seen("up")

    async def kill_one(self) -> None:
        """Kill a worker, and start another one in its place."""
        victim = self._mortals.pop(0)
        await victim.seen("up")
        victim.kill()
        await asyncio.to_thread(victim.wait)
        self._killed[victim] = time.monotonic()
        self._mortals.append(self._start(self._dsn, MORTAL))

    async def suffer(self, fault: str, victim: int, utils: WorkerUtils) -> None:
        """Let something happen to the workers that are not killed."""
        worker = self._others[victim]
        match fault:
            case "stop":
                os.kill(worker.pid, signal.SIGSTOP)
                await asyncio.sleep(DURATION)
                os.kill(worker.pid, signal.SIGCONT)
            case "cut":
                self._proxy.cut()
            case "black hole":
                with self._proxy.black_hole():
                    await asyncio.sleep(DURATION)
            case "unlock":
                pool_id = worker.lines("up")[-1].split()[1]
                await utils.force_unlock_workers([pool_id], force=True)

    def counts(self) -> list[tuple[float, int]]:
        """How many jobs ran at each moment at which one began."""
        changes: list[tuple[float, int]] = []
        for worker in (*self._mortals, *self._others, *self._killed):
            begun, ended = (self._times(worker, what) for what in ("begin", "end"))
            changes += [(at, 1) for at in begun] + [(at, -1) for at in ended]
            if worker in self._killed:
                changes += [(self._killed[worker], -1)] * (len(begun) - len(ended))
        running, counts = 0, []
        for at, change in sorted(changes):
            running += change
            if change > 0:
                counts.append((at, running))
        return counts

    def _times(self, worker: Process, what: str) -> list[float]:
        return [float(line.split()[2]) for line in worker.lines(what)]

    def ended(self) -> set[int]:
        """The jobs that came to their end."""
        workers = (*self._mortals, *self._others, *self._killed)
        return {int(line.split()[1]) for worker in workers for line in worker.lines("end")}


@pytest.mark.parametrize("limit", [f"{AMOUNT}", f"{AMOUNT} tenant"], ids=["permits", "leases"])
@pytest.mark.timeout(600)  # with `--long`
async def test_nothing_lets_more_jobs_run_or_be_locked_than_the_limit_allows(
    dsn: str, processes: Processes, pytestconfig: pytest.Config, limit: str
) -> None:
    rounds = 60 if pytestconfig.getoption("--long") else len(FAULTS)
    dice = random.Random(rounds)
    watch, added = Watch(dsn), set[int]()
    await run_migrations(dsn, side_schema=True)
    async with Proxy(dsn).running() as proxy, WorkerUtils(dsn) as utils:
        crew = Crew(dsn, limit, proxy, processes)
        await crew.up()
        await eventually(utils.limits)
        with watch.watching():
            for turn in range(rounds):
                added |= {row["id"] for row in Jobs(dsn).query(ADD, 60)}
                async with watch.limit_set(utils, dice.choice(AMOUNTS)):
                    await crew.suffer(FAULTS[turn % len(FAULTS)], dice.randrange(2), utils)
                await crew.kill_one()
            await eventually(lambda: Jobs(dsn).ids() == [], timeout=30 + rounds, interval=0.05)
        counts, ended = crew.counts(), crew.ended()
        processes.end_all()  # they would connect to the proxy again and again
    assert watch.too_many(counts) == []
    assert watch.too_many(watch.looks) == []
    assert ended >= added
    assert max(count for _, count in counts) >= AMOUNT
    assert len(watch.looks) > 100
