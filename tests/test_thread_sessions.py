"""Tasks in threads use connections again, as if each were new."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection, IsolationLevel
from psycopg.rows import dict_row

from graphile_worker_py import Runner, SyncJobContext, run_once
from graphile_worker_py.events import JobError, JobSuccess
from graphile_worker_py.postgres.lent_session import Session
from graphile_worker_py.postgres.thread_sessions import ThreadSessions
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told
from tests.test_task_sessions import STATE

Conn = Connection[Any]


def state_of(conn: Conn) -> Any:
    """What can be seen of a session, and of the object that stands for it."""
    client = (conn.autocommit, conn.isolation_level, conn.row_factory, conn.prepare_threshold)
    own = sorted(name for name in vars(conn) if not name.startswith("_"))
    with psycopg.Cursor(conn, row_factory=psycopg.rows.tuple_row) as cursor:
        return client, own, cursor.execute(STATE, prepare=False).fetchone()


def everything(conn: Conn) -> None:
    conn.execute("set session authorization pg_monitor")
    conn.execute("set statement_timeout = '1h'; set search_path = nowhere; listen somewhere")
    conn.execute("select pg_advisory_lock(1); prepare mine as select 1")
    conn.execute("create temp table jobs (id int)")
    vars(conn)["tenant"] = "acme"
    conn.row_factory = dict_row
    conn.prepare_threshold = 0
    conn.isolation_level = IsolationLevel.SERIALIZABLE
    conn.autocommit = False
    conn.execute("select 1")


def failed(conn: Conn) -> None:
    conn.execute("begin")
    with pytest.raises(psycopg.Error):
        conn.execute("select 1 / 0")


def lost(conn: Conn) -> None:
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select pg_terminate_backend(pg_backend_pid())")


CHANGES: dict[str, tuple[Callable[[Conn], Any], bool]] = {
    "nothing": (lambda _: None, True),
    "everything": (everything, True),
    "a failed transaction": (failed, True),
    "closed": (lambda conn: conn.close(), False),
    "lost": (lost, False),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_the_next_task_has_the_connection_as_it_was(dsn: str, change: str) -> None:
    changes, is_kept = CHANGES[change]
    jobs, told = Jobs(dsn), Told()
    for _ in range(3):
        jobs.add("work")
    states: list[Any] = []
    sessions: list[int] = []

    def work(payload: Any, ctx: SyncJobContext) -> None:
        with ctx.connection() as conn:
            states.append(state_of(conn))
            sessions.append(conn.info.backend_pid)
            if len(sessions) == 2:
                changes(conn)

    await run_once(dsn, tasks={"work": work}, events=told.events, concurrent_jobs=1)
    assert [event.error for event in told.of(JobError)] == []
    assert states == [states[0]] * 3
    assert sessions[0] == sessions[1]
    assert (sessions[1] == sessions[2]) is is_kept


@pytest.mark.parametrize("way", ["returns", "raises"])
async def test_the_end_of_the_block_ends_the_transaction(dsn: str, way: str) -> None:
    jobs, told = Jobs(dsn), Told()
    await jobs.in_thread("create table done (n int)")
    jobs.add("work", max_attempts=1)

    def work(payload: Any, ctx: SyncJobContext) -> None:
        with ctx.connection() as conn:
            conn.autocommit = False
            conn.execute("insert into done values (1)")
            if way == "raises":
                raise ValueError(way)

    await run_once(dsn, tasks={"work": work}, events=told.events)
    assert len(jobs.query("select n from done")) == (way == "returns")


async def test_a_connection_that_ended_while_it_was_idle_is_replaced(dsn: str) -> None:
    jobs, told, pids = Jobs(dsn), Told(), []

    def work(payload: Any, ctx: SyncJobContext) -> None:
        with ctx.connection() as conn:
            pids.append(conn.info.backend_pid)
            conn.execute("select 1")

    async with Runner(dsn, tasks={"work": work}, events=told.events) as runner:
        await runner.add_job("work")
        await told.seen(JobSuccess)
        await jobs.in_thread(f"select pg_terminate_backend({pids[0]})")
        alive = f"select 1 from pg_stat_activity where pid = {pids[0]}"
        await eventually(lambda: not jobs.query(alive))
        await runner.add_job("work")
        await told.seen(JobSuccess, count=2)
    assert len(set(pids)) == 2
    assert not jobs.query(f"select 1 from pg_stat_activity where pid = any(array{pids})")


async def test_idle_connections_are_closed_after_a_while(dsn: str) -> None:
    sessions, loop = ThreadSessions(patience=0.05), asyncio.get_running_loop()

    def use(conn: Conn) -> int:
        with sessions.lent(Session(conn, is_kept=True), loop):
            return conn.info.backend_pid

    conns = [psycopg.connect(dsn, autocommit=True) for _ in range(2)]
    for conn in conns:
        await asyncio.to_thread(use, conn)
    await eventually(lambda: all(conn.closed for conn in conns))
    assert sessions.take() is None


async def test_a_connection_that_comes_back_after_the_end_is_closed(dsn: str) -> None:
    sessions = ThreadSessions()
    with psycopg.connect(dsn, autocommit=True) as conn:
        with sessions.lent(Session(conn, is_kept=True), asyncio.get_running_loop()):
            sessions.close()
        assert conn.closed
