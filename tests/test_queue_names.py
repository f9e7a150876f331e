"""Tasks ask for the name of their queue: looked up together, and kept."""

import asyncio
from typing import Any

import pytest

from graphile_worker_py import (
    ConfigurationError,
    GraphileWorkerError,
    JobContext,
    SyncJobContext,
    run_once,
    task,
)
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.tasks.queue_names import QueueNames
from tests.support.eventually import eventually
from tests.support.running import Jobs

RENAME = "update graphile_worker._private_job_queues set queue_name = queue_name || ' renamed'"


class Counting(Database):
    """A database that remembers what it was asked."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.asked: list[Any] = []

    async def run(self, query: Query[Any], **options: Any) -> Any:
        """Send a statement, and remember its values."""
        self.asked.append(query.values)
        return await super().run(query, **options)


def ids_of(jobs: Jobs, *names: str) -> list[int]:
    """Make queues; their ids."""
    for name in names:
        jobs.add("work", queue_name=name)
    by_name = {job["queue_name"]: job["job_queue_id"] for job in jobs.all()}
    return [by_name[name] for name in names]


async def test_questions_that_come_together_are_one_look_and_the_names_are_kept(dsn: str) -> None:
    jobs = Jobs(dsn)
    ids = ids_of(jobs, "a", "b", "c")
    async with opened_pool(dsn, max_size=2) as pool:
        database = Counting(pool, schema="graphile_worker")
        names = QueueNames(database, delay=0.05)
        assert await asyncio.gather(*(names.get(each) for each in [*ids, *ids])) == list("abcabc")
        assert [sorted(values[0]) for values in database.asked] == [ids]
        jobs.query(RENAME)
        assert await names.get(ids[0]) == "a"
        assert len(database.asked) == 1


async def test_an_id_that_no_queue_has_is_an_error_for_who_asked_alone(dsn: str) -> None:
    (queue_id,) = ids_of(Jobs(dsn), "a")
    async with opened_pool(dsn, max_size=2) as pool:
        names = QueueNames(Database(pool, schema="graphile_worker"), delay=0.05)
        missing, found, late = await asyncio.gather(
            names.get(777), names.get(queue_id), names.get(777), return_exceptions=True
        )
        assert found == "a"
        for error in (missing, late):
            assert isinstance(error, GraphileWorkerError)
            assert str(error) == "there is no queue with the id 777"


@pytest.mark.parametrize("wrong", ["x", 2**31, -1, [1], None, True])
async def test_what_is_no_id_is_an_error_for_who_asked_alone(dsn: str, wrong: Any) -> None:
    (queue_id,) = ids_of(Jobs(dsn), "a")
    async with opened_pool(dsn, max_size=2) as pool:
        names = QueueNames(Database(pool, schema="graphile_worker"), delay=0.05)
        right, refused = await asyncio.gather(
            names.get(queue_id), names.get(wrong), return_exceptions=True
        )
    assert right == "a"
    assert isinstance(refused, ConfigurationError)
    assert "queue_id must be " in str(refused)


async def test_who_joined_a_look_that_was_cancelled_gets_an_answer(dsn: str) -> None:
    (queue_id,) = ids_of(Jobs(dsn), "a")
    async with opened_pool(dsn, max_size=2) as pool:
        names = QueueNames(Database(pool, schema="graphile_worker"), delay=0.2)
        first = asyncio.create_task(names.get(queue_id))
        second = asyncio.create_task(names.get(queue_id))
        await asyncio.sleep(0)  # both have begun
        await asyncio.sleep(0)
        first.cancel()
        assert await second == "a"
        assert first.cancelled()


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_tasks_ask_for_their_own_queue_and_for_others(dsn: str, kind: str) -> None:
    jobs = Jobs(dsn)
    (queue_id,) = ids_of(jobs, "lane")
    jobs.add("work")
    said: list[Any] = []

    async def modern(payload: Any, ctx: JobContext) -> None:
        said.append((await ctx.get_queue_name(), await ctx.get_queue_name(queue_id)))
        await ctx.get_queue_name(777)

    def plain(payload: Any, ctx: SyncJobContext) -> None:
        said.append((ctx.get_queue_name(), ctx.get_queue_name(queue_id)))
        ctx.get_queue_name(777)

    await run_once(dsn, tasks={"work": modern if kind == "async" else plain}, concurrent_jobs=2)
    assert sorted(said, key=str) == [("lane", "lane"), (None, "lane")]
    assert {job["last_error"] for job in jobs.all()} == {"there is no queue with the id 777"}


async def test_the_delay_is_an_option_and_the_names_are_the_pools(dsn: str) -> None:
    jobs = Jobs(dsn)
    ids_of(jobs, "lane")
    said: list[Any] = []

    @task(timeout=0.2)
    async def work(payload: Any, ctx: JobContext) -> None:
        said.append(await ctx.get_queue_name())

    await run_once(dsn, tasks=[work], get_queue_name_batch_delay=3600)
    assert said == []
    (job,) = jobs.all()
    assert job["last_error"] == "task 'work' ran longer than its timeout of 0.2 s"
    jobs.make_due()
    jobs.add("work", queue_name="lane")

    async def renaming(payload: Any, ctx: JobContext) -> None:
        said.append(await ctx.get_queue_name())
        jobs.query(RENAME)

    await run_once(dsn, tasks={"work": renaming})
    assert said == ["lane", "lane"]
    await eventually(lambda: jobs.ids() == [])
