"""What grows during a soak, if anything: the memory of workers, and the tables they work on."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median
from typing import Any, Final, TypeVar

T = TypeVar("T")

INTERVAL: Final = 10.0
WARM_UP: Final = 300.0
"""Seconds before caches are full and the first vacuums are done; less in a short run."""
QUARTERS: Final = 4
MAY_GROW: Final = 1.1
"""How much more memory a worker may have in the last quarter than in the first one."""
VACUUMS: Final = 3
"""A heartbeat right after a vacuum leaves a dead row, but not after each of them."""
STATISTICS_PATIENCE: Final = 10.0
"""Seconds to wait for what the server tells of a vacuum."""
LONG_ENOUGH: Final = 1200.0
"""A run must last so many seconds before its quarters tell anything about vacuums."""

READ_TABLES = """
select relname, n_dead_tup, autovacuum_count, pg_total_relation_size(relid)
from pg_stat_user_tables
where schemaname = 'graphile_worker' and relname like '\\_private\\_%'
  or schemaname = 'graphile_worker_py' and relname in ('pools', 'suspects')
order by schemaname, relname
"""
NOW_BEGINS = "select set_config('soak.since', clock_timestamp()::text, false)"
NOT_YET_TOLD = """
select relname from pg_stat_user_tables
where (
    schemaname = 'graphile_worker' and relname in
      ('_private_jobs', '_private_job_queues', '_private_tasks', '_private_known_crontabs')
    or schemaname = 'graphile_worker_py' and relname in ('pools', 'suspects')
  )
  and coalesce(last_vacuum < current_setting('soak.since')::timestamptz, true)
"""
VACUUM = """
vacuum graphile_worker._private_jobs, graphile_worker._private_job_queues,
  graphile_worker._private_tasks, graphile_worker._private_known_crontabs,
  graphile_worker_py.pools, graphile_worker_py.suspects
"""


@dataclass(frozen=True, slots=True)
class Table:
    """What the server tells of a table; its size, in bytes, is with indexes."""

    dead: int
    vacuums: int
    size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """How things were at one moment: seconds since the start, bytes by worker, tables by name."""

    at: float
    memory: Mapping[str, int]
    tables: Mapping[str, Table]


class Samples:
    """Taken every ten seconds.

    Args:
        query: Asks the database.
        pids: The processes to look at, by what they are called.
        seconds: How long the run takes.
    """

    def __init__(
        self, query: Callable[[str], list[Any]], pids: Mapping[str, int], seconds: float
    ) -> None:
        self._query = query
        self._pids = pids
        self._seconds = seconds
        self._started = time.monotonic()
        self._taken: list[Sample] = []
        self.stuck: dict[str, int] = {}

    async def run(self) -> None:
        """Take samples until the time is over."""
        interval = min(INTERVAL, self._seconds / 40)
        while time.monotonic() + interval < self._started + self._seconds:
            self.take()
            await asyncio.sleep(interval)

    def take(self) -> Sample:
        """Take one."""
        memory = {name: resident(pid) for name, pid in self._pids.items()}
        self._taken.append(Sample(time.monotonic() - self._started, memory, self._tables()))
        return self._taken[-1]

    def vacuum(self) -> None:
        """Vacuum beside the workers, and see what dead rows stay because somebody needs them."""
        stuck: dict[str, int] | None = None
        for _ in range(VACUUMS):
            self._query(NOW_BEGINS)
            self._query(VACUUM)
            # Before PostgreSQL 15 its statistics come later.
            deadline = time.monotonic() + STATISTICS_PATIENCE
            while self._query(NOT_YET_TOLD) and time.monotonic() < deadline:
                time.sleep(0.05)
            told = self._tables()
            names = told if stuck is None else stuck
            stuck = {name: told[name].dead for name in names if told[name].dead}
        self.stuck = stuck or {}

    def rows(self) -> list[tuple[str, str]]:
        """The figures, as text: megabytes of 1,000,000 bytes, kilobytes of 1,000."""
        parts = self._parts()
        made: list[tuple[str, str]] = [("samples after warm-up", f"{sum(map(len, parts)):,}")]
        for name in self._pids:
            medians = [median([sample.memory[name] for sample in part]) for part in parts]
            text = " ".join(f"{value / 1e6:9.2f}" for value in medians)
            made.append((f"MB of the {name}, by quarter", text))
            made.append(("... change of MB in an hour", f"{self._slope(name) / 1e6:+.2f}"))
        for name, last in self._taken[-1].tables.items():
            told = [[sample.tables[name] for sample in part] for part in parts]
            peaks = [max(table.dead for table in part) for part in told]
            sizes = [max(table.size for table in part) / 1e3 for part in told]
            made.append((f"dead rows of {name}, at most", spread(peaks)))
            made.append(("... kB with indexes, at most", spread(sizes)))
            made.append(("... automatic vacuums", f"{last.vacuums:,}"))
        return made

    def checks(self) -> dict[str, list[Any]]:
        """What was found wrong, by what was looked at."""
        first, *_, last = self._parts()
        fat: list[Any] = []
        for name in self._pids:
            sizes = [median([sample.memory[name] for sample in part]) for part in (first, last)]
            if sizes[1] > MAY_GROW * sizes[0]:
                fat.append((name, *sizes))
        dirty: list[Any] = []
        for name in self._taken[-1].tables:
            peaks = [max(sample.tables[name].dead for sample in part) for part in (first, last)]
            # Half as many again is chance: a vacuum comes once a minute, and may come late.
            if self._seconds >= LONG_ENOUGH and peaks[1] > 1.5 * peaks[0] + 1000:
                dirty.append((name, *peaks))
        return {
            "the memory of no worker grew": fat,
            "no table has more and more dead rows": dirty,
            "no dead row is out of reach for a vacuum": sorted(self.stuck.items()),
        }

    def _tables(self) -> dict[str, Table]:
        return {name: Table(*told) for name, *told in self._query(READ_TABLES)}

    def _parts(self) -> list[list[Sample]]:
        after = min(WARM_UP, self._seconds / 10)
        return quarters([sample for sample in self._taken if sample.at >= after])

    def _slope(self, name: str) -> float:
        samples = [sample for part in self._parts() for sample in part]
        hours = [sample.at / 3600 for sample in samples]
        return linear_regression(hours, [sample.memory[name] for sample in samples]).slope


def resident(pid: int) -> int:
    """How many bytes of memory a process has."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def quarters(values: Sequence[T]) -> list[list[T]]:
    """Values in four parts, in order, none of which is larger than another by more than one."""
    edges = [len(values) * part // QUARTERS for part in range(QUARTERS + 1)]
    return [list(values[edges[part] : edges[part + 1]]) for part in range(QUARTERS)]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least so many percent of them do not exceed."""
    ordered = sorted(values)
    # Multiplied first: 99.9 / 100 is no exact number.
    at = -(-len(ordered) * round(percent * 1000) // 100_000)
    return ordered[max(0, at - 1)]


def spread(values: Sequence[float]) -> str:
    """Numbers beside each other."""
    return " ".join(f"{value:9,.0f}" for value in values)
