"""Why is a job not running: the reasons, in order, with what to do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from graphile_worker_py import Cause, Explanation, Runner, WorkerUtils
from graphile_worker_py.cli.main import main
from graphile_worker_py.events import PoolListenSuccess
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.support.node import WITHOUT_SIDE_SCHEMA
from tests.support.running import Told


async def nothing(_payload: Any) -> None:
    """A task that does nothing."""


@asynccontextmanager
async def working(dsn: str, *names: str, **options: Any) -> AsyncIterator[None]:
    """A pool that has these tasks and has registered."""
    told = Told()
    async with Runner(dsn, tasks=dict.fromkeys(names, nothing), events=told.events, **options):
        await told.seen(PoolListenSuccess)
        yield


def causes(found: Explanation) -> list[Cause]:
    """The causes, in order."""
    return [reason.cause for reason in found.reasons]


@pytest.mark.parametrize(
    ("add", "cause", "fact"),
    [
        ({"run_at": "2090-01-01"}, Cause.NOT_DUE, "at 2090-01-01 00:00:00 UTC"),
        ({"identifier": "send_welcom"}, Cause.TASK_UNKNOWN, "did you mean 'send_welcome'?"),
        ({"flags": ["gpu"]}, Cause.FLAG_FORBIDDEN, "flag 'gpu' is forbidden in the only pool"),
    ],
)
async def test_a_job_that_no_pool_may_run_now_says_why(
    dsn: str, stored: Jobs, utils: WorkerUtils, add: dict[str, Any], cause: Cause, fact: str
) -> None:
    async with working(dsn, "send_welcome", forbidden_flags=["gpu"]):
        job_id = stored.add(**{"identifier": "send_welcome", **add})
        found = await utils.explain(job_id)
    assert found.missing is None
    first = found.reasons[0]
    assert (first.cause, first.blocks) == (cause, True)
    assert fact in first.fact
    assert first.remedy


async def test_a_pool_reports_its_tasks_flags_concurrency_and_load(
    dsn: str, utils: WorkerUtils
) -> None:
    async with working(dsn, "b", "a", forbidden_flags=["gpu"], concurrent_jobs=3):
        [pool] = await utils.pools() or []
    assert pool.tasks == ["a", "b"]
    assert pool.forbidden_flags == ["gpu"]
    assert (pool.concurrency, pool.running) == (3, 0)
    assert pool.version
    assert pool.memory is not None
    assert pool.memory > 1_000_000
    assert pool.loop_lag is not None


async def test_pools_of_an_older_release_are_read_and_blamed_for_nothing(
    dsn: str, stored: Jobs, utils: WorkerUtils
) -> None:
    async with working(dsn, "a", heartbeat_interval=60, dead_after=240):
        await stored.in_thread(
            "alter table graphile_worker_py.pools drop column tasks, drop column memory"
        )
        job_id = stored.add("b")
        [pool] = await utils.pools() or []
        assert (pool.tasks, pool.memory) == (None, None)
        assert causes(await utils.explain(job_id)) == [Cause.READY]
        assert await utils.unserved_tasks() == {}


@WITHOUT_SIDE_SCHEMA
async def test_a_job_behind_others_says_how_many(stored: Jobs, utils: WorkerUtils) -> None:
    stored.add_many(7, "a")
    job_id = stored.add("a", priority=5)
    found = await utils.explain(job_id)
    assert causes(found) == [Cause.BEHIND]
    assert "about 7 jobs" in found.reasons[0].fact
    assert "graphile_worker_py" in (found.missing or "")


async def test_a_job_in_a_locked_queue_names_the_holder_and_its_job(
    stored: Jobs, utils: WorkerUtils
) -> None:
    first, second = stored.add("a", queue_name="mail"), stored.add("a", queue_name="mail")
    stored.lock(first, pool_id="pool-of-node")
    found = await utils.explain(second)
    assert found.reasons[0].cause is Cause.QUEUE_LOCKED
    assert (
        f"pool-of-node of Node, or one that does not register, for 60 s and runs its job {first}"
        in found.reasons[0].fact
    )
    stored.query("update graphile_worker._private_job_queues set locked_by = 'gwpy-pause:anna'")
    paused = await utils.explain(second)
    assert (paused.reasons[0].cause, "anna" in paused.reasons[0].fact) == (Cause.QUEUE_PAUSED, True)


async def test_failed_running_and_vanished_jobs_say_so(stored: Jobs, utils: WorkerUtils) -> None:
    failed, locked = stored.add("a"), stored.add("a")
    stored.exhaust(failed)
    stored.lock(locked, pool_id="pool-of-node")
    used_up = (await utils.explain(failed)).reasons[0]
    assert used_up.cause is Cause.ATTEMPTS_USED_UP
    assert "last error: no" in used_up.fact
    running = (await utils.explain(locked)).reasons[0]
    assert running.cause is Cause.RUNNING
    assert "unlock pool-of-node" in (running.remedy or "")
    gone = await utils.explain(12345)
    assert (gone.state, causes(gone)) == (None, [Cause.GONE])


async def test_a_job_of_a_dead_pool_says_when_it_is_freed(
    dsn: str, stored: Jobs, utils: WorkerUtils
) -> None:
    async with working(dsn, "a", heartbeat_interval=60, dead_after=240):
        # The next heartbeat, which would find the dead pool, comes in a minute.
        await eventually(
            lambda: stored.query("select 1 from graphile_worker_py.pools where lock_key <> 0")
        )
        job_id = stored.add("b")
        stored.query(
            "insert into graphile_worker_py.pools (pool_id, worker_schema, host, pid, dead_after,"
            " lock_key, died_at) values ('pool-dead', 'graphile_worker', 'h', 1, 8, 0, now())"
        )
        stored.lock(job_id, pool_id="pool-dead")
        found = await utils.explain(job_id)
    assert causes(found) == [Cause.HOLDER_DEAD]
    assert "which died" in found.reasons[0].fact
    assert found.reasons[0].remedy == "a living pool frees it within about 8 s"


async def test_busy_pools_are_named_and_a_suspect_is_one(
    dsn: str, stored: Jobs, utils: WorkerUtils
) -> None:
    go_on = asyncio.Event()

    async def wait(_payload: Any) -> None:
        await go_on.wait()

    told = Told()
    options: dict[str, Any] = {"concurrent_jobs": 1, "heartbeat_interval": 0.1}
    async with Runner(dsn, tasks={"a": wait}, events=told.events, **options):
        await told.seen(PoolListenSuccess)
        stored.add("a")
        await eventually(
            lambda: stored.query("select 1 from graphile_worker_py.pools where running = 1")
        )
        job_id = stored.add("a")
        stored.query(
            "insert into graphile_worker_py.suspects (worker_schema, job_id, crashes)"
            f" values ('graphile_worker', {job_id}, 2)"
        )
        found = await utils.explain(job_id)
        go_on.set()
    assert causes(found) == [Cause.POOLS_BUSY, Cause.SUSPECT]


async def test_commands_name_a_task_that_no_pool_has(dsn: str, stored: Jobs) -> None:
    def call(*args: str) -> Any:
        return CliRunner().invoke(main, [*args, "--connection", dsn])

    async with working(dsn, "send_welcome"):
        job_id = stored.add("send_welcom")
        explained = await asyncio.to_thread(call, "explain", str(job_id))
        healthy = await asyncio.to_thread(call, "health")
        workers = await asyncio.to_thread(call, "workers")
    assert explained.exit_code == 0
    assert "  ! the only live Python pool does not have the task 'send_welcom'" in explained.stdout
    for result in (healthy, workers):
        assert (
            "'send_welcom' are due, and no live Python pool has it: did you mean 'send_welcome'?"
            in result.stderr
        )
    assert healthy.exit_code == 1
    assert (await asyncio.to_thread(call, "explain", "999")).exit_code == 1
