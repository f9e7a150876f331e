"""Count the jobs of a large table bit by bit, and say how old each number is.

No index helps to count millions of jobs, so no page does. While a page is open, a sweep reads the
table in chunks of ids and rests after each, so that it takes a small share of a server's core. A
small table fits into one chunk, and its numbers are exact.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import psycopg
import psycopg_pool

from graphile_worker_py import aio
from graphile_worker_py.errors import GraphileWorkerError, one_line
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import census
from graphile_worker_py.sql.census import CHUNK, Chunk, Sizes
from graphile_worker_py.sql.inspect import JobState

logger = logging.getLogger(__name__)
T = TypeVar("T")

SHARE: Final = 0.02
"""Share of a core of the server that a sweep takes; the first one takes `FIRST_SHARE`."""
FIRST_SHARE: Final = 0.2
INTERVAL: Final = 2.0
"""Seconds between two sweeps, at least."""
UNWATCHED: Final = 60.0
"""Seconds without a look after which no further sweep begins."""
MOST_QUEUES: Final = 5_000
"""Queues are counted one by one up to this number of them."""
KEPT_IDS: Final = 1_000
HISTORY: Final = 1_800
"""How many samples of the backlog are kept, one for each sweep of a small table."""


class Reads(Protocol):
    """How the census reads."""

    def __call__(self, query: Query[T]) -> Awaitable[T]:
        """Send a statement."""


@dataclass(slots=True)
class Counts:
    """What a sweep has counted.

    Attributes:
        states: Jobs by task and state.
        queues: Jobs by queue; None if there are too many queues.
        oldest: Seconds for which the first ready job has been due; None without ready jobs.
        running: Ids of running jobs, some of the newest.
        failed: Ids of failed jobs, some of the newest.
        rows: How many jobs were counted.
        chunks: How many statements it took.
        began: When the sweep began, by the clock of the event loop.
        ended: When it ended.
    """

    began: float
    queues: Counter[str] | None
    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    oldest: float | None = None
    running: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    rows: int = 0
    chunks: int = 0
    ended: float | None = None

    def add(self, chunk: Chunk) -> None:
        """Add what a chunk counted."""
        for group in chunk.groups:
            self.states[group.task, group.state] += group.jobs
            if self.queues is not None and group.queue is not None:
                self.queues[group.queue] += group.jobs
            if group.oldest is not None:
                self.oldest = max(group.oldest, self.oldest or 0.0)
        # Chunks come in the order of ids, so the newest are in the last ones.
        self.running = (chunk.running + self.running)[:KEPT_IDS]
        self.failed = (chunk.failed + self.failed)[:KEPT_IDS]
        self.rows += chunk.rows
        self.chunks += 1

    def of_state(self, state: JobState) -> int:
        """Jobs in a state, of all tasks."""
        return sum(jobs for (_, each), jobs in self.states.items() if each == state)

    def of_task(self, task: str) -> dict[str, int]:
        """Jobs of a task by state."""
        return {str(state): self.states[task, str(state)] for state in JobState}

    def tasks(self) -> list[str]:
        """The tasks that have jobs."""
        return sorted({task for task, _ in self.states})

    @property
    def exact(self) -> bool:
        """Whether all was counted by one statement."""
        return self.chunks == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known at the moment.

    Attributes:
        counts: The last sweep that has ended; None before the first one has.
        age: Seconds since it was taken.
        progress: Which share of the jobs the running sweep has counted, from 0 to 1.
        sizes: How large the tables are, by the server's statistics.
        samples: For the last sweeps: seconds ago, and the jobs by state.
    """

    counts: Counts | None
    age: float
    progress: float
    sizes: Sizes | None
    samples: list[tuple[float, dict[str, int]]]

    def as_json(self) -> dict[str, Any]:
        """The numbers, and how good they are."""
        total = None if self.sizes is None or self.sizes.jobs < 0 else round(self.sizes.jobs)
        if self.counts is None:
            return {
                "kind": "counting",
                "progress": round(self.progress, 2),
                "estimated_total": total,
                "states": None,
                "as_of": None,
                "oldest_ready": None,
            }
        return {
            "kind": "exact" if self.counts.exact else "sweep",
            "progress": round(self.progress, 2),
            "estimated_total": total,
            "states": {str(state): self.counts.of_state(state) for state in JobState},
            "as_of": round(self.age, 1),
            "oldest_ready": self.counts.oldest,
        }


class Census:
    """Sweeps the table while a page is open.

    Args:
        read: Sends a statement.
        schema: The schema of jobs.
    """

    def __init__(self, read: Reads, schema: str) -> None:
        self._read = read
        self._schema = schema
        self._crew = aio.Crew()
        self._sweeping = False
        self._looked_at = 0.0
        self._first = asyncio.Event()
        self._counts: Counts | None = None
        self._current: Counts | None = None
        self._sizes: Sizes | None = None
        self._samples: list[tuple[float, dict[str, int]]] = []

    async def look(self, *, patience: float = 0.5) -> Standing:
        """What is known; waits a moment for the first sweep."""
        now = asyncio.get_running_loop().time
        self._looked_at = now()
        if not self._sweeping:
            self._sweeping = True
            self._crew.start(self._sweep_while_watched(), name="count jobs")
        await aio.wait_for(self._first, patience)
        counts, current = self._counts, self._current
        ended = None if counts is None else counts.ended
        total = max(self._sizes.jobs, 1.0) if self._sizes is not None else 1.0
        return Standing(
            counts=counts,
            age=0.0 if ended is None else now() - ended,
            progress=1.0 if current is None else min(current.rows / total, 1.0),
            sizes=self._sizes,
            samples=[(now() - at, states) for at, states in self._samples],
        )

    async def fresh(self) -> None:
        """Count again at once if that is cheap, after a change."""
        if self._counts is not None and self._counts.exact and self._current is None:
            try:
                await self._sweep()
            except (psycopg.Error, psycopg_pool.PoolTimeout, OSError, GraphileWorkerError) as error:
                logger.debug("Could not count the jobs (%s)", one_line(error))

    async def close(self) -> None:
        """End the sweep."""
        # Again and again: a statement that is cancelled may fail instead, and the sweep goes on.
        await self._crew.cancel(patience=2.0, pause=0.1)

    async def _sweep_while_watched(self) -> None:
        now = asyncio.get_running_loop().time
        try:
            while now() - self._looked_at < UNWATCHED:
                try:
                    await self._sweep()
                except Exception as error:
                    # Whoever looks gets the error of a statement of their own.
                    logger.debug("Could not count the jobs (%s)", one_line(error))
                    self._current = None
                self._first.set()
                await asyncio.sleep(INTERVAL)
        finally:
            self._sweeping = False

    async def _sweep(self) -> None:
        now = asyncio.get_running_loop().time
        self._sizes = await self._read(census.read_sizes(self._schema))
        by_queue = self._sizes.queues <= MOST_QUEUES
        current = Counts(began=now(), queues=Counter() if by_queue else None)
        self._current = current
        share = FIRST_SHARE if self._counts is None else SHARE
        after = -(2**63)
        while True:
            began = now()
            chunk = await self._read(census.count_chunk(after, by_queue=by_queue))
            current.add(chunk)
            if chunk.last_id is None or chunk.rows < CHUNK:
                break
            after = chunk.last_id
            await asyncio.sleep((now() - began) * (1 / share - 1))
        current.ended = now()
        self._counts, self._current = current, None
        self._samples.append(
            (current.ended, {str(state): current.of_state(state) for state in JobState})
        )
        del self._samples[:-HISTORY]
