"""A `Runner`: started, used, stopped, and what it tells when it can't go on."""

import asyncio
import logging
from typing import Any

import psycopg_pool
import pytest

from graphile_worker_py import (
    ConfigurationError,
    GraphileWorkerError,
    JobContext,
    JobSpec,
    Runner,
    WorkerPoolError,
    load_tasks,
    run,
    run_once,
)
from graphile_worker_py.events import (
    JobStart,
    JobSuccess,
    PoolFatalError,
    PoolListenSuccess,
    WorkerGetJobError,
)
from tests import importable_tasks
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told


async def test_it_runs_jobs_in_the_background_of_its_block(dsn: str) -> None:
    told = Told()
    seen = []

    async def work(payload: Any) -> None:
        seen.append(payload)

    async with Runner(dsn, tasks={"work": work}, poll_interval=3600, events=told.events) as runner:
        assert runner.events is told.events
        await runner.add_job("work", {"n": 1})
        await runner.add_jobs([JobSpec("work", {"n": 2}), JobSpec("work", {"n": 3})])
        await told.seen(JobSuccess, count=3)
    assert sorted(payload["n"] for payload in seen) == [1, 2, 3]


async def test_run_works_until_it_is_cancelled(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    running = asyncio.create_task(run(dsn, tasks={"work": print}, events=told.events))
    await told.seen(PoolListenSuccess)
    jobs.add("work")
    await told.seen(JobSuccess)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_its_jobs_are_locked_by_its_pool_id(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("look")
    seen: list[Any] = []

    async def look(payload: Any, ctx: JobContext) -> None:
        seen.append((ctx.pool_id, ctx.worker_id, jobs.one(job_id)["locked_by"]))

    async with Runner(dsn, tasks={"look": look}, events=told.events) as runner:
        await told.seen(JobSuccess)
    ((pool_id, worker_id, locked_by),) = seen
    assert pool_id == locked_by == runner.pool_id
    assert pool_id.startswith("pool-")
    assert worker_id.startswith("worker-")
    assert len(pool_id) == len("pool-") + 18
    assert len(worker_id) == len("worker-") + 18


async def test_it_is_started_once_and_used_within_its_block(dsn: str) -> None:
    runner = Runner(dsn, tasks={"work": print})
    with pytest.raises(GraphileWorkerError, match="not started"):
        await runner.stop()
    with pytest.raises(GraphileWorkerError, match="not started"):
        await runner.wait()
    async with runner:
        pass
    with pytest.raises(GraphileWorkerError, match="started before"):
        await runner.__aenter__()


async def test_two_of_them_in_one_process_do_not_meet(dsn: str, empty_dsn: str) -> None:
    told, others = Told(), Told()
    tasks = {"work": print}
    async with (
        Runner(dsn, tasks=tasks, events=told.events) as one,
        Runner(empty_dsn, tasks=tasks, events=others.events, schema="other") as two,
    ):
        job = await one.add_job("work", {"n": 1})
        await told.seen(JobSuccess)
        await two.add_job("work", {"n": 2})
        await others.seen(JobSuccess)
    assert [event.job.id for event in told.of(JobSuccess)] == [job.id]
    assert len(others.of(JobSuccess)) == 1
    assert one.pool_id != two.pool_id


async def test_what_breaks_it_is_raised_where_it_is_waited_for(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    jobs.add("free", run_at="infinity")

    async def work(payload: Any) -> None:
        # From now on no outcome can be recorded, for no passing reason.
        jobs.query("alter table graphile_worker._private_jobs rename to hidden")

    with pytest.raises(WorkerPoolError, match="could not complete job 1: UndefinedTable"):
        async with Runner(dsn, tasks={"work": work}, events=told.events) as runner:
            with pytest.raises(WorkerPoolError):
                await runner.wait()
    assert [event.action for event in told.of(PoolFatalError)] == ["complete jobs"]


async def test_a_fetch_that_fails_for_good_is_told_and_tried_again(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events):
        await told.seen(PoolListenSuccess)
        await jobs.in_thread("alter table graphile_worker._private_jobs rename to hidden")
        jobs.query("""notify "jobs:insert", '{"count": 1}'""")
        await told.seen(WorkerGetJobError)
        await jobs.in_thread("alter table graphile_worker.hidden rename to _private_jobs")
        jobs.add("work")
        await told.seen(JobSuccess)
    assert "Could not fetch jobs (UndefinedTable: " in caplog.text


async def test_user_code_that_cancels_the_fetch_is_told_and_stops_the_pool(dsn: str) -> None:
    def cancel() -> list[str]:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        return []

    with pytest.raises(WorkerPoolError, match="the task that should fetch jobs was cancelled"):
        await asyncio.wait_for(run(dsn, tasks={"work": print}, forbidden_flags=cancel), 15)


async def test_a_worker_that_is_cancelled_between_two_jobs_goes_on(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events) as runner:
        await runner.add_job("work")
        success = await told.seen(JobSuccess)
        await asyncio.sleep(0)
        named = {each.get_name(): each for each in asyncio.all_tasks()}
        named[success.worker_id].cancel()
        await runner.add_job("work")
        await told.seen(JobSuccess, count=2)
    assert jobs.ids() == []


async def test_a_pool_of_the_callers_that_is_closed_too_early_costs_no_outcome(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()

    pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=0, max_size=4, open=False)
    await pool.open()
    async with Runner(pool, tasks={"work": work}, events=told.events):
        await told.seen(JobStart)
        await pool.close()
        finish.set()
    assert jobs.ids() == []


async def test_a_job_that_is_unlocked_while_it_runs_is_not_run_beside_itself(dsn: str) -> None:
    """After four hours any worker's sweep does this, to jobs that are still at work."""
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("work", queue_name="q")
    finish = asyncio.Event()
    ran = []

    async def work(payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.job.id)
        await finish.wait()

    async with Runner(
        dsn, tasks={"work": work}, concurrent_jobs=2, poll_interval=0.05, events=told.events
    ) as runner:
        await told.seen(JobStart)
        jobs.query("select graphile_worker.force_unlock_workers(array[%s])", runner.pool_id)
        await eventually(lambda: jobs.one(job_id)["attempts"] == 2)
        assert jobs.one(job_id)["locked_by"] == runner.pool_id
        finish.set()
        await told.seen(JobSuccess)
    assert ran == [job_id]
    assert jobs.ids() == []
    assert jobs.locked() == []


async def test_it_logs_what_it_does_and_no_payloads(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()

    async def work(payload: Any) -> None:
        if payload["fail"]:
            raise ValueError("no")

    with caplog.at_level(logging.DEBUG):
        async with Runner(dsn, tasks={"work": work}, events=told.events) as runner:
            good = await runner.add_job("work", {"fail": False, "secret": "xyzzy"})
            bad = await runner.add_job("work", {"fail": True, "secret": "xyzzy"})
            await eventually(lambda: told.names().count("job:complete") == 2)
    ours = [record for record in caplog.records if record.name.startswith("graphile_worker_py")]
    about = {record.__dict__.get("job_id"): record for record in ours}
    assert about[good.id].levelno == logging.INFO
    assert about[good.id].getMessage().startswith(f"Completed job {good.id} (work, ")
    assert about[bad.id].levelno == logging.WARNING
    assert about[bad.id].exc_info is not None
    assert about[bad.id].__dict__["pool_id"] == runner.pool_id
    assert "xyzzy" not in "".join(record.getMessage() for record in ours)


async def test_recurring_jobs_of_a_task_that_the_worker_lacks_are_warned_of(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    crontab = "0 4 * * * work\n0 4 * * * lost ?id=one\n0 5 * * * gone\n"
    async with Runner(dsn, tasks={"work": print}, crontab=crontab):
        pass
    (warning,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warning.endswith("must run them: 'lost' (line 2), 'gone' (line 3)")


@pytest.mark.parametrize("form", ["module", "name", "modules", "names", "attribute"])
async def test_tasks_may_be_those_of_modules(dsn: str, form: str) -> None:
    tasks: dict[str, Any] = {
        "module": importable_tasks,
        "name": "tests.importable_tasks",
        "modules": [importable_tasks],
        "names": ["tests.importable_tasks", "tests.importable_tasks:ping"],
        "attribute": "tests.importable_tasks:ping",
    }
    Jobs(dsn).add("ping")
    assert (await run_once(dsn, tasks=tasks[form], raise_errors=True)).completed == 1


def test_tasks_of_a_module_are_loaded_by_its_name() -> None:
    assert list(load_tasks("tests.importable_tasks")) == ["ping"]
    with pytest.raises(ConfigurationError, match=r"which are tests\.faults\.bank, "):
        load_tasks("tests.faults")
    with pytest.raises(ConfigurationError, match=r"tests\.support: the module has no @task"):
        Runner("", tasks="tests.support")
    with pytest.raises(ConfigurationError, match="expected is a directory with Python files"):
        load_tasks("tests.not_there")
