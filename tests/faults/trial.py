"""Two pools at work on a stream of jobs while something goes wrong, and what must hold afterwards.

A trial adds jobs all the time, a quarter of them in serial queues. Its tasks write down their runs
in memory, not in the database, which is what is going to fail. At the end each job has to have run
once and be recorded, no two runs of a job or of a queue may have overlapped, the jobs of a queue
have to have run in their order, and nothing may be locked.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Self, TypedDict

import psycopg

from graphile_worker_py import JobContext, Runner
from graphile_worker_py.events import JobLost
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

CONCURRENT_JOBS: Final = 4
OPTIONS: Final[dict[str, Any]] = {"concurrent_jobs": CONCURRENT_JOBS, "poll_interval": 0.5}
BATCH: Final = 10
"""Jobs that are added at a time."""
PAUSE: Final = 0.04
"""Seconds between two adds."""
ENOUGH: Final = 40
"""Jobs that each pool begins before a fault, and again after it."""
QUEUES: Final = 5
DURATION: Final = 0.02
"""Seconds that a job takes."""
ADD: Final = """
select count(graphile_worker.add_job(
  'work', json_build_object('n', n),
  queue_name := case when n % 4 = 0 then 'queue ' || (n / 4) % {queues} end
))
from generate_series({first}, {last}) as n
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is tried: a little in each run of the tests, more with `--long`.

    Attributes:
        rounds: How often the fault comes.
        outage: Seconds that it lasts, where it lasts.
        patience: Seconds within which both pools are to work again.
        drain: Seconds within which all jobs are to be done then.
    """

    rounds: int
    outage: float
    patience: float
    drain: float


@dataclass(slots=True)
class Run:
    """One call of a task; times are those of a monotonic clock."""

    n: int
    queue: int | None
    pool: str
    attempt: int
    began: float
    ended: float | None = None
    was_cut_off: bool = False


class Figures(TypedDict):
    """What came of a trial."""

    fault: str
    jobs: int
    resumed: float
    doubled: int
    lost: int


class Load:
    """Adds jobs without a pause, and knows which ones are there for certain.

    Attributes:
        added: Numbers of the jobs whose add was answered.
        doubtful: Of those whose add failed, or was not answered: they may be there.
        errors: How often adds failed, by the kind of error.
    """

    def __init__(self, dsn: str, *, pause: float = PAUSE) -> None:
        self._dsn = dsn
        self._pause = pause
        self._next = 0
        self._ended = False
        self.added: set[int] = set()
        self.doubtful: set[int] = set()
        self.errors: Counter[str] = Counter()

    async def run(self) -> None:
        """Add jobs until told to end."""
        while not self._ended:
            try:
                await self._add_on_one_connection()
            except psycopg.Error as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(self._pause)

    def end(self) -> None:
        """Let `run` end."""
        self._ended = True

    async def _add_on_one_connection(self) -> None:
        async with await psycopg.AsyncConnection.connect(
            self._dsn, autocommit=True, connect_timeout=2
        ) as conn:
            while not self._ended:
                numbers = range(self._next, self._next + BATCH)
                self._next += BATCH
                self.doubtful.update(numbers)
                text = ADD.format(queues=QUEUES, first=numbers[0], last=numbers[-1])
                await conn.execute(text.encode())
                self.doubtful.difference_update(numbers)
                self.added.update(numbers)
                await asyncio.sleep(self._pause)


class Trial:
    """Two pools under load.

    Args:
        dsn: The database, by a way that the fault does not touch.
        fault: Its name in the table of the documentation.
        scale: How much is tried.
        at: How each pool reaches the database; None: as everybody does.
        load_at: How jobs get there.
        once: Whether each job is to run once, and not at least once.
        may_lose: Whether the server itself loses what it has committed.
        runner: The kind of runner.
        **options: Of both pools.
    """

    def __init__(
        self,
        dsn: str,
        *,
        fault: str,
        scale: Scale,
        at: Sequence[str] | None = None,
        load_at: str | None = None,
        once: bool = True,
        may_lose: bool = False,
        runner: type[Runner] = Runner,
        **options: Any,
    ) -> None:
        self.jobs = Jobs(dsn)
        self.scale = scale
        self.load = Load(load_at or dsn)
        self.runs: list[Run] = []
        self.runners: list[Runner] = []
        self._fault = fault
        self._once = once
        self._may_lose = may_lose
        self._runner = runner
        self._at = at or [dsn, dsn]
        self.told = [Told() for _ in self._at]
        self._options = {**OPTIONS, **options}
        self._may_end = asyncio.Event()
        self._may_end.set()
        self._resumed: list[float] = []

    async def work(self, payload: Any, ctx: JobContext) -> None:
        """Take a moment, and write down when."""
        n = payload["n"]
        run = Run(n, queue_of(n), ctx.pool_id, ctx.job.attempts, time.monotonic())
        self.runs.append(run)
        await asyncio.sleep(DURATION)
        await self._may_end.wait()
        run.ended = time.monotonic()

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[Self]:
        """Within the block there are two pools at work; at its end all jobs are done."""
        async with AsyncExitStack() as stack:
            for dsn, told in zip(self._at, self.told, strict=True):
                runner = self._runner(
                    dsn, tasks={"work": self.work}, events=told.events, **self._options
                )
                self.runners.append(await stack.enter_async_context(runner))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            loading = group.create_task(self.load.run())
            try:
                await self.both_work(since=0)
                yield self
            finally:
                self.load.end()
            await loading
            await eventually(self.nothing_left, timeout=self.scale.drain, interval=0.05)

    async def both_work(self, *, since: float) -> float:
        """Wait until each pool has done some jobs since then; seconds until each had begun one."""

        def first(pool_id: str) -> float:
            times = [run.began for run in self.runs if run.pool == pool_id and run.began > since]
            assert len(times) >= ENOUGH, f"{pool_id} has begun {len(times)} job(s)"
            return min(times)

        def check() -> list[float]:
            return [first(runner.pool_id) for runner in self.runners]

        return max(await eventually(check, timeout=self.scale.patience)) - since

    @asynccontextmanager
    async def all_busy(self) -> AsyncIterator[None]:
        """Within the block each pool runs as many jobs as it may, and none of them ends."""
        self._may_end.clear()
        try:
            most = CONCURRENT_JOBS * len(self.runners)
            await eventually(lambda: sum(run.ended is None for run in self.runs) == most)
            yield
        finally:
            self._may_end.set()

    def rounds(self) -> Iterator[int]:
        """Count the rounds; in each the fault is to come, and `resumed` to be awaited."""
        yield from range(self.scale.rounds)

    async def resumed(self, *, since: float) -> None:
        """Wait until both pools work again, and note how long it took since then."""
        self._resumed.append(await self.both_work(since=since))

    def nothing_left(self) -> bool:
        """Whether all jobs are done, and recorded as such."""
        try:
            left = self.jobs.ids()
        except psycopg.Error as error:
            raise AssertionError(f"can't look: {error}") from error
        assert not left, f"{len(left)} job(s) left, locked: {self.jobs.locked()[:10]}"
        return True

    def figures(self) -> Figures:
        """What came of it."""
        return Figures(
            fault=self._fault,
            jobs=len(self.load.added),
            resumed=max(self._resumed),
            doubled=len(self.doubled()),
            lost=len(self.lost()),
        )

    def lost(self) -> set[int]:
        """Jobs that were added and did not run."""
        return self.load.added - {run.n for run in self.runs}

    def doubled(self) -> list[int]:
        """Jobs that ran more than once."""
        return [n for n, count in Counter(run.n for run in self.runs).items() if count > 1]

    def check(self) -> None:
        """Assert what must hold after each fault."""
        assert self.load.added
        assert [run for run in self.runs if run.ended is None] == []
        assert self.jobs.locked() == []
        assert self.jobs.ids() == []
        if self._may_lose:
            return
        assert self.lost() == set()
        assert {run.n for run in self.runs} <= self.load.added | self.load.doubtful
        assert overlaps(self.runs) == []
        if not self._once:
            return
        assert self.doubled() == []
        # A fetch that was not answered, or a shutdown, costs no attempt.
        assert {run.attempt for run in self.runs} == {1}
        assert out_of_order(self.runs) == []
        assert [event for told in self.told for event in told.of(JobLost)] == []


def queue_of(n: int) -> int | None:
    """The number of the queue in which a job is."""
    return n // 4 % QUEUES if n % 4 == 0 else None


def overlaps(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of one job, or of one queue, of which the second began before the first had ended."""
    lanes: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.began):
        lanes["job", run.n].append(run)
        if run.queue is not None:
            lanes["queue", run.queue].append(run)
    return [
        (one, two)
        for lane in lanes.values()
        for one, two in pairwise(lane)
        if one.ended is None or two.began < one.ended
    ]


def out_of_order(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of a queue that began before a job that was added earlier."""
    lanes: dict[int, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.began):
        if run.queue is not None:
            lanes[run.queue].append(run)
    return [pair for lane in lanes.values() for pair in pairwise(lane) if pair[1].n < pair[0].n]
