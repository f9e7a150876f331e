"""Workers are killed: others free their jobs and run them, within seconds."""

import signal
import time
from typing import Any

import pytest

from graphile_worker_py import Runner
from graphile_worker_py.events import PoolListenSuccess, PoolRecovered
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, FASTER, Ledger
from tests.support.eventually import eventually
from tests.support.processes import Process
from tests.support.proxy import Proxy
from tests.support.running import Told


async def begun(ledger: Ledger, worker: Process, count: int) -> str:
    """Wait until a worker runs so many jobs; the id of its pool."""
    pool_id = (await worker.seen("pool:listen:success")).split()[1]
    await eventually(lambda: ledger.running(pool_id) >= count, timeout=10)
    return pool_id


def make_short(ledger: Ledger) -> None:
    """Let jobs that are to run for long end at once when they run again."""
    ledger.query("update graphile_worker._private_jobs set payload = '{}'")


@pytest.mark.timeout(60)
async def test_by_default_work_is_resumed_within_fifteen_seconds(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    killed = start_worker(concurrent_jobs=4, local_queue=100)
    plain = [ledger.add("work", {"seconds": 3600}) for _ in range(6)]
    queued = [ledger.add("work", {"seconds": 3600}, queue_name="serial") for _ in range(2)]
    dead = await begun(ledger, killed, 4)
    other = start_worker(concurrent_jobs=20)
    await other.seen("pool:listen:success")
    # Prefetched, so it was not begun; in a queue, so it is not for others.
    assert ledger.holders() == {dead}
    make_short(ledger)

    killed.kill()
    died = time.monotonic()
    await other.seen("pool:recovered", 20)
    resumed = time.monotonic() - died
    await eventually(lambda: ledger.ids() == [], timeout=10)

    assert resumed < 15
    assert {run["job_id"] for run in ledger.runs() if run["ended_at"]} == {*plain, *queued}
    assert ledger.locked() == []
    assert ledger.pools()[dead]["died_at"] is not None


async def test_of_all_workers_killed_one_that_starts_afterwards_takes_the_jobs(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    workers = [start_worker(concurrent_jobs=2, **FAST) for _ in range(2)]
    jobs = [ledger.add("work", {"seconds": 3600}) for _ in range(4)]
    for worker in workers:
        await begun(ledger, worker, 2)
    make_short(ledger)
    for worker in workers:
        worker.kill()
    last = start_worker(concurrent_jobs=4, **FAST)

    await eventually(lambda: ledger.ids() == [], timeout=15)
    assert {run["job_id"] for run in ledger.runs() if run["ended_at"]} == set(jobs)
    assert ledger.locked() == []
    assert last.returncode is None


async def test_two_that_find_a_death_at_once_free_its_jobs_once(
    dsn: str, ledger: Ledger, start_worker: StartWorker
) -> None:
    killed = start_worker(concurrent_jobs=3, **FAST)
    jobs = [ledger.add("work", {"seconds": 3600}) for _ in range(3)]
    dead = await begun(ledger, killed, 3)
    make_short(ledger)
    told = [Told(), Told()]
    ran: list[int] = []

    async def work(payload: Any, ctx: Any) -> None:
        ran.append(ctx.job.id)

    async with (
        Runner(dsn, tasks={"work": work}, events=told[0].events, **FAST),
        Runner(dsn, tasks={"work": work}, events=told[1].events, **FAST),
    ):
        for each in told:
            await each.seen(PoolListenSuccess)
        killed.kill()
        await eventually(lambda: ledger.ids() == [], timeout=10)
        # Each has beaten again, and had the chance to find more.
        (row,) = ledger.query("select clock_timestamp() as now")
        await eventually(
            lambda: all(
                pool["heartbeat_at"] > row["now"]
                for pool in ledger.pools().values()
                if pool["died_at"] is None
            )
        )
    recovered = [event for each in told for event in each.of(PoolRecovered)]
    assert sorted(ran) == jobs
    assert [event.dead_pool_ids for event in recovered] == [(dead,)]
    assert (recovered[0].jobs, recovered[0].queues, recovered[0].given_up) == (3, 0, [])


async def test_a_crash_costs_an_attempt_and_the_last_one_is_told(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    killed = start_worker(concurrent_jobs=2, **FAST)
    retried = ledger.add("work", {"seconds": 3600})
    spent = ledger.add("work", {"seconds": 3600}, max_attempts=1)
    dead = await begun(ledger, killed, 2)
    ledger.change(retried, "run_at = now() + interval '1 hour'")
    other = start_worker(**FAST)
    await other.seen("pool:listen:success")
    killed.kill()

    await other.seen("pool:recovered")
    assert ledger.one(retried)["attempts"] == 1
    assert ledger.one(retried)["last_error"] is None
    assert ledger.one(spent)["attempts"] == 1
    assert ledger.one(spent)["last_error"] == (
        f"The worker process died while it had this job: pool {dead} (process {killed.pid} on "
        f"{ledger.pools()[dead]['host']}); no attempts are left"
    )
    assert ledger.locked() == []


async def test_who_is_killed_while_it_stops_leaves_no_suspects(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    killed = start_worker(**FAST)
    job_id = ledger.add("work", {"seconds": 3600})
    dead = await begun(ledger, killed, 1)
    ledger.change(job_id, "run_at = now() + interval '1 hour'")
    other = start_worker(**FAST)
    await other.seen("pool:listen:success")
    killed.terminate()
    await eventually(lambda: ledger.pools()[dead]["is_stopping"])
    killed.kill()

    await other.seen("pool:recovered")
    assert ledger.suspects() == {}
    assert ledger.locked() == []


async def test_a_worker_that_ends_well_leaves_nothing_behind(
    ledger: Ledger, start_worker: StartWorker
) -> None:
    worker = start_worker(**FAST)
    job_id = ledger.add("work", {"seconds": 0.5})
    pool_id = (await worker.seen("pool:listen:success")).split()[1]
    await eventually(ledger.runs)
    row = ledger.pools()[pool_id]
    assert (row["pid"], row["worker_schema"]) == (worker.pid, "graphile_worker")
    worker.terminate()

    assert worker.wait() == 0
    assert ledger.pools() == {}
    assert job_id not in ledger.ids()


async def test_where_its_session_was_kept_a_killed_worker_is_found_by_its_heartbeat(
    dsn: str, ledger: Ledger, start_worker: StartWorker
) -> None:
    """As on a host that vanished: the server does not learn of it for a while."""
    async with Proxy(dsn).running() as proxy:
        killed = start_worker(at=proxy.dsn, **{**FAST, **FASTER})
        ledger.add("work", {"seconds": 3600})
        dead = await begun(ledger, killed, 1)
        other = start_worker(**FAST)
        await other.seen("pool:listen:success")
        await eventually(lambda: ledger.has_lock(dead))
        with proxy.black_hole():
            killed.kill()
            assert killed.wait() == -signal.SIGKILL
            await other.seen("pool:recovered", 15)
            assert ledger.has_lock(dead)
        (late,) = ledger.query(
            "select extract(epoch from died_at - heartbeat_at)::float8 as seconds"
            " from graphile_worker_py.pools where pool_id = %s",
            dead,
        )
    assert late["seconds"] >= 40 * FASTER["dead_after"]
