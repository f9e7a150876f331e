"""Jobs that fail, are returned or lose their worker are taken over by the other side."""

import itertools
import math
import signal
from decimal import Decimal

import pytest

from compat_tests.fleet import SIDES, Fleet, Side, other
from graphile_worker_py import SyncWorkerUtils
from tests.support.eventually import eventually

# What each failure added to the later one of `run_at` and now, in seconds.
NOTE_WAITS = """
create table ledger.waits (id bigint generated always as identity, seconds numeric);
create function note_wait() returns trigger language plpgsql as $$
begin
  insert into ledger.waits (seconds)
  values (extract(epoch from new.run_at - greatest(now(), old.run_at)));
  return new;
end $$;
create trigger note_wait before update on graphile_worker._private_jobs
  for each row when (new.last_error is distinct from old.last_error)
  execute function note_wait();
"""
SAY = """
update graphile_worker._private_jobs
set payload = json_build_object('name', payload ->> 'name', 'fail', %s::text)
"""
MAKE_STALE = """
with jobs as (
  update graphile_worker._private_jobs set locked_at = locked_at - interval '4 hours 1 minute'
  where payload ->> 'name' = 'stale'
  returning job_queue_id
)
update graphile_worker._private_job_queues set locked_at = locked_at - interval '4 hours 1 minute'
where id in (select job_queue_id from jobs)
"""
LOCKED = "select id from graphile_worker._private_jobs where locked_by is not null order by id"
JOBS = """
select payload ->> 'name', attempts, locked_by is not null, last_error
from graphile_worker._private_jobs order by id
"""
MAKE_DUE = "update graphile_worker._private_jobs set run_at = now() where run_at > now()"


@pytest.mark.parametrize("last", SIDES)
async def test_a_failing_job_goes_back_and_forth_until_it_is_given_up(
    fleet: Fleet, last: Side
) -> None:
    fleet.query(NOTE_WAITS)
    job_id = await fleet.add(last, payload={"name": "x", "fail": "at first"}, max_attempts=4)
    assert job_id is not None
    sides = list(itertools.islice(itertools.cycle([other(last), last]), 4))
    for attempt, side in enumerate(sides, start=1):
        fleet.query(SAY, f"no {attempt}")
        fleet.query(MAKE_DUE)
        fleet.run_once(side)
        job = fleet.jobs.one(job_id)
        assert (job["attempts"], job["last_error"]) == (attempt, f"no {attempt}")
        assert (job["locked_by"], job["locked_at"]) == (None, None)
        assert job["is_available"] is (attempt < 4)
    assert [run.side for run in fleet.runs()] == sides
    assert [run.attempt for run in fleet.runs()] == [1, 2, 3, 4]
    waits = fleet.query("select seconds from ledger.waits order by id")
    assert waits == [Decimal(f"{math.exp(attempt):.6f}") for attempt in range(1, 5)]
    # Nobody tries it again.
    fleet.query(MAKE_DUE)
    for side in SIDES:
        fleet.run_once(side)
    assert len(fleet.runs()) == 4


@pytest.mark.parametrize("first", SIDES)
async def test_only_the_failed_items_of_a_batch_are_tried_by_the_other_side(
    fleet: Fleet, first: Side
) -> None:
    items = [{"n": 1}, {"n": 2, "fail": "two"}, {"n": 3}, {"n": 4, "fail": "four"}]
    job_id = await fleet.add(first, "batch", items)
    assert job_id is not None
    for attempt, side in enumerate([first, other(first)], start=1):
        fleet.query(MAKE_DUE)
        fleet.run_once(side)
        job = fleet.jobs.one(job_id)
        assert job["json"] == '[{"n":2,"fail":"two"},{"n":4,"fail":"four"}]'
        assert (job["attempts"], job["last_error"]) == (attempt, "Batch failures:\ntwo\nfour")
    seen = [(run.side, run.payload) for run in fleet.runs()]
    assert seen == [(first, items), (other(first), [items[1], items[3]])]
    fleet.query("update graphile_worker._private_jobs set payload = '[{\"n\": 2}]', run_at = now()")
    fleet.run_once(first)
    assert fleet.jobs.ids() == []


@pytest.mark.parametrize("prefetch", [-1, 4])
async def test_a_python_worker_that_is_told_to_stop_hands_over_what_it_has_not_begun(
    fleet: Fleet, prefetch: int
) -> None:
    with fleet.gate() as gate:
        for number in range(4):
            await fleet.add("node", payload={"name": f"job {number}", "hold": 1})
        process = fleet.start("python", prefetch=prefetch)
        await fleet.began("job 0")
        locked = 4 if prefetch > 0 else 1
        await fleet.settled("select count(locked_by) from graphile_worker.jobs", [locked])
        process.terminate()
        await fleet.settled(JOBS, [("job 0", 1, True, None), *NOT_BEGUN])
        fleet.start("node", jobs=3)
        await fleet.began("job 1", "job 2", "job 3")
        gate.open()
        assert process.wait() == 0, process.stderr
        await fleet.drained()
    runs = {run.name: (run.side, run.attempt) for run in fleet.runs()}
    assert len(fleet.runs()) == 4
    assert runs == {"job 0": ("python", 1)} | {f"job {n}": ("node", 1) for n in (1, 2, 3)}


NOT_BEGUN = [(f"job {number}", 0, False, None) for number in (1, 2, 3)]


@pytest.mark.parametrize("prefetch", [-1, 4])
async def test_python_takes_over_from_a_node_worker_that_is_told_to_stop(
    fleet: Fleet, prefetch: int
) -> None:
    with fleet.gate() as gate:
        for number in range(4):
            await fleet.add("python", payload={"name": f"job {number}", "hold": 1})
        # With a batch delay Node writes the outcome of a job that ends during a graceful stop.
        process = fleet.start("node", prefetch=prefetch, batch_delay=0)
        await fleet.began("job 0")
        process.terminate()
        await fleet.settled(JOBS, [("job 0", 1, True, None), *NOT_BEGUN])
        fleet.start("python", jobs=3)
        await fleet.began("job 1", "job 2", "job 3")
        gate.open()
        assert process.wait() == -signal.SIGTERM
        await fleet.drained()
    assert len(fleet.runs()) == 4
    runs = {run.name: (run.side, run.attempt) for run in fleet.runs()}
    assert runs == {"job 0": ("node", 1)} | {f"job {n}": ("python", 1) for n in (1, 2, 3)}
    # Node returns what it has prefetched, and then takes its own stop for a failure.
    assert process.lines("stop failed") == (["stop failed"] if prefetch > 0 else [])


async def test_a_job_that_ends_after_sigterm_is_recorded_by_python_and_mostly_not_by_node(
    fleet: Fleet,
) -> None:
    async def recorded_by(side: Side, name: str) -> bool:
        with fleet.gate() as gate:
            await fleet.add("python", payload={"name": name, "hold": 1})
            process = fleet.start(side)
            await fleet.began(name)
            process.terminate()
            await process.seen("stopping")
            gate.open()
            process.wait()
        [ended] = [run.ended for run in fleet.runs() if run.name == name]
        assert ended is not None
        return fleet.query(LOCKED) == []

    for attempt in range(3):
        assert await recorded_by("python", f"python {attempt}")
    assert fleet.jobs.ids() == []
    # Node kills itself before it has sent the outcome, but now and then it is too slow for that.
    for attempt in range(6):
        if not await recorded_by("node", f"node {attempt}"):
            break
    assert len(fleet.jobs.ids()) == 1


@pytest.mark.parametrize("side", SIDES)
async def test_a_job_that_was_taken_away_is_deleted_by_node_and_left_alone_by_python(
    fleet: Fleet, side: Side
) -> None:
    with fleet.gate() as gate:
        await fleet.add(side, payload={"name": "taken", "hold": 1}, queue_name="q")
        fleet.start(side)
        await fleet.began("taken")
        for table in ("_private_jobs", "_private_job_queues"):
            fleet.query(f"update graphile_worker.{table} set locked_by = 'pool-other'")
        gate.open()
        await fleet.ended("taken")
        # The one that comes after shows that the outcome of the first was written, or dropped.
        await fleet.add(side, payload={"name": "after"})
        await fleet.ended("after")
        left = [] if side == "node" else ["pool-other"]
        await fleet.settled("select locked_by from graphile_worker._private_jobs", left)
    queue = "select locked_by from graphile_worker._private_job_queues"
    assert fleet.query(queue) == ["pool-other"]


@pytest.mark.parametrize("dead", SIDES)
async def test_the_jobs_of_a_killed_worker_run_on_the_other_side_once_unlocked(
    fleet: Fleet, dead: Side
) -> None:
    with fleet.gate():
        await fleet.add(dead, payload={"name": "first", "hold": 1}, queue_name="q")
        await fleet.add(dead, payload={"name": "second"}, queue_name="q")
        process = fleet.start(dead)
        await fleet.began("first")
        process.kill()
        process.wait()
    fleet.run_once(other(dead))
    assert fleet.names() == ["first"]
    [pool] = fleet.query("select locked_by from graphile_worker._private_job_queues")
    if dead == "python":
        fleet.call_node([["forceUnlockWorkers", [pool]]])
    else:
        with SyncWorkerUtils(fleet.dsn) as utils:
            utils.force_unlock_workers([pool])
    fleet.start(other(dead))
    await fleet.drained()
    runs = [(run.name, run.side, run.attempt) for run in fleet.runs()]
    assert runs == [
        ("first", dead, 1),
        ("first", other(dead), 2),
        ("second", other(dead), 1),
    ]


@pytest.mark.parametrize("sweeper", SIDES)
async def test_stale_locks_of_the_other_side_are_swept(fleet: Fleet, sweeper: Side) -> None:
    with fleet.gate():
        for name in ("stale", "fresh"):
            await fleet.add(sweeper, payload={"name": name, "hold": 1}, queue_name=name)
        process = fleet.start(other(sweeper), jobs=2)
        await fleet.began("stale", "fresh")
        process.kill()
        process.wait()
    fleet.query(MAKE_STALE)
    fleet.start(sweeper, reset_interval=0.1)
    await fleet.settled(JOBS, [("fresh", 1, True, None)])
    runs = [(run.name, run.side, run.attempt) for run in fleet.runs()]
    assert runs[2:] == [("stale", sweeper, 2)]


async def test_a_job_that_a_second_signal_cuts_off_keeps_its_attempt_for_node(
    fleet: Fleet,
) -> None:
    with fleet.gate() as gate:
        await fleet.add("node", payload={"name": "cut", "hold": 1}, max_attempts=1)
        process = fleet.start("python")
        await fleet.began("cut")
        process.terminate()
        await process.seen("stopping")

        def killing() -> bool:
            # Signals that come at once are one, so it takes a later one.
            process.terminate()
            return bool(process.lines("killing"))

        await eventually(killing, interval=0.1)
        process.wait()
        assert fleet.query(JOBS) == [("cut", 0, False, None)]
        gate.open()
    fleet.run_once("node")
    assert fleet.jobs.ids() == []
    assert [(run.side, run.attempt) for run in fleet.runs()] == [("python", 1), ("node", 1)]
