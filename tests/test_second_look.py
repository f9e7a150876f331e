"""A job that was hidden for a moment does not wait for the next poll."""

import asyncio

import psycopg

from graphile_worker_py import Events, Runner
from graphile_worker_py.events import JobSuccess, PoolListenSuccess, WorkerGetJobEmpty
from tests.support.running import Jobs, Told


async def test_a_job_hidden_by_anothers_fetch_is_found_without_a_poll(dsn: str) -> None:
    """Each fetch, a Node worker's too, locks all free queues for a moment and hides their jobs."""
    listening, looked, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    events = Events()
    events.subscribe(PoolListenSuccess, lambda _: listening.set())
    # Beginning to listen is a reason to look, and as nothing is found, to look a second time.
    looks = iter([lambda: None, looked.set])
    events.subscribe(WorkerGetJobEmpty, lambda _: listening.is_set() and next(looks, int)())

    async def work(payload: object) -> None:
        done.set()

    async with Runner(dsn, tasks={"work": work}, poll_interval=3600, events=events) as runner:
        await asyncio.wait_for(looked.wait(), 15)
        with psycopg.connect(dsn) as another:
            another.execute("insert into graphile_worker._private_job_queues values (default, 'q')")
            another.commit()
            another.execute("select 1 from graphile_worker._private_job_queues for update")
            # Let go at the very moment at which the worker has found nothing.
            events.subscribe(WorkerGetJobEmpty, lambda _: another.rollback())
            await runner.add_job("work", queue_name="q")
            await asyncio.wait_for(done.wait(), 15)


async def test_jobs_hidden_by_anothers_fetch_are_found_though_nobody_announces_them(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work", queue_name="q")
    async with await psycopg.AsyncConnection.connect(dsn) as another:
        await another.execute("select 1 from graphile_worker._private_job_queues for update")
        async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events):
            # The beginning, and to listen, are reasons for three looks; then there is none.
            await told.seen(WorkerGetJobEmpty, count=5)
            await another.rollback()
            await told.seen(JobSuccess)


async def test_announcements_meanwhile_do_not_put_off_the_next_look(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work", queue_name="q")
    async with await psycopg.AsyncConnection.connect(dsn) as another:
        await another.execute("select 1 from graphile_worker._private_job_queues for update")
        async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events):
            await told.seen(WorkerGetJobEmpty)
            for _ in range(15):
                looks = len(told.of(WorkerGetJobEmpty))
                jobs.query("select pg_notify('jobs:insert', '{\"count\": 1}')")
                await told.seen(WorkerGetJobEmpty, count=looks + 1)
            await another.rollback()
            await told.seen(JobSuccess, timeout=5)
