"""`pause` and `resume`: what is paused starts nowhere, loses no attempt, and goes on afterwards."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from graphile_worker_py import (
    Cause,
    ConfigurationError,
    LocalQueueOptions,
    MissingTablesError,
    PauseTarget,
    Runner,
    SyncWorkerUtils,
    WorkerUtils,
    run_migrations,
    run_once,
)
from graphile_worker_py.cli.main import main
from graphile_worker_py.events import PoolListenSuccess
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

FAST: Final[dict[str, Any]] = {"heartbeat_interval": 0.1, "dead_after": 2, "poll_interval": 0.1}
QUEUES: Final = "select queue_name, locked_by from graphile_worker._private_job_queues"
BEATS: Final = "select heartbeat_at from graphile_worker_py.pools"
NAMES: Final = "select name from graphile_worker_py.pools where name is not null"
HOUR: Final = timedelta(hours=1)


@pytest.fixture
async def utils(dsn: str) -> AsyncIterator[WorkerUtils]:
    """Utilities in a database with the side schema."""
    await run_migrations(dsn, side_schema=True)
    async with WorkerUtils(dsn) as utils:
        yield utils


class Work:
    """Tasks that note what ran; those of `slow` wait until they are let go."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def quick(self, payload: str) -> None:
        self.ran.append(payload)

    async def slow(self, payload: str) -> None:
        self.ran.append(payload)
        self.begun.set()
        await self.go.wait()

    def runner(self, dsn: str, **options: Any) -> Runner:
        return Runner(dsn, tasks={"quick": self.quick, "slow": self.slow}, **FAST | options)


@pytest.mark.parametrize("kind", ["task", "pool", "everything"])
async def test_what_is_paused_takes_no_job_until_it_is_resumed(
    dsn: str, utils: WorkerUtils, kind: str
) -> None:
    work, jobs = Work(), Jobs(dsn)
    target: dict[str, Any] = {"task": {"task": "quick"}, "pool": {"pool": "default"}}.get(
        kind, {"everything": True}
    )
    async with work.runner(dsn) as runner:
        await eventually(
            lambda: jobs.query("select name from graphile_worker_py.pools where name is not null")
        )
        pause = await utils.pause(**target, reason="the provider is down", by="anna")
        assert (pause.target, pause.reason, pause.by) == (
            PauseTarget(kind),
            "the provider is down",
            "anna",
        )
        await eventually(lambda: "paused" in str(runner.health().troubles))
        assert "by anna: the provider is down" in str(runner.health().troubles)
        job = await utils.add_job("quick", "paused")
        if kind == "task":
            await utils.add_job("slow", "other task")
            await work.begun.wait()
            work.go.set()
        explained = await utils.explain(job.id)
        assert explained.reasons[0].cause is Cause.PAUSED
        assert f"resume --{kind}" in (explained.reasons[0].remedy or "")
        waits = await utils.get_job(job.id)
        assert waits is not None
        assert (waits.attempts, waits.locked_by) == (0, None)
        assert "paused" not in work.ran
        assert await utils.resume(**target) is not None
        await eventually(lambda: "paused" in work.ran)
        assert await utils.resume(**target) is None
        assert await utils.pauses() == []


async def test_a_new_pool_heeds_pauses_from_its_first_fetch_on(
    dsn: str, utils: WorkerUtils
) -> None:
    work = Work()
    await utils.pause(task="quick")
    await utils.add_job("quick", "paused")
    await utils.add_job("slow", "free")
    work.go.set()
    result = await run_once(dsn, tasks={"quick": work.quick, "slow": work.slow}, **FAST)
    assert (result.completed, work.ran) == (1, ["free"])


async def test_pools_that_hear_no_notification_learn_it_by_heartbeat(
    dsn: str, utils: WorkerUtils
) -> None:
    work = Work()
    # It hears what happens in another database, which is nothing.
    deaf = make_conninfo(dsn, dbname="postgres")
    async with work.runner(dsn, listen_connection_string=deaf) as runner:
        await utils.pause(task="quick")
        await eventually(lambda: "paused" in str(runner.health().troubles), timeout=2)
        await utils.add_job("quick", "paused")
        await utils.add_job("slow", "free")
        await work.begun.wait()
        assert work.ran == ["free"]
        await utils.resume(task="quick")
        await eventually(lambda: "paused" not in str(runner.health().troubles), timeout=2)
        work.go.set()
        await eventually(lambda: "paused" in work.ran)


async def test_a_notification_reaches_pools_between_two_heartbeats(
    dsn: str, utils: WorkerUtils
) -> None:
    work, told = Work(), Told()
    options = {"heartbeat_interval": 3600, "dead_after": 7200, "events": told.events}
    async with work.runner(dsn, **options) as runner:
        await told.seen(PoolListenSuccess)
        await utils.pause(everything=True)
        await eventually(lambda: "paused" in str(runner.health().troubles), timeout=2)


@pytest.mark.parametrize("target", [{"task": "quick"}, {"queue": "q"}])
async def test_jobs_that_were_fetched_ahead_are_returned_with_their_attempt(
    dsn: str, utils: WorkerUtils, target: dict[str, str]
) -> None:
    work, jobs = Work(), Jobs(dsn)
    await utils.add_job("slow", "first", priority=-1)
    ahead = await utils.add_job("quick", "ahead", queue_name="q")
    async with work.runner(dsn, local_queue=LocalQueueOptions(size=10)):
        await work.begun.wait()
        await eventually(
            lambda: jobs.query(
                "select id from graphile_worker._private_jobs"
                " where locked_by is not null and id = %s",
                ahead.id,
            )
        )
        await utils.pause(**target)  # type: ignore[arg-type]
        await eventually(lambda: _attempts(jobs, ahead.id) == (0, None))
        work.go.set()
        await utils.add_job("slow", "last")
        await eventually(lambda: "last" in work.ran)
        assert "ahead" not in work.ran
        await utils.resume(**target)  # type: ignore[arg-type]
        await eventually(lambda: "ahead" in work.ran)


def _attempts(jobs: Jobs, job_id: int) -> tuple[int, str | None]:
    (row,) = jobs.query(
        "select attempts, locked_by from graphile_worker._private_jobs where id = %s", job_id
    )
    return row["attempts"], row["locked_by"]


async def test_a_paused_queue_stays_locked_until_its_running_job_has_ended(
    dsn: str, utils: WorkerUtils
) -> None:
    work, jobs = Work(), Jobs(dsn)
    await utils.add_job("slow", "first", queue_name="q")
    await utils.add_job("quick", "second", queue_name="q")
    async with work.runner(dsn, concurrent_jobs=3):
        await work.begun.wait()
        await utils.pause(queue="q", reason="no more", by="anna")
        (queue,) = jobs.query(QUEUES)
        assert queue["locked_by"] == "gwpy-pause:by anna: no more"
        ended = await utils.resume(queue="q")
        assert ended is not None
        assert ended.ending
        # The job still runs: freed, the queue would run two at a time.
        assert jobs.query(QUEUES) == [queue]
        await utils.pause(queue="q", reason="no more", by="anna")
        work.go.set()
        await eventually(lambda: len(jobs.ids()) == 1)
        assert jobs.query(QUEUES) == [queue]
        assert work.ran == ["first"]
        await utils.resume(queue="q")
        await eventually(lambda: work.ran == ["first", "second"])
        assert await utils.pauses() == []


async def test_the_leader_frees_a_queue_whose_job_ran_when_it_was_resumed(
    dsn: str, utils: WorkerUtils
) -> None:
    work = Work()
    await utils.add_job("slow", "first", queue_name="q")
    await utils.add_job("quick", "second", queue_name="q")
    async with work.runner(dsn, concurrent_jobs=3) as runner:
        await work.begun.wait()
        await utils.pause(queue="q")
        await eventually(lambda: "queue 'q'" in str(runner.health().troubles))
        await utils.resume(queue="q")
        # Its job still runs, but it is no longer paused.
        await eventually(lambda: runner.health().troubles == ())
        work.go.set()
        await eventually(lambda: work.ran == ["first", "second"])
    assert await utils.pauses() == []


async def test_nothing_but_a_resume_frees_a_paused_queue(dsn: str, utils: WorkerUtils) -> None:
    jobs = Jobs(dsn)
    await utils.pause(queue="not there yet", by="anna")
    job = await utils.add_job("quick", "x", queue_name="not there yet")
    held = jobs.query(QUEUES)
    holder = held[0]["locked_by"]
    await utils.cleanup(["GC_JOB_QUEUES"])
    for force in (False, True):
        with pytest.raises(ConfigurationError, match="Resume the queue"):
            await utils.force_unlock_workers([holder], force=force)
    assert jobs.query(QUEUES) == held
    assert await utils.workers() == []
    assert (await utils.explain(job.id)).reasons[0].cause is Cause.QUEUE_PAUSED
    async with Work().runner(dsn):
        # As Node's tools could: the leader locks it again.
        jobs.query("select graphile_worker.force_unlock_workers(array[%s])", holder)
        await eventually(lambda: jobs.query(QUEUES) == held)


async def test_a_pause_ends_by_itself(dsn: str, utils: WorkerUtils) -> None:
    work = Work()
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await utils.pause(task="quick", until=soon)
    await utils.pause(queue="q", until=soon)
    await utils.add_job("quick", "task")
    await utils.add_job("slow", "queue", queue_name="q")
    async with work.runner(dsn, concurrent_jobs=2):
        await eventually(lambda: sorted(work.ran) == ["queue", "task"])
        assert datetime.now(UTC) >= soon
        work.go.set()
    assert await utils.pauses() == []


async def test_pools_send_no_statement_about_pauses_where_there_are_none(
    dsn: str, utils: WorkerUtils
) -> None:
    jobs, work = Jobs(dsn), Work()
    # Each statement about pauses would fail, and be counted.
    await jobs.in_thread("drop table graphile_worker_py.pauses")
    async with work.runner(dsn) as runner:
        seen: set[datetime] = set()

        def has_beaten() -> bool:
            seen.update(row["heartbeat_at"] for row in jobs.query(BEATS))
            return len(seen) > 3

        await eventually(has_beaten)
        await utils.add_job("quick", "x")
        await eventually(lambda: work.ran == ["x"])
        assert (runner.health().plugin_failures, runner.health().troubles) == (0, ())
    with pytest.raises(MissingTablesError, match=r"graphile_worker_py\.pauses"):
        await utils.pauses()


BAD: Final[list[tuple[dict[str, Any], str]]] = [
    ({}, "nothing was given; give exactly one of task, queue, pool and everything"),
    ({"task": "a", "queue": "b"}, "task and queue were given"),
    ({"everything": False}, "nothing was given"),
    ({"everything": "yes"}, "everything must be"),
    ({"task": ""}, "task"),
    ({"queue": "q" * 129}, "queue"),
    ({"pool": "mial"}, "no worker pool of the name 'mial' is registered; names of pools are: none"),
    ({"task": "a", "until": datetime.now()}, "has no time zone"),  # noqa: DTZ005
    ({"task": "a", "until": datetime.now(UTC) - HOUR}, "is in the past"),
    ({"task": "a", "reason": 5}, "reason must be"),
]


async def test_what_can_not_be_paused_is_refused_by_name(dsn: str, utils: WorkerUtils) -> None:
    with SyncWorkerUtils(dsn) as blocking:
        for given, said in BAD:
            with pytest.raises(ConfigurationError, match=said):
                await utils.pause(**given)
            with pytest.raises(ConfigurationError, match=said):
                blocking.pause(**given)
        assert blocking.pauses() == []


async def test_a_pause_belongs_to_the_transaction_of_the_caller(
    dsn: str, utils: WorkerUtils
) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await utils.pause(queue="q", conn=conn)
        assert [each.what for each in await utils.pauses(conn=conn)] == ["queue 'q'"]
        await conn.rollback()
    assert await utils.pauses() == []
    assert Jobs(dsn).query(QUEUES) == []


def test_commands_pause_list_and_resume(dsn: str) -> None:
    asyncio.run(run_migrations(dsn, side_schema=True))

    def call(*args: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, [*args, "--connection", dsn])
        return result.exit_code, result.output

    Jobs(dsn).add("a", queue_name="q")
    assert call("pause", "--queue", "q", "--reason", "no more") == (0, "Paused queue 'q'.\n")
    assert call("pause", "--task", "a", "--until", "+10m") == (0, "Paused task 'a'.\n")
    code, listed = call("pauses", "--json")
    assert (code, [each["name"] for each in json.loads(listed)]) == (0, ["q", "a"])
    assert "no more" in call("pauses")[1]
    assert "paused by" in call("queues")[1]
    assert "task 'a' has been paused since" in call("doctor")[1]
    assert call("resume", "--queue", "q") == (0, "Resumed queue 'q'.\n")
    assert call("resume", "--queue", "q")[0] == 1
    assert call("pause", "--pool", "mail")[0] != 0
    for command in ("pause", "resume"):
        for given in ((), ("--task", "a", "--queue", "q"), ("--task", "")):
            code, said = call(command, *given)
            assert (code, "exactly one of --task, --queue" in said) == (2, True)
    code, said = call("quiet")
    assert (code, "either POOL, a name or an id, or --everything" in said) == (2, True)


UNKNOWN = [
    ("task", "send_mal", "no worker and no job has had the task 'send_mal' so far; did you mean "),
    ("task", "wholly else", "no worker and no job has had the task 'wholly else' so far"),
    ("queue", "mial", "no job has had the queue 'mial' so far"),
]


@pytest.mark.parametrize(("target", "name", "notice"), UNKNOWN)
async def test_a_pause_of_what_nobody_knows_says_so(
    dsn: str, utils: WorkerUtils, target: str, name: str, notice: str
) -> None:
    await asyncio.to_thread(Jobs(dsn).add, "send_mail", queue_name="mail")
    made = await utils.pause(**{target: name})  # type: ignore[arg-type]
    assert str(made.notice).startswith(notice)
    assert ("did you mean 'send_mail'?" in str(made.notice)) == (name == "send_mal")
    assert [each.notice for each in await utils.pauses()] == [None]
    known = await utils.pause(task="send_mail")
    assert known.notice is None
    result = await asyncio.to_thread(
        CliRunner().invoke, main, ["pause", f"--{target}", name, "--connection", dsn]
    )
    assert (result.exit_code, result.stdout) == (0, f"Paused {target} '{name}'.\n")
    # A queue is known from its first pause on.
    assert (f"Note: {notice}" in result.stderr) == (target == "task")


COPIES: Final = """
insert into graphile_worker._private_jobs (task_id, payload)
select task_id, payload from graphile_worker._private_jobs, generate_series(2, %s)
"""


@pytest.mark.timeout(120)  # with `--long`
async def test_paused_jobs_in_front_do_not_keep_others_waiting(
    dsn: str, utils: WorkerUtils, request: pytest.FixtureRequest
) -> None:
    number = 500_000 if request.config.getoption("--long") else 20_000
    jobs, work = Jobs(dsn), Work()
    jobs.add("slow")
    with psycopg.connect(dsn, autocommit=True) as conn:
        await asyncio.to_thread(conn.execute, COPIES, (number,))
        await asyncio.to_thread(conn.execute, "vacuum analyze graphile_worker._private_jobs")
    await utils.pause(task="slow")
    took: list[float] = []
    async with Runner(dsn, tasks={"quick": work.quick, "slow": work.slow}, concurrent_jobs=10):
        for each in map(str, range(10)):
            begun = time.monotonic()
            await utils.add_job("quick", each)
            await eventually(partial(work.ran.__contains__, each))
            took.append(time.monotonic() - begun)
    assert sorted(took)[len(took) // 2] < 1
    assert "slow" not in work.ran
