"""What a Python worker decides about a job, and what its users do with it, beside Node workers."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from compat_tests.fleet import Fleet
from graphile_worker_py import (
    CancelState,
    Discard,
    EndStatus,
    JobGoneError,
    RetryIn,
    RetryPolicy,
    Runner,
    Snooze,
    WorkerUtils,
    fixed,
    run_migrations,
    run_once,
    task,
)
from graphile_worker_py.events import Events
from tests.support.eventually import eventually

HOUR = 3600
LEFT = """
select payload ->> 'name', attempts, last_error, is_available,
  round(extract(epoch from run_at - now()) / 60)::int
from graphile_worker._private_jobs order by id
"""
LOCKED = "select locked_by from graphile_worker._private_jobs where id = %s"
RUNS = "select job_id, outcome, error from graphile_worker_py.runs"


@task(
    "step",
    retry=RetryPolicy(max_attempts=2, delay=fixed(HOUR), discard_on=(LookupError,)),
)
async def decide(payload: Any) -> None:
    """Do what the payload says; one of the outcomes is asked for."""
    match payload["name"]:
        case "retry":
            raise RetryIn(HOUR, reason="429")
        case "snooze":
            raise Snooze(HOUR)
        case "discard":
            raise Discard("404")
        case "policy discards":
            raise LookupError("no such user")
        case "policy" | "policy ends":
            raise RuntimeError("500")


@task("other")
async def fail(payload: Any) -> None:
    """Fail, without a policy."""
    raise RuntimeError("broken")


@pytest.fixture
async def utils(fleet: Fleet) -> AsyncIterator[WorkerUtils]:
    """Utilities in a database with the tables of history."""
    await run_migrations(fleet.dsn, side_schema=True)
    async with WorkerUtils(fleet.dsn) as utils:
        yield utils


async def test_node_reads_and_runs_what_each_outcome_has_left(
    fleet: Fleet, utils: WorkerUtils
) -> None:
    ids = [
        (await utils.add_job(identifier, {"name": name}, max_attempts=most)).id
        for identifier, name, most in (
            ("step", "done", 25),
            ("step", "retry", 25),
            ("step", "snooze", 25),
            ("step", "discard", 25),
            ("step", "policy discards", 25),
            ("step", "policy", 25),
            ("step", "policy ends", 1),
            ("other", "failed", 25),
            ("other", "failed for good", 1),
        )
    ]
    await run_once(fleet.dsn, tasks=[decide, fail])
    # Name, attempts, error, whether any worker would take it, and minutes until it is due.
    given_up = [
        ("discard", 25, "404", False, 0),
        ("policy discards", 25, "no such user", False, 0),
        ("policy ends", 1, "500", False, 60),
        ("failed for good", 1, "broken", False, 0),
    ]
    due_later = [
        ("retry", 1, "429", True, 60),
        ("snooze", 0, None, True, 60),
        ("policy", 1, "500", True, 60),
        ("failed", 1, "broken", True, 0),
    ]
    left = fleet.query(LEFT)
    assert sorted(row[:4] for row in left) == sorted(row[:4] for row in given_up + due_later)
    minutes = {row[0]: row[4] for row in left}
    assert {name: minutes[name] for name in ("retry", "snooze", "policy")} == {
        "retry": 60,
        "snooze": 60,
        "policy": 60,
    }
    # With nothing given, this returns the jobs as Node's API shows them.
    [seen] = fleet.call_node([["rescheduleJobs", [str(job_id) for job_id in ids], {}]])
    assert sorted(
        (job["payload"]["name"], job["attempts"], job["last_error"]) for job in seen
    ) == sorted(row[:3] for row in given_up + due_later)
    fleet.query("update graphile_worker._private_jobs set run_at = now() where run_at > now()")
    fleet.run_once("node")
    assert sorted((run.name, run.attempt) for run in fleet.runs()) == [
        ("failed", 2),
        ("policy", 2),
        ("retry", 2),
        ("snooze", 1),
    ]
    assert sorted(row[:4] for row in fleet.query(LEFT)) == sorted(row[:4] for row in given_up)
    await utils.retry_jobs(state="failed")
    fleet.run_once("node")
    assert sorted((run.name, run.attempt) for run in fleet.runs()[4:]) == [
        ("discard", 1),
        ("failed for good", 1),
        ("policy discards", 1),
        ("policy ends", 1),
    ]
    assert fleet.jobs.ids() == []


async def test_a_job_that_node_runs_can_be_seen_and_goes_on_when_it_is_cancelled(
    fleet: Fleet, utils: WorkerUtils
) -> None:
    with fleet.gate() as gate:
        fleet.start("node", jobs=1)
        payload = {"name": "long", "hold": 1}
        job = await utils.add_job("step", payload, job_key="k", queue_name="q", awaited=True)
        handle = utils.handle(job)
        await fleet.began("long")
        state = await handle.state()
        assert state is not None
        assert (state.state, state.progress, state.cancel_requested) == ("running", None, False)
        assert [state.pool_id] == fleet.query(LOCKED, job.id)
        assert state.started_at is not None
        for _ in range(2):
            (done,) = await utils.cancel_jobs([job.id], reason="not needed")
            assert done.state is CancelState.RUNNING_ELSEWHERE
        state = await handle.state()
        assert state is not None
        assert (state.state, state.cancel_requested) == ("running", True)
        assert await utils.retry_jobs([job.id]) == []
        # Its key and its queue are free for what comes after it.
        next_one = await utils.add_job("step", {"name": "next"}, job_key="k", queue_name="q")
        assert next_one.id != job.id
        gate.open()
        await fleet.drained()
    assert [(run.name, run.attempt) for run in fleet.runs()] == [("long", 1), ("next", 1)]
    assert (await handle.wait(15)).status is EndStatus.GONE
    assert fleet.query(RUNS) == []


async def test_a_cancelled_job_that_fails_in_node_is_deleted_and_not_tried_again(
    fleet: Fleet, utils: WorkerUtils
) -> None:
    with fleet.gate() as gate:
        fleet.start("node", jobs=1)
        payload = {"name": "long", "hold": 1, "fail": "broken"}
        job = await utils.add_job("step", payload, awaited=True)
        await fleet.began("long")
        await utils.cancel_jobs([job.id], reason="not needed")
        gate.open()
        await eventually(lambda: fleet.query(LOCKED, job.id) == [None])
    # A pool deletes such jobs when it begins to lead, and then each minute.
    async with Runner(fleet.dsn, tasks={"none": fail.function}, events=Events()):
        await fleet.drained()
    assert fleet.query(RUNS) == [(job.id, "cancelled", "not needed")]
    assert (await utils.handle(job).wait(15)).status is EndStatus.CANCELLED
    assert fleet.names() == ["long"]


async def test_a_waiting_job_of_node_can_be_cancelled(fleet: Fleet, utils: WorkerUtils) -> None:
    with fleet.gate() as gate:
        fleet.start("node", jobs=1)
        await utils.add_job("step", {"name": "first", "hold": 1}, queue_name="q")
        await fleet.began("first")
        second = await utils.add_job("step", {"name": "second"}, queue_name="q")
        await utils.add_job("step", {"name": "third"}, queue_name="q")
        (done,) = await utils.cancel_jobs([second.id], reason="not needed")
        assert done.state is CancelState.CANCELLED
        gate.open()
        await fleet.drained()
    assert fleet.names() == ["first", "third"]
    assert fleet.query(RUNS) == [(second.id, "cancelled", "not needed")]
    assert (await utils.handle(second).wait(15)).status is EndStatus.CANCELLED


async def test_of_a_job_that_node_ran_only_a_failure_can_be_known(
    fleet: Fleet, utils: WorkerUtils
) -> None:
    completed = await utils.add_job("step", {"name": "completed"}, awaited=True)
    failed = await utils.add_job("step", {"name": "failed", "fail": "broken"}, max_attempts=1)
    fleet.start("node")
    handles = [utils.handle(job) for job in (completed, failed)]
    gone, ended = await utils.wait_all(handles, timeout=30)
    assert gone.status is EndStatus.GONE
    assert (ended.status, ended.error, ended.attempts) == (EndStatus.FAILED, "broken", 1)
    with pytest.raises(JobGoneError, match="Node"):
        await handles[0].result(30)
    assert await handles[0].state() is None
    assert await eventually(handles[1].state) is not None
