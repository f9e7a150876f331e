"""Jobs are added and changed together with the caller's own data, or not at all."""

from contextlib import AsyncExitStack, suppress
from typing import Any

import psycopg
import psycopg_pool
import pytest

from graphile_worker_py import JobSpec, SyncWorkerUtils, WorkerUtils
from tests.support.jobs import Jobs
from tests.worker_utils_support import Api


class RolledBackError(Exception):
    """What a caller raises to give its transaction up."""


async def test_a_job_commits_with_the_callers_transaction(
    api: Api, utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    async with api.connection(dsn) as conn:
        await api.on(conn, "execute", "create table orders (id int)")
        await utils.add_job("ship", conn=conn)
        await utils.add_jobs([JobSpec("ship"), JobSpec("bill", job_key="k")], conn=conn)
        assert stored.all() == []
        await api.on(conn, "commit")
    assert [job["task_identifier"] for job in stored.all()] == ["ship", "ship", "bill"]


async def test_a_job_is_gone_with_the_callers_transaction(
    api: Api, utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    async with api.connection(dsn) as conn:
        await utils.add_job("ship", conn=conn)
        await utils.add_jobs([JobSpec("ship"), JobSpec("bill", job_key="k")], conn=conn)
        await api.on(conn, "rollback")
    assert stored.all() == []


async def test_changes_from_outside_are_gone_with_the_callers_transaction(
    api: Api, utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    jobs = await utils.add_jobs([JobSpec("a", job_key=key) for key in "abcde"])
    stored.lock(jobs[4].id)
    before = stored.all()
    async with api.connection(dsn) as conn:
        assert await utils.complete_jobs([jobs[0].id], conn=conn)
        assert await utils.permanently_fail_jobs([jobs[1].id], conn=conn)
        assert await utils.reschedule_jobs([jobs[2].id], priority=1, conn=conn)
        assert await utils.remove_job("d", conn=conn)
        assert (await utils.force_unlock_workers(["pool-1"], conn=conn)).jobs == 1
        assert await utils.cleanup(["DELETE_PERMAFAILED_JOBS"], conn=conn) == {
            "DELETE_PERMAFAILED_JOBS": 1
        }
        assert {job.key for job in await utils.list_jobs(conn=conn)} == {"e", "c"}
        assert await utils.get_job(jobs[0].id, conn=conn) is None
        assert (await utils.counts(conn=conn)).total == 2
        assert await utils.queues(conn=conn) == []
        assert await utils.workers(conn=conn) == []
        await api.on(conn, "rollback")
    assert stored.all() == before


async def test_a_connection_in_pipeline_mode_gets_the_same_answers(
    api: Api, utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    async with api.connection(dsn) as conn, AsyncExitStack() as stack:
        if api.form == "async":
            await stack.enter_async_context(conn.pipeline())
        else:
            stack.enter_context(conn.pipeline())
        await api.on(conn, "execute", "create table orders (id int)")
        one = await utils.add_job("ship", {"n": 1}, conn=conn)
        specs = [JobSpec("ship", {"n": 2}), JobSpec("bill", {"n": 3}, job_key="k")]
        assert [job.payload["n"] for job in await utils.add_jobs(specs, conn=conn)] == [2, 3]
        many = await utils.add_jobs([JobSpec("ship", n) for n in range(300)], conn=conn)
        assert [job.payload for job in many] == list(range(300))
        assert (await utils.counts(conn=conn)).total == 303
        assert await utils.get_job(one.id, conn=conn) is not None
        ids = [one.id, *(job.id for job in many)]
        assert len(await utils.complete_jobs(ids, conn=conn)) == 301
        assert await utils.remove_job("nobody has it", conn=conn) is None
        assert stored.all() == []
        await api.on(conn, "commit")
    assert [job["payload"] for job in stored.all()] == [{"n": 2}, {"n": 3}]


async def test_a_transaction_on_the_pool_of_worker_utils(dsn: str, stored: Jobs) -> None:
    async with WorkerUtils(dsn) as utils:
        async with utils.pool.connection() as conn, conn.transaction():
            await conn.execute("create table orders ()")
            await utils.add_job("kept", conn=conn)
        with suppress(RolledBackError):
            async with utils.pool.connection() as conn, conn.transaction():
                await utils.add_job("lost", conn=conn)
                raise RolledBackError
    assert [job["task_identifier"] for job in stored.all()] == ["kept"]


def test_a_transaction_on_the_pool_of_sync_worker_utils(dsn: str, stored: Jobs) -> None:
    with SyncWorkerUtils(dsn) as utils:
        with utils.pool.connection() as conn, conn.transaction():
            conn.execute("create table orders ()")
            utils.add_job("kept", conn=conn)
        with suppress(RolledBackError), utils.pool.connection() as conn, conn.transaction():
            utils.add_job("lost", conn=conn)
            raise RolledBackError
    assert [job["task_identifier"] for job in stored.all()] == ["kept"]


async def test_a_failed_add_inside_a_savepoint_leaves_the_transaction_usable(
    dsn: str, stored: Jobs
) -> None:
    await stored.in_thread(
        "alter table graphile_worker._private_tasks"
        " add constraint test_forbidden check (identifier <> 'forbidden')"
    )
    specs = [JobSpec("a", job_key="k"), JobSpec("forbidden", job_key="l")]
    async with WorkerUtils(dsn) as utils, utils.pool.connection() as conn, conn.transaction():
        await utils.add_job("before", conn=conn)
        with pytest.raises(psycopg.errors.CheckViolation):
            await utils.add_jobs(specs, conn=conn)
        await utils.add_job("after", conn=conn)
    assert [job["task_identifier"] for job in stored.all()] == ["before", "after"]


@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_callers_pool_is_used_as_it_is_and_left_open(
    dsn: str, stored: Jobs, autocommit: bool
) -> None:
    options: dict[str, Any] = {"kwargs": {"autocommit": autocommit}, "min_size": 1, "max_size": 2}
    async with psycopg_pool.AsyncConnectionPool[Any](dsn, open=False, **options) as pool:
        async with WorkerUtils(pool) as utils:
            await utils.add_job("a")
            await utils.add_jobs([JobSpec("b", job_key="k"), JobSpec("c")])
        async with pool.connection() as conn:
            assert conn.autocommit is autocommit
    assert len(stored.all()) == 3


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_callers_sync_pool_is_used_as_it_is_and_left_open(
    empty_dsn: str, autocommit: bool
) -> None:
    given = psycopg.conninfo.conninfo_to_dict(empty_dsn)
    dbname = given.pop("dbname")
    # Part of where it goes stands in the keyword arguments, beside what only psycopg knows.
    kwargs = {**given, "autocommit": autocommit, "prepare_threshold": None}
    with psycopg_pool.ConnectionPool[Any](f"dbname={dbname}", kwargs=kwargs, open=False) as pool:
        with SyncWorkerUtils(pool) as utils:
            utils.add_job("a")
            utils.add_jobs([JobSpec("b", job_key="k"), JobSpec("c")])
        with pool.connection() as conn:
            assert conn.autocommit is autocommit
    assert len(Jobs(empty_dsn).ids()) == 3


async def test_sync_worker_utils_works_where_an_event_loop_runs(dsn: str, stored: Jobs) -> None:
    with SyncWorkerUtils(dsn) as utils:
        utils.migrate()
        utils.add_job("a")
    assert len(stored.all()) == 1


@pytest.mark.parametrize("count", [2, 1100])
async def test_a_connection_that_begins_by_itself_leaves_the_commit_to_its_owner(
    api: Api, utils: WorkerUtils, dsn: str, stored: Jobs, count: int
) -> None:
    specs = [JobSpec("a", n, job_key=str(n)) for n in range(count)]
    async with api.connection(dsn) as conn:
        await utils.add_jobs(specs, conn=conn)  # the first statement of its transaction
        assert stored.all() == []
        await api.on(conn, "rollback")
        assert stored.all() == []
        await utils.add_jobs(specs, conn=conn)
        await api.on(conn, "commit")
    assert len(stored.all()) == count
