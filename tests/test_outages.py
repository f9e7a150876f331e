"""The database goes away and comes back: every outcome is recorded, once."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import psycopg
import pytest

from graphile_worker_py import JobContext, LocalQueueOptions, Runner, WorkerPoolError, run_once
from graphile_worker_py.backoff import Backoff
from graphile_worker_py.events import (
    JobError,
    JobLost,
    JobStart,
    JobSuccess,
    LocalQueueGetJobsComplete,
    PoolGracefulShutdownError,
    PoolListenError,
    PoolListenSuccess,
    WorkerGetJobError,
)
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.running import Jobs, Told, impatient

PARTS = ("complete jobs", "fetch jobs", "listen for new jobs", "send a heartbeat")
TERMINATE_ALL = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
OTHERS = """
select pid from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
FAIL_WRITES = """
create function graphile_worker.fail_some() returns trigger language plpgsql as $$
begin
  if nextval('graphile_worker.failures') <= {failures} then
    raise exception 'for the test' using errcode = '{code}';
  end if;
  return case tg_op when 'DELETE' then old else new end;
end $$;
create sequence graphile_worker.failures;
create trigger fail_some before {operation} on graphile_worker._private_jobs
for each row execute function graphile_worker.fail_some();
"""


HOLD_DELETES = """
create function graphile_worker.hold() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(77);
  return null;
end $$;
create trigger hold after delete on graphile_worker._private_jobs
for each statement execute function graphile_worker.hold();
"""
HELD_DELETES = """
select pid from pg_locks
where locktype = 'advisory' and objid = 77 and not granted
  and database = (select oid from pg_database where datname = current_database())
"""


async def test_when_all_connections_are_terminated_outcomes_are_recorded_once_back(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    good, bad = jobs.add_many(6, "succeed", "q"), jobs.add_many(4, "fail")
    finish = asyncio.Event()
    ran: list[int] = []

    async def succeed(payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.job.id)
        await finish.wait()

    async def fail(payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.job.id)
        await finish.wait()
        raise ValueError("no")

    async with Runner(
        dsn,
        tasks={"succeed": succeed, "fail": fail},
        concurrent_jobs=6,
        poll_interval=3600,
        events=told.events,
    ):
        await told.seen(JobStart, count=5)
        await told.seen(PoolListenSuccess)
        jobs.query(TERMINATE_ALL)
        finish.set()
        await told.seen(PoolListenSuccess, count=2)
        await told.seen(JobSuccess, count=6)
        await eventually(lambda: jobs.ids() == bad)
    assert sorted(ran) == sorted(good + bad)
    assert jobs.locked() == []
    assert {(job["attempts"], job["last_error"]) for job in jobs.all()} == {(1, "no")}
    assert told.of(JobLost) == []


def has_failed_twice(caplog: pytest.LogCaptureFixture, part: str) -> bool:
    """Whether a part of the worker has failed, and failed again."""
    return caplog.text.count(f"ould not {part} (") > 1


async def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(2, "wait")
    finish = asyncio.Event()

    async def wait(payload: Any) -> None:
        await finish.wait()

    caplog.set_level(logging.DEBUG, logger="graphile_worker_py")
    async with (
        Proxy(dsn).running() as proxy,
        Runner(
            proxy.dsn,
            tasks={"wait": wait},
            concurrent_jobs=4,
            poll_interval=0.1,
            heartbeat_interval=0.2,
            dead_after=2,
            events=told.events,
        ),
    ):
        await told.seen(JobStart, count=2)
        await told.seen(PoolListenSuccess)
        for parts in (PARTS, PARTS[1:]):
            caplog.clear()
            proxy.refuse()
            finish.set()
            for part in parts:
                await eventually(partial(has_failed_twice, caplog, part))
            # The pool does not fetch any more, which is no sign that the database works.
            await eventually(lambda: "Fetching no jobs: " in caplog.text)
            proxy.accept()
            await eventually(lambda: "The database works again after" in caplog.text)
            loud = [each for each in caplog.records if each.levelno >= logging.INFO]
            ours = [each.getMessage() for each in loud if each.name.startswith("graphile")]
            begin, *between, end = [text for text in ours if not text.startswith("Completed job")]
            assert begin.startswith("The database failed: could not ")
            assert between == []
            assert end.startswith("The database works again after ")
        await eventually(lambda: not jobs.ids())


async def test_the_listener_connects_again_as_soon_as_another_part_works(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    patient = impatient(reconnect=Backoff(shortest=60, longest=60))
    caplog.set_level(logging.DEBUG, logger="graphile_worker_py")
    async with (
        Proxy(dsn).running() as proxy,
        patient(
            proxy.dsn,
            tasks={"work": print},
            poll_interval=0.1,
            heartbeat_interval=0.2,
            dead_after=2,
            events=told.events,
        ),
    ):
        await told.seen(PoolListenSuccess)
        proxy.refuse()
        await told.seen(PoolListenError)
        await told.seen(WorkerGetJobError)
        await eventually(lambda: "Fetching no jobs: " in caplog.text)
        proxy.accept()
        await told.seen(PoolListenSuccess, count=2)
        jobs.add("work")
        await told.seen(JobSuccess)


async def test_many_lost_connections_do_not_cost_a_failure_each(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A pool hands out its dead connections one after the other, unless somebody checks."""
    jobs, told = Jobs(dsn), Told()
    together = asyncio.Barrier(8)

    async def borrow(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            await conn.execute("select 1")
            await together.wait()

    jobs.add_many(8, "borrow")
    async with Runner(
        dsn,
        tasks={"borrow": borrow, "work": print},
        concurrent_jobs=8,
        max_pool_size=20,
        poll_interval=3600,
        events=told.events,
    ) as runner:
        await told.seen(JobSuccess, count=8)
        await eventually(lambda: not jobs.ids())
        jobs.query(TERMINATE_ALL)
        while jobs.query(OTHERS):
            # The loop stands still: nobody is to meet one that is about to end.
            time.sleep(0.01)  # noqa: ASYNC251
        with suppress(psycopg.OperationalError):
            await runner.add_job("work")
        await runner.add_job("work")
        await eventually(lambda: not jobs.ids())
    assert len(told.of(WorkerGetJobError)) <= 1
    assert caplog.text.count("ould not fetch") <= 1
    assert caplog.text.count("ould not complete") <= 1


@pytest.mark.parametrize("operation", ["delete", "update"])
@pytest.mark.parametrize("code", ["40001", "40P01", "57014", "53200", "55P03", "58030", "25006"])
async def test_a_write_that_may_succeed_later_is_tried_again(
    dsn: str, operation: str, code: str
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(2, "succeed", "q")
    jobs.add_many(2, "fail", "r")
    told_code = FAIL_WRITES.format(failures=2, code=code, operation=operation)

    async def succeed(payload: Any) -> None:
        if payload["n"] == 0:
            jobs.query(told_code)

    async def fail(payload: Any) -> None:
        raise ValueError("no")

    await run_once(dsn, tasks={"succeed": succeed, "fail": fail}, events=told.events)
    assert [job["last_error"] for job in jobs.all()] == ["no", "no"]
    assert len(told.of(JobSuccess)) == 2
    assert len(told.of(JobError)) == 2
    assert jobs.locked() == []


async def test_one_outcome_that_cannot_be_written_does_not_take_the_others_with_it(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(5, "work")
    await jobs.in_thread(
        "create function graphile_worker.keep() returns trigger language plpgsql as"
        " $$ begin raise exception 'never' using errcode = '23503'; end $$;"
        "create trigger keep before delete or update on graphile_worker._private_jobs for each row"
        " when (old.id = 3 and old.locked_by is not null) execute function graphile_worker.keep()"
    )
    together = asyncio.Barrier(5)

    async def work(payload: Any) -> None:
        if payload is not None:
            await together.wait()

    with pytest.raises(WorkerPoolError, match=r"1 job.s. whose outcome could not be .*: 3$"):
        async with Runner(dsn, tasks={"work": work}, concurrent_jobs=5, events=told.events):
            await eventually(lambda: jobs.ids() == [3])
            await jobs.in_thread("select graphile_worker.add_job('work', 'null')")
            await eventually(lambda: len(told.of(JobSuccess)) == 6)
    assert jobs.ids() == [3]
    assert "Could not fail job 3 (work), which stays locked by this pool: " in caplog.text


class LostAnswer:
    """Lets a fetch lock a job, and its answer be lost: called by the worker before each fetch."""

    def __init__(self, proxy: Proxy, jobs: Jobs) -> None:
        self._proxy = proxy
        self._jobs = jobs
        self._held = ExitStack()
        self._armed = False

    def __call__(self) -> list[str]:
        """Hold the answer to the fetch that comes next, and see to it that it finds a job."""
        if self._armed:
            self._armed = False
            self._held.enter_context(self._proxy.answers_held())
            self._jobs.add("work", queue_name="q")
        return []

    @asynccontextmanager
    async def locking(self) -> AsyncIterator[None]:
        """Within the block the job is locked, and the worker does not know."""
        self._armed = True
        with self._held:
            await eventually(lambda: len(self._jobs.locked()) == 2)
            yield


async def test_jobs_of_a_fetch_whose_answer_was_lost_are_returned(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    ran: list[tuple[int, int]] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        ran.append((ctx.job.id, ctx.job.attempts))

    async with Proxy(dsn).running() as proxy:
        lost_answer = LostAnswer(proxy, jobs)
        async with Runner(
            proxy.dsn,
            tasks={"work": work},
            poll_interval=0.1,
            forbidden_flags=lost_answer,
            prepared_statements=False,  # so that one message is enough
            events=told.events,
        ) as runner:
            await told.seen(PoolListenSuccess)
            async with lost_answer.locking():
                assert jobs.all()[0]["locked_by"] == runner.pool_id
                assert ran == []
            await told.seen(JobSuccess, timeout=10)
    # The attempt that was lost does not count.
    assert ran == [(1, 1)]
    assert jobs.ids() == []
    assert jobs.locked() == []


async def test_a_stop_leaves_nothing_locked_of_a_fetch_whose_answer_was_lost(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    stopping: list[asyncio.Task[None]] = []
    async with Proxy(dsn).running() as proxy:
        lost_answer = LostAnswer(proxy, jobs)
        async with Runner(
            proxy.dsn,
            tasks={"work": print},
            poll_interval=0.1,
            forbidden_flags=lost_answer,
            prepared_statements=False,  # so that one message is enough
            events=told.events,
        ) as runner:
            await told.seen(PoolListenSuccess)
            # At the very moment at which the fetch has failed it is told to stop.
            told.events.subscribe(
                WorkerGetJobError, lambda _: stopping.append(asyncio.create_task(runner.stop()))
            )
            async with lost_answer.locking():
                pass
            await told.seen(WorkerGetJobError)
            await stopping[0]
    assert jobs.locked() == []
    assert jobs.one(1)["attempts"] == 0


@pytest.mark.timeout(30)
async def test_a_stop_while_the_database_is_away_says_what_it_cannot_know(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Proxy(dsn).running() as proxy:
        with pytest.raises(WorkerPoolError, match="a fetch was not answered"):
            async with impatient(stop=0.3)(
                proxy.dsn, tasks={"work": print}, poll_interval=0.05, events=told.events
            ):
                await told.seen(PoolListenSuccess)
                proxy.refuse()
                # The first one leaves the doubt, the second one could not resolve it.
                await told.seen(WorkerGetJobError, count=2)
        proxy.accept()
    (end,) = told.of(PoolGracefulShutdownError)
    assert "a fetch was not answered" in str(end.error)
    assert jobs.locked() == []


async def test_an_outcome_that_arrived_although_its_answer_was_lost_is_no_lost_job(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    finish = asyncio.Event()

    async def work(_payload: Any) -> None:
        await finish.wait()

    async with (
        Proxy(dsn).running() as proxy,
        Runner(
            proxy.dsn,
            tasks={"warm": print, "work": work},
            concurrent_jobs=3,
            poll_interval=3600,
            prepared_statements=False,  # so that one message is enough
            events=told.events,
        ),
    ):
        await told.seen(PoolListenSuccess)
        # So that the connection for outcomes is there.
        jobs.add("warm")
        await eventually(lambda: jobs.ids() == [])
        jobs.add_many(3, "work")
        await told.seen(JobStart, count=4)
        with proxy.answers_held():
            finish.set()
            await eventually(lambda: jobs.ids() == [])
    assert told.of(JobLost) == []
    assert len(told.of(JobSuccess)) == 4


async def test_an_outcome_of_a_job_that_is_no_longer_ours_changes_nothing(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    for payload in ("succeed", "fail", "vanish"):
        jobs.add("work", payload, queue_name=payload)
    finish = asyncio.Event()

    async def work(payload: str) -> None:
        await finish.wait()
        if payload == "fail":
            raise ValueError("no")

    async with Runner(
        dsn, tasks={"work": work}, concurrent_jobs=3, poll_interval=3600, events=told.events
    ):
        await told.seen(JobStart, count=3)
        jobs.query("delete from graphile_worker._private_jobs where id = 3")
        jobs.query("update graphile_worker._private_jobs set locked_by = 'pool-other'")
        jobs.query("update graphile_worker._private_job_queues set locked_by = 'pool-other'")
        before = jobs.snapshot()
        finish.set()
        await told.seen(JobSuccess, count=2)
        await told.seen(JobError)
        await eventually(lambda: len(lost(told)) == 3)
    assert sorted(lost(told)) == [1, 2, 3]
    assert jobs.snapshot() == before
    assert sorted(jobs.locked()) == [
        "job 1",
        "job 2",
        "queue fail",
        "queue succeed",
        "queue vanish",
    ]


async def test_a_lock_that_came_after_the_outcome_of_its_job_is_not_left_behind(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    await jobs.in_thread(HOLD_DELETES)
    job_id = jobs.add("work", queue_name="q")
    finish = asyncio.Event()
    ran: list[int] = []
    fetches = itertools.count(1)

    async def work(_payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.job.attempts)
        await finish.wait()

    async def flags() -> list[str]:
        if next(fetches) == 2:  # wait until the outcome has come to the database
            await eventually(lambda: jobs.query(HELD_DELETES))
        return []

    async with await psycopg.AsyncConnection.connect(dsn) as holding:
        await holding.execute("select pg_advisory_xact_lock(77)")
        async with impatient(stop=0.3)(
            dsn, tasks={"work": work}, poll_interval=0.1, forbidden_flags=flags, events=told.events
        ) as runner:
            await told.seen(JobStart)
            # Its outcome will change nothing; but then it is locked by the same pool again.
            jobs.query("select graphile_worker.force_unlock_workers(array[%s])", runner.pool_id)
            finish.set()
            await told.seen(LocalQueueGetJobsComplete, count=2)
            assert jobs.one(job_id)["locked_by"] == runner.pool_id
            assert ran.pop() == 1
            await holding.rollback()
            await told.seen(JobSuccess, count=2)
    # It did not count that it was locked in between.
    assert ran == [2]
    assert lost(told) == [job_id]
    assert jobs.ids() == []
    assert jobs.locked() == []


def lost(told: Told) -> list[int]:
    """Ids of the jobs whose outcome changed nothing."""
    return [job_id for event in told.of(JobLost) for job_id in event.job_ids]


async def test_jobs_fetched_ahead_survive_an_outage(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(30, "work")
    ran: list[int] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.job.id)
        if len(ran) == 5:
            jobs.query(TERMINATE_ALL)

    async with Runner(
        dsn,
        tasks={"work": work},
        local_queue=LocalQueueOptions(size=20),
        complete_job_batch_delay=0.05,
        poll_interval=3600,
        events=told.events,
    ):
        await told.seen(JobSuccess, count=30, timeout=10)
        await eventually(lambda: not jobs.ids())
    assert len(ran) == len(set(ran)) == 30
    assert jobs.locked() == []


async def test_a_worker_starts_to_work_when_the_database_is_there_again(dsn: str) -> None:
    """After the first look at it, which tells at once, an outage is waited for."""
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    told.events.subscribe("pool:create", lambda _: proxy.cut())
    async with (
        Proxy(dsn).running() as proxy,
        Runner(proxy.dsn, tasks={"work": print}, events=told.events),
    ):
        await told.seen(JobSuccess)


async def test_a_stop_during_an_outage_at_the_start_does_not_wait_for_its_end(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    told.events.subscribe("pool:create", lambda _: proxy.refuse())
    async with Proxy(dsn).running() as proxy:
        async with Runner(proxy.dsn, tasks={"work": print}, events=told.events) as runner:
            await eventually(lambda: "could not register the tasks" in caplog.text)
            await asyncio.wait_for(runner.stop(), 15)
        proxy.accept()
    assert told.names()[-1] == "stop"
