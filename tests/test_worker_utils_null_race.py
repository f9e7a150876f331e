"""A job whose key is being fetched at that very moment is added all the same."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from graphile_worker_py import Job, JobSpec, WorkerUtils
from tests.support.jobs import Jobs
from tests.worker_utils_support import Api

# What is forced here: the fetch has marked the job and is not committed, so adding sees a job
# that waits, tries to replace it, waits for its row, finds it locked, and writes nothing.


@asynccontextmanager
async def during_a_fetch(
    stored: Jobs, add: Callable[[], Awaitable[Any]]
) -> AsyncIterator[asyncio.Task[Any]]:
    """Add while the job with the key "k" is being fetched; the fetch ends once we wait for it."""
    with stored.fetching("k") as fetch:
        adding = asyncio.ensure_future(add())
        await stored.seen_waiting()
        fetch.commit()
    yield adding
    await adding


def assert_added_beside(old: Job, new: Job, stored: Jobs) -> None:
    """Check that the running job lost its key to the new one."""
    assert new.id != old.id
    assert (new.key, new.revision, new.payload) == ("k", 0, {"n": 2})
    running = stored.one(old.id)
    assert (running["key"], running["attempts"]) == (None, 25)
    assert running["locked_by"] == "pool-1"
    assert running["payload"] == {"n": 1}
    assert stored.one(new.id)["key"] == "k"


async def test_by_add_job(utils: WorkerUtils, stored: Jobs) -> None:
    old = await utils.add_job("a", {"n": 1}, job_key="k")
    async with during_a_fetch(stored, lambda: utils.add_job("a", {"n": 2}, job_key="k")) as adding:
        assert_added_beside(old, await adding, stored)


async def test_by_add_job_with_preserve_run_at(utils: WorkerUtils, stored: Jobs) -> None:
    old = await utils.add_job("a", {"n": 1}, job_key="k")

    def add() -> Awaitable[Job]:
        return utils.add_job("a", {"n": 2}, job_key="k", job_key_mode="preserve_run_at")

    async with during_a_fetch(stored, add) as adding:
        assert_added_beside(old, await adding, stored)


async def test_by_add_jobs_among_others(utils: WorkerUtils, stored: Jobs) -> None:
    old = await utils.add_job("a", {"n": 1}, job_key="k")
    specs = [
        JobSpec("b", {"n": 1}),
        JobSpec("a", {"n": 2}, job_key="k"),
        JobSpec("a", {"n": 2}, job_key="other"),
        JobSpec("a", {"n": 2}),
    ]
    async with during_a_fetch(stored, lambda: utils.add_jobs(specs)) as adding:
        jobs = await adding
    assert [(job.task_identifier, job.key) for job in jobs] == [
        ("b", None),
        ("a", "k"),
        ("a", "other"),
        ("a", None),
    ]
    assert_added_beside(old, jobs[1], stored)
    assert len(stored.all()) == 5


async def test_by_add_jobs_among_chunks_of_others(utils: WorkerUtils, stored: Jobs) -> None:
    old = await utils.add_job("a", {"n": 1}, job_key="k")
    specs = [JobSpec("b", n) for n in range(2500)]
    specs[1200] = JobSpec("a", {"n": 2}, job_key="k")
    async with during_a_fetch(stored, lambda: utils.add_jobs(specs)) as adding:
        jobs = await adding
    assert [job.payload for job in jobs if job.key is None] == [n for n in range(2500) if n != 1200]
    assert_added_beside(old, jobs[1200], stored)


async def test_by_add_jobs_all_or_none_even_if_the_second_try_fails(
    utils: WorkerUtils, stored: Jobs
) -> None:
    await utils.add_job("a", {"n": 1}, job_key="k")
    # Taking the key from the running job is what the second try begins with.
    await stored.in_thread(
        "create function test_refuse() returns trigger language plpgsql"
        " as $$ begin raise exception 'refused'; end $$"
    )
    await stored.in_thread(
        "create trigger test_refuse before update on graphile_worker._private_jobs"
        " for each row when (new.key is null) execute function test_refuse()"
    )
    specs = [JobSpec("a", {"n": 2}), JobSpec("a", {"n": 2}, job_key="k")]
    with pytest.raises(psycopg.errors.RaiseException, match="refused"):
        async with during_a_fetch(stored, lambda: utils.add_jobs(specs)):
            pass
    assert [job["payload"] for job in stored.all()] == [{"n": 1}]


async def test_in_a_callers_transaction(
    api: Api, utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    old = await utils.add_job("a", {"n": 1}, job_key="k")
    async with api.connection(dsn) as conn:

        def add() -> Awaitable[Job]:
            return utils.add_job("a", {"n": 2}, job_key="k", conn=conn)

        async with during_a_fetch(stored, add) as adding:
            new = await adding
        assert [row["id"] for row in stored.all()] == [old.id]  # not committed yet
        await api.on(conn, "commit")
    assert_added_beside(old, new, stored)


async def test_a_fetch_that_is_given_up_lets_the_job_be_replaced(
    utils: WorkerUtils, stored: Jobs
) -> None:
    old = await utils.add_job("a", {"n": 1}, job_key="k")
    with stored.fetching("k") as fetch:
        adding = asyncio.ensure_future(utils.add_job("a", {"n": 2}, job_key="k"))
        await stored.seen_waiting()
        fetch.rollback()
    new = await adding
    assert (new.id, new.revision, new.payload, new.attempts) == (old.id, 1, {"n": 2}, 0)


async def test_two_adders_of_one_key_make_one_job(
    api: Api, utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    async with api.connection(dsn) as conn:
        first = await utils.add_job("a", [1], job_key="k", conn=conn)
        adding = asyncio.ensure_future(utils.add_job("a", [2], job_key="k"))
        await stored.seen_waiting()
        await api.on(conn, "commit")
    second = await adding
    assert (second.id, second.revision, second.payload) == (first.id, 1, [1, 2])
