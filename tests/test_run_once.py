"""`run_once` runs what is due, and returns."""

import asyncio
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import dict_row

from graphile_worker_py import (
    ConfigurationError,
    CronItem,
    JobContext,
    SyncJobContext,
    parse_cron_items,
    run_once,
)
from graphile_worker_py.events import PoolRelease
from graphile_worker_py.options import LocalQueueOptions
from tests.support.running import Jobs, Told

PREFETCHING = [LocalQueueOptions(), LocalQueueOptions(size=1), LocalQueueOptions(size=50)]
NAMES = ["no prefetch", "prefetch 1", "prefetch 50"]
prefetching = pytest.mark.parametrize("local_queue", PREFETCHING, ids=NAMES)


@prefetching
async def test_it_runs_all_jobs_that_are_due(dsn: str, local_queue: LocalQueueOptions) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(40, "work")
    seen = []

    async def work(payload: Any) -> None:
        seen.append(payload["n"])

    await run_once(dsn, tasks={"work": work}, concurrent_jobs=4, local_queue=local_queue)
    assert sorted(seen) == list(range(40))
    assert jobs.ids() == []


@prefetching
async def test_it_runs_what_the_jobs_add(dsn: str, local_queue: LocalQueueOptions) -> None:
    jobs = Jobs(dsn)
    jobs.add("count_down", 5)
    seen = []

    async def count_down(payload: int, ctx: JobContext) -> None:
        seen.append(payload)
        if payload > 0:
            await ctx.add_job("count_down", payload - 1)

    await run_once(dsn, tasks={"count_down": count_down}, local_queue=local_queue)
    assert seen == [5, 4, 3, 2, 1, 0]


@prefetching
@pytest.mark.parametrize("concurrent_jobs", [1, 3])
async def test_it_drains_serial_queues_without_polling(
    dsn: str, local_queue: LocalQueueOptions, concurrent_jobs: int
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(20, "work", "left")
    jobs.add_many(20, "work", "right")
    seen = []

    async def work(payload: Any, ctx: JobContext) -> None:
        seen.append(ctx.job.id)

    await run_once(
        dsn,
        tasks={"work": work},
        concurrent_jobs=concurrent_jobs,
        local_queue=local_queue,
        poll_interval=3600,
    )
    assert len(seen) == 40
    assert jobs.ids() == []
    assert jobs.locked() == []


async def test_it_leaves_what_is_not_due_or_not_its_own(dsn: str) -> None:
    jobs = Jobs(dsn)
    future = jobs.add("work", run_at="2100-01-01")
    never = jobs.add("work", run_at="infinity")
    unknown = jobs.add("somebody_elses")
    locked = jobs.add("work")
    jobs.change(locked, "locked_at = now(), locked_by = 'pool-other'")
    exhausted = jobs.add("work", max_attempts=3)
    jobs.change(exhausted, "attempts = 3")
    in_locked_queue = jobs.add("work", queue_name="busy")
    jobs.query(
        "update graphile_worker._private_job_queues set locked_at = now(), locked_by = 'pool-other'"
    )
    before = jobs.snapshot()
    ran = []

    async def work(payload: Any) -> None:
        ran.append(payload)

    await run_once(dsn, tasks={"work": work})
    assert ran == []
    assert jobs.ids() == [future, never, unknown, locked, exhausted, in_locked_queue]
    assert jobs.snapshot() == before


async def test_a_job_at_minus_infinity_runs_and_blocks_nobody(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("work", "first", run_at="-infinity")
    jobs.add("fail", "second", run_at="-infinity")
    jobs.add("work", "third")
    seen = []

    async def work(payload: Any, ctx: JobContext) -> None:
        seen.append((payload, ctx.job.run_at.year))

    async def fail(payload: Any) -> None:
        raise ValueError(payload)

    tasks: dict[str, Any] = {"work": work, "fail": fail}
    await run_once(dsn, tasks=tasks)
    assert [payload for payload, _ in seen] == ["first", "third"]
    assert seen[0][1] == 1
    (failed,) = jobs.query(
        "select run_at between now() and now() + interval '3 s' as soon, last_error"
        " from graphile_worker._private_jobs"
    )
    assert failed == {"soon": True, "last_error": "second"}


async def test_a_failed_job_is_not_waited_for(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("fail")

    async def fail(payload: Any) -> None:
        raise ValueError("no")

    await run_once(dsn, tasks={"fail": fail})
    assert jobs.one(job_id)["attempts"] == 1
    await run_once(dsn, tasks={"fail": fail})
    assert jobs.one(job_id)["attempts"] == 1
    jobs.make_due()
    await run_once(dsn, tasks={"fail": fail})
    assert jobs.one(job_id)["attempts"] == 2


async def test_its_jobs_are_locked_by_a_pool_id_of_graphile_workers_form(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("look", queue_name="q")
    seen: list[Any] = []

    async def look(payload: Any, ctx: JobContext) -> None:
        seen.append((ctx.pool_id, ctx.job.locked_by, jobs.one(job_id)["locked_by"]))
        seen.append(jobs.query("select locked_by from graphile_worker._private_job_queues"))

    await run_once(dsn, tasks={"look": look})
    (pool_id, told, stored), (queue,) = seen
    assert pool_id == told == stored == queue["locked_by"]
    prefix, _, digits = pool_id.partition("-")
    assert prefix == "otpool"
    assert len(digits) == 18
    assert set(digits) <= set("0123456789abcdef")


async def test_it_takes_plain_functions_and_async_ones(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("plain", 1)
    jobs.add("bare", 2)
    jobs.add("modern", 3)
    seen: list[Any] = []

    def plain(payload: Any, ctx: SyncJobContext) -> None:
        seen.append(("plain", payload, ctx.job.task_identifier))

    def bare() -> None:
        seen.append(("bare",))

    async def modern(payload: Any) -> None:
        seen.append(("modern", payload))

    tasks: dict[str, Any] = {"plain": plain, "bare": bare, "modern": modern}
    await run_once(dsn, tasks=tasks)
    assert sorted(seen) == [("bare",), ("modern", 3), ("plain", 1, "plain")]


async def test_a_pool_of_the_callers_is_used_as_it_is_and_left_open(dsn: str) -> None:
    """Not in autocommit mode, and with rows of the caller's kind."""
    jobs = Jobs(dsn)
    jobs.add_many(5, "work", "q")
    seen = []

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            row = await (await conn.execute("select 1 as one")).fetchone()
        seen.append(row)
        await ctx.get_queue_name()

    async with psycopg_pool.AsyncConnectionPool(
        dsn, kwargs={"row_factory": dict_row}, min_size=0, max_size=4, open=False
    ) as pool:
        await run_once(pool, tasks={"work": work})
        assert not pool.closed
        async with pool.connection() as conn:
            await conn.execute("select 1")
    assert seen == [{"one": 1}] * 5
    assert jobs.ids() == []


async def test_an_unreachable_database_is_told_at_once() -> None:
    dsn = "postgresql://nobody@127.0.0.1:1/nothing"
    with pytest.raises(psycopg.OperationalError, match="refused"):
        await run_once(dsn, tasks={"work": print})


async def test_stale_locks_are_left_to_the_sweep_of_a_runner(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("work")
    jobs.change(job_id, "locked_at = now() - interval '5 hours', locked_by = 'pool-dead'")
    await run_once(dsn, tasks={"work": print})
    assert jobs.one(job_id)["locked_by"] == "pool-dead"


async def test_cancelling_it_gives_the_running_job_back(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("hang", queue_name="q")
    started = asyncio.Event()
    told = Told()

    async def hang(payload: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(run_once(dsn, tasks={"hang": hang}, events=told.events))
    await asyncio.wait_for(started.wait(), 15)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert jobs.one(job_id)["attempts"] == 0
    assert jobs.locked() == []
    assert told.of(PoolRelease)


async def test_a_right_that_is_missing_ends_it_with_the_databases_words(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.query("alter table graphile_worker._private_jobs rename to hidden")
    with pytest.raises(psycopg.errors.UndefinedTable):
        await run_once(dsn, tasks={"work": print})


async def test_tasks_that_are_known_use_up_no_numbers(dsn: str) -> None:
    jobs = Jobs(dsn)
    for _ in range(3):
        await run_once(dsn, tasks={"one": print, "two": print})
    assert jobs.query("select last_value from graphile_worker.tasks_id_seq") == [{"last_value": 2}]


async def test_it_does_not_wait_for_company_for_its_last_outcomes(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("succeed", queue_name="q")
    failed = jobs.add("fail", queue_name="q")

    async def fail() -> None:
        raise ValueError("no")

    await run_once(
        dsn,
        tasks={"succeed": print, "fail": fail},
        complete_job_batch_delay=3600,
        fail_job_batch_delay=3600,
    )
    assert jobs.ids() == [failed]
    assert jobs.one(failed)["last_error"] == "no"


async def test_it_returns_what_happened_to_the_jobs(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "work")
    failing = jobs.add("fail", max_attempts=1)
    retried = jobs.add("fail")

    async def fail(payload: Any) -> None:
        raise ValueError("no way")

    tasks: dict[str, Any] = {"work": print, "fail": fail}
    result = await run_once(dsn, tasks=tasks)
    assert (result.completed, result.returned) == (2, 0)
    assert {event.job.id: event.retry_at is None for event in result.failed} == {
        failing: True,
        retried: False,
    }
    with pytest.raises(BaseExceptionGroup, match="2 attempts failed") as raised:
        result.raise_errors()
    assert [str(error) for error in raised.value.exceptions] == ["no way", "no way"]

    result = await run_once(dsn, tasks=tasks, raise_errors=True)
    assert (result.completed, result.failed) == (0, ())
    result.raise_errors()


async def test_it_raises_the_error_of_a_task_if_it_is_asked_to(dsn: str) -> None:
    job_id = Jobs(dsn).add("fail")

    def fail(payload: Any) -> None:
        raise ValueError("no way")

    with pytest.raises(ValueError, match="no way"):
        await run_once(dsn, tasks={"fail": fail}, raise_errors=True)
    row = Jobs(dsn).one(job_id)
    assert (row["attempts"], row["locked_at"], row["last_error"]) == (1, None, "no way")


@pytest.mark.parametrize(
    "cron",
    [
        {"crontab": "* * * * * work"},
        {"parsed_cron_items": parse_cron_items([CronItem("work", "* * * * *")])},
    ],
    ids=["crontab", "items"],
)
async def test_it_refuses_recurring_jobs(dsn: str, cron: Any) -> None:
    with pytest.raises(ConfigurationError, match="run_once adds no recurring jobs"):
        await run_once(dsn, tasks={"work": print}, **cron)
