"""No call fails because its connection was closed while it was idle in the pool."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import conninfo_to_dict

from graphile_worker_py import JobContext, JobSpec, Runner, SyncWorkerUtils, WorkerUtils
from graphile_worker_py.events import JobSuccess
from graphile_worker_py.postgres.idle import has_ended
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.support.running import Told
from tests.worker_utils_support import Api

CONNECTIONS = 3
OTHERS = """
select pid from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
END = f"select pg_terminate_backend(pid) from ({OTHERS}) as others"

Call = Callable[[WorkerUtils], Awaitable[Any]]
CALLS: dict[str, Call] = {
    "add_job": lambda utils: utils.add_job("a"),
    "add_job with a key": lambda utils: utils.add_job("a", job_key="k"),
    "add_jobs": lambda utils: utils.add_jobs([JobSpec("a"), JobSpec("b")]),
    "add_jobs in a transaction": lambda utils: utils.add_jobs(
        [JobSpec("a", job_key="k"), JobSpec("b", job_key="l")]
    ),
    "add_jobs by COPY": lambda utils: utils.add_jobs([JobSpec("a")] * 300),
    "add_jobs_from": lambda utils: utils.add_jobs_from([JobSpec("a")]),
    "complete_jobs": lambda utils: utils.complete_jobs([1]),
    "list_jobs": lambda utils: utils.list_jobs(),
    "pools": lambda utils: utils.pools(),
}


async def fill(utils: Any) -> None:
    """Have several idle connections in the pool."""
    if isinstance(utils, WorkerUtils):
        conns = [await utils.pool.getconn() for _ in range(CONNECTIONS)]
        for conn in conns:
            await utils.pool.putconn(conn)
    else:
        with ExitStack() as stack:
            for _ in range(CONNECTIONS):
                stack.enter_context(utils._utils.pool.connection())


async def end_all(dsn: str) -> None:
    """Close all connections, as a restart of the server does."""
    ended = len(Jobs(dsn).query(END))
    assert ended >= CONNECTIONS
    await eventually(lambda: len(ended_here(dsn)) >= ended)


def ended_here(dsn: str) -> list[int]:
    """The ports of this process whose connection to the server was closed by the server."""
    server = int(str(conninfo_to_dict(dsn)["port"]))
    return [
        socket.laddr.port
        for socket in psutil.Process().net_connections("tcp")
        if socket.raddr and socket.raddr.port == server and socket.status == psutil.CONN_CLOSE_WAIT
    ]


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_is_served_after_all_idle_connections_were_closed(
    api: Api, dsn: str, name: str
) -> None:
    async with api.opened(dsn) as utils:
        await fill(utils)
        await end_all(dsn)
        await CALLS[name](utils)


@pytest.mark.parametrize("name", ["add_job", "add_jobs in a transaction", "list_jobs"])
async def test_so_it_is_with_the_callers_pool(api: Api, dsn: str, name: str) -> None:
    if api.form == "async":
        async with (
            psycopg_pool.AsyncConnectionPool(dsn, min_size=CONNECTIONS, open=False) as pool,
            WorkerUtils(pool) as utils,
        ):
            await pool.wait()
            await end_all(dsn)
            await CALLS[name](utils)
    else:
        with psycopg_pool.ConnectionPool(dsn, min_size=CONNECTIONS, open=True) as sync_pool:
            async with api.opened(sync_pool) as utils:
                sync_pool.wait()
                await end_all(dsn)
                await CALLS[name](utils)


async def test_a_connection_that_is_borrowed_from_the_pool_is_alive(dsn: str) -> None:
    with SyncWorkerUtils(dsn) as utils:
        with utils.pool.connection():
            pass
        ended = len(Jobs(dsn).query(END))
        await eventually(lambda: len(ended_here(dsn)) >= ended)
        with utils.pool.connection() as conn:
            assert conn.execute("select 1").fetchone() == (1,)


async def test_a_task_borrows_a_connection_that_is_alive(dsn: str) -> None:
    told, pids = Told(), []

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            pids.append(conn.info.backend_pid)
            await conn.execute("select 1")

    async with Runner(dsn, tasks={"work": work}, events=told.events) as runner:
        await runner.add_job("work")
        await told.seen(JobSuccess)
        jobs = Jobs(dsn)
        jobs.query(f"select pg_terminate_backend({pids[0]})")
        await eventually(lambda: ended_here(dsn))
        jobs.add("work")
        await told.seen(JobSuccess, count=2)
    assert len(pids) == 2


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """An idle connection."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


def test_what_the_server_sends_to_an_idle_connection_does_not_end_it(
    dsn: str, conn: psycopg.Connection[Any]
) -> None:
    conn.execute("listen news")
    heard: list[str] = []
    conn.add_notify_handler(lambda notify: heard.append(notify.payload))
    assert not has_ended(conn)
    for n in range(3):
        Jobs(dsn).query(f"notify news, '{n}'")
        assert not has_ended(conn)
    conn.execute("select 1")
    assert heard == ["0", "1", "2"]


async def test_a_connection_that_idled_too_long_has_ended(
    dsn: str, conn: psycopg.Connection[Any]
) -> None:
    if conn.info.server_version >= 140000:
        conn.execute("set idle_session_timeout = 50")
    else:  # older servers end idle sessions only when they are told to
        Jobs(dsn).query("select pg_terminate_backend(%s)", conn.info.backend_pid)
    await eventually(lambda: has_ended(conn))
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select 1")


def test_a_closed_connection_has_ended(conn: psycopg.Connection[Any]) -> None:
    conn.close()
    assert has_ended(conn)
