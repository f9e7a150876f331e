"""With `ctx.transaction()` and `ctx.complete_with()`, kills neither lose nor repeat an effect."""

import asyncio
import json
import random
import sys
import time
from typing import Any, Final

import pytest

from graphile_worker_py import run_migrations
from tests.faults import bank
from tests.faults.conftest import ROOT
from tests.faults.ledger import FAST
from tests.support.processes import Process, Processes
from tests.support.running import Jobs

ADD: Final = """
select graphile_worker.add_job(
  case when n %% 2 = 0 then 'transfer' else 'transfer_with' end,
  json_build_object(
    'payer', 1 + n %% 100, 'payee', 1 + (n %% 100 + 1 + n %% 97) %% 100, 'amount', 1 + n %% 50
  )
)
from generate_series(1, %s) as n
"""
WRONG: Final = """
select id from accounts
where balance <> 1000
  + coalesce((select sum(amount) from transfers where payee = accounts.id), 0)
  - coalesce((select sum(amount) from transfers where payer = accounts.id), 0)
"""
KILLED: Final = "select 1 from graphile_worker_py.runs where outcome = 'killed'"
COMPLETED: Final = """
select count(*) as runs, count(distinct job_id) as jobs from graphile_worker_py.runs_completed
"""
OPTIONS: Final[dict[str, Any]] = {
    **FAST,
    "history": "all",
    "concurrent_jobs": 4,
    "dead_after": 1,
    "max_crashes": 0,  # the jobs are not to blame
}


@pytest.mark.timeout(1800)
async def test_with_workers_that_are_killed_each_transfer_happens_once(
    dsn: str, processes: Processes, request: pytest.FixtureRequest
) -> None:
    transfers = 2000 if request.config.getoption("--long") else 200
    await run_migrations(dsn, side_schema=True)
    jobs, rng = Jobs(dsn), random.Random(12)
    jobs.query(bank.MAKE)
    jobs.query(ADD, transfers)

    def start() -> Process:
        command = [sys.executable, "-m", "tests.faults.bank", dsn, json.dumps(OPTIONS)]
        return processes.start(command, cwd=ROOT)

    workers = [start(), start()]
    for worker in workers:
        await worker.seen("ready")
    kills, began = 0, time.monotonic()
    while jobs.ids():
        await asyncio.sleep(rng.uniform(0.05, 0.6))
        at = rng.randrange(2)
        workers[at].kill()
        workers[at] = start()
        await workers[at].seen("ready")
        kills += 1
    seconds = time.monotonic() - began
    assert jobs.query("select sum(balance) from accounts") == [{"sum": 100_000}]
    assert jobs.query(WRONG) == []
    counted = "select count(*) as effects, count(distinct job_id) as jobs from transfers"
    assert jobs.query(counted) == [{"effects": transfers, "jobs": transfers}]
    assert jobs.query(COMPLETED) == [{"runs": transfers, "jobs": transfers}]
    assert kills > 1
    figures = {"kills": kills, "seconds": seconds, "cut off": len(jobs.query(KILLED))}
    request.node.user_properties.append(("transfers", json.dumps(figures)))
