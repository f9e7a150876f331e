"""`cancel_jobs`: from any process, waiting jobs are deleted and running ones asked to end."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from graphile_worker_py import (
    CancelState,
    ConfigurationError,
    JobContext,
    Runner,
    SyncJobContext,
    SyncWorkerUtils,
    WorkerUtils,
    run_migrations,
)
from graphile_worker_py.events import JobCancelled, JobError, JobStart, PoolListenSuccess
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

RUNS = "select job_id, outcome, error, attempt from graphile_worker_py.runs order by finished_at"
TAKEN_BY_NODE = """
update graphile_worker._private_jobs
set locked_by = 'worker-of-node', locked_at = now(), attempts = 1
where id = %s
returning id
"""
LEFT_BEHIND = """
update graphile_worker._private_jobs
set locked_by = null, locked_at = null
where id = %s
returning is_available
"""


@pytest.fixture
async def utils(dsn: str) -> AsyncIterator[WorkerUtils]:
    """Utilities in a database with the tables of history."""
    await run_migrations(dsn, side_schema=True)
    async with WorkerUtils(dsn) as utils:
        yield utils


async def test_a_waiting_job_is_deleted_with_a_run(dsn: str, utils: WorkerUtils) -> None:
    job = await utils.add_job("work", queue_name="q", job_key="k")
    (done,) = await utils.cancel_jobs([str(job.id)], reason="not needed")
    assert (done.job_id, done.state) == (job.id, CancelState.CANCELLED)
    assert Jobs(dsn).ids() == []
    (run,) = await utils.list_runs()
    assert (run.job_id, run.outcome, run.error) == (job.id, "cancelled", "not needed")
    assert (run.task, run.queue_name, run.key, run.attempt) == ("work", "q", "k", 0)
    (again,) = await utils.cancel_jobs([job.id])
    assert again.state is CancelState.NOT_FOUND


async def test_a_running_job_ends_soon_wherever_it_runs(dsn: str, utils: WorkerUtils) -> None:
    told, seen = Told(), []

    async def work(_payload: Any, ctx: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(ctx.abort_reason)

    async with Runner(dsn, tasks={"work": work}, events=told.events):
        await told.seen(PoolListenSuccess)
        job = await utils.add_job("work", job_key="k")
        await told.seen(JobStart)
        await eventually(lambda: Jobs(dsn).query("select 1 from graphile_worker_py.pools"))
        (done,) = await utils.cancel_jobs([job.id], reason="not needed")
        assert done.state is CancelState.REQUESTED
        await told.seen(JobCancelled)
        await eventually(lambda: Jobs(dsn).ids() == [])
    assert seen == ["cancelled"]
    assert told.of(JobError) == []
    (run,) = Jobs(dsn).query(RUNS)
    assert (run["job_id"], run["outcome"], run["error"]) == (job.id, "cancelled", "not needed")


async def test_a_function_in_a_thread_is_asked_to_end(dsn: str, utils: WorkerUtils) -> None:
    told = Told()

    def work(_payload: Any, ctx: SyncJobContext) -> None:
        while not ctx.cancelled:
            ctx.abort_event.wait(0.05)
        ctx.raise_if_cancelled()

    async with Runner(dsn, tasks={"work": work}, events=told.events):
        job = await utils.add_job("work")
        await told.seen(JobStart)
        await eventually(lambda: Jobs(dsn).query("select 1 from graphile_worker_py.pools"))
        (done,) = await utils.cancel_jobs([job.id])
        assert done.state is CancelState.REQUESTED
        await told.seen(JobCancelled)
        await eventually(lambda: Jobs(dsn).ids() == [])


async def test_a_job_that_completes_nevertheless_has_the_attempt_that_it_ran_as(
    dsn: str, utils: WorkerUtils
) -> None:
    told, goes_on = Told(), threading.Event()

    def work(_payload: Any) -> None:
        goes_on.wait(10)

    async with Runner(dsn, tasks={"work": work}, events=told.events, history="all"):
        job = await utils.add_job("work")
        await told.seen(JobStart)
        await utils.cancel_jobs([job.id])
        assert Jobs(dsn).query("select attempts from graphile_worker._private_jobs") == [
            {"attempts": 25}
        ]
        goes_on.set()
        await eventually(lambda: Jobs(dsn).ids() == [])
    (run,) = Jobs(dsn).query(RUNS)
    assert (run["outcome"], run["attempt"]) == ("completed", 1)


async def test_a_job_of_a_node_worker_is_not_tried_again(dsn: str, utils: WorkerUtils) -> None:
    job = await utils.add_job("work", job_key="k")
    Jobs(dsn).query(TAKEN_BY_NODE, job.id)
    (done,) = await utils.cancel_jobs([job.id])
    assert done.state is CancelState.RUNNING_ELSEWHERE
    assert Jobs(dsn).query(LEFT_BEHIND, job.id) == [{"is_available": False}]
    assert (await utils.add_job("work", job_key="k")).id != job.id


async def test_the_leader_deletes_a_cancelled_job_that_lost_its_worker(
    dsn: str, utils: WorkerUtils
) -> None:
    job = await utils.add_job("work")
    Jobs(dsn).query(TAKEN_BY_NODE, job.id)
    await utils.cancel_jobs([job.id], reason="too late")
    Jobs(dsn).query(LEFT_BEHIND, job.id)
    async with Runner(dsn, tasks={"other": lambda _payload: None}):
        await eventually(lambda: Jobs(dsn).ids() == [], timeout=15)
    (run,) = Jobs(dsn).query(RUNS)
    assert (run["job_id"], run["outcome"], run["error"]) == (job.id, "cancelled", "too late")


async def test_without_the_tables_a_running_job_is_only_not_tried_again(dsn: str) -> None:
    jobs = Jobs(dsn)
    await jobs.in_thread("drop schema if exists graphile_worker_py cascade")
    waiting, running = jobs.add("work"), jobs.add("work")
    jobs.query(TAKEN_BY_NODE, running)
    with SyncWorkerUtils(dsn) as utils:
        states = [done.state for done in utils.cancel_jobs([waiting, running, 10**9])]
    assert states == ["cancelled", "running_elsewhere", "not_found"]
    assert jobs.ids() == [running]


async def test_many_jobs_are_cancelled_at_once(dsn: str, utils: WorkerUtils) -> None:
    ids = [Jobs(dsn).add("work") for _ in range(3)]
    done = await utils.cancel_jobs([*ids, *range(10**9, 10**9 + 1200)])
    assert [each.state for each in done[:3]] == ["cancelled"] * 3
    assert len(done) == 1203
    assert Jobs(dsn).ids() == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"grace": -1}, "grace"),
        ({"reason": 5}, "reason"),
        ({"job_ids": ["x"]}, "job_ids"),
        ({"job_ids": "12"}, "job_ids"),
    ],
)
async def test_what_is_not_allowed_is_refused(
    utils: WorkerUtils, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        await utils.cancel_jobs(**{"job_ids": [1], **options})
