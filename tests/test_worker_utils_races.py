"""Calls that meet the same jobs at the same moment do not fail."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest

from graphile_worker_py import JobSpec, WorkerUtils
from tests.support.jobs import Jobs
from tests.worker_utils_support import Api

TOUCH = "update graphile_worker._private_jobs set priority = 7 where key = %s"
PATIENT = "set deadlock_timeout = '1min'"
HASTY = "alter database {} set deadlock_timeout = '50ms'"
STRICT = "alter database {} set default_transaction_isolation = 'repeatable read'"

Call = Callable[[WorkerUtils, list[int]], Coroutine[Any, Any, Any]]
CALLS: dict[str, Call] = {
    "add_jobs": lambda utils, ids: utils.add_jobs([JobSpec("c", job_key=key) for key in "ab"]),
    "add_jobs_from": lambda utils, ids: utils.add_jobs_from(
        [JobSpec("c", job_key=key) for key in "ab"]
    ),
    "complete_jobs": lambda utils, ids: utils.complete_jobs(ids),
    "reschedule_jobs": lambda utils, ids: utils.reschedule_jobs(ids, priority=3),
}


def configure(dsn: str, statement: str) -> None:
    """Change a setting of the test's database."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(statement.format(psycopg.sql.Identifier(conn.info.dbname).as_string()))


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_lost_a_deadlock_is_made_again(api: Api, dsn: str, name: str) -> None:
    configure(dsn, HASTY)
    jobs = Jobs(dsn)
    ids = [jobs.add("c", job_key=key) for key in "ab"]
    async with (
        api.opened(dsn) as utils,
        await psycopg.AsyncConnection.connect(dsn) as other,
        asyncio.TaskGroup() as group,
    ):
        await other.execute(PATIENT)
        await other.execute(TOUCH, ["b"])
        call = group.create_task(CALLS[name](utils, ids))  # has a, and waits for b
        await jobs.seen_waiting()
        await other.execute(TOUCH, ["a"])  # ends the call's transaction, not this one
        await other.commit()
        await call
    assert len(jobs.all()) == (0 if name == "complete_jobs" else 2)
    assert all(job["priority"] in (0, 3) for job in jobs.all())


async def test_a_call_that_could_not_be_serialized_is_made_again(api: Api, dsn: str) -> None:
    configure(dsn, STRICT)
    jobs = Jobs(dsn)
    for key in "ab":
        jobs.add("c", job_key=key)
    async with (
        api.opened(dsn) as utils,
        await psycopg.AsyncConnection.connect(dsn) as other,
        asyncio.TaskGroup() as group,
    ):
        await other.execute(TOUCH, ["b"])
        specs = [JobSpec("c", job_key="b"), JobSpec("c", job_key="a")]
        call = group.create_task(utils.add_jobs(specs))
        await jobs.seen_waiting()
        await other.commit()
        assert [job.key for job in await call] == ["b", "a"]
    assert [(job["key"], job["revision"]) for job in jobs.all()] == [("a", 1), ("b", 1)]


async def test_in_a_transaction_of_the_callers_a_lost_race_is_the_callers(
    api: Api, dsn: str
) -> None:
    configure(dsn, HASTY)
    jobs = Jobs(dsn)
    for key in "ab":
        jobs.add("c", job_key=key)
    async with (
        api.opened(dsn) as utils,
        api.connection(dsn) as conn,
        await psycopg.AsyncConnection.connect(dsn) as other,
    ):
        await other.execute(PATIENT)
        await other.execute(TOUCH, ["b"])
        specs = [JobSpec("c", job_key="a"), JobSpec("c", job_key="b")]
        call = asyncio.ensure_future(utils.add_jobs(specs, conn=conn))
        await jobs.seen_waiting()
        await other.execute(TOUCH, ["a"])
        with pytest.raises(psycopg.errors.DeadlockDetected):
            await call
        await other.commit()


@pytest.mark.parametrize("keys", ["ab", "ba"])
@pytest.mark.parametrize("mode", [None, "preserve_run_at", "unsafe_dedupe"])
async def test_additions_lock_keys_in_one_order_whatever_the_order_of_the_specs(
    api: Api, dsn: str, keys: str, mode: str | None
) -> None:
    jobs = Jobs(dsn)
    for key in "ab":
        jobs.add("c", job_key=key)
    async with (
        api.opened(dsn) as utils,
        api.connection(dsn) as conn,
        asyncio.TaskGroup() as group,
    ):
        await utils.add_job("c", job_key="a", conn=conn)
        specs = [JobSpec("c", job_key=key, job_key_mode=mode) for key in keys]
        call = group.create_task(utils.add_jobs(specs))
        await jobs.seen_waiting()
        await utils.add_job("c", job_key="b", conn=conn)  # is not locked by the other one
        await api.on(conn, "commit")
        assert [job.key for job in await call] == list(keys)


async def test_additions_of_the_same_new_keys_in_opposite_order_succeed(api: Api, dsn: str) -> None:
    keys = [str(n) for n in range(100)]
    async with api.opened(dsn) as utils:
        for _ in range(5):
            async with asyncio.TaskGroup() as group:
                for order in (keys, keys[::-1], keys[50:] + keys[:50]):
                    specs = [JobSpec("c", job_key=key) for key in order]
                    group.create_task(utils.add_jobs(specs))
    assert len(Jobs(dsn).ids()) == 100
