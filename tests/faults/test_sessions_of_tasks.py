"""What a task does to a session that it borrows never reaches heartbeats and recoveries."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from graphile_worker_py import JobContext, Plugin, Runner, WorkerPoolError
from graphile_worker_py.events import JobSuccess, PoolListenSuccess, PoolRecovered
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, Ledger
from tests.faults.test_heartbeats import heartbeat_after
from tests.faults.test_killed_workers import begun, make_short
from tests.support.eventually import eventually
from tests.support.locking import POOLS, table_locked
from tests.support.proxy import Proxy
from tests.support.running import Told

SPOILED = [
    "set role {role}",
    "set session authorization {role}",
    "set statement_timeout = 1",
    "set default_transaction_read_only = on",
    "set search_path = nowhere",
    "set datestyle = 'German'; set timezone = 'Asia/Kathmandu'; set client_encoding = 'latin1'",
    "listen something; create temp table pools (pool_id text)",
    "begin",
    "begin; select 1/0",
]


@pytest.fixture
def role(ledger: Ledger) -> Iterator[str]:
    """A role without any right."""
    name = f"nobody_{psycopg.conninfo.conninfo_to_dict(ledger.dsn)['dbname']}"
    ledger.query(f"create role {name}")
    yield name
    ledger.query(f"drop role {name}")


@pytest.mark.parametrize("text", SPOILED)
async def test_a_session_that_a_task_has_spoiled_sends_no_heartbeat(
    dsn: str, ledger: Ledger, role: str, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    told = Told()

    async def spoil(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            await conn.set_autocommit(True)
            try:
                await conn.execute(text.format(role=role).encode())
            except psycopg.errors.DivisionByZero:
                pass

    async with Runner(
        # One connection is left for tasks.
        dsn,
        tasks={"spoil": spoil},
        max_pool_size=3,
        events=told.events,
        **FAST,
    ) as runner:
        ledger.add("spoil")
        await told.seen(JobSuccess)
        await heartbeat_after(ledger, runner.pool_id, seconds=1, timeout=10)
    assert "Fetching no jobs" not in caplog.text
    assert "Working without the schema" not in caplog.text
    assert ledger.pools() == {}


async def test_a_recovery_does_not_use_a_session_that_a_task_has_spoiled(
    dsn: str, ledger: Ledger, role: str, start_worker: StartWorker
) -> None:
    told = Told()

    async def spoil(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            await conn.execute(f"set role {role}".encode())

    killed = start_worker(**FAST)
    ledger.add("work", {"seconds": 3600})
    await begun(ledger, killed, 1)
    make_short(ledger)
    async with Runner(
        dsn,
        tasks={"spoil": spoil, "work": print},
        max_pool_size=2,
        events=told.events,
        **FAST,
    ):
        await told.seen(PoolListenSuccess)
        ledger.add("spoil")
        await told.seen(JobSuccess)
        killed.kill()
        await told.seen(PoolRecovered)


@pytest.mark.parametrize("text", ["set role {role}", "set default_transaction_read_only = on"])
async def test_a_heartbeat_that_its_session_refuses_is_sent_on_a_new_one(
    dsn: str, ledger: Ledger, role: str, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """Whatever has become of its own session: behind a pooler other clients may have changed it."""
    told = Told()

    spoiled: list[int] = []

    class Spoil(Plugin):
        async def beat(self, pool: Any, conn: psycopg.AsyncConnection[Any]) -> None:
            if not spoiled:
                spoiled.append(conn.info.backend_pid)
                await conn.execute(text.format(role=role).encode())

    async with Runner(
        dsn, tasks={"work": print}, hooks=[Spoil()], events=told.events, **FAST
    ) as runner:
        await eventually(lambda: spoiled)
        await heartbeat_after(ledger, runner.pool_id, seconds=1, timeout=10)
    assert "Fetching no jobs" not in caplog.text


async def test_a_pool_that_is_held_back_for_too_long_is_not_live_and_ends(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    async with AsyncExitStack() as stack:
        with pytest.raises(WorkerPoolError, match=r"could not prove for \d+ s that it is alive"):
            async with Runner(
                dsn,
                tasks={"work": print},
                watchdog_timeout=1,
                events=told.events,
                **{**FAST, "poll_interval": 0.05},
            ) as runner:
                await told.seen(PoolListenSuccess)
                await stack.enter_async_context(table_locked(dsn, POOLS))
                await eventually(lambda: runner.health().held_back, timeout=10)
                assert runner.health().live
                await eventually(lambda: not runner.health().live, timeout=10)
                await runner.wait()


async def test_an_outage_does_not_count_as_being_held_back(dsn: str, ledger: Ledger) -> None:
    told = Told()
    async with (
        Proxy(dsn).running() as proxy,
        Runner(
            proxy.dsn,
            tasks={"work": print},
            watchdog_timeout=0.5,
            events=told.events,
            **{**FAST, "poll_interval": 0.05},
        ) as runner,
    ):
        await told.seen(PoolListenSuccess)
        proxy.refuse()
        await asyncio.sleep(3)
        assert runner.health().live
        proxy.accept()
        ledger.add("work")
        await told.seen(JobSuccess, timeout=10)
