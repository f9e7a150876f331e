"""Jobs are added in the transactions of SQLAlchemy's sessions, and of asyncpg's connections."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from graphile_worker_py import (
    ConfigurationError,
    JobSpec,
    MissingTablesError,
    SyncWorkerUtils,
    WorkerUtils,
    run_once,
    task,
)
from graphile_worker_py.events import JobsAdded
from tests.support.jobs import Jobs
from tests.support.node import WITHOUT_SIDE_SCHEMA

DRIVERS = ["psycopg", "asyncpg"]
SPECS = [
    JobSpec("ship", {"n": 1}),
    JobSpec("bill", {"n": 2}, job_key="bill"),
    JobSpec("bill", {"n": 3}, job_key="kept", job_key_mode="preserve_run_at"),
    JobSpec("post", "text", queue_name="letters", flags=["eu"], job_key="once"),
    JobSpec("post", None, job_key="dedupe", job_key_mode="unsafe_dedupe"),
]


def url(dsn: str, driver: str) -> str:
    """The address of the test's database as SQLAlchemy wants it."""
    return f"postgresql+{driver}://" + dsn.partition("://")[2]


@pytest.fixture(params=DRIVERS)
async def engine(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[AsyncEngine]:
    """An engine of SQLAlchemy with an event loop, over each of the drivers."""
    engine = create_async_engine(url(dsn, request.param), poolclass=NullPool)
    yield engine
    await engine.dispose()


@pytest.fixture
async def utils(dsn: str) -> AsyncIterator[WorkerUtils]:
    """WorkerUtils with an event loop."""
    async with WorkerUtils(dsn) as utils:
        yield utils


def about(jobs: Any) -> list[Any]:
    """What must be equal, whichever driver added the jobs."""
    return [
        (job.task_identifier, job.payload, job.key, job.flags, job.priority, job.run_at)
        for job in jobs
    ]


async def test_jobs_commit_with_the_session_or_go_with_it(
    engine: AsyncEngine, utils: WorkerUtils, stored: Jobs
) -> None:
    sessions = async_sessionmaker(engine)
    seen: list[str] = []
    utils.events.subscribe(
        JobsAdded, lambda event: seen.extend(j.task_identifier for j in event.jobs)
    )
    async with sessions() as session, session.begin():
        await session.execute(text("create table orders (id int)"))
    async with sessions() as session:
        await session.execute(text("insert into orders values (1)"))
        await utils.add_job("ship", {"order": 1}, conn=session)
        await session.rollback()
        await utils.add_job("ship", {"order": 2}, conn=session)  # begins the next transaction
        await session.execute(text("insert into orders values (2)"))
        async with session.begin_nested() as savepoint:
            await utils.add_job("ship", {"order": 3}, conn=session)
            await savepoint.rollback()
        assert stored.all() == []
        await session.commit()
    assert [job["payload"] for job in stored.all()] == [{"order": 2}]
    assert seen == ["ship"] * 3
    async with engine.connect() as conn:
        assert (await conn.execute(text("select id from orders"))).scalars().all() == [2]


async def test_jobs_are_those_that_our_own_connection_adds(
    engine: AsyncEngine, utils: WorkerUtils, stored: Jobs
) -> None:
    at = datetime(2030, 1, 2, tzinfo=UTC)
    specs = [
        JobSpec(
            spec.identifier,
            spec.payload,
            run_at=at,
            job_key=spec.job_key,
            job_key_mode=spec.job_key_mode,
            queue_name=spec.queue_name,
            flags=spec.flags,
        )
        for spec in SPECS
    ]
    plain = about(await utils.add_jobs(specs))
    many = [JobSpec("many", {"n": n, "text": "ä\\\n\t"}, run_at=at) for n in range(250)]
    async with engine.connect() as conn:  # a connection of the Core
        assert about(await utils.add_jobs(specs, conn=conn)) == plain
        one = await utils.add_job("one", {"a": [1, None, "x"]}, priority=-1, run_at=at, conn=conn)
        assert about([one]) == [("one", {"a": [1, None, "x"]}, None, None, -1, at)]
        assert about(await utils.add_jobs(many, conn=conn)) == [
            ("many", spec.payload, None, None, 0, at) for spec in many
        ]
        assert await utils.add_jobs_from(iter(many), chunk_size=200, conn=conn) == 250
        assert len(stored.all()) == len(SPECS)
        await conn.commit()
    assert len(stored.all()) == len(SPECS) + 1 + 1 + 500  # one of them has no key


@pytest.mark.parametrize("kind", ["session", "scoped_session", "connection"])
def test_sync_sessions_add_jobs_and_do_all_else(dsn: str, stored: Jobs, kind: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"), poolclass=NullPool)
    makers: dict[str, Callable[[], Any]] = {
        "session": sessionmaker(engine),
        "scoped_session": lambda: scoped_session(sessionmaker(engine)),
        "connection": engine.connect,
    }
    conn = makers[kind]()
    with SyncWorkerUtils(dsn) as utils:
        jobs = utils.add_jobs(SPECS, conn=conn)
        jobs += utils.add_jobs([JobSpec("many", n) for n in range(250)], conn=conn)
        assert stored.all() == []
        assert utils.remove_job("bill", conn=conn) is not None
        assert utils.cancel_jobs([jobs[0].id], conn=conn)[0].state == "cancelled"
        conn.commit()
        assert len(stored.all()) == len(SPECS) + 250 - 2
        utils.add_job("gone", conn=conn)
        conn.rollback()
        assert utils.counts(conn=conn).total == len(SPECS) + 250 - 2
        conn.close()
    engine.dispose()


async def test_async_sessions_over_psycopg_do_all_else(dsn: str, utils: WorkerUtils) -> None:
    engine = create_async_engine(url(dsn, "psycopg"), poolclass=NullPool)
    sessions = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
    job = await utils.add_job("ship", job_key="k", conn=sessions)
    assert (await utils.list_jobs(conn=sessions))[0].id == job.id
    assert (await utils.explain(job.id, conn=sessions)).reasons
    await utils.cancel_jobs([job.id], conn=sessions)
    await sessions.rollback()
    assert await utils.list_jobs() == []
    await sessions.close()
    await engine.dispose()


async def test_a_task_completes_its_job_in_its_session(
    utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    engine = create_async_engine(url(dsn, "psycopg"), poolclass=NullPool)

    @task
    async def ship(_payload: Any, ctx: Any) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("create table shipped as select 1 as id"))
            await ctx.add_job("bill", conn=session)
            await ctx.complete_with(session)

    await utils.add_job("ship")
    await run_once(dsn, tasks=[ship])
    await engine.dispose()
    assert [job["task_identifier"] for job in stored.all()] == ["bill"]


async def test_connections_of_asyncpg_with_their_own_codecs_add_jobs(
    dsn: str, utils: WorkerUtils, stored: Jobs
) -> None:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool, pool.acquire() as conn:
        for kind in ("json", "jsonb"):
            await conn.set_type_codec(
                kind, encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
            )
        transaction = conn.transaction()
        await transaction.start()
        jobs = await utils.add_jobs(SPECS, conn=conn)
        assert [job.payload for job in jobs] == [{"n": 1}, {"n": 2}, {"n": 3}, "text", {}]
        assert jobs[3].flags == {"eu": True}
        assert abs((jobs[0].created_at - datetime.now(UTC)).total_seconds()) < 3600
        await transaction.rollback()
        assert stored.all() == []
        await utils.add_job("alone", conn=conn)  # outside of a transaction: at once
        assert len(stored.all()) == 1


@WITHOUT_SIDE_SCHEMA
async def test_errors_of_asyncpg_become_those_that_are_documented(
    dsn: str, utils: WorkerUtils
) -> None:
    conn = await asyncpg.connect(dsn)
    try:
        with pytest.raises(MissingTablesError):
            await utils.add_job("ship", awaited=True, conn=conn)
        with pytest.raises(ConfigurationError, match="only add_job"):
            await utils.counts(conn=conn)
        async with conn.transaction():
            with pytest.raises(asyncpg.PostgresError):
                await conn.execute("select 1 / 0")
            with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
                await utils.add_job("ship", conn=conn)
            assert isinstance(raised.value.__cause__, asyncpg.PostgresError)
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                await utils.add_jobs(SPECS, conn=conn)
    finally:
        await conn.close()
    with pytest.raises(psycopg.InterfaceError, match="closed"):
        await utils.add_job("ship", conn=conn)


async def test_what_can_not_keep_the_promise_is_refused(
    dsn: str, utils: WorkerUtils, stored: Jobs, tmp_path: Any
) -> None:
    sqlite = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/db", poolclass=NullPool)
    async with AsyncSession(sqlite) as session:
        with pytest.raises(ConfigurationError, match="uses sqlite by the async driver aiosqlite"):
            await utils.add_job("ship", conn=session)
    for driver in DRIVERS:
        engine = create_async_engine(
            url(dsn, driver), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        async with AsyncSession(engine) as session:
            with pytest.raises(ConfigurationError, match="AsyncSession is in autocommit mode"):
                await utils.add_job("ship", conn=session)
        async with AsyncSession(engine, close_resets_only=False) as session:
            pass
        with pytest.raises(ConfigurationError, match="closed"):
            await utils.add_job("ship", conn=session)
        async with engine.connect() as conn:
            pass
        with pytest.raises(ConfigurationError, match="this AsyncConnection can't be used"):
            await utils.add_job("ship", conn=conn)
    async with AsyncSession() as session:
        with pytest.raises(
            ConfigurationError, match=r"can't be used: .*pass session\.connection\("
        ):
            await utils.add_job("ship", conn=session)
    with pytest.raises(ConfigurationError, match="SyncWorkerUtils takes a Session or Connection"):
        await utils.add_job("ship", conn=Session())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="not this Engine"):
        await utils.add_job("ship", conn=sqlalchemy.create_engine("postgresql://"))  # type: ignore[arg-type]
    pool = asyncpg.create_pool(dsn)
    with pytest.raises(ConfigurationError, match="a pool lends one"):
        await utils.add_job("ship", conn=pool)
    assert stored.all() == []


def test_what_does_not_suit_blocking_utils_is_refused(dsn: str, stored: Jobs) -> None:
    with SyncWorkerUtils(dsn) as utils:
        for address in (url(dsn, "psycopg2"), "sqlite://"):
            with (
                Session(sqlalchemy.create_engine(address, poolclass=NullPool)) as session,
                pytest.raises(ConfigurationError, match="it must use PostgreSQL by psycopg,"),
            ):
                utils.add_job("ship", conn=session)
        engine = sqlalchemy.create_engine(url(dsn, "psycopg"), isolation_level="AUTOCOMMIT")
        with Session(engine) as session, pytest.raises(ConfigurationError, match="autocommit"):
            utils.add_jobs(SPECS, conn=session)
        engine.dispose()
        with pytest.raises(ConfigurationError, match="WorkerUtils takes an AsyncSession"):
            utils.add_job("ship", conn=AsyncSession())  # type: ignore[arg-type]
        with Session(engine, close_resets_only=False) as session:
            pass
        with pytest.raises(ConfigurationError, match=r"closed .*\. Pass one that is open$"):
            utils.add_job("ship", conn=session)
    assert stored.all() == []


async def test_the_wrong_database_is_named_before_the_wrong_kind(
    utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    engine = sqlalchemy.create_engine("sqlite://", poolclass=NullPool)
    message = r"uses sqlite by the driver pysqlite: .* it must be an AsyncSession or AsyncConn"
    with engine.connect() as conn:
        for sync in (Session(engine), scoped_session(sessionmaker(engine)), Session(conn), conn):
            with pytest.raises(ConfigurationError, match=message):
                await utils.add_job("ship", conn=sync)  # type: ignore[arg-type]
    other = create_async_engine("sqlite+aiosqlite://", poolclass=NullPool)
    message = "uses sqlite by the async driver aiosqlite: .* it must be a Session or Connection"
    with SyncWorkerUtils(dsn) as sync_utils, pytest.raises(ConfigurationError, match=message):
        sync_utils.add_job("ship", conn=AsyncSession(other))  # type: ignore[arg-type]
    assert stored.all() == []


async def test_a_session_that_was_closed_begins_anew_as_for_any_statement(
    engine: AsyncEngine, utils: WorkerUtils, stored: Jobs
) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(text("create table orders (id int)"))
        await session.commit()
    assert not session.in_transaction()
    await utils.add_job("lost", conn=session)
    assert session.in_transaction()
    assert stored.all() == []
    await session.close()  # without a commit
    await utils.add_job("kept", conn=session)
    await session.execute(text("insert into orders values (1)"))
    await session.commit()
    assert [job["task_identifier"] for job in stored.all()] == ["kept"]
