"""Measure the speed of jobs on a database, in a separate schema that is dropped at the end."""

import asyncio
import logging
import statistics
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

from graphile_worker_py import aio
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.options import LocalQueueOptions
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.runner import Runner
from graphile_worker_py.sql import bench_jobs as sql
from graphile_worker_py.tasks.task import task
from graphile_worker_py.worker_utils import WorkerUtils

SCHEMA: Final = "graphile_worker_bench"
WARM_PART: Final = 10
"""The first tenth of the jobs is not counted: it warms up connections, plans and processor."""
ROUND_TRIPS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        jobs: Number of jobs to add and run.
        concurrent_jobs: Jobs that run at the same time.
        batch_size: Jobs of one fetch, in the measurement that fetches in batches.
        singles: Number of jobs to add one by one, and to measure latency with.
        seconds: Longest time for a measurement of running jobs; it then counts the jobs so far.
    """

    jobs: int = 20_000
    concurrent_jobs: int = 24
    batch_size: int = 500
    singles: int = 300
    seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The result of a measurement.

    Attributes:
        name: Name for programs.
        title: Name for people.
        value: The result, in `unit`.
        unit: `jobs/s` or `ms`.
    """

    name: str
    title: str
    value: float
    unit: str


async def measure(
    dsn: str,
    plan: Plan,
    *,
    schema: str = SCHEMA,
    replace: bool = False,
    tell: Callable[[str], None],
) -> list[Figure]:
    """Measure on a database, and remove everything afterwards, even if cancelled.

    Args:
        dsn: Connection string.
        plan: How much to measure.
        schema: Schema to create and drop; it must not exist.
        replace: Drop the schema first if a killed measurement has left it.
        tell: Called with the name of each measurement when it begins.

    Raises:
        ConfigurationError: The schema exists.
        GraphileWorkerError: Jobs did not run.
        psycopg.Error: The database can't be reached, or refuses a statement.
    """
    async with _schema_of_its_own(dsn, schema, replace=replace) as database:
        lab = _Lab(dsn, schema, plan, database)
        figures: list[Figure] = []
        for title, measurement in lab.measurements():
            tell(title)
            figures += await measurement()
        return figures


@asynccontextmanager
async def _schema_of_its_own(dsn: str, schema: str, *, replace: bool) -> AsyncIterator[Database]:
    async with opened_pool(dsn, max_size=1) as pool:
        database = Database(pool, schema=schema)
        is_ours = await database.run(sql.find_schema(schema))
        if is_ours is False or (is_ours and not replace):
            advice = (
                "it was left by a measurement that was killed: --force drops it first"
                if is_ours
                else "give another name with --schema"
            )
            raise ConfigurationError(f"schema {schema!r} exists; {advice}")
        async with pool.connection() as conn, conn.transaction():
            if is_ours:
                await database.run(sql.drop_schema(), conn=conn)
            await database.run(sql.create_schema(), conn=conn)
            await database.run(sql.mark_schema(), conn=conn)
        try:
            yield database
        finally:
            await aio.finish(database.run(sql.drop_schema()))


class _Lab:
    """The measurements, in their order."""

    def __init__(self, dsn: str, schema: str, plan: Plan, database: Database) -> None:
        self._dsn = dsn
        self._schema = schema
        self._plan = plan
        self._database = database
        self._quiet = logging.getLogger("graphile_worker_py.bench")
        self._quiet.setLevel(logging.CRITICAL)

    def measurements(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The name and the function of each measurement."""
        yield "the way to the server and back", self._round_trip
        yield "adding jobs", self._add
        yield "running them with default options", self._run_by_default
        yield "running them in batches", self._run_in_batches
        yield "latency", self._latency

    async def _round_trip(self) -> list[Figure]:
        async with self._database.pool.connection() as conn:
            times: list[float] = []
            for _ in range(ROUND_TRIPS):
                began = perf_counter()
                await self._database.run(sql.ping(), conn=conn)
                times.append(perf_counter() - began)
        middle = statistics.median(times) * 1000
        return [Figure(name="round_trip", title="a round trip", value=middle, unit="ms")]

    async def _add(self) -> list[Figure]:
        singles = self._plan.singles
        async with WorkerUtils(self._dsn, schema=self._schema) as utils:
            began = perf_counter()
            for number in range(singles):
                await utils.add_job("noop", {"n": number})
            one_by_one = singles / (perf_counter() - began)
            await self._database.run(sql.clear_jobs())
            seconds = await self._fill(utils)
        return [
            _rate("add_job", "add_job, one after the other", one_by_one),
            _rate("add_jobs", f"add_jobs, {self._plan.jobs:,} jobs", self._plan.jobs / seconds),
        ]

    async def _fill(self, utils: WorkerUtils) -> float:
        """Add the jobs for a measurement; returns the seconds that this took."""
        specs = [JobSpec("noop", {"n": number}) for number in range(self._plan.jobs)]
        began = perf_counter()
        await utils.add_jobs(specs)
        return perf_counter() - began

    async def _run_by_default(self) -> list[Figure]:
        # Runs the jobs that `_add` has added.
        title = f"run, {self._plan.concurrent_jobs} at a time"
        return [_rate("default", title, await self._drain(LocalQueueOptions()))]

    async def _run_in_batches(self) -> list[Figure]:
        await self._database.run(sql.clear_jobs())
        async with WorkerUtils(self._dsn, schema=self._schema) as utils:
            await self._fill(utils)
        size = self._plan.batch_size
        rate = await self._drain(LocalQueueOptions(size=size))
        return [_rate("batched", f"run, fetched {size} at a time", rate)]

    async def _drain(self, local_queue: LocalQueueOptions) -> float:
        """Jobs per second that a runner completes."""
        times: list[float] = []
        done = asyncio.Event()

        @task
        async def noop(_payload: Any) -> None:
            times.append(perf_counter())
            if len(times) == self._plan.jobs:
                done.set()

        async with self._runner(noop, local_queue=local_queue):
            await aio.wait_for(done, self._plan.seconds)
            seen = list(times)
        counted = seen[len(seen) // WARM_PART :]
        if len(counted) < 2:
            raise GraphileWorkerError(f"only {len(seen)} jobs ran in {self._plan.seconds:g} s")
        return (len(counted) - 1) / (counted[-1] - counted[0])

    async def _latency(self) -> list[Figure]:
        """The time from `add_job` to the start of the task, while the worker is idle."""
        await self._database.run(sql.clear_jobs())
        latencies: list[float] = []
        ran = asyncio.Event()

        @task
        async def ping(payload: dict[str, float]) -> None:
            latencies.append((perf_counter() - payload["began"]) * 1000)
            ran.set()

        async with self._runner(ping) as runner:
            for _ in range(self._plan.singles):
                ran.clear()
                await runner.add_job("ping", {"began": perf_counter()})
                if not await aio.wait_for(ran, self._plan.seconds):
                    raise GraphileWorkerError(
                        f"a job did not start within {self._plan.seconds:g} s"
                    )
        parts = statistics.quantiles(latencies, n=100)
        titles = {50: "latency, median", 95: "latency, 95 %", 99: "latency, 99 %"}
        return [
            Figure(name=f"latency_p{part}", title=title, value=parts[part - 1], unit="ms")
            for part, title in titles.items()
        ]

    def _runner(self, work: Any, *, local_queue: LocalQueueOptions | None = None) -> Runner:
        return Runner(
            self._dsn,
            tasks=[work],
            schema=self._schema,
            concurrent_jobs=self._plan.concurrent_jobs,
            local_queue=local_queue,
            no_handle_signals=True,
            no_side_schema=True,  # it would stay in the database
            logger=self._quiet,
        )


def _rate(name: str, title: str, value: float) -> Figure:
    return Figure(name=name, title=title, value=value, unit="jobs/s")
