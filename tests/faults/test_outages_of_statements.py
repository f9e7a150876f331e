"""The server refuses what it is asked, or takes too long: it is asked again."""

import asyncio
import logging
import time

import psycopg
import pytest
from psycopg import sql

from tests.faults.conftest import StartTrial
from tests.faults.trial import Trial
from tests.support.eventually import eventually
from tests.support.server import dbname_of

SET: str = "alter database {} set {} = {}"
END_SESSIONS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
FULL = """
create function public.fail() returns trigger language plpgsql as $$
begin
  raise exception 'could not extend file: No space left on device' using errcode = '53100';
end $$;
create trigger disk_full before insert or update or delete on graphile_worker._private_jobs
for each statement execute function public.fail();
"""
NO_LONGER_FULL = "drop function public.fail cascade"
LOCK_TABLE = "lock table graphile_worker._private_jobs in access exclusive mode"
LOCK_QUEUE = """
select id from graphile_worker._private_job_queues where locked_by is not null limit 1 for update
"""
SOMEBODY_WAITS = """
select pid from pg_stat_activity where pg_backend_pid() = any (pg_blocking_pids(pid))
"""
TOUCH_JOBS = """
update graphile_worker._private_jobs set priority = priority
where job_queue_id = %s and locked_by is not null
"""


@pytest.fixture(autouse=True)
def each_failed_fetch_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """At info, an outage is logged only once."""
    caplog.set_level(logging.DEBUG, logger="graphile_worker_py.workers.local_queue")


def set_for_all(dsn: str, name: str, value: str) -> None:
    """Change a setting of the database, for the sessions to come."""
    # Else what makes it read-only could not be undone.
    own = psycopg.conninfo.make_conninfo(dsn, options="-c default_transaction_read_only=off")
    text = sql.SQL(SET).format(
        sql.Identifier(dbname_of(dsn)), sql.Identifier(name), sql.Literal(value)
    )
    with psycopg.connect(own, autocommit=True) as conn:
        conn.execute(text)


async def test_while_the_database_is_read_only_nothing_is_lost(
    dsn: str, trial: StartTrial, caplog: pytest.LogCaptureFixture
) -> None:
    async with trial(dsn, "database read-only") as at_work:
        for _ in at_work.rounds():
            set_for_all(dsn, "default_transaction_read_only", "on")
            at_work.jobs.query(END_SESSIONS)
            await asyncio.sleep(at_work.scale.outage)
            await eventually(lambda: "(ReadOnlySqlTransaction" in caplog.text)
            # Their sessions stay as they are.
            set_for_all(dsn, "default_transaction_read_only", "off")
            await at_work.resumed(since=time.monotonic())


async def test_when_the_disk_is_full_work_goes_on_once_there_is_space(
    dsn: str, trial: StartTrial, caplog: pytest.LogCaptureFixture
) -> None:
    async with trial(dsn, "each write refused: disk full") as at_work:
        for _ in at_work.rounds():
            at_work.jobs.query(FULL)
            await asyncio.sleep(at_work.scale.outage)
            await eventually(lambda: "(DiskFull" in caplog.text)
            await eventually(lambda: at_work.load.errors["DiskFull"])
            at_work.jobs.query(NO_LONGER_FULL)
            await at_work.resumed(since=time.monotonic())


@pytest.mark.parametrize(
    ("setting", "error"),
    [("statement_timeout", "QueryCanceled"), ("lock_timeout", "LockNotAvailable")],
)
async def test_what_took_too_long_behind_a_lock_is_done_when_the_lock_is_gone(
    dsn: str, trial: StartTrial, caplog: pytest.LogCaptureFixture, setting: str, error: str
) -> None:
    set_for_all(dsn, setting, "300ms")
    async with trial(dsn, f"table locked, {setting} hit") as at_work:
        for _ in at_work.rounds():
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                await conn.execute("set local lock_timeout = 0")
                await conn.execute("set local statement_timeout = 0")
                await conn.execute(LOCK_TABLE)
                await asyncio.sleep(at_work.scale.outage)
                await eventually(lambda: f"({error}" in caplog.text)
            await at_work.resumed(since=time.monotonic())


async def test_where_all_is_serializable_races_are_lost_and_run_again(
    dsn: str, trial: StartTrial, caplog: pytest.LogCaptureFixture
) -> None:
    set_for_all(dsn, "default_transaction_isolation", "serializable")
    async with trial(dsn, "all transactions serializable") as at_work:
        for _ in at_work.rounds():
            await asyncio.sleep(at_work.scale.outage)
            await eventually(lambda: "(SerializationFailure" in caplog.text)
            await at_work.resumed(since=time.monotonic())


async def test_of_a_deadlock_the_pool_is_the_victim_and_tries_again(
    dsn: str, trial: StartTrial, caplog: pytest.LogCaptureFixture
) -> None:
    set_for_all(dsn, "deadlock_timeout", "100ms")
    async with trial(dsn, "deadlock with a statement of others") as at_work:
        for _ in at_work.rounds():
            before = caplog.text.count("(DeadlockDetected")
            # Who waits first may be one that is in nobody's way.
            while caplog.text.count("(DeadlockDetected") == before:
                await deadlock(at_work)
            await at_work.resumed(since=time.monotonic())


async def deadlock(at_work: Trial) -> None:
    """Lock the queue of a running job, and the job when its outcome waits for the queue."""
    async with await psycopg.AsyncConnection.connect(at_work.jobs.dsn) as conn:
        await conn.execute("set local deadlock_timeout = '1 min'")

        async def found() -> int | None:
            row = await (await conn.execute(LOCK_QUEUE)).fetchone()
            return None if row is None else int(row[0])

        async def waited_for() -> bool:
            return bool(await (await conn.execute(SOMEBODY_WAITS)).fetchall())

        queue_id = await eventually(found)
        await eventually(waited_for)
        await conn.execute(TOUCH_JOBS, (queue_id,))
        await conn.rollback()
