"""Runs: a row for each attempt that ended, written in the statement that records its outcome."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest

from graphile_worker_py import (
    ConfigurationError,
    Discard,
    JobContext,
    JobRun,
    MissingTablesError,
    RetryIn,
    Runner,
    RunOutcome,
    Snooze,
    SyncJobContext,
    SyncWorkerUtils,
    WorkerUtils,
    run_migrations,
    run_once,
)
from graphile_worker_py.events import JobComplete, JobError, JobLost
from graphile_worker_py.sql.complete_jobs import complete_jobs
from graphile_worker_py.sql.run_riders import completed_runs
from graphile_worker_py.sql.task_ids import TaskIds
from graphile_worker_py.tasks.task import Task
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

RUNS: Final = "select * from graphile_worker_py.runs order by finished_at, job_id"
PUT_BACK: Final = "update graphile_worker_py.runs_failed set finished_at = finished_at -"
ANOTHER_LEADS: Final = """
insert into graphile_worker_py.leaders
values ('graphile_worker', 'another', now() + '1 h'::interval)
"""


@pytest.fixture
def jobs(dsn: str) -> Iterator[Jobs]:
    """The jobs of a database without a side schema, before and after the test."""
    jobs = Jobs(dsn)
    jobs.query("drop schema if exists graphile_worker_py cascade")
    yield jobs
    jobs.query("drop schema if exists graphile_worker_py cascade")


async def work(payload: dict[str, Any]) -> Any:
    """Do what the payload says."""
    await asyncio.sleep(payload.get("seconds", 0))
    if payload.get("fails"):
        raise LookupError(payload["fails"])
    return payload.get("returns")


async def test_by_default_attempts_that_fail_are_kept_and_successes_are_not(
    dsn: str, jobs: Jobs
) -> None:
    before = datetime.now(UTC)
    jobs.add("work", {})
    failed = jobs.add("work", {"fails": "no such user"}, queue_name="q", job_key="k")
    last = jobs.add("work", {"fails": "at last"}, max_attempts=1)
    await run_once(dsn, tasks={"work": work})
    (created,) = jobs.query("select created_at from graphile_worker.jobs where id = %s", failed)
    async with WorkerUtils(dsn) as utils:
        found = {run.job_id: run for run in await utils.list_runs()}
    assert set(found) == {failed, last}
    run = found[failed]
    assert run.started_at is not None
    assert before - timedelta(seconds=1) < run.run_at <= run.started_at <= run.finished_at
    assert run.finished_at < datetime.now(UTC) + timedelta(seconds=1)
    assert run.duration == pytest.approx(
        (run.finished_at - run.started_at).total_seconds(), abs=1e-3
    )
    assert run.wait == (run.started_at - run.run_at).total_seconds()
    assert run == JobRun(
        job_id=failed,
        job_created_at=created["created_at"],
        task="work",
        attempt=1,
        outcome=RunOutcome.RETRIED,
        run_at=run.run_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        duration=run.duration,
        pool_id=run.pool_id,
        queue_name="q",
        key="k",
        error="no such user",
        error_group="LookupError in tests.test_history_runs:work",
        result=None,
        result_omitted=None,
        logs=None,
        payload=None,
        trace_id=None,
    )
    assert run.pool_id is not None
    assert run.pool_id.startswith("otpool-")
    assert found[last].outcome is RunOutcome.FAILED


async def test_with_all_a_row_is_kept_for_each_attempt(dsn: str, jobs: Jobs) -> None:
    trace = "traceparent:00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    done = jobs.add("work", {"seconds": 0.1}, flags=["other", trace], job_key="k", queue_name="q")
    failed = jobs.add("work", {"fails": "b"}, flags=[trace])
    options: Any = {"history": "all", "history_payloads": True}
    await run_once(dsn, tasks={"work": work}, **options)
    with SyncWorkerUtils(dsn) as utils:
        found = {run.job_id: run for run in utils.list_runs()}
    assert {job_id: run.outcome for job_id, run in found.items()} == {
        done: RunOutcome.COMPLETED,
        failed: RunOutcome.RETRIED,
    }
    run = found[done]
    assert run.duration is not None
    assert 0.1 <= run.duration < 5
    assert (run.task, run.attempt, run.key, run.queue_name) == ("work", 1, "k", "q")
    assert [each.trace_id for each in found.values()] == 2 * ["0af7651916cd43dd8448eb211c80319c"]
    assert {run.job_id: run.payload for run in found.values()} == {
        done: {"seconds": 0.1},
        failed: {"fails": "b"},
    }


async def test_with_none_nothing_is_kept(dsn: str, jobs: Jobs) -> None:
    jobs.add("work", {"fails": "no"})
    await run_once(dsn, tasks={"work": work}, history="none")
    assert jobs.query(RUNS) == []
    assert jobs.query("select * from graphile_worker_py.task_minutes") == []


async def test_a_tasks_own_setting_wins(dsn: str, jobs: Jobs) -> None:
    tasks: list[Task[Any]] = [
        Task(work, "silent", history="none"),
        Task(work, "chatty", history="all"),
        Task(work, "usual"),
    ]
    for task in tasks:
        jobs.add(task.identifier, {})
        jobs.add(task.identifier, {"fails": "no"})
    await run_once(dsn, tasks=tasks, concurrent_jobs=6)
    kept = sorted((row["task"], row["outcome"]) for row in jobs.query(RUNS))
    assert kept == [("chatty", "completed"), ("chatty", "retried"), ("usual", "retried")]


async def test_the_decisions_of_a_task_are_outcomes_of_their_own(dsn: str, jobs: Jobs) -> None:
    async def decide(payload: dict[str, Any]) -> Any:
        match payload["says"]:
            case "snooze":
                return Snooze(3600)
            case "discard":
                return Discard("no such user")
        raise RetryIn(3600, reason="429")

    for says in ("snooze", "discard", "retry"):
        jobs.add("decide", {"says": says})
    await run_once(dsn, tasks={"decide": decide}, concurrent_jobs=3)
    with SyncWorkerUtils(dsn) as utils:
        kept = {run.outcome: (run.attempt, run.error) for run in utils.list_runs()}
        (stats,) = utils.task_stats(step=None)
    assert kept == {
        RunOutcome.SNOOZED: (1, None),
        RunOutcome.DISCARDED: (1, "no such user"),
        RunOutcome.RETRIED: (1, "429"),
    }
    assert (stats.snoozed, stats.discarded, stats.retried, stats.failed) == (1, 1, 1, 0)


async def test_a_job_that_was_taken_from_the_pool_has_no_run(dsn: str, jobs: Jobs) -> None:
    async def lose(_payload: Any) -> None:
        jobs.query("update graphile_worker._private_jobs set locked_by = 'another' returning 1")

    told = Told()
    jobs.add("lose")
    await run_once(dsn, tasks={"lose": lose}, history="all", events=told.events)
    assert told.of(JobLost)
    assert jobs.query(RUNS) == []


@pytest.mark.parametrize(
    ("result", "kept", "omitted"),
    [
        ({"a": [1, "ä"]}, {"a": [1, "ä"]}, None),
        (0, 0, None),
        ("", "", None),
        (2**70, 2**70, None),
        ("\ud800\0", "\ud800\0", None),
        (object(), None, "not JSON-serialisable"),
        ({"a": [float("nan")]}, None, "$.a[0] is nan, not a finite number"),
        ("x" * 70_000, None, "70002 bytes, more than the result_limit of 65536"),
    ],
    ids=["object", "zero", "empty", "long", "odd text", "no JSON", "no number", "too large"],
)
async def test_a_result_is_kept_if_it_is_wanted_and_can_be(
    dsn: str,
    jobs: Jobs,
    caplog: pytest.LogCaptureFixture,
    result: Any,
    kept: Any,
    omitted: str | None,
) -> None:
    async def give(_payload: Any) -> Any:
        return result

    task: Task[Any] = Task(give, "give", keep_result=True)
    jobs.add("give")
    await run_once(dsn, tasks=[task, Task(work, "work")])
    assert jobs.ids() == []
    with SyncWorkerUtils(dsn) as utils:
        (run,) = utils.list_runs()
    assert (run.outcome, run.result) == (RunOutcome.COMPLETED, kept)
    if omitted is None:
        assert run.result_omitted is None
        assert "is not kept" not in caplog.text
    else:
        assert omitted in str(run.result_omitted)
        assert "The result of job" in caplog.text


async def test_large_results_are_recorded_in_several_statements(dsn: str, jobs: Jobs) -> None:
    async def give(_payload: Any) -> str:
        return "x" * 1_000_000

    task: Task[Any] = Task(give, "give", keep_result=True)
    jobs.add_many(20, "give")
    options: Any = {"concurrent_jobs": 20, "result_limit": 1024**2, "complete_job_batch_delay": 0.5}
    async with Runner(dsn, tasks=[task], **options):
        await eventually(lambda: jobs.ids() == [])
    counted = jobs.query(
        "select xmin::text, count(*) as runs, sum(length(result::text)) as size "
        "from graphile_worker_py.runs_completed group by 1"
    )
    assert sum(row["runs"] for row in counted) == 20
    assert all(row["size"] <= 8 * 1024**2 for row in counted)


async def test_runs_are_found_by_what_is_asked_for(dsn: str, jobs: Jobs) -> None:
    one = jobs.add("work", {"fails": "1"}, max_attempts=1)
    two = jobs.add("work", {})
    other = jobs.add("other", {})
    await run_once(dsn, tasks={"work": work, "other": work}, history="all")
    jobs.query(
        "update graphile_worker_py.runs_failed set finished_at = finished_at - '2 h'::interval"
    )
    async with WorkerUtils(dsn) as utils:

        async def ids(**conditions: Any) -> list[int]:
            return [run.job_id for run in await utils.list_runs(**conditions)]

        assert set(await ids()) == {one, two, other}
        assert (await ids())[-1] == one
        assert await ids(job_id=one) == [one]
        assert await ids(job_id=str(two)) == [two]
        assert await ids(task="other") == [other]
        assert await ids(outcome="failed") == [one]
        assert set(await ids(outcome=RunOutcome.COMPLETED)) == {two, other}
        assert await ids(outcome="retried") == []
        assert set(await ids(since=3600)) == {two, other}
        assert set(await ids(since=timedelta(hours=3))) == {one, two, other}
        assert await ids(until=timedelta(hours=1)) == [one]
        assert await ids(until=datetime(2000, 1, 1, tzinfo=UTC)) == []
        assert await ids(since=3600, task="work") == [two]
        assert len(await ids(limit=2)) == 2


async def test_runs_are_listed_in_pages(dsn: str, jobs: Jobs) -> None:
    for _ in range(3):
        jobs.add_many(5, "work")
        await run_once(dsn, tasks={"work": work}, history="all", concurrent_jobs=5)
    # Some end at the same moment, and some long ago.
    jobs.query(
        "update graphile_worker_py.runs_completed set finished_at = now() where job_id % 3 = 0"
    )
    jobs.query(
        "update graphile_worker_py.runs_completed set finished_at = finished_at - '1 h'::interval "
        "where job_id % 4 = 0"
    )
    async with WorkerUtils(dsn) as utils:
        everything = await utils.list_runs(limit=None)
        assert len(everything) == 15
        assert everything == sorted(
            everything, key=lambda run: (run.finished_at, run.job_id), reverse=True
        )
        pages: list[JobRun] = []
        after: Any = None
        while page := await utils.list_runs(limit=4, after=after):
            pages += page
            after = page[-1].cursor if len(pages) % 8 else page[-1]
        assert pages == everything


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"job_id": "x"}, "job_id: a job id is a whole number"),
        ({"task": 7}, "task must be a string"),
        ({"outcome": "done"}, "outcome must be one of completed, retried"),
        (
            {"since": datetime(2026, 1, 1)},  # noqa: DTZ001
            "since .* has no time zone",
        ),
        ({"since": "1h"}, "since must be seconds"),
        ({"until": -1}, "until must be seconds, 0 or above"),
        ({"until": timedelta(seconds=-1)}, "until must be above 0"),
        ({"limit": 0}, "limit must be a whole number of at least 1"),
        ({"after": "yesterday"}, "after must be a run of the page before"),
        ({"after": 7}, "after must be a run of the page before"),
    ],
)
async def test_conditions_that_make_no_sense_are_refused(
    dsn: str, jobs: Jobs, condition: dict[str, Any], message: str
) -> None:
    await run_once(dsn, tasks={"work": work})
    with SyncWorkerUtils(dsn) as utils, pytest.raises(ConfigurationError, match=f"^{message}"):
        utils.list_runs(**condition)


async def test_runs_of_an_older_job_with_the_same_id_are_not_those_of_a_job(
    dsn: str, jobs: Jobs
) -> None:
    old = jobs.add("work", {"fails": "old"}, max_attempts=1)
    await run_once(dsn, tasks={"work": work})
    jobs.query("delete from graphile_worker._private_jobs")
    jobs.query(
        "select setval(pg_get_serial_sequence('graphile_worker._private_jobs', 'id'), %s, false)",
        old,
    )
    assert jobs.add("work", {"fails": "new"}) == old
    with SyncWorkerUtils(dsn) as utils:
        assert utils.list_runs(job_id=old) == []
        await run_once(dsn, tasks={"work": work})
        assert [run.error for run in utils.list_runs(job_id=old)] == ["new"]
        jobs.query("delete from graphile_worker._private_jobs")
        assert [run.error for run in utils.list_runs(job_id=old)] == ["new"]
        assert [run.error for run in utils.list_runs()] == ["new", "old"]


async def test_without_todays_partition_jobs_complete_and_health_names_it(
    dsn: str, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    options: Any = {"history": "all", "events": told.events}
    await run_once(dsn, tasks={"work": work})
    jobs.query(ANOTHER_LEADS)  # which does not make the partition anew
    async with Runner(dsn, tasks={"work": work}, **options) as runner:
        await eventually(lambda: runner.health().ready)
        today = jobs.query("select to_char(now() at time zone 'UTC', 'YYYYMMDD') as day")[0]["day"]
        await jobs.in_thread(f"drop table graphile_worker_py.runs_completed_{today}")
        for _ in range(3):
            jobs.add("work", {})
        await told.seen(JobComplete, count=3)
        await eventually(lambda: jobs.ids() == [])
        assert "no partition" in str(runner.health().rider_error)
        assert runner.health().rider_failures == 1
    assert caplog.text.count("Recording outcomes without history") == 1


async def test_without_the_side_schema_jobs_complete_and_health_names_it(
    dsn: str, jobs: Jobs
) -> None:
    told = Told()
    options: Any = {"history": "all", "events": told.events, "heartbeat_interval": 3600}
    options["dead_after"] = 7200
    async with Runner(dsn, tasks={"work": work}, **options) as runner:
        await eventually(lambda: runner.health().ready)
        await jobs.in_thread("drop schema graphile_worker_py cascade")
        jobs.add("work", {"fails": "no"})
        jobs.add("work", {})
        await told.seen(JobComplete, count=2)
        await eventually(lambda: len(jobs.ids()) == 1)
        assert "graphile_worker_py" in str(runner.health().rider_error)


async def test_without_history_each_call_says_what_is_missing(dsn: str, jobs: Jobs) -> None:
    await run_once(dsn, tasks={"work": work}, no_side_schema=True)
    with SyncWorkerUtils(dsn) as utils, utils.pool.connection() as conn, conn.transaction():
        for call in (
            lambda: utils.list_runs(conn=conn),
            lambda: utils.task_stats(conn=conn),
            lambda: utils.error_groups(conn=conn),
            lambda: utils.forget(7, conn=conn),
        ):
            with pytest.raises(MissingTablesError, match="migrate --side-schema"):
                call()
        # The transaction of the caller goes on.
        assert conn.execute("select 1").fetchone() is not None


async def test_what_is_kept_of_a_job_can_be_forgotten(dsn: str, jobs: Jobs) -> None:
    ids = [jobs.add("work", {"fails": "no"}), jobs.add("work", {})]
    kept = jobs.add("work", {}, job_key="ours")
    mine = jobs.add("work", {}, job_key="mine")
    await run_once(dsn, tasks={"work": work}, history="all")
    with SyncWorkerUtils(dsn) as utils:
        assert [utils.forget(job_id) for job_id in ids] == [1, 1]
        assert {run.job_id for run in utils.list_runs()} == {kept, mine}
        assert utils.forget(key="mine") == 1
        assert utils.forget(key="mine") == 0
        assert {run.job_id for run in utils.list_runs()} == {kept}
        for arguments in ({}, {"job_id": 1, "key": "k"}):
            with pytest.raises(ConfigurationError, match="either a job_id or a key"):
                utils.forget(**arguments)  # type: ignore[arg-type]


async def test_long_errors_and_odd_text_are_kept_as_far_as_they_can_be(
    dsn: str, jobs: Jobs
) -> None:
    jobs.add("work", {"fails": "x" * 200_000})
    jobs.add("work", {"fails": "a\0b"})
    await run_once(dsn, tasks={"work": work}, concurrent_jobs=2)
    with SyncWorkerUtils(dsn) as utils:
        errors = sorted((run.error or "" for run in utils.list_runs()), key=len)
    assert errors[0] == "a\\u0000b"
    assert 65_000 < len(errors[1]) < 66_000
    assert " characters left out …" in errors[1]


def complete_in_thread(_payload: Any, ctx: SyncJobContext) -> None:
    """Complete the job in a transaction, on a connection of the thread's own."""
    with ctx.transaction():
        ctx.set_result("kept")


async def complete_in_transaction(_payload: Any, ctx: JobContext) -> None:
    """Complete the job in a transaction."""
    async with ctx.transaction():
        ctx.set_result("kept")


@pytest.mark.parametrize("function", [complete_in_transaction, complete_in_thread])
async def test_a_job_that_completes_in_its_own_transaction_has_its_run_and_is_counted(
    dsn: str, jobs: Jobs, function: Any
) -> None:
    task: Task[Any] = Task(function, "complete", keep_result=True)
    jobs.add("complete")
    await run_once(dsn, tasks=[task])
    with SyncWorkerUtils(dsn) as utils:
        (run,) = utils.list_runs()
        assert (run.outcome, run.result) == (RunOutcome.COMPLETED, "kept")
        (stats,) = utils.task_stats(step=None)
        assert stats.completed == 1


@pytest.mark.parametrize("function", [complete_in_transaction, complete_in_thread])
async def test_a_missing_table_of_history_does_not_fail_the_transaction_of_a_task(
    dsn: str, jobs: Jobs, function: Any
) -> None:
    await run_once(dsn, tasks={"work": work})
    jobs.query(ANOTHER_LEADS)
    await jobs.in_thread("alter table graphile_worker_py.runs_completed rename to away")
    told = Told()
    job_id = jobs.add("complete")
    options: Any = {"history": "all", "events": told.events}
    async with Runner(dsn, tasks={"complete": function}, **options) as runner:
        await told.seen(JobComplete)
        await eventually(lambda: job_id not in jobs.ids())
        assert runner.health().rider_failures == 1
    assert told.of(JobError) == []


async def test_a_batch_of_runs_is_not_compared_with_each_of_its_jobs(dsn: str) -> None:
    await run_migrations(dsn, side_schema=True)
    runs = completed_runs(
        worker_schema="graphile_worker",
        pool_id="pool",
        awaited=True,
        payloads=True,
        tasks=TaskIds({}),
        ids="{}",
        durations="{}",
        ages="{}",
        attempts="{}",
    )
    query = complete_jobs([], pool_id="pool", riders=[runs])
    text = query.text.replace(":GRAPHILE_WORKER_SCHEMA", "graphile_worker")
    given = ", ".join(["null"] * len(query.values))
    with psycopg.connect(dsn) as conn:
        # As in the sessions that record outcomes.
        for setting in ("plan_cache_mode = force_generic_plan", "enable_seqscan = off"):
            conn.execute(f"set {setting}")
        conn.execute(f"prepare recording as {text}")
        lines = [row[0] for row in conn.execute(f"explain execute recording ({given})")]
    joins = [line.split("(")[0].strip(" ->") for line in lines if "Full Join" in line]
    assert joins in (["Hash Full Join"], ["Merge Full Join"])
