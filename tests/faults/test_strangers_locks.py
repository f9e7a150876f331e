"""A role that may only connect takes advisory locks, and so delays no worker."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from graphile_worker_py import Runner, run_migrations
from graphile_worker_py.events import JobSuccess, PoolListenError, PoolListenSuccess, PoolRecovered
from graphile_worker_py.schema import own
from graphile_worker_py.sql.own_schema import MIGRATIONS
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, Ledger
from tests.faults.test_killed_workers import begun, make_short
from tests.support.eventually import eventually
from tests.support.running import Told

INSTALLER = "python"

KEYS = """
select (classid::bigint << 32) | objid::bigint as key from pg_locks
where locktype = 'advisory' and objsubid = 1
  and database = (select oid from pg_database where datname = current_database())
"""
INSTALL_KEY = 7240312864093218563
LISTENERS = """
select pid from pg_stat_activity where datname = current_database() and query ilike 'listen%%'
"""


@pytest.fixture
def stranger_dsn(dsn: str, ledger: Ledger) -> Iterator[str]:
    """The database as seen by a role that may connect, and nothing else."""
    role = f"stranger_{psycopg.conninfo.conninfo_to_dict(dsn)['dbname']}"
    ledger.query(f"create role {role} login password 'secret'")
    yield psycopg.conninfo.make_conninfo(dsn, user=role, password="secret")
    ledger.query(f"drop role {role}")


@asynccontextmanager
async def locked_by(dsn: str, *keys: int, shared: bool = False) -> AsyncIterator[None]:
    """Within the block a session waits for these advisory locks, or has them."""
    function = "pg_advisory_lock_shared" if shared else "pg_advisory_lock"
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        asyncio.TaskGroup() as group,
    ):

        async def lock() -> None:
            for key in keys:
                await conn.execute(f"select {function}(%s)".encode(), (key,))

        locking = group.create_task(lock())
        yield
        locking.cancel()


async def test_they_do_not_keep_a_dead_pool_alive(
    dsn: str, ledger: Ledger, stranger_dsn: str, start_worker: StartWorker
) -> None:
    killed = start_worker(**FAST)
    ledger.add("work", {"seconds": 3600})
    dead = await begun(ledger, killed, 1)
    make_short(ledger)
    await eventually(lambda: ledger.has_lock(dead))
    told = Told()
    keys = [row["key"] for row in ledger.query(KEYS)]
    async with (
        locked_by(stranger_dsn, *keys, shared=True),
        Runner(dsn, tasks={"work": print}, events=told.events, **FAST),
    ):
        await told.seen(PoolListenSuccess)
        killed.kill()
        # Forty times `dead_after` would be 20 seconds.
        await told.seen(PoolRecovered, timeout=8)
        await told.seen(JobSuccess)


async def test_they_do_not_keep_a_listener_from_listening(
    dsn: str, ledger: Ledger, stranger_dsn: str
) -> None:
    told = Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events, **FAST) as runner:
        await told.seen(PoolListenSuccess)
        await eventually(lambda: ledger.has_lock(runner.pool_id))
        async with locked_by(stranger_dsn, *(row["key"] for row in ledger.query(KEYS))):
            for row in ledger.query(LISTENERS):
                ledger.query("select pg_terminate_backend(%s)", row["pid"])
            await told.seen(PoolListenSuccess, count=2)
            await eventually(lambda: ledger.has_lock(runner.pool_id))
            ledger.add("work")
            await told.seen(JobSuccess)
    # Because of the session, and not again because of the lock.
    assert len(told.of(PoolListenError)) == 1


async def test_they_do_not_delay_the_first_installation(
    dsn: str, ledger: Ledger, stranger_dsn: str
) -> None:
    await ledger.in_thread("drop schema if exists graphile_worker_py cascade")
    told = Told()
    ledger.add("work")
    async with (
        locked_by(stranger_dsn, INSTALL_KEY),
        Runner(dsn, tasks={"work": print}, events=told.events, **FAST) as runner,
    ):
        await told.seen(JobSuccess, timeout=5)
        assert list(ledger.pools()) == [runner.pool_id]


async def test_an_upgrade_waits_for_another_session_only_for_seconds_and_says_so(
    dsn: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(own, "LOCK_PATIENCE", 0.2)
    told = Told()
    await run_migrations(dsn, side_schema=True)
    # As the first revision left it.
    for column in re.findall(r"add column (\w+)", str(MIGRATIONS[1:])):
        await ledger.in_thread(f"alter table graphile_worker_py.pools drop column {column}")
    for table in re.findall(r"create table (\S+)", str(MIGRATIONS[1:])):
        await ledger.in_thread(f"drop table {table}")
    for function in re.findall(r"create function (\S+\))", str(MIGRATIONS[1:])):
        await ledger.in_thread(f"drop function {function}")
    ledger.query("delete from graphile_worker_py.migrations where id > 1")
    with psycopg.connect(dsn) as other:
        other.execute("select from graphile_worker_py.migrations for update")
        with pytest.raises(psycopg.errors.LockNotAvailable, match="another session has locked"):
            await run_migrations(dsn, side_schema=True)
        async with Runner(dsn, tasks={"work": print}, events=told.events, **FAST) as runner:
            await eventually(
                lambda: (
                    "could not register this pool (LockNotAvailable: another session has locked "
                    "tables of the schema graphile_worker_py); retrying" in caplog.text
                )
            )
            other.rollback()
            # A look at the table meanwhile would wait for its change, and with it the event loop.
            await told.seen(PoolListenSuccess)
            assert list(ledger.pools()) == [runner.pool_id]
