"""`ctx.transaction()` and `ctx.complete_with()`: effects and completion commit together."""

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from graphile_worker_py import JobContext, LocalQueueOptions, Runner, SyncJobContext, run_once
from graphile_worker_py.events import JobComplete, JobError, JobLost, JobStart, JobSuccess
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.running import Jobs, Told

TABLE = "create table effects (job_id int8)"
EFFECT = "insert into effects values (%s)"
# A commit that waits for a lock, in a trigger that is deferred until then.
WAITING_COMMIT = """
create function wait() returns trigger language plpgsql as $$
begin perform pg_advisory_xact_lock(1); return null; end $$;
create constraint trigger wait after insert on effects deferrable initially deferred
for each row execute function wait();
"""
IN_COMMIT = (
    "select pid from pg_stat_activity where query ilike 'commit%%' and wait_event = 'advisory'"
    " and datname = current_database()"
)
END_COMMIT = IN_COMMIT.replace("select pid", "select pg_terminate_backend(pid) as ended")
LOCKED_JOB = """
select id from graphile_worker._private_jobs where id = %s and locked_by is not null
"""
LOCKED_QUEUES = "select id from graphile_worker._private_job_queues where not is_available"
LOCKED_TABLE = "select 1 as one from pg_locks where relation = 'effects'::regclass"
TAKE = "update graphile_worker._private_jobs set locked_by = 'another' where id = %s returning id"


@pytest.fixture
def jobs(dsn: str) -> Jobs:
    """The job table, and one for effects."""
    made = Jobs(dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(TABLE)
    return made


def effects(jobs: Jobs) -> list[int]:
    """The jobs that have had their effect."""
    return sorted(row["job_id"] for row in jobs.query("select job_id from effects"))


async def transfer(_payload: Any, ctx: JobContext) -> None:
    """Have an effect on the event loop."""
    async with ctx.transaction() as conn:
        await conn.execute(EFFECT, [ctx.job.id])
        await ctx.add_job("next", {"after": ctx.job.id})


def transfer_in_thread(_payload: Any, ctx: SyncJobContext) -> None:
    """Have an effect in a thread."""
    with ctx.transaction() as conn:
        conn.execute(EFFECT, [ctx.job.id])


@pytest.mark.parametrize("task", [transfer, transfer_in_thread])
@pytest.mark.parametrize("queue_name", [None, "q"])
async def test_effect_and_completion_are_one_transaction(
    dsn: str, jobs: Jobs, task: Any, queue_name: str | None
) -> None:
    told = Told()
    ids = [jobs.add("work", queue_name=queue_name) for _ in range(3)]
    await run_once(dsn, tasks={"work": task}, events=told.events)
    assert effects(jobs) == ids
    assert set(jobs.ids()).isdisjoint(ids)
    assert len(told.of(JobSuccess)) == 3
    assert told.of(JobLost) == []
    assert jobs.query(LOCKED_QUEUES) == []


async def test_jobs_added_in_the_block_are_part_of_it(dsn: str, jobs: Jobs) -> None:
    async def fail(_payload: Any, ctx: JobContext) -> None:
        async with ctx.transaction() as conn:
            await conn.execute(EFFECT, [ctx.job.id])
            await ctx.add_job("next")
            raise ValueError("rolled back")

    job_id = jobs.add("work")
    await run_once(dsn, tasks={"work": fail})
    assert effects(jobs) == []
    assert jobs.ids() == [job_id]
    assert jobs.one(job_id)["last_error"] == "rolled back"


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_an_error_after_the_block_is_logged_and_the_job_is_done(
    dsn: str, jobs: Jobs, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_loop(payload: Any, ctx: JobContext) -> None:
        await transfer(payload, ctx)
        raise ValueError("too late")

    def in_thread(payload: Any, ctx: SyncJobContext) -> None:
        transfer_in_thread(payload, ctx)
        raise ValueError("too late")

    told = Told()
    job_id = jobs.add("work")
    work: Any = on_loop if kind == "async" else in_thread
    await run_once(dsn, tasks={"work": work}, events=told.events)
    assert effects(jobs) == [job_id]
    assert job_id not in jobs.ids()
    assert told.of(JobError) == []
    assert "was completed by its task, which raised an error afterwards" in caplog.text


@pytest.mark.parametrize("task", [transfer, transfer_in_thread])
async def test_if_another_worker_has_the_job_nothing_is_committed(
    dsn: str, jobs: Jobs, task: Any
) -> None:
    seen: list[str] = []

    async def lose(payload: Any, ctx: JobContext) -> None:
        jobs.query(TAKE, ctx.job.id)
        try:
            await transfer(payload, ctx)
        except Exception as error:
            seen.append(f"{type(error).__name__}: {error}")
            raise

    def lose_in_thread(payload: Any, ctx: SyncJobContext) -> None:
        jobs.query(TAKE, ctx.job.id)
        try:
            transfer_in_thread(payload, ctx)
        except Exception as error:
            seen.append(f"{type(error).__name__}: {error}")
            raise

    work: Any = lose if task is transfer else lose_in_thread
    job_id = jobs.add("work")
    await run_once(dsn, tasks={"work": work})
    assert effects(jobs) == []
    assert jobs.one(job_id)["locked_by"] == "another"
    (error,) = seen
    assert error.startswith(f"JobLostError: job {job_id} is no longer locked by this pool")


@pytest.mark.parametrize("committed", [True, False])
async def test_if_the_connection_is_lost_at_commit_the_row_decides(
    dsn: str, jobs: Jobs, committed: bool
) -> None:
    told = Told()
    job_id = jobs.add("work")
    async with Proxy(dsn).running() as proxy, await AsyncConnection.connect(dsn) as other:
        await other.execute(WAITING_COMMIT)
        await other.execute("select pg_advisory_lock(1)")
        await other.commit()
        async with Runner(proxy.dsn, tasks={"work": transfer}, events=told.events):
            await eventually(lambda: jobs.query(IN_COMMIT))
            if committed:
                with proxy.answers_held():
                    await other.execute("select pg_advisory_unlock(1)")
                    await eventually(lambda: effects(jobs) == [job_id])
            else:
                jobs.query(END_COMMIT)
            await told.seen(JobComplete)
            await eventually(lambda: jobs.query(LOCKED_JOB, job_id) == [])
    if committed:
        assert effects(jobs) == [job_id]
        assert job_id not in jobs.ids()
        assert told.of(JobError) + told.of(JobLost) == []
    else:
        assert effects(jobs) == []
        assert "terminating connection" in jobs.one(job_id)["last_error"]


async def test_complete_with_commits_with_the_tasks_own_connection(dsn: str, jobs: Jobs) -> None:
    async def on_loop(payload: Any, ctx: JobContext) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute(EFFECT, [ctx.job.id])
            await ctx.complete_with(conn)
            if payload.get("rolls_back"):
                await conn.rollback()

    def in_thread(payload: Any, ctx: SyncJobContext) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute(EFFECT, [ctx.job.id])
            ctx.complete_with(conn)
            if payload.get("fails"):
                raise ValueError("rolled back")

    told = Told()
    done = [jobs.add("on_loop", {}), jobs.add("in_thread", {})]
    rolled_back = jobs.add("on_loop", {"rolls_back": True})
    failed = jobs.add("in_thread", {"fails": True})
    tasks: dict[str, Any] = {"on_loop": on_loop, "in_thread": in_thread}
    await run_once(dsn, tasks=tasks, events=told.events)
    assert effects(jobs) == done
    # The task that rolled back and returned has succeeded without its effect, as it wanted.
    assert jobs.ids() == [failed]
    assert jobs.one(failed)["last_error"] == "rolled back"
    assert rolled_back not in jobs.ids()
    assert told.of(JobLost) == []


async def test_a_job_is_completed_once(dsn: str, jobs: Jobs) -> None:
    async def twice(payload: Any, ctx: JobContext) -> None:
        await transfer(payload, ctx)
        await transfer(payload, ctx)

    job_id = jobs.add("work")
    await run_once(dsn, tasks={"work": twice})
    assert effects(jobs) == [job_id]
    assert job_id not in jobs.ids()


async def nested(_payload: Any, ctx: JobContext) -> None:
    async with ctx.transaction() as conn:
        await conn.execute(EFFECT, [ctx.job.id])
        async with ctx.transaction():
            pass


def nested_in_thread(_payload: Any, ctx: SyncJobContext) -> None:
    with ctx.transaction() as conn:
        conn.execute(EFFECT, [ctx.job.id])
        with ctx.transaction():
            pass


async def side_by_side(_payload: Any, ctx: JobContext) -> None:
    async with ctx.transaction() as conn, ctx.connection() as other:
        await conn.execute(EFFECT, [ctx.job.id])
        await ctx.complete_with(other)


def side_by_side_in_thread(_payload: Any, ctx: SyncJobContext) -> None:
    with ctx.transaction() as conn, ctx.connection() as other:
        conn.execute(EFFECT, [ctx.job.id])
        ctx.complete_with(other)


@pytest.mark.parametrize("task", [nested, nested_in_thread, side_by_side, side_by_side_in_thread])
async def test_an_open_block_lets_nothing_else_complete_the_job(
    dsn: str, jobs: Jobs, task: Any
) -> None:
    job_id = jobs.add("work")
    await run_once(dsn, tasks={"work": task}, max_pool_size=5)
    assert effects(jobs) == []
    assert f"job {job_id} has an open transaction() block" in jobs.one(job_id)["last_error"]


async def test_more_blocks_than_connections_wait_for_their_turn(dsn: str, jobs: Jobs) -> None:
    running = 0
    most = 0

    async def work(_payload: Any, ctx: JobContext) -> None:
        nonlocal running, most
        async with ctx.transaction() as conn:
            running += 1
            most = max(most, running)
            await conn.execute(EFFECT, [ctx.job.id])
            await asyncio.sleep(0.02)
            running -= 1

    ids = jobs.add_many(20, "work")
    await run_once(dsn, tasks={"work": work}, concurrent_jobs=20, max_pool_size=6)
    assert effects(jobs) == sorted(ids)
    assert most == 2


async def test_a_block_that_is_cut_off_is_rolled_back(dsn: str, jobs: Jobs) -> None:
    told = Told()

    async def work(_payload: Any, ctx: JobContext) -> None:
        async with ctx.transaction() as conn:
            await conn.execute(EFFECT, [ctx.job.id])
            await asyncio.Event().wait()

    job_id = jobs.add("work")
    async with Runner(dsn, tasks={"work": work}, events=told.events) as runner:
        await told.seen(JobStart)
        await eventually(lambda: jobs.query(LOCKED_TABLE))
        await runner.kill()
    assert effects(jobs) == []
    assert (jobs.one(job_id)["attempts"], jobs.one(job_id)["locked_by"]) == (0, None)


async def test_with_prefetching_completed_jobs_are_let_go(dsn: str, jobs: Jobs) -> None:
    told = Told()
    ids = jobs.add_many(5, "work")
    queue = LocalQueueOptions(size=3)
    async with Runner(
        dsn, tasks={"work": transfer}, local_queue=queue, events=told.events
    ) as runner:
        await told.seen(JobComplete, count=5)
        await eventually(lambda: runner.health().locked_jobs == 0)
    assert effects(jobs) == sorted(ids)
