"""Counters of each task and minute, and the groups of errors."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphile_worker_py import (
    ConfigurationError,
    LocalQueueOptions,
    Percentiles,
    Runner,
    SyncWorkerUtils,
    WorkerUtils,
    run_once,
)
from graphile_worker_py.sql.task_minutes import FACTOR, LAST_BUCKET, bucket_of, percentiles
from tests.support.eventually import eventually
from tests.support.running import Jobs

FAST: Final[dict[str, Any]] = {"heartbeat_interval": 0.1, "dead_after": 5}
MINUTES: Final = "select * from graphile_worker_py.task_minutes order by task, minute"


@pytest.fixture
def jobs(dsn: str) -> Iterator[Jobs]:
    """The jobs of a database without a side schema, before and after the test."""
    jobs = Jobs(dsn)
    jobs.query("drop schema if exists graphile_worker_py cascade")
    yield jobs
    jobs.query("drop schema if exists graphile_worker_py cascade")


async def work(payload: dict[str, Any]) -> None:
    """Do what the payload says."""
    await asyncio.sleep(payload.get("seconds", 0))
    if payload.get("fails"):
        raise LookupError(payload["fails"])


async def charge(payload: dict[str, Any]) -> None:
    """Fail in another place."""
    await deeper(payload)


async def deeper(payload: dict[str, Any]) -> None:
    """Fail in a function that the task calls, and in a library that it calls."""
    if payload.get("library"):
        datetime.fromisoformat("no date")
        math.sqrt(-1)
    raise ValueError(f"customer {payload['n']}")


async def test_outcomes_are_counted_exactly_and_written_while_the_pool_runs(
    dsn: str, jobs: Jobs
) -> None:
    jobs.add_many(700, "work")
    jobs.add_many(3, "other")
    for _ in range(5):
        jobs.add("work", {"fails": "x"})
    jobs.add("work", {"fails": "x"}, max_attempts=1)
    options: Any = {
        "concurrent_jobs": 10,
        "local_queue": LocalQueueOptions(size=500),
        "complete_job_batch_delay": 0.01,
        **FAST,
    }
    async with (
        Runner(dsn, tasks={"work": work, "other": work}, **options) as one,
        Runner(dsn, tasks={"work": work, "other": work}, **options) as two,
        WorkerUtils(dsn) as utils,
    ):
        await eventually(lambda: one.health().ready and two.health().ready)

        async def counted() -> bool:
            stats = {each.task: each for each in await utils.task_stats(step=None)}
            return (
                stats.keys() == {"work", "other"}
                and (stats["work"].completed, stats["work"].retried, stats["work"].failed)
                == (700, 5, 1)
                and stats["other"].completed == 3
            )

        await eventually(counted)
        for each in await utils.task_stats():
            assert each.wait is not None
            assert each.run is not None
            assert 0 < each.run.p50 <= each.run.p95 <= each.run.p99 < 10
    measured = [sum(row["run"].values()) for row in jobs.query(MINUTES)]
    assert sum(measured) == 709


async def test_the_last_counters_are_written_when_the_pool_ends(dsn: str, jobs: Jobs) -> None:
    jobs.add_many(3, "work")
    await run_once(dsn, tasks={"work": work})
    (row,) = jobs.query(MINUTES)
    assert row["completed"] == 3
    now = datetime.now(UTC)
    assert now - timedelta(minutes=2) < row["minute"] <= now
    assert (row["minute"].second, row["minute"].microsecond) == (0, 0)


async def test_times_of_runs_are_measured(dsn: str, jobs: Jobs) -> None:
    jobs.add("work", {"seconds": 0.3}, run_at=str(datetime.now(UTC) - timedelta(seconds=30)))
    await run_once(dsn, tasks={"work": work})
    with SyncWorkerUtils(dsn) as utils:
        (stats,) = utils.task_stats("work", since=60)
        assert utils.task_stats("other") == []
    assert stats.run is not None
    assert stats.wait is not None
    assert 0.3 / FACTOR <= stats.run.p50 < 3
    assert 30 / FACTOR <= stats.wait.p50 < 40


async def test_steps_of_time_are_added_up(dsn: str, jobs: Jobs) -> None:
    await run_once(dsn, tasks={"work": work})
    jobs.query(
        "insert into graphile_worker_py.task_minutes (worker_schema, task, minute, completed, run)"
        " select 'graphile_worker', 'work', date_trunc('hour', now()) - at * '1 min'::interval,"
        " at, jsonb_build_object('10', at) from generate_series(1, 60) as at"
    )
    with SyncWorkerUtils(dsn) as utils:
        minutes = utils.task_stats(since=timedelta(hours=3))
        assert [each.completed for each in minutes] == list(range(60, 0, -1))
        quarters = utils.task_stats(since=timedelta(hours=3), step=900)
        assert [each.completed for each in quarters] == [
            sum(range(1, 16)),
            sum(range(16, 31)),
            sum(range(31, 46)),
            sum(range(46, 61)),
        ][::-1]
        assert all(each.at.minute % 15 == 0 for each in quarters)
        (everything,) = utils.task_stats(since=timedelta(hours=3), step=None)
        assert everything.completed == 1830
        assert everything.run == percentiles({10: 1830})
        for step in (0, -1, float("nan"), "1h"):
            with pytest.raises(ConfigurationError, match="step must be seconds"):
                utils.task_stats(step=step)  # type: ignore[arg-type]


async def test_counters_outlive_an_outage_of_their_table(dsn: str, jobs: Jobs) -> None:
    async with Runner(dsn, tasks={"work": work}, **FAST) as runner:
        await eventually(lambda: runner.health().ready)
        await jobs.in_thread("alter table graphile_worker_py.task_minutes rename to away")
        jobs.add_many(3, "work")
        await eventually(lambda: "task_minutes" in str(runner.health().plugin_error))
        await jobs.in_thread("alter table graphile_worker_py.away rename to task_minutes")
        await eventually(lambda: [row["completed"] for row in jobs.query(MINUTES)] == [3])


def test_percentiles_of_a_histogram_are_those_of_its_values() -> None:
    chance = random.Random(7)
    values = sorted(chance.lognormvariate(0, 2) for _ in range(10_000))
    found = percentiles(Counter(map(bucket_of, values)))
    assert found is not None
    for share, value in zip((0.5, 0.95, 0.99), (found.p50, found.p95, found.p99), strict=True):
        assert value == pytest.approx(values[int(share * len(values))], rel=0.125)
    assert percentiles({}) is None
    assert percentiles({0: 5}) == Percentiles(1e-4, 1e-4, 1e-4)


@given(st.floats(min_value=0, allow_nan=False) | st.floats(max_value=0, allow_nan=False))
def test_every_time_has_a_bucket(seconds: float) -> None:
    bucket = bucket_of(seconds)
    assert 0 <= bucket <= LAST_BUCKET
    if 0 < bucket < LAST_BUCKET:
        assert 1e-4 * FACTOR ** (bucket - 1.001) <= seconds <= 1e-4 * FACTOR ** (bucket + 0.001)


async def test_errors_of_one_place_are_one_group(dsn: str, jobs: Jobs) -> None:
    for number in range(3):
        last = jobs.add("charge", {"n": number})
        await run_once(dsn, tasks={"charge": charge, "work": work})
    jobs.add("charge", {"n": 4, "library": True})
    jobs.add("work", {"fails": "x"})
    jobs.add("work", {})
    await run_once(dsn, tasks={"charge": charge, "work": work}, concurrent_jobs=3)
    with SyncWorkerUtils(dsn) as utils:
        groups = utils.error_groups(since=3600)
        here = "tests.test_history_counters"
        assert [(each.task, each.group, each.count) for each in groups] == [
            ("charge", f"ValueError in {here}:deeper", 4),
            ("work", f"LookupError in {here}:work", 1),
        ]
        first = groups[0]
        assert first.first_seen < first.last_seen <= datetime.now(UTC) + timedelta(seconds=1)
        assert first.job_id > last
        assert first.error == "Invalid isoformat string: 'no date'"
        assert len(utils.error_groups("charge")) == 1
        assert len(utils.error_groups(limit=1)) == 1
        assert utils.error_groups(since=datetime.now(UTC) + timedelta(minutes=1)) == []
