"""Handles: any process waits for the end of a job, gets its result, and sees how far it is."""

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py import (
    ConfigurationError,
    Discard,
    EndStatus,
    JobCancelledError,
    JobContext,
    JobFailedError,
    JobGoneError,
    JobOutcome,
    JobProgress,
    JobSpec,
    MissingTablesError,
    Runner,
    Snooze,
    SyncJobContext,
    SyncWorkerUtils,
    WorkerUtils,
    run_migrations,
    run_once,
    task,
)
from graphile_worker_py.events import JobStart, PoolListenSuccess
from tests import process_tasks
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

FAILED_ONCE = "select 1 from graphile_worker.jobs where attempts = 1 and locked_at is null"


async def answer(payload: Any) -> Any:
    """Do what the payload says."""
    await asyncio.sleep(payload.get("seconds", 0))
    if payload.get("fails"):
        raise LookupError("no such customer")
    if payload.get("discards"):
        raise Discard("no such page")
    return payload.get("returns")


class Place:
    """A job table, a worker pool and a program that waits."""

    def __init__(self, dsn: str, utils: WorkerUtils) -> None:
        self.dsn = dsn
        self.utils = utils
        self.jobs, self.told = Jobs(dsn), Told()

    def runner(self, tasks: Any = None, **options: Any) -> Runner:
        """A runner with the side schema."""
        given: Any = {"concurrent_jobs": 2, "events": self.told.events}
        return Runner(self.dsn, tasks=tasks or {"answer": answer}, **{**given, **options})


@pytest.fixture
async def place(dsn: str) -> AsyncIterator[Place]:
    """A database with the tables of history."""
    await run_migrations(dsn, side_schema=True)
    async with WorkerUtils(dsn) as utils:
        yield Place(dsn, utils)


async def test_a_program_waits_for_the_result_of_a_job(place: Place) -> None:
    job = await place.utils.add_job("answer", {"returns": [1, "a"]}, awaited=True)
    async with place.runner():
        assert await place.utils.handle(job).result(timeout=10) == [1, "a"]
    outcome = await place.utils.handle(job).wait(5)
    assert (outcome.status, outcome.attempts) == (EndStatus.COMPLETED, 1)
    assert outcome.finished_at is not None
    assert outcome.started_at is not None
    assert outcome.pool_id is not None
    assert outcome.duration is not None


async def test_waiting_is_enough_to_have_a_record_kept(place: Place) -> None:
    async with place.runner():
        await place.told.seen(PoolListenSuccess)
        job = await place.utils.add_job("answer", {"seconds": 0.7, "returns": 5})
        assert await place.utils.handle(job.id).result(timeout=10) == 5


async def test_a_job_that_has_ended_before_anyone_waited_is_gone(place: Place) -> None:
    job = await place.utils.add_job("answer")
    async with place.runner():
        await eventually(lambda: place.jobs.ids() == [])
    outcome = await place.utils.handle(job).wait(10)
    assert outcome == JobOutcome(status=EndStatus.GONE)
    with pytest.raises(JobGoneError, match=rf"job {job.id} has ended.*awaited=True"):
        await place.utils.handle(job).result(10)


async def test_all_results_of_a_task_can_be_kept(place: Place) -> None:
    jobs = await place.utils.add_jobs([JobSpec("answer", {"returns": n}) for n in range(20)])
    async with place.runner(history="all"):
        await eventually(lambda: place.jobs.ids() == [])
    handles = [place.utils.handle(job) for job in jobs]
    outcomes = await place.utils.wait_all(handles, timeout=10)
    assert {outcome.status for outcome in outcomes} == {EndStatus.COMPLETED}


async def test_a_job_that_failed_says_why(place: Place) -> None:
    failed = await place.utils.add_job("answer", {"fails": True}, max_attempts=1)
    discarded = await place.utils.add_job("answer", {"discards": True})
    async with place.runner():
        with pytest.raises(JobFailedError, match="no such customer"):
            await place.utils.handle(failed).result(10)
        with pytest.raises(JobFailedError, match="no such page"):
            await place.utils.handle(discarded).result(10)


async def test_a_job_that_is_retried_has_not_ended(place: Place) -> None:
    job = await place.utils.add_job("answer", {"fails": True}, awaited=True)
    async with place.runner():
        await eventually(lambda: place.jobs.query(FAILED_ONCE))
        with pytest.raises(TimeoutError):
            await place.utils.handle(job).wait(1)
    state = await place.utils.handle(job).state()
    assert state is not None
    assert state.state == "scheduled"


async def test_a_wait_ends_with_the_cancel(place: Place) -> None:
    job = await place.utils.add_job("answer", {"returns": 1})
    handle = place.utils.handle(job)
    waiting = asyncio.ensure_future(handle.result(10))
    await asyncio.sleep(0.3)
    await place.utils.cancel_jobs([job.id], reason="not needed")
    with pytest.raises(JobCancelledError, match="not needed"):
        await waiting


async def test_programs_without_an_event_loop_wait(place: Place) -> None:
    def add_and_wait() -> Any:
        with SyncWorkerUtils(place.dsn) as utils:
            job = utils.add_job("answer", {"returns": "x"}, awaited=True)
            assert utils.handle(job).state() is not None
            return utils.handle(job).result(10), utils.wait_all([utils.handle(job)], 1)[0].status

    async with place.runner():
        assert await asyncio.to_thread(add_and_wait) == ("x", EndStatus.COMPLETED)


async def test_nothing_is_added_to_be_awaited_without_the_tables(dsn: str) -> None:
    await Jobs(dsn).in_thread("drop schema if exists graphile_worker_py cascade")
    async with WorkerUtils(dsn) as utils:
        with pytest.raises(MissingTablesError, match=r"graphile_worker_py\.awaited"):
            await utils.add_job("answer", awaited=True)
        assert Jobs(dsn).ids() == []
        for ask in (utils.handle(1).state, utils.handle(1).wait, utils.handle(1).result):
            with pytest.raises(MissingTablesError, match="migrate --side-schema"):
                await ask()
    with SyncWorkerUtils(dsn) as sync, pytest.raises(MissingTablesError):
        sync.handle(1).state()


async def test_what_is_no_job_is_refused(place: Place) -> None:
    with pytest.raises(ConfigurationError, match="job: a job id"):
        place.utils.handle("x")
    with pytest.raises(ConfigurationError, match=r"handles must be .* utils\.handle"):
        await place.utils.wait_all([1])  # type: ignore[list-item]


@pytest.mark.parametrize("timeout", [-1, float("nan"), "10"])
async def test_a_timeout_that_makes_no_sense_is_refused(place: Place, timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout must be seconds"):
        await place.utils.handle(1).wait(timeout)
    with (
        SyncWorkerUtils(place.dsn) as utils,
        pytest.raises(ConfigurationError, match="timeout must be seconds"),
    ):
        utils.wait_all([utils.handle(1)], timeout)


async def test_a_thousand_jobs_are_awaited_with_few_statements(place: Place) -> None:
    specs = [JobSpec("answer", {"returns": n}, awaited=True) for n in range(1000)]
    jobs = await place.utils.add_jobs(specs)
    async with place.runner(concurrent_jobs=20):
        handles = [place.utils.handle(job) for job in jobs]
        outcomes = await place.utils.wait_all(handles, timeout=15)
    assert [outcome.result for outcome in outcomes] == list(range(1000))


# Progress, checkpoints, snoozes.


async def test_another_process_sees_how_far_a_job_is(place: Place) -> None:
    go_on = asyncio.Event()

    async def report(_payload: Any, ctx: JobContext) -> None:
        for page in range(40):
            ctx.progress(page + 1, total=100, message=f"page {page + 1}")
        await go_on.wait()

    job = await place.utils.add_job("report", awaited=True)
    handle = place.utils.handle(job)
    async with place.runner({"report": report}):
        await place.told.seen(JobStart)

        async def seen() -> JobProgress:
            while True:
                state = await handle.state()
                if state is not None and state.progress is not None:
                    return state
                await asyncio.sleep(0.1)

        state = await asyncio.wait_for(seen(), 10)
        assert (state.state, state.progress, state.total) == ("running", 40, 100)
        assert state.message == "page 40"
        assert state.pool_id is not None
        assert state.started_at is not None
        assert not state.cancel_requested
        updates = []
        async for update in handle.watch():
            updates.append(update)
            go_on.set()
    assert isinstance(updates[-1], JobOutcome)
    assert updates[-1].status is EndStatus.COMPLETED
    assert await handle.state() is None


async def test_what_belongs_to_a_process_says_what_to_send_in_its_place(
    dsn: str, place: Place
) -> None:
    contexts: list[JobContext | SyncJobContext] = []

    async def on_loop(_payload: Any, ctx: JobContext) -> None:
        contexts.append(ctx)

    def in_thread(_payload: Any, ctx: SyncJobContext) -> None:
        contexts.append(ctx)

    job = await place.utils.add_job("on_loop")
    await place.utils.add_job("in_thread")
    await run_once(dsn, tasks={"on_loop": on_loop, "in_thread": in_thread}, raise_errors=True)
    assert pickle.loads(pickle.dumps(job)).id == job.id
    with SyncWorkerUtils(dsn) as blocking:
        handles = [place.utils.handle(job), blocking.handle(job)]
    assert len(contexts) == len(handles)
    for each in (*handles, *contexts):
        instead = "its job_id" if each in handles else "ctx.job.id"
        for send in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match=f"can't be pickled or copied.* send {instead}"):
                send(each)


async def test_the_next_attempt_goes_on_from_the_checkpoint(place: Place) -> None:
    seen = []

    async def walk(_payload: Any, ctx: JobContext) -> None:
        seen.append(ctx.cursor)
        if ctx.cursor is None:
            with pytest.raises(ConfigurationError, match=r"\$\.last is nan"):
                await ctx.checkpoint({"last": float("nan")})
            await ctx.checkpoint({"last_id": 123})
            assert ctx.cursor == {"last_id": 123}
            raise RuntimeError("the network is down")

    job = await place.utils.add_job("walk", awaited=True)
    async with place.runner({"walk": walk}):
        await eventually(lambda: place.jobs.query(FAILED_ONCE))
        await place.utils.reschedule_jobs([job.id], run_at=None)
        assert (await place.utils.handle(job).wait(10)).status is EndStatus.COMPLETED
    assert seen == [None, {"last_id": 123}]


async def test_a_checkpoint_within_a_transaction_is_committed_with_it(place: Place) -> None:
    cursors = []

    async def walk(_payload: Any, ctx: JobContext) -> None:
        cursors.append(ctx.cursor)
        async with ctx.transaction():
            await ctx.checkpoint(1)
            raise RuntimeError("no")

    await place.utils.add_job("walk", max_attempts=1)
    async with place.runner({"walk": walk}):
        await eventually(lambda: place.jobs.query(FAILED_ONCE))
    assert place.jobs.query("select cursor from graphile_worker_py.job_state") == []


async def test_a_job_that_snoozes_too_often_is_discarded(place: Place) -> None:
    async def wait_for_it(_payload: Any) -> None:
        raise Snooze(0.01)

    snoozing = task(max_snoozes=2)(wait_for_it)
    job = await place.utils.add_job("wait_for_it", awaited=True)
    async with place.runner({"wait_for_it": snoozing}):
        with pytest.raises(JobFailedError, match="snoozed 2 times"):
            await place.utils.handle(job).result(15)
    runs = place.jobs.query("select outcome from graphile_worker_py.runs order by finished_at")
    assert [run["outcome"] for run in runs] == ["snoozed", "snoozed", "discarded"]


async def test_a_task_in_a_process_reports_and_leaves_the_same(
    place: Place, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    job = await place.utils.add_job("steps", str(go_on), awaited=True)
    handle = place.utils.handle(job)
    async with place.runner([process_tasks.steps]):
        await eventually(lambda: place.jobs.query(FAILED_ONCE), timeout=15)
        await place.utils.reschedule_jobs([job.id], run_at=job.created_at)

        async def reported() -> bool:
            state = await handle.state()
            return state is not None and state.message == "nearly"

        await eventually(reported)
        go_on.touch()
        assert await handle.result(10) == {"at": 1}


async def test_what_a_task_in_a_process_returns_or_sets_is_its_result(place: Place) -> None:
    kinds = ("returned", "set", "unwritable", "large", "nothing")
    jobs = await place.utils.add_jobs(
        [JobSpec("answer", {"kind": kind, "reports": 1}, awaited=True) for kind in kinds]
    )
    batch = await place.utils.add_job("answers", ["a", "b"], awaited=True)
    discarding = await place.utils.add_job("answers", ["a", "discard"], awaited=True)
    async with place.runner([process_tasks.answer, process_tasks.answers]):
        handles = [place.utils.handle(job) for job in (*jobs, batch, discarding)]
        outcomes = await place.utils.wait_all(handles, timeout=15)
    assert {outcome.status for outcome in outcomes} == {EndStatus.COMPLETED}
    returned = {"order": {"path": "a", "count": 2}, "number": 12345678901234567890123}
    results = [outcome.result for outcome in outcomes]
    assert results == [returned, [1, "two"], None, None, None, ["a", "b"], None]
    omitted = [
        run.result_omitted
        for job in jobs
        for run in await place.utils.list_runs(job_id=job.id, outcome="completed")
    ]
    assert omitted[2] == "not JSON-serialisable: $.a is a set; write list(...)"
    assert str(omitted[3]).startswith("2097154 bytes, more than the result_limit")
    assert omitted[:2] + omitted[4:] == [None] * 3


async def test_a_task_in_a_process_may_report_its_progress_as_often_as_it_likes(
    place: Place,
) -> None:
    job = await place.utils.add_job("answer", {"kind": "set", "reports": 300_000}, awaited=True)
    async with place.runner([process_tasks.answer]):
        # If each report had an answer, or were sent at all, this would take half a minute.
        assert await place.utils.handle(job).result(15) == [1, "two"]


async def test_a_task_in_a_process_is_cancelled(place: Place) -> None:
    job = await place.utils.add_job("until_cancelled", awaited=True)
    async with place.runner([process_tasks.until_cancelled]):
        await place.told.seen(JobStart)
        await place.utils.cancel_jobs([job.id])
        with pytest.raises(JobCancelledError):
            await place.utils.handle(job).result(10)
