"""Pools of the program's own: connections of the worker's are made and configured like theirs."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, AsyncNullConnectionPool, ConnectionPool

from graphile_worker_py import (
    ConfigurationError,
    JobContext,
    JobSpec,
    Plugin,
    Runner,
    SyncWorkerUtils,
    WorkerUtils,
    run_once,
)
from graphile_worker_py.events import JobError, JobSuccess, PoolListenError, PoolListenSuccess
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told, impatient

END_LISTENING = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and query ilike 'listen%'
"""

Conn = AsyncConnection[Any]
OWNER = "configured_owner"
LOGIN = "configured_login"
ROLES = f"""
do $$ begin
  if pg_catalog.to_regrole('{OWNER}') is null then create role {OWNER}; end if;
  if pg_catalog.to_regrole('{LOGIN}') is null then create role {LOGIN} login noinherit
    password 'secret'; end if;
exception when duplicate_object or unique_violation then null;
end $$
"""


@pytest.fixture
def login(empty_dsn: str) -> str:
    """A database that only a role can use that has to be set after connecting."""
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute(ROLES)  # pyright: ignore[reportArgumentType]
        conn.execute(f"grant {OWNER} to {LOGIN}")  # pyright: ignore[reportArgumentType]
        conn.execute(f"grant create on database {name} to {OWNER}")  # pyright: ignore[reportArgumentType]
    return psycopg.conninfo.make_conninfo(empty_dsn, user=LOGIN, password="secret")


async def become_owner(conn: Conn) -> None:
    await conn.execute(f"set role {OWNER}")  # pyright: ignore[reportArgumentType]
    await conn.commit()


async def become_owner_and_leave_autocommit(conn: Conn) -> None:
    await conn.set_autocommit(True)
    await become_owner(conn)
    await conn.set_autocommit(False)


class Signed(AsyncConnection[Any]):
    """A connection class that gives what the connection string lacks, as for tokens."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        return await super().connect(conninfo, **{**kwargs, "user": LOGIN})


async def as_string(conninfo: str) -> str:
    return conninfo


POOLS: dict[str, Callable[[str], AsyncConnectionPool[Any]]] = {
    "configure": lambda dsn: AsyncConnectionPool(
        dsn, min_size=1, open=False, configure=become_owner
    ),
    "configure, without autocommit": lambda dsn: AsyncConnectionPool(
        dsn, min_size=1, open=False, configure=become_owner_and_leave_autocommit
    ),
    "configure, check, reset and kwargs": lambda dsn: AsyncConnectionPool(
        dsn,
        kwargs={
            "row_factory": dict_row,
            "cursor_factory": AsyncRawCursor,
            "prepare_threshold": None,
            "options": "-c lock_timeout=7s",
        },
        min_size=1,
        open=False,
        configure=become_owner,
        reset=AsyncConnection.rollback,
        check=AsyncConnectionPool.check_connection,
    ),
    "no pooling": lambda dsn: AsyncNullConnectionPool(dsn, open=False, configure=become_owner),
    "a class and functions": lambda dsn: AsyncConnectionPool(
        lambda: as_string(psycopg.conninfo.make_conninfo(dsn, user="nobody")),
        connection_class=Signed,
        min_size=1,
        open=False,
        configure=become_owner,
    ),
}


@asynccontextmanager
async def opened(kind: str, dsn: str) -> AsyncIterator[AsyncConnectionPool[Any]]:
    async with POOLS[kind](dsn) as pool:
        yield pool


@pytest.mark.parametrize("kind", POOLS)
async def test_a_worker_works_with_a_configured_pool(login: str, kind: str) -> None:
    told = Told()
    seen: list[Any] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            row: Any = await (await conn.execute("select current_user as role")).fetchone()
            seen.append(row["role"] if isinstance(row, dict) else row[0])
        await ctx.add_job("added", queue_name="lane")

    async def added(payload: Any) -> None:
        if payload == {"fails": True}:
            raise ValueError("no")

    tasks: dict[str, Any] = {"work": work, "added": added}
    async with opened(kind, login) as pool, WorkerUtils(pool) as utils:
        async with Runner(
            pool,
            tasks=tasks,
            events=told.events,
            heartbeat_interval=0.2,
            no_handle_signals=True,
        ) as runner:
            await told.seen(PoolListenSuccess)
            await utils.add_job("work")
            await utils.add_jobs([JobSpec("added", {"fails": True}, max_attempts=1)])
            await told.seen(JobSuccess, count=2)
            await told.seen(JobError)
            assert runner.health().connected
        assert [job.last_error for job in await utils.list_jobs()] == ["no"]
    assert seen == [OWNER]
    assert told.of(PoolListenError) == []


def test_utils_without_an_event_loop_work_with_a_configured_pool(login: str) -> None:
    def configure(conn: psycopg.Connection[Any]) -> None:
        conn.execute(f"set role {OWNER}")  # pyright: ignore[reportArgumentType]
        conn.commit()

    with (
        ConnectionPool[Any](login, min_size=1, open=True, configure=configure) as pool,
        SyncWorkerUtils(pool) as utils,
    ):
        utils.add_job("work")
        assert len(utils.list_jobs()) == 1


def test_plugins_that_wrap_migrations_refuse_what_their_connections_would_lack(
    empty_dsn: str,
) -> None:
    class Wraps(Plugin):
        async def migrate(self, step: Any, proceed: Any) -> None:
            await proceed(step)

    with (
        ConnectionPool[Any](empty_dsn, min_size=1, open=True, configure=lambda _: None) as pool,
        pytest.raises(ConfigurationError, match=r"the pool has `configure=`.*migrate=False"),
        SyncWorkerUtils(pool, hooks=[Wraps()]),
    ):
        pass


async def leave_open(conn: Conn) -> None:
    await conn.execute("select 1")


async def fail(conn: Conn) -> None:
    raise ValueError("no token")


@pytest.mark.parametrize(
    ("configure", "said"),
    [
        (leave_open, "the function `configure` of the pool left a connection in status INTRANS"),
        (fail, "the function `configure` of the pool failed: ValueError: no token"),
    ],
)
async def test_an_error_names_the_function(
    dsn: str, configure: Callable[[Conn], Any], said: str
) -> None:
    jobs, told = Jobs(dsn), Told()
    fails: list[bool] = []

    async def configure_at_first(conn: Conn) -> None:
        if fails:
            await configure(conn)

    async with (
        AsyncConnectionPool[Any](dsn, open=False, configure=configure_at_first) as pool,
        impatient()(pool, tasks={"work": print}, poll_interval=3600, events=told.events) as _,
    ):
        await told.seen(PoolListenSuccess)
        await pool.wait()
        fails.append(True)
        await eventually(lambda: jobs.query(END_LISTENING) != [])
        event = await told.seen(PoolListenError, count=2)
        assert said in str(event.error)
        fails.clear()
        await told.seen(PoolListenSuccess, count=2)
        jobs.add("work")
        await told.seen(JobSuccess)


async def test_one_run_works_with_a_configured_pool(login: str) -> None:
    done: list[Any] = []

    async def work(payload: Any) -> None:
        done.append(payload)

    async with opened("configure", login) as pool:
        async with WorkerUtils(pool) as utils:
            await utils.add_job("work", 1)
        await run_once(pool, tasks={"work": work})
    assert done == [1]
