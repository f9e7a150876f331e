"""What a task does to a connection that it borrowed is undone before the next task has it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, IsolationLevel
from psycopg.rows import dict_row
from psycopg.types.string import StrDumper
from psycopg_pool import AsyncConnectionPool

from graphile_worker_py import JobContext, Runner, run_once
from graphile_worker_py.events import JobError, JobSuccess
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.task_sessions import TaskSessions
from tests.support.running import Jobs, Told

Conn = AsyncConnection[Any]
STATE = """
select current_user, session_user,
  (select array_agg(name || ' = ' || setting order by name) from pg_settings
   where context in ('user', 'superuser') and name !~ '[.]|in_hot_standby'),
  (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
  (select count(*) from pg_class where relpersistence = 't' and pg_table_is_visible(oid)),
  (select count(*) from pg_listening_channels()),
  (select count(*) from pg_cursors),
  (select count(*) from pg_prepared_statements where from_sql)
"""


class Odd:
    """A type that psycopg can't send."""


class OddDumper(StrDumper):
    def dump(self, obj: Any) -> bytes:
        return b"odd"


async def state_of(conn: Conn) -> Any:
    """What can be seen of a session, and of the object that stands for it."""
    client = (
        conn.autocommit,
        conn.isolation_level,
        conn.read_only,
        conn.deferrable,
        conn.row_factory,
        conn.cursor_factory,
        conn.server_cursor_factory,
        conn.prepare_threshold,
        conn.prepared_max,
        len(conn._notice_handlers),
        len(conn._notify_handlers),
        len(conn._notifies_backlog or ()),
        sorted(name for name in vars(conn) if not name.startswith("_")),
    )
    with pytest.raises(psycopg.ProgrammingError):
        await conn.execute("select %s", [Odd()])
    if not conn.autocommit:
        await conn.rollback()
    async with psycopg.AsyncCursor(conn, row_factory=psycopg.rows.tuple_row) as cursor:
        await cursor.execute(STATE, prepare=False)
        row = await cursor.fetchone()
    if not conn.autocommit:
        await conn.rollback()
    return client, row


def statement(text: str) -> Callable[[Conn], Awaitable[Any]]:
    async def send(conn: Conn) -> None:
        await conn.execute(text.encode())

    return send


async def failed_transaction(conn: Conn) -> None:
    await conn.execute("begin")
    with pytest.raises(psycopg.Error):
        await conn.execute("select 1 / 0")


async def without_autocommit(conn: Conn) -> None:
    await conn.set_autocommit(False)
    await conn.execute("set statement_timeout = '1h'")


async def isolation(conn: Conn) -> None:
    await conn.set_isolation_level(IsolationLevel.SERIALIZABLE)
    await conn.set_read_only(True)
    await conn.set_deferrable(True)


async def factories(conn: Conn) -> None:
    conn.row_factory = dict_row
    conn.cursor_factory = AsyncClientCursor
    conn.prepare_threshold = 0
    conn.prepared_max = 1
    await conn.execute("select 1")


async def handlers(conn: Conn) -> None:
    conn.add_notice_handler(print)
    conn.add_notify_handler(print)


async def attributes(conn: Conn) -> None:
    vars(conn)["tenant"] = "acme"
    vars(conn)["commit"] = conn.rollback


async def adapters(conn: Conn) -> None:
    conn.adapters.register_dumper(Odd, OddDumper)
    await conn.execute("select %s", [Odd()])


async def dropped_statements(conn: Conn) -> None:
    await conn.execute("select 7", prepare=True)
    await conn.execute("do $$ begin execute 'deallocate all'; end $$")


async def temporary_tables(conn: Conn) -> None:
    await conn.execute("create temp table jobs (id int)")
    await conn.execute("create temp table array_position (id int)")


CHANGES: dict[str, Callable[[Conn], Awaitable[Any]]] = {
    "role": statement("set role pg_monitor"),
    "session authorization": statement("set session authorization pg_monitor"),
    "statement timeout": statement("set statement_timeout = 1"),
    "search path": statement("set search_path = nowhere"),
    "read only": statement("set default_transaction_read_only = on"),
    "default isolation": statement("set default_transaction_isolation = serializable"),
    "encoding": statement("set client_encoding = latin1"),
    "dates": statement("set datestyle = german; set timezone = 'Asia/Tokyo'"),
    "several settings": statement("set work_mem = '64kB'; set a.setting = 'x'; set lock_timeout=1"),
    "replication role": statement("set session_replication_role = replica"),
    "open transaction": statement("begin"),
    "failed transaction": failed_transaction,
    "autocommit": without_autocommit,
    "isolation": isolation,
    "factories": factories,
    "handlers": handlers,
    "attributes": attributes,
    "adapters": adapters,
    "own prepared statement": statement("prepare mine as select 1"),
    "dropped prepared statements": dropped_statements,
    "advisory locks": statement("select pg_advisory_lock(1), pg_advisory_lock_shared(2)"),
    "temporary tables": temporary_tables,
    "listening": statement("listen somewhere"),
    "unread notification": statement("listen somewhere; notify somewhere"),
    "held cursor": statement("declare held cursor with hold for select 1"),
}


@pytest.mark.parametrize("source", ["string", "pool"])
@pytest.mark.parametrize("change", CHANGES)
async def test_the_next_task_has_the_connection_as_it_was(
    dsn: str, change: str, source: str
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("first")
    states: list[Any] = []
    sessions: list[int] = []

    async def first(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            sessions.append(conn.info.backend_pid)
        # Reset once, so that what resets are prepared with is part of what is changed.
        async with ctx.connection() as conn:
            states.append(await state_of(conn))
            sessions.append(conn.info.backend_pid)
            await CHANGES[change](conn)
        await ctx.add_job("second")

    async def second(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            states.append(await state_of(conn))
            sessions.append(conn.info.backend_pid)
            await conn.execute("select 7", prepare=True)
        await ctx.add_job("third", {"n": 1}, queue_name="lane")

    async def third(payload: Any, ctx: JobContext) -> None:
        assert await ctx.get_queue_name() == "lane"

    tasks: dict[str, Any] = {"first": first, "second": second, "third": third}
    if source == "string":
        await run_once(dsn, tasks=tasks, events=told.events, max_pool_size=6)
    else:
        async with AsyncConnectionPool[Any](dsn, min_size=1, max_size=1, open=False) as pool:
            await run_once(pool, tasks=tasks, events=told.events)
    assert [event.error for event in told.of(JobError)] == []
    (client, session), (later_client, later_session) = states
    assert later_client == client
    assert later_session == session
    assert len(set(sessions)) == 1  # reset, not replaced
    assert jobs.ids() == []


async def left_open(conn: Conn) -> None:
    await conn.pipeline().__aenter__()


async def half_read(conn: Conn) -> None:
    conn.pgconn.send_query(b"select generate_series(1, 100000)")


async def ended(conn: Conn) -> None:
    with pytest.raises(psycopg.OperationalError):
        await conn.execute("select pg_terminate_backend(pg_backend_pid())")


CLOSED: dict[str, Callable[[Conn], Awaitable[Any]]] = {
    "closed": lambda conn: conn.close(),
    "ended by the server": ended,
    "left in a pipeline": left_open,
    "busy": half_read,
}


@pytest.mark.parametrize("source", ["string", "pool"])
@pytest.mark.parametrize("how", CLOSED)
async def test_a_connection_that_can_not_be_reset_is_replaced(
    dsn: str, how: str, source: str
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("first")

    async def first(payload: Any, ctx: JobContext) -> None:
        await ctx.add_job("second")
        async with ctx.connection() as conn:
            await CLOSED[how](conn)

    async def second(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            assert await (await conn.execute("select 1")).fetchone() == (1,)
        await ctx.add_job("third")

    tasks: dict[str, Any] = {"first": first, "second": second, "third": print}
    if source == "string":
        await run_once(dsn, tasks=tasks, events=told.events, max_pool_size=6)
    else:
        async with AsyncConnectionPool[Any](dsn, min_size=1, max_size=1, open=False) as pool:
            await run_once(pool, tasks=tasks, events=told.events)
    done = {event.job.task_identifier for event in told.of(JobSuccess)}
    assert {"second", "third"} <= done


async def test_settings_that_the_pool_configures_come_back(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    jobs.add("work")
    seen: list[Any] = []

    async def configure(conn: Conn) -> None:
        await conn.execute("set lock_timeout = '7s'")
        await conn.commit()

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            seen.append(await (await conn.execute("show lock_timeout")).fetchone())
            await conn.execute("set lock_timeout = '1s'")

    async with AsyncConnectionPool[Any](
        dsn, min_size=1, max_size=1, open=False, configure=configure
    ) as pool:
        await run_once(pool, tasks={"work": work}, events=told.events)
    assert not told.of(JobError)
    assert seen == [("7s",), ("7s",)]


async def test_the_workers_own_statements_use_no_session_that_a_task_has_had(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    await jobs.in_thread("create table senders (pid int)")
    await jobs.in_thread(
        "create function note() returns trigger language plpgsql as"
        " 'begin insert into senders values (pg_backend_pid()); return new; end'"
    )
    await jobs.in_thread(
        "create trigger note after insert on graphile_worker._private_jobs"
        " for each row execute function note()"
    )
    for _ in range(5):
        jobs.add("work")
    await jobs.in_thread("truncate senders")
    sessions: set[int] = set()

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            sessions.add(conn.info.backend_pid)
        await ctx.add_job("later")

    tasks: dict[str, Any] = {"work": work, "later": print}
    await run_once(dsn, tasks=tasks, events=told.events, max_pool_size=6, concurrent_jobs=1)
    assert not told.of(JobError)
    senders = {row["pid"] for row in jobs.query("select distinct pid from senders")}
    assert len(sessions) == 1  # used again by each task
    assert senders
    assert not senders & sessions


async def test_tasks_and_the_worker_share_a_single_connection_in_turn(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(6, "work")

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            await conn.execute("select 1")
        await ctx.add_job("later")

    tasks: dict[str, Any] = {"work": work, "later": print}
    async with asyncio.timeout(15):
        await run_once(dsn, tasks=tasks, events=told.events, max_pool_size=2, concurrent_jobs=6)
    assert not told.of(JobError)
    assert jobs.ids() == []


async def test_more_tasks_than_connections_wait_for_each_other(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(40, "work")
    sessions: set[int] = set()
    lent: list[int] = [0]

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            sessions.add(conn.info.backend_pid)
            lent.append(lent[-1] + 1)
            await conn.execute("select pg_sleep(0.005)")
            lent.append(lent[-1] - 1)

    await run_once(
        dsn, tasks={"work": work}, events=told.events, max_pool_size=5, concurrent_jobs=20
    )
    assert not told.of(JobError)
    assert max(lent) == 2
    assert len(sessions) <= 3  # used again and again; the worker may have needed one itself


async def test_a_task_gets_the_connection_that_the_worker_gives_back(dsn: str) -> None:
    async with opened_pool(dsn, max_size=2) as pool:
        database = Database(pool, schema="graphile_worker", owns_pool=True)
        sessions = database.task_sessions
        async with sessions.borrow(), AsyncExitStack() as stack:
            async with database.connection():
                waits = asyncio.create_task(stack.enter_async_context(sessions.borrow()))
                await asyncio.sleep(0)  # it asks for one
                assert not waits.done()
            async with asyncio.timeout(10):
                conn = await waits
            await conn.execute("select 1")
        await sessions.give_up_idle()


async def test_a_cancelled_task_takes_no_connection_with_it(dsn: str) -> None:
    async with opened_pool(dsn, max_size=1) as pool:
        sessions = TaskSessions(pool, keep=True)

        session = await sessions.take()
        waits, given = (asyncio.create_task(sessions.take()) for _ in range(2))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.wait([waits])
        sessions._is_ready(session)
        given.cancel()  # in the moment when it was given the session
        await asyncio.wait([given])
        assert waits.cancelled()
        assert given.cancelled()
        async with asyncio.timeout(10):
            assert await sessions.take() is session
        await sessions.give_back(session)
        await sessions.give_up_idle()


async def test_no_connection_is_left_open_at_the_end(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            await conn.execute("set application_name = 'of a task'")

    with caplog.at_level(logging.WARNING, "psycopg.pool"):
        async with Runner(dsn, tasks={"work": work}, events=told.events) as runner:
            await runner.add_job("work")
            await told.seen(JobSuccess)
    assert not jobs.query(
        "select 1 from pg_stat_activity"
        " where application_name ~ 'task|graphile' and datname = current_database()"
    )


async def test_a_stream_that_is_left_open_does_not_hold_up_its_task_for_good(dsn: str) -> None:
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        sessions = TaskSessions(pool, keep=True, patience=0.05)
        with pytest.raises(psycopg.OperationalError, match="unfinished stream"):
            async with sessions.borrow() as conn:
                stream = conn.cursor().stream("select generate_series(1, 100000)")
                assert await anext(stream) == (1,)
        async with sessions.borrow() as conn:
            assert await (await conn.execute("select 1")).fetchone() == (1,)
        with pytest.raises(ValueError, match="of the task"):
            async with sessions.borrow() as conn:
                left = conn.cursor().stream("select generate_series(1, 100000)")
                await anext(left)
                raise ValueError("of the task")
        await sessions.give_up_idle()
        for each in (stream, left):
            with pytest.raises(psycopg.OperationalError):
                await anext(each)
