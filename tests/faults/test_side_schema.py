"""The schema of our own: made on demand, done without where it must be, and mended."""

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from graphile_worker_py import JobContext, Runner, run_once
from graphile_worker_py.events import (
    JobSuccess,
    PoolFatalError,
    PoolListenSuccess,
    PoolTakenForDead,
)
from graphile_worker_py.fleet import heartbeat
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, Ledger
from tests.faults.test_poison_jobs import heartbeat_of_all
from tests.support.eventually import eventually
from tests.support.running import Told

INSTALLER = "python"

SCHEMAS = "select nspname from pg_namespace where nspname like 'graphile%%' order by nspname"
OURS = """
select count(*) as count from information_schema.tables
where table_schema = 'graphile_worker_py'
  and table_name in ('migrations', 'pools', 'suspects', 'leaf_migrations', 'leaders', 'runs_failed')
"""
WARNING = "Working without the schema graphile_worker_py (InsufficientPrivilege: "


async def test_many_pools_that_start_at_once_make_it_together(dsn: str, ledger: Ledger) -> None:
    await ledger.in_thread("drop schema if exists graphile_worker_py cascade")
    told = [Told() for _ in range(8)]
    async with asyncio.TaskGroup() as group:
        for each in told:
            group.create_task(run_while_registered(dsn, ledger, each, len(told)))
    assert ledger.query(OURS) == [{"count": 6}]
    assert ledger.pools() == {}


async def run_while_registered(dsn: str, ledger: Ledger, told: Told, count: int) -> None:
    async with Runner(dsn, tasks={"work": print}, events=told.events, **FAST) as runner:
        await told.seen(PoolListenSuccess, timeout=10)
        await eventually(lambda: runner.pool_id in ledger.pools() or told.of(PoolFatalError))
        assert told.of(PoolFatalError) == []


async def test_it_can_be_switched_off(dsn: str, ledger: Ledger) -> None:
    await ledger.in_thread("drop schema if exists graphile_worker_py cascade")
    told = Told()
    job_id = ledger.add("work")
    async with Runner(dsn, tasks={"work": print}, no_side_schema=True, events=told.events, **FAST):
        await told.seen(JobSuccess)
        await eventually(lambda: job_id not in ledger.ids())
    assert ledger.query(SCHEMAS) == [{"nspname": "graphile_worker"}]


async def test_a_run_that_ends_registers_for_as_long_as_it_lasts(dsn: str, ledger: Ledger) -> None:
    seen: list[Any] = []

    async def work(payload: Any) -> None:
        seen.extend(ledger.pools().values())

    ledger.add("work")
    await run_once(dsn, tasks={"work": work})
    (row,) = seen
    # Nothing but the heartbeat speaks for it, so that may be later.
    assert row["pool_id"].startswith("otpool-")
    assert row["dead_after"] == 80
    assert ledger.pools() == {}


async def test_nothing_is_fetched_before_the_pool_is_registered(
    dsn: str,
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "REGISTER_PATIENCE", 0.1)
    told = Told()
    seen: list[bool] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        seen.append(ctx.pool_id in ledger.pools())

    ledger.add("work")
    async with Runner(dsn, tasks={"work": work}, events=told.events):
        await told.seen(JobSuccess)  # the schema is there
    assert seen == [True]
    ledger.add("work")
    with psycopg.connect(dsn) as conn:
        conn.execute("lock table graphile_worker_py.pools in access exclusive mode")
        async with Runner(dsn, tasks={"work": work}, events=told.events, **FAST):
            await eventually(lambda: "could not register this pool (" in caplog.text)
            assert ledger.locked() == []
            conn.commit()
            await told.seen(JobSuccess, count=2, timeout=10)
    assert seen == [True, True]


@pytest.fixture
def lesser_dsn(dsn: str, ledger: Ledger) -> Iterator[str]:
    """The database as seen by a role that may work on jobs, and nothing else."""
    role = f"lesser_{psycopg.conninfo.conninfo_to_dict(dsn)['dbname']}"
    for text in (
        f"create role {role} login bypassrls password 'secret'",
        f"grant usage on schema graphile_worker, public to {role}",
        f"grant all on all tables in schema graphile_worker, public to {role}",
        f"grant all on all sequences in schema graphile_worker, public to {role}",
    ):
        ledger.query(text)
    yield psycopg.conninfo.make_conninfo(dsn, user=role, password="secret")
    ledger.query(f"drop owned by {role}")
    ledger.query(f"drop role {role}")


@pytest.mark.parametrize("made", ["not there", "of others", "in part"])
async def test_without_the_rights_for_it_there_is_one_warning_and_work_goes_on(
    dsn: str,
    ledger: Ledger,
    lesser_dsn: str,
    caplog: pytest.LogCaptureFixture,
    made: str,
) -> None:
    await ledger.in_thread("drop schema if exists graphile_worker_py cascade")
    if made != "not there":
        await run_once(dsn, tasks={"work": print})
    if made == "in part":
        # It may register, but not ask for suspects; others must not find it dead for that.
        role = psycopg.conninfo.conninfo_to_dict(lesser_dsn)["user"]
        ledger.query(f"grant usage on schema graphile_worker_py to {role}")
        for table in ("migrations", "pools"):
            ledger.query(f"grant all on graphile_worker_py.{table} to {role}")
    told = Told()
    async with Runner(
        lesser_dsn,
        tasks={"work": print},
        concurrent_jobs=2,
        events=told.events,
        **{**FAST, "poll_interval": 0.1},
    ):
        for count in (1, 2):
            ledger.add("work")
            await told.seen(JobSuccess, count=count)
        assert made == "not there" or ledger.pools() == {}
    assert ledger.ids() == []
    assert [record.levelname for record in caplog.records if WARNING in record.message] == [
        "WARNING"
    ]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("made", ["of others", "for it"])
async def test_a_role_that_may_use_a_schema_made_by_others_does(
    dsn: str, ledger: Ledger, lesser_dsn: str, made: str
) -> None:
    role = psycopg.conninfo.conninfo_to_dict(lesser_dsn)["user"]
    if made == "of others":
        await run_once(dsn, tasks={"work": print})
        ledger.query(f"grant usage on schema graphile_worker_py to {role}")
        ledger.query(f"grant all on all tables in schema graphile_worker_py to {role}")
    else:
        await ledger.in_thread(f"create schema graphile_worker_py authorization {role}")
    told = Told()
    async with Runner(lesser_dsn, tasks={"work": print}, events=told.events, **FAST) as runner:
        await told.seen(PoolListenSuccess)
        assert list(ledger.pools()) == [runner.pool_id]
        await heartbeat_of_all(ledger)
    assert ledger.pools() == {}


async def test_workers_go_on_when_it_is_dropped_and_make_it_anew(
    dsn: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()

    ledger.add_many(2, "work")
    async with (
        Runner(dsn, tasks={"work": work}, events=told.events, **FAST) as one,
        Runner(dsn, tasks={"work": work}, events=told.events, **FAST) as two,
    ):
        await told.seen(PoolListenSuccess, count=2)
        await eventually(lambda: len(ledger.holders()) == 2)
        await ledger.in_thread("drop schema graphile_worker_py cascade")
        await eventually(lambda: ledger.query(OURS) == [{"count": 6}])
        await eventually(lambda: set(ledger.pools()) == {one.pool_id, two.pool_id})
        await heartbeat_of_all(ledger)
        finish.set()
        await eventually(lambda: ledger.ids() == [])
    assert told.of(PoolTakenForDead) == []
    assert "The schema graphile_worker_py is missing; creating it again" in caplog.text
    assert ledger.pools() == {}


@pytest.mark.parametrize("table", ["pools", "suspects"])
async def test_where_only_a_table_of_it_is_dropped_workers_go_on_without_it(
    dsn: str, ledger: Ledger, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    told = Told()
    async with Runner(
        dsn,
        tasks={"work": print},
        events=told.events,
        **{**FAST, "heartbeat_interval": 0.05, "poll_interval": 0.1},
    ) as runner:
        await told.seen(PoolListenSuccess)
        await ledger.in_thread(f"drop table graphile_worker_py.{table}")
        await eventually(lambda: "tables are missing in it: drop it" in caplog.text)
        ledger.add("work")
        await told.seen(JobSuccess)
        assert runner.health().ready
    assert caplog.text.count("Working without the schema graphile_worker_py (") == 1
    await ledger.in_thread("drop schema graphile_worker_py cascade")


async def test_rows_of_pools_that_were_deleted_by_hand_are_made_anew(
    dsn: str, ledger: Ledger
) -> None:
    told = Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events, **FAST) as runner:
        await told.seen(PoolListenSuccess)
        ledger.query("delete from graphile_worker_py.pools")
        await eventually(lambda: list(ledger.pools()) == [runner.pool_id])
    assert told.of(PoolTakenForDead) == []


async def test_jobs_in_a_schema_of_that_name_are_worked_on_without_it(
    empty_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    async with Runner(
        empty_dsn,
        schema="graphile_worker_py",
        tasks={"work": lambda _: None},
        events=told.events,
        **FAST,
    ) as runner:
        await runner.add_job("work")
        await told.seen(JobSuccess)
    assert "the jobs are in the schema 'graphile_worker_py', which is the name" in caplog.text


async def test_pools_of_another_schema_are_left_to_their_own(
    dsn: str, ledger: Ledger, start_worker: StartWorker
) -> None:
    killed = start_worker(schema="other", **FAST)
    pool_id = (await killed.seen("pool:listen:success")).split()[1]
    killed.kill()
    killed.wait()
    told = Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events, **FAST):
        await told.seen(PoolListenSuccess)
        (row,) = ledger.query("select clock_timestamp() as now")
        await eventually(
            lambda: any(
                (pool["heartbeat_at"] - row["now"]).total_seconds() > 1.5
                for pool in ledger.pools().values()
            )
        )
        assert ledger.pools()[pool_id]["died_at"] is None
