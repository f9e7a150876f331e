"""Calls of `add_job` that arrive at once share statements, and each behaves as if it were alone."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import psycopg
import pytest

from graphile_worker_py import Job, JobContext, JobSpec, Runner, TaskName, WorkerUtils
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.worker_utils_support import Api

REFUSE = """
create function refuse() returns trigger language plpgsql as $$
begin
  raise exception 'refused';
end $$;
create trigger refuse before insert on graphile_worker._private_jobs
for each row when (new.payload::text = '"bad"') execute function refuse();
"""
TOUCH = "update graphile_worker._private_jobs set priority = 7 where key = %s"
LOCK = "lock table graphile_worker._private_jobs in share mode"
STATEMENTS = "select count(distinct xmin::text) from graphile_worker._private_jobs"
WAITING = """
select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
"""
FILL = """
insert into graphile_worker._private_jobs (task_id) select 1 from generate_series(1, 5000)
"""
READ = """
select coalesce(seq_tup_read, 0) from pg_stat_user_tables
where relname = '_private_jobs' and schemaname = 'graphile_worker'
"""
SESSIONS = """
select pid from pg_stat_activity
where datname = current_database() and backend_type = 'client backend'
  and pid <> pg_backend_pid()
"""
END = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'
"""


def execute(dsn: str, statement: str) -> list[Any]:
    """Run one statement, and return its rows."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(statement)
        return cursor.fetchall() if cursor.description else []


async def at_once(*calls: Any) -> list[Any]:
    """What calls that begin at the same moment return or raise."""
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_calls_at_once_share_statements_and_notifications(dsn: str) -> None:
    async with WorkerUtils(dsn) as utils:
        with psycopg.connect(dsn, autocommit=True) as listener:
            listener.execute('listen "jobs:insert"')
            jobs = await at_once(*[utils.add_job("a", {"at": at}) for at in range(30)])
            heard = list(listener.notifies(timeout=1, stop_after=2))
    assert [job.payload for job in jobs] == [{"at": at} for at in range(30)]
    assert len({job.id for job in jobs}) == 30
    assert execute(dsn, STATEMENTS)[0][0] <= 5
    assert '"count":29' in heard[1].payload


async def test_callers_that_have_got_their_jobs_go_on_together(dsn: str) -> None:
    async with WorkerUtils(dsn) as utils:

        async def two_jobs(at: int) -> None:
            await utils.add_job("first", at)
            await utils.add_job("second", at)

        await asyncio.gather(*[two_jobs(at) for at in range(10)])
    # The first call has a statement of its own, and its second job goes with the others' first.
    seconds = (
        " where payload::text <> '0' and task_id ="
        " (select id from graphile_worker._private_tasks where identifier = 'second')"
    )
    assert execute(dsn, STATEMENTS + seconds) == [(1,)]


@pytest.mark.parametrize("callers", [1, 8])
async def test_adds_do_not_read_all_jobs_that_wait(dsn: str, callers: int) -> None:
    """Also if the first ones found the table empty, and it was never analysed."""
    read_before = execute(dsn, READ)[0][0]
    async with WorkerUtils(dsn) as utils:

        async def add() -> None:
            for at in range(20):
                await utils.add_job("a", at)

        await asyncio.gather(*[add() for _ in range(callers)])
        execute(dsn, FILL)
        await asyncio.gather(*[add() for _ in range(callers)])
    await eventually(lambda: execute(dsn, SESSIONS) == [])  # they count when they end
    assert execute(dsn, READ)[0][0] - read_before < 5_000


async def test_adds_of_threads_share_statements(dsn: str) -> None:
    async with Api("sync").opened(dsn) as utils:
        adding = [utils.add_job("a", {"at": at}) for at in range(200)]
        jobs = await at_once(*adding)
    assert [job.payload for job in jobs] == [{"at": at} for at in range(200)]
    assert execute(dsn, STATEMENTS)[0][0] < 200


async def test_jobs_that_tasks_add_share_statements(dsn: str) -> None:
    added: list[Job] = []

    async def parent(payload: Any, ctx: JobContext) -> None:
        added.append(await ctx.add_job("other", payload))

    async with Runner(dsn, tasks={"parent": parent}, concurrent_jobs=10) as runner:
        await at_once(*[runner.add_job("parent", {"at": at}) for at in range(30)])
        await eventually(lambda: len(added) == 30)
    assert sorted(job.payload["at"] for job in added) == list(range(30))
    assert execute(dsn, STATEMENTS)[0][0] < 30


async def test_a_refused_job_fails_its_own_call_only(utils: WorkerUtils, dsn: str) -> None:
    execute(dsn, REFUSE)
    payloads = [1, 2, "bad", 3, float("nan"), "bad", 4]
    results = await at_once(*[utils.add_job("a", each) for each in payloads])
    assert [type(each).__name__ for each in results] == [
        "Job",
        "Job",
        "RaiseException",
        "Job",
        "ConfigurationError",
        "RaiseException",
        "Job",
    ]
    assert sorted(job["payload"] for job in Jobs(dsn).all()) == [1, 2, 3, 4]


class Fussy(str):
    """A text that can't be compared."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    def __hash__(self) -> int:
        raise RuntimeError("not hashable")

    def __len__(self) -> int:
        raise RuntimeError("no length")


async def test_a_text_that_misbehaves_harms_no_call(utils: WorkerUtils, dsn: str) -> None:
    odd: dict[str, Any] = {"queue_name": Fussy("q"), "flags": [Fussy("f")]}
    jobs = await at_once(
        utils.add_job("a"),
        utils.add_job("a", job_key="k"),
        utils.add_job(Fussy("b"), job_key=Fussy("k2"), job_key_mode=Fussy("replace"), **odd),
        utils.add_job(Fussy("b"), job_key=Fussy("k"), **odd),
        utils.add_job(TaskName(Fussy("b"))),
        utils.add_job("a"),
    )
    assert [job.task_identifier for job in jobs] == ["a", "a", "b", "b", "b", "a"]
    assert jobs[1].id == jobs[3].id
    assert await utils.remove_job(Fussy("k2")) is not None
    found = await utils.list_jobs(task="b", queue="q")
    assert [(job.key, job.flags) for job in found] == [("k", {"f": True})]


class Moment(datetime):
    """A time of a library."""


class Weekly(tzinfo):
    """A time zone that can be asked a few times only."""

    left = 3

    def utcoffset(self, _moment: datetime | None) -> timedelta:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("closed")
        return timedelta(hours=1)


@pytest.mark.parametrize("zone", [None, Weekly])
async def test_a_time_of_a_library_harms_no_call(
    utils: WorkerUtils, zone: type[Weekly] | None
) -> None:
    moment = Moment(2099, 1, 1, 1, tzinfo=UTC)
    if zone is not None:
        moment = Moment(2099, 1, 1, 2, tzinfo=zone())
    jobs = await at_once(
        utils.add_job("a"),
        utils.add_job("a"),
        utils.add_job("b", run_at=moment),
        utils.add_job("c"),
    )
    assert [job.task_identifier for job in jobs] == ["a", "a", "b", "c"]
    assert jobs[2].run_at == datetime(2099, 1, 1, 1, tzinfo=UTC)
    specs = [JobSpec("b", run_at=Moment(2099, 1, 1, tzinfo=UTC)) for _ in range(2)]
    assert len(await utils.add_jobs(specs)) == 2


async def test_adds_with_one_key_act_one_after_the_other(utils: WorkerUtils, stored: Jobs) -> None:
    calls = [utils.add_job("a", [at], job_key=key) for at in range(6) for key in "kl"]
    jobs = await at_once(*calls)
    assert sorted(job.revision for job in jobs) == sorted([*range(6), *range(6)])
    assert {job["key"]: sorted(job["payload"]) for job in stored.all()} == {
        "k": [*range(6)],
        "l": [*range(6)],
    }


async def test_jobs_with_the_same_payload_go_to_their_own_calls(utils: WorkerUtils) -> None:
    wanted: list[dict[str, Any]] = [
        {"identifier": identifier, "queue_name": queue_name, "priority": priority}
        for identifier in "ab"
        for queue_name in ("q", "r", None)
        for priority in (0, 1)
    ]
    jobs = await at_once(*[utils.add_job(**each) for each in wanted * 3])
    assert [(job.task_identifier, job.priority) for job in jobs] == [
        (each["identifier"], each["priority"]) for each in wanted * 3
    ]
    queues = Counter(
        (job.job_queue_id, each["queue_name"]) for job, each in zip(jobs, wanted * 3, strict=True)
    )
    assert sorted(queues.values()) == [12, 12, 12]


async def test_a_call_that_waits_for_a_lock_holds_up_no_other(
    utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    for key in "kl":
        stored.add("a", job_key=key)
    async with asyncio.TaskGroup() as group:
        with psycopg.connect(dsn) as other:
            other.execute(TOUCH, ["k"])
            other.execute(TOUCH, ["l"])
            blocked = [group.create_task(utils.add_job("a", job_key="k"))]
            await stored.seen_waiting()
            blocked.append(group.create_task(utils.add_job("a", job_key="l")))
            free = await at_once(*[utils.add_job("b") for _ in range(5)])
            assert all(isinstance(job, Job) for job in free)
            assert not any(call.done() for call in blocked)
    assert [job.result().revision for job in blocked] == [1, 1]


async def test_a_cancelled_call_ends_alone_and_the_last_one_ends_the_statement(dsn: str) -> None:
    async with WorkerUtils(dsn) as utils:
        with psycopg.connect(dsn) as other:
            other.execute(LOCK)
            calls = [asyncio.create_task(utils.add_job("a", at)) for at in range(5)]
            await asyncio.sleep(0)
            calls[1].cancel()  # it waits
            await eventually(
                lambda: len(execute(dsn, WAITING)) > 1
            )  # the others have gone past the first
            for call in calls[2:4]:
                call.cancel()
            await asyncio.wait(calls[1:4])
            assert not calls[0].done()
            assert not calls[4].done()
            calls[4].cancel()
            await asyncio.wait(calls[4:])
        await calls[0]
        assert [call.cancelled() for call in calls] == [False, True, True, True, True]
        await utils.add_job("a", 5)
    assert [job["payload"] for job in Jobs(dsn).all()] == [0, 5]


async def test_each_call_has_an_error_of_its_own_when_the_connection_is_lost(dsn: str) -> None:
    async with WorkerUtils(dsn) as utils:
        with psycopg.connect(dsn) as other:
            other.execute(LOCK)
            calls = [asyncio.create_task(utils.add_job("a", at)) for at in range(4)]
            await eventually(lambda: len(execute(dsn, WAITING)) > 1)
            execute(dsn, END)
            errors = await at_once(*calls)
        assert len({id(error) for error in errors}) == 4
        assert all(isinstance(error, psycopg.OperationalError) for error in errors)
        assert (await utils.add_job("a", "later")).payload == "later"
    assert [job["payload"] for job in Jobs(dsn).all()] == ["later"]


async def test_calls_with_a_connection_of_the_callers_stay_in_its_transaction(dsn: str) -> None:
    async with WorkerUtils(dsn) as utils, await psycopg.AsyncConnection.connect(dsn) as conn:
        await utils.add_job("a", "before")  # or all wait for those who name the task first
        theirs = [utils.add_job("a", "theirs", conn=conn) for _ in range(3)]
        await at_once(utils.add_job("a", "ours"), *theirs, utils.add_job("a", "ours"))
        await conn.rollback()
    assert [job["payload"] for job in Jobs(dsn).all()] == ["before", "ours", "ours"]
