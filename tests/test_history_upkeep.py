"""The upkeep of history: partitions are added and dropped, and no outcome waits for it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
import pytest

from graphile_worker_py import EndStatus, JobSpec, WorkerUtils, run_migrations, run_once
from graphile_worker_py.events import JobComplete
from graphile_worker_py.history import upkeep
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told, impatient

FAST: Final[dict[str, Any]] = {"heartbeat_interval": 0.1, "dead_after": 5, "poll_interval": 3600}
PARTS: Final = """
select relid::regclass::text as name,
  pg_get_expr(relpartbound, relid) as bounds
from pg_partition_tree(%s) join pg_class on oid = relid
where isleaf order by 1
"""
TABLES: Final = """
select relname::text as name from pg_class
where relnamespace = 'graphile_worker_py'::regnamespace and relkind = 'r' and relname ~ '_20'
order by 1
"""
DAYS: Final = """
select to_char(now() at time zone 'UTC' + at * interval '1 day', 'YYYYMMDD') as day
from generate_series(-1, 7) as at
"""
OLD: Final = """
create table graphile_worker_py.{table}_{day} partition of graphile_worker_py.{table}
for values from ('{day} 00:00:00+00') to ('{day} 24:00:00+00')
"""


@pytest.fixture
def jobs(dsn: str) -> Iterator[Jobs]:
    """The jobs of a database without a side schema, before and after the test."""
    jobs = Jobs(dsn)
    jobs.query("drop schema if exists graphile_worker_py cascade")
    yield jobs
    jobs.query("drop schema if exists graphile_worker_py cascade")


async def work(payload: dict[str, Any]) -> None:
    """Fail if the payload says so."""
    if payload.get("fails"):
        raise ValueError("failed")


def make_old(jobs: Jobs, *days: int, table: str = "runs_failed") -> list[str]:
    """Add partitions of so many days ago; their names."""
    names = []
    for ago in days:
        (row,) = jobs.query(
            "select to_char(now() at time zone 'UTC' - %s * interval '1 day', 'YYYYMMDD') as day",
            ago,
        )
        jobs.query(OLD.format(table=table, day=row["day"]))
        names.append(f"{table}_{row['day']}")
    return names


def tables(jobs: Jobs) -> set[str]:
    """The partitions, attached or not."""
    return {row["name"] for row in jobs.query(TABLES)}


AWAITED_IN_VAIN = """
insert into graphile_worker_py.awaited (worker_schema, job_id, job_created_at, until)
select 'graphile_worker', 1000000 + n, now(), now() + interval '1 day'
from generate_series(1, %s) as n
"""
Hurried = impatient(chores=0.0)
"""Does chores with each heartbeat."""


def gone(jobs: Jobs, job_id: int) -> Callable[[], bool]:
    """Asks whether a job is gone."""
    return lambda: job_id not in jobs.ids()


async def test_there_are_partitions_for_the_next_seven_days_of_utc(dsn: str, jobs: Jobs) -> None:
    await run_migrations(f"{dsn}?options=-ctimezone%3DPacific/Auckland", side_schema=True)
    days = [row["day"] for row in jobs.query(DAYS)]
    for table in ("runs_completed", "runs_failed"):
        found = jobs.query(PARTS, f"graphile_worker_py.{table}")
        assert [row["name"] for row in found] == [f"graphile_worker_py.{table}_{d}" for d in days]
    # With times at the ends of their days.
    assert "00:00:00+00" in found[0]["bounds"]
    assert len(jobs.query(PARTS, "graphile_worker_py.task_minutes")) == 3


async def test_the_leader_adds_partitions_that_are_missing(dsn: str, jobs: Jobs) -> None:
    async with Hurried(dsn, tasks={"work": work}, **FAST) as runner:
        await eventually(lambda: runner.health().leads)
        before = tables(jobs)
        newest = max(name for name in before if name.startswith("runs_failed"))
        await jobs.in_thread(f"drop table graphile_worker_py.{newest}")
        await eventually(lambda: tables(jobs) == before)
        assert runner.health().plugin_failures == 0


async def test_old_partitions_are_dropped_and_others_are_kept(dsn: str, jobs: Jobs) -> None:
    await run_once(dsn, tasks={"work": work})
    old = [*make_old(jobs, 100, 92), *make_old(jobs, 5, table="runs_completed")]
    young = [*make_old(jobs, 89), *make_old(jobs, 2, table="runs_completed")]
    await jobs.in_thread("create table graphile_worker_py.runs_failed_extra ()")
    async with Hurried(dsn, tasks={"work": work}, **FAST) as runner:
        await eventually(lambda: not tables(jobs) & set(old))
        assert set(young) <= tables(jobs)
        assert runner.health().plugin_failures == 0
    assert jobs.query("select to_regclass('graphile_worker_py.runs_failed_extra') as kept") == [
        {"kept": "graphile_worker_py.runs_failed_extra"}
    ]


async def test_the_retention_is_an_option(dsn: str, jobs: Jobs) -> None:
    await run_once(dsn, tasks={"work": work})
    (old,) = make_old(jobs, 3)
    options: Any = {**FAST, "history_retention": {"failed": "1d12h"}}
    async with Hurried(dsn, tasks={"work": work}, **options):
        await eventually(lambda: old not in tables(jobs))


async def test_no_outcome_waits_while_a_reader_keeps_an_old_partition_from_being_dropped(
    dsn: str, jobs: Jobs
) -> None:
    await run_once(dsn, tasks={"work": work})
    (old,) = make_old(jobs, 100)
    told, took = Told(), list[float]()
    options: Any = {**FAST, "history": "all", "events": told.events}
    with psycopg.connect(dsn) as reader:
        reader.execute("select count(*) from graphile_worker_py.runs")
        async with Hurried(dsn, tasks={"work": work}, **options) as runner:
            await eventually(lambda: runner.health().leads)
            for count in range(1, 31):
                began = time.perf_counter()
                job_id = jobs.add("work", {})
                await told.seen(JobComplete, count=count)
                await eventually(gone(jobs, job_id), interval=0.002)
                took.append(time.perf_counter() - began)
                await asyncio.sleep(0.02)
            assert old in tables(jobs)
            # Its detachment was begun, and cut off each time.
            pending = (
                "select count(*) as parts from pg_inherits"
                " where to_jsonb(pg_inherits) ->> 'inhdetachpending' = 'true'"
            )
            # Older servers can't detach without keeping others waiting.
            version = jobs.query("select current_setting('server_version_num')::int as n")[0]["n"]
            assert jobs.query(pending) == [{"parts": 1 if version >= 140000 else 0}]
            reader.rollback()
            await eventually(lambda: old not in tables(jobs))
            assert runner.health().rider_failures == 0
            assert runner.health().plugin_failures == 0
    # A machine that has much else to do gets more time than the 100 ms of the budget.
    assert sorted(took)[len(took) // 2] < 0.5


async def test_a_partition_that_was_detached_and_not_dropped_is_dropped(
    dsn: str, jobs: Jobs
) -> None:
    await run_once(dsn, tasks={"work": work})
    (old,) = make_old(jobs, 100)
    await jobs.in_thread(
        f"alter table graphile_worker_py.runs_failed detach partition graphile_worker_py.{old}"
    )
    async with Hurried(dsn, tasks={"work": work}, **FAST):
        await eventually(lambda: old not in tables(jobs))


async def test_a_job_stays_awaited_until_its_end_is_recorded(dsn: str, jobs: Jobs) -> None:
    await run_migrations(dsn, side_schema=True)
    jobs.query(AWAITED_IN_VAIN, 2 * upkeep.CHUNK + 1)
    async with WorkerUtils(dsn) as utils, Hurried(dsn, tasks={"work": work}, **FAST):
        later = await utils.add_job("work", {}, run_in=3 * 86400, awaited=True)
        # Three days are longer than a job that has failed for good stays awaited.
        jobs.query("update graphile_worker_py.awaited set until = now() - interval '1 s'")
        soon = await utils.add_jobs([JobSpec("work", {}, awaited=True) for _ in range(7)])
        await utils.wait_all([utils.handle(job) for job in soon], timeout=10)
        awaited = "select job_id from graphile_worker_py.awaited"
        await eventually(lambda: jobs.query(awaited) == [{"job_id": later.id}], timeout=15)
        await utils.retry_jobs([later.id])  # which wakes the worker
        assert (await utils.handle(later).wait(10)).status is EndStatus.COMPLETED
