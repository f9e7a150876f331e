"""`use_node_time`: the clock of the process tells what is due, not that of the database."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from graphile_worker_py import (
    JobContext,
    JobSpec,
    LocalQueueOptions,
    Runner,
    SyncJobContext,
    SyncWorkerUtils,
    WorkerUtils,
    add_job_adhoc,
    clock,
    run_once,
)
from graphile_worker_py.cli.main import main
from graphile_worker_py.events import JobSuccess, ResetLockedSuccess
from tests.support.running import Jobs, Told

MOMENT = datetime(2040, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SWEEPS: dict[str, Any] = {"min_reset_locked_interval": 0.05, "max_reset_locked_interval": 0.1}
TASK = "from graphile_worker_py import task\n\n@task\ndef work(payload):\n    print('done')\n"

SetClock = Callable[..., None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Let the clock of this process go wrong."""

    def set_clock(*, ahead: timedelta | None = None, moment: datetime = MOMENT) -> None:
        def utc_now() -> datetime:
            return moment if ahead is None else datetime.now(UTC) + ahead

        monkeypatch.setattr(clock, "utc_now", utc_now)

    return set_clock


def in_hours(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat()


@pytest.mark.parametrize("local_queue", [LocalQueueOptions(), LocalQueueOptions(size=50)])
async def test_jobs_are_due_when_the_clock_of_the_process_says_so(
    dsn: str, set_clock: SetClock, local_queue: LocalQueueOptions
) -> None:
    jobs = Jobs(dsn)
    # Jobs with and without queue are looked for apart.
    due = [jobs.add("work", queue_name="q", run_at=in_hours(0.5), priority=-1) for _ in range(3)]
    due += [jobs.add("work", run_at=in_hours(0.5)) for _ in range(3)]
    later = jobs.add("work", run_at=in_hours(1.5))
    ran: list[int] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.job.id)

    options: dict[str, Any] = {"tasks": {"work": work}, "concurrent_jobs": 3}
    set_clock(ahead=timedelta(hours=1))
    await run_once(dsn, local_queue=local_queue, **options)
    assert ran == []
    await run_once(dsn, local_queue=local_queue, use_node_time=True, **options)
    assert sorted(ran) == due
    assert jobs.ids() == [later]


async def test_a_process_that_is_behind_leaves_what_is_due_by_the_database(
    dsn: str, set_clock: SetClock
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("work")
    set_clock(ahead=timedelta(hours=-1))
    await run_once(dsn, tasks={"work": print}, use_node_time=True)
    assert jobs.ids() == [job_id]


async def test_locks_and_retries_stay_with_the_clock_of_the_database(
    dsn: str, set_clock: SetClock
) -> None:
    jobs = Jobs(dsn)
    # Tried once: with a clock that is ahead the next try would be due at once.
    job_id = jobs.add("work", queue_name="q", max_attempts=1)
    locked: list[datetime] = []

    async def work(payload: Any) -> None:
        locked.append(jobs.one(job_id)["locked_at"])
        raise ValueError("no")

    set_clock(ahead=timedelta(hours=1))
    await run_once(dsn, tasks={"work": work}, use_node_time=True)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    assert locked[0] < soon
    assert jobs.one(job_id)["run_at"] < soon


async def test_the_sweep_reckons_from_the_clock_of_the_process(
    dsn: str, set_clock: SetClock
) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("elsewhere", queue_name="q", run_at="2020-01-01")
    for table in ("_private_jobs", "_private_job_queues"):
        jobs.query(
            f"update graphile_worker.{table} set locked_by = 'pool-dead',"
            " locked_at = now() - interval '3 hours 30 minutes'"
        )
    async with Runner(dsn, tasks={"work": print}, events=told.events, **SWEEPS):
        await told.seen(ResetLockedSuccess)
    assert len(jobs.locked()) == 2
    set_clock(ahead=timedelta(hours=1))
    async with Runner(dsn, tasks={"work": print}, events=told.events, use_node_time=True, **SWEEPS):
        await told.seen(ResetLockedSuccess, count=len(told.of(ResetLockedSuccess)) + 1)
    assert jobs.locked() == []
    ahead = jobs.one(job_id)["run_at"] - datetime.now(UTC)
    assert timedelta(minutes=59) < ahead <= timedelta(hours=1)


async def test_all_who_add_jobs_take_the_clock_of_the_process_for_now(
    dsn: str, set_clock: SetClock
) -> None:
    jobs, told = Jobs(dsn), Told()
    set_clock()
    given = MOMENT - timedelta(days=1)

    async def modern(payload: Any, ctx: JobContext) -> None:
        await ctx.add_job("ctx")
        await ctx.add_jobs([JobSpec("ctx many"), JobSpec("given", run_at=given)])

    def plain(payload: Any, ctx: SyncJobContext) -> None:
        ctx.add_job("sync ctx")
        ctx.add_jobs([JobSpec("sync ctx many")])

    async with WorkerUtils(dsn, use_node_time=True) as utils:
        await utils.add_job("utils")
        await utils.add_job("given", run_at=given)
        added = await utils.add_jobs([JobSpec("utils many"), JobSpec("utils many", job_key="k")])
        assert [job.run_at for job in added] == [MOMENT, MOMENT]
    with SyncWorkerUtils(dsn, use_node_time=True) as sync:
        sync.add_job("sync")
        sync.add_jobs([JobSpec("sync many"), JobSpec("given", run_at=given)])
    await add_job_adhoc(dsn, "adhoc", use_node_time=True)
    tasks: dict[str, Any] = {"modern": modern, "plain": plain}
    async with Runner(dsn, tasks=tasks, events=told.events, use_node_time=True) as runner:
        await runner.add_job("runner")
        jobs.add("modern")
        jobs.add("plain")
        await told.seen(JobSuccess, count=2)
    times = {job["task_identifier"]: job["run_at"] for job in jobs.all()}
    assert times.pop("given") == given
    assert set(times) == {
        *("utils", "utils many", "sync", "sync many", "adhoc", "runner"),
        *("ctx", "ctx many", "sync ctx", "sync ctx many"),
    }
    assert set(times.values()) == {MOMENT}


async def test_without_it_the_database_fills_the_time_in(dsn: str, set_clock: SetClock) -> None:
    jobs = Jobs(dsn)
    set_clock()
    async with WorkerUtils(dsn) as utils:
        await utils.add_job("utils")
        await utils.add_jobs([JobSpec("utils many")])
    with SyncWorkerUtils(dsn) as sync:
        sync.add_job("sync")
        sync.add_jobs([JobSpec("sync many")])
    assert all(job["run_at"] == job["created_at"] for job in jobs.all())


@pytest.mark.parametrize("said", ["flag", "environment", "file"])
def test_commands_take_it_from_a_flag_a_variable_or_a_file(
    dsn: str, set_clock: SetClock, said: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "node_time_tasks.py").write_text(TASK)
    monkeypatch.setenv("DATABASE_URL", dsn)
    flag: list[str] = []
    if said == "flag":
        flag = ["--use-node-time"]
    elif said == "environment":
        monkeypatch.setenv("GRAPHILE_WORKER_USE_NODE_TIME", "true")
    else:
        (tmp_path / "graphile_worker.toml").write_text("use_node_time = true\n")
    set_clock(ahead=timedelta(hours=1))
    invoke = CliRunner().invoke
    added = invoke(main, ["add-job", "work", *flag])
    assert added.exit_code == 0, added.output
    (job,) = Jobs(dsn).all()
    assert job["run_at"] - job["created_at"] > timedelta(minutes=59)
    left = invoke(main, ["--once", "--tasks", "node_time_tasks", "--no-use-node-time"])
    assert (left.exit_code, left.stdout) == (0, ""), left.output
    done = invoke(main, ["--once", "--tasks", "node_time_tasks", *flag])
    assert (done.exit_code, done.stdout) == (0, "done\n"), done.output
