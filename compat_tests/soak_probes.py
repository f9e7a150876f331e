"""How long a worker that has nothing else to do takes to begin a job.

Each probe says when it was added, its task writes down when it began, both by the clock of the
database. Run as a program, this is the worker that takes the probes of a database.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import psycopg

from compat_tests.soak_samples import percentile
from graphile_worker_py import JobContext, Runner
from tests.support.eventually import eventually
from tests.support.processes import Process, Processes

TABLE = """
create schema if not exists ledger;
create table ledger.probes (
  added timestamptz not null, began timestamptz not null default clock_timestamp()
);
"""
ADD: Final = """
select from graphile_worker.add_job('probe', json_build_object('added', clock_timestamp()))
"""
BEGAN: Final = "insert into ledger.probes (added) values (%s::timestamptz)"
COUNT: Final = "select count(*) from ledger.probes"
LATENCIES: Final = "select extract(epoch from began - added)::float8 from ledger.probes"
PATIENCE = 300.0


class Probes:
    """The probes of one database.

    Args:
        dsn: The database, with the job schema installed.
        name: What to call them.
        poll_interval: That of the worker: a job of which it was not told may wait so long.
        limit: Seconds that one probe of a thousand may take, and no more.
    """

    def __init__(self, dsn: str, name: str, *, poll_interval: float, limit: float) -> None:
        self._dsn = dsn
        self._name = name
        self._poll_interval = poll_interval
        self._limit = limit
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._connection.execute(TABLE)
        self._added = 0

    def launch(self, processes: Processes) -> Process:
        """Start the worker and do not wait for it."""
        text = json.dumps([self._dsn, self._poll_interval])
        command = [sys.executable, "-W", "error", "-m", "compat_tests.soak_probes", text]
        return processes.start(command, cwd=Path(__file__).parent.parent)

    async def add(self) -> None:
        """Add one."""
        self._connection.execute(ADD)
        self._added += 1

    async def add_and_wait(self) -> None:
        """Add one and wait until it has begun: no other probe tells the worker what it missed."""
        await self.add()
        await self.all_begun()

    async def all_begun(self) -> None:
        """Wait until all have begun."""
        await eventually(lambda: self._begun() == self._added, timeout=PATIENCE)

    def latencies(self) -> list[float]:
        """How many seconds each took to begin."""
        return [row[0] for row in self._connection.execute(LATENCIES)]

    def rows(self) -> list[tuple[str, str]]:
        """The figures, as text."""
        found = self.latencies()
        made = [(f"{self._name}: probes", f"{len(found):,}")]
        for percent in (50, 99, 99.9, 100):
            label = "the longest" if percent == 100 else f"p{percent:g}"
            made.append((f"... {label}, in ms", f"{percentile(found, percent) * 1000:,.1f}"))
        made.append(("... interval of polls, in ms", f"{self._poll_interval * 1000:,.0f}"))
        return made

    def checks(self) -> dict[str, list[Any]]:
        """What was found wrong, by what was looked at."""
        p999 = percentile(self.latencies(), 99.9)
        return {
            f"{self._name}: every probe ran once": (
                [] if self._begun() == self._added else [(self._begun(), self._added)]
            ),
            f"{self._name}: no wake-up was missed": [] if p999 < self._limit else [p999],
        }

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _begun(self) -> int:
        row = self._connection.execute(COUNT).fetchone()
        assert row is not None
        return int(row[0])


async def keep_on(until: float, add: Callable[[], Awaitable[None]], pauses: random.Random) -> None:
    """Add five a second, in no rhythm that anything else may have, until a time of this process."""
    while time.monotonic() < until:
        await add()
        await asyncio.sleep(pauses.uniform(0.1, 0.3))


async def probe(payload: Any, ctx: JobContext) -> None:
    """Write down when it was added; the database adds what time it is."""
    async with ctx.connection() as conn:
        await conn.execute(BEGAN, (payload["added"],))


async def main() -> None:
    """Work until stopped."""
    dsn, poll_interval = json.loads(sys.argv[1])
    async with Runner(dsn, tasks={"probe": probe}, poll_interval=poll_interval) as runner:
        print("ready", flush=True)
        await runner.wait()


if __name__ == "__main__":
    asyncio.run(main())
