"""The locks of long jobs are renewed, so that nobody takes them for those of a dead worker."""

import asyncio
from typing import Any

import psycopg
import pytest

from graphile_worker_py import Runner
from graphile_worker_py.events import JobStart, JobSuccess
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told, impatient

# A look for old locks comes with every thirtieth heartbeat.
OFTEN: dict[str, Any] = {"heartbeat_interval": 0.01, "dead_after": 8, "poll_interval": 3600}
AGE = """
with aged as (
  update graphile_worker._private_jobs set locked_at = now() - %s::interval where id = any(%s)
)
update graphile_worker._private_job_queues set locked_at = now() - %s::interval
where queue_name = any(%s)
"""
AGES = """
select id, now() - locked_at < interval '1 minute' as young from graphile_worker._private_jobs
where locked_at is not null
union all
select 0, now() - locked_at < interval '1 minute' from graphile_worker._private_job_queues
where locked_at is not null and queue_name = 'ours'
order by id
"""


@pytest.mark.parametrize("no_side_schema", [False, True])
async def test_locks_of_jobs_and_queues_older_than_an_hour_are_made_young(
    dsn: str,
    no_side_schema: bool,
) -> None:
    jobs, told = Jobs(dsn), Told()
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()

    long = [jobs.add("work", queue_name="ours"), jobs.add("work")]
    async with Runner(
        dsn,
        tasks={"work": work},
        concurrent_jobs=3,
        no_side_schema=no_side_schema,
        events=told.events,
        **OFTEN,
    ):
        await told.seen(JobStart, count=2)
        young = jobs.add("work")
        await told.seen(JobStart, count=3)
        others = jobs.add("others")
        jobs.change(others, "locked_by = 'pool-other', locked_at = now() - interval '2 hours'")
        jobs.query(AGE, "59 minutes", [young], "1 hour", [])
        jobs.query(AGE, "61 minutes", long, "61 minutes", ["ours"])
        await eventually(
            lambda: {row["id"] for row in jobs.query(AGES) if row["young"]} == {0, *long}
        )
        ages = {row["id"]: row["young"] for row in jobs.query(AGES)}
        assert ages == {0: True, long[0]: True, long[1]: True, young: False, others: False}
        finish.set()
        await told.seen(JobSuccess, count=3)
        await eventually(lambda: jobs.ids() == [others])


async def test_a_lock_that_somebody_else_is_about_to_change_delays_no_other(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()

    held, free = jobs.add("work"), jobs.add("work", queue_name="ours")
    async with Runner(dsn, tasks={"work": work}, concurrent_jobs=2, events=told.events, **OFTEN):
        await told.seen(JobStart, count=2)
        jobs.query(AGE, "61 minutes", [held, free], "61 minutes", ["ours"])
        with psycopg.connect(dsn) as conn:
            conn.execute(
                "select from graphile_worker._private_jobs where id = %s for update", (held,)
            )
            await eventually(lambda: young(jobs) == {0, free})
        await eventually(lambda: young(jobs) == {0, held, free})
        finish.set()


async def test_with_seldom_heartbeats_locks_are_looked_after_often_enough(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()

    job_id = jobs.add("work")
    async with impatient(old_locks=0.2)(
        dsn, tasks={"work": work}, heartbeat_interval=600, dead_after=3600, events=told.events
    ):
        await told.seen(JobStart)
        jobs.query(AGE, "61 minutes", [job_id], "61 minutes", [])
        await eventually(lambda: young(jobs) == {job_id})
        finish.set()


def young(jobs: Jobs) -> set[int]:
    """The jobs whose lock is young; 0 stands for the queue."""
    return {row["id"] for row in jobs.query(AGES) if row["young"]}
