"""A worker's role loses `bypassrls` for a while: its statements change nothing, and do not fail."""

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from graphile_worker_py import Runner, WorkerPoolError
from graphile_worker_py.events import (
    JobLost,
    JobStart,
    JobSuccess,
    PoolListenSuccess,
    PoolRecovered,
)
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, Ledger
from tests.faults.test_killed_workers import begun, make_short
from tests.support.eventually import eventually
from tests.support.running import Told, impatient

INSTALLER = "python"


class Role:
    """A role that was granted everything, and may see all rows or none.

    Attributes:
        dsn: How it connects.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.name = f"bound_{psycopg.conninfo.conninfo_to_dict(ledger.dsn)['dbname']}"
        self.dsn = psycopg.conninfo.make_conninfo(ledger.dsn, user=self.name, password="secret")
        ledger.query(f"create role {self.name} login bypassrls password 'secret'")
        ledger.query(f"grant usage on schema graphile_worker, public to {self.name}")
        for kind in ("tables", "sequences"):
            ledger.query(
                f"grant all on all {kind} in schema graphile_worker, public to {self.name}"
            )
        database = psycopg.conninfo.conninfo_to_dict(ledger.dsn)["dbname"]
        ledger.query(f"grant create on database {database} to {self.name}")

    def blind(self) -> None:
        """Hide all rows from it."""
        self._ledger.query(f"alter role {self.name} nobypassrls")

    def see(self) -> None:
        """Show it all rows again."""
        self._ledger.query(f"alter role {self.name} bypassrls")

    def drop(self) -> None:
        """Leave the server as it was."""
        self._ledger.query(f"drop owned by {self.name} cascade")
        self._ledger.query(f"drop role {self.name}")


@pytest.fixture
def role(ledger: Ledger) -> Iterator[Role]:
    """The role, which sees all rows at first."""
    ledger.query("drop schema if exists graphile_worker_py cascade")
    role = Role(ledger)
    yield role
    role.drop()


@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_an_outcome_is_recorded_once_its_row_can_be_seen_again(
    ledger: Ledger, role: Role, caplog: pytest.LogCaptureFixture, outcome: str
) -> None:
    told = Told()
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()
        if outcome == "failed":
            raise ValueError("no")

    job_id = ledger.add("work", queue_name="q")
    async with Runner(role.dsn, tasks={"work": work}, events=told.events, **FAST) as runner:
        await told.seen(JobStart)
        role.blind()
        finish.set()
        verb = "complete" if outcome == "completed" else "fail"
        await eventually(lambda: f"could not {verb} jobs (RowsHiddenError" in caplog.text)
        assert ledger.one(job_id)["locked_by"] == runner.pool_id
        assert runner.health().locked_jobs == 1
        role.see()
        await eventually(lambda: ledger.locked() == [], timeout=10)
    assert told.of(JobLost) == []
    if outcome == "completed":
        assert ledger.ids() == []
    else:
        assert ledger.one(job_id)["last_error"] == "no"


async def test_a_stop_that_leaves_locks_is_not_clean(
    ledger: Ledger, role: Role, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    finish = asyncio.Event()

    async def work(payload: Any) -> None:
        await finish.wait()

    job_id = ledger.add("work")
    with pytest.raises(WorkerPoolError, match="whose outcome could not be recorded"):
        runner_type = impatient(kill=0.3)
        async with runner_type(
            role.dsn, tasks={"work": work}, events=told.events, **FAST
        ) as runner:
            await told.seen(JobStart)
            role.blind()
            finish.set()
            await told.seen(JobSuccess)
            await eventually(lambda: "RowsHiddenError" in caplog.text)
            await runner.kill()
    # Other pools are to find it dead, and free the job.
    assert ledger.one(job_id)["locked_by"] in ledger.pools()


async def test_the_jobs_of_a_dead_pool_are_freed_once_they_can_be_seen(
    ledger: Ledger, role: Role, start_worker: StartWorker, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    killed = start_worker(at=role.dsn, **FAST)
    ledger.add("work", {"seconds": 3600})
    dead = await begun(ledger, killed, 1)
    make_short(ledger)
    async with Runner(role.dsn, tasks={"work": print}, events=told.events, **FAST):
        await told.seen(PoolListenSuccess)
        role.blind()
        killed.kill()
        await eventually(
            lambda: "Could not recover the jobs of dead pools (RowsHiddenError" in caplog.text
        )
        assert ledger.holders() == {dead}
        assert ledger.pools()[dead]["unlocked_at"] is None
        role.see()
        await told.seen(PoolRecovered)
        await told.seen(JobSuccess)
