"""A serial queue that Python and Node workers share runs one job after the other, in order."""

import itertools

import pytest

from compat_tests.fleet import OVERLAPS, SIDES, Fleet, Side, other
from graphile_worker_py import Runner, WorkerUtils, run_migrations
from graphile_worker_py.events import Events, WorkerGetJobEmpty
from tests.support.eventually import eventually

# Eight queues for eight lanes. The first job of each waits behind the gate; the others follow by
# priority, then by age, and were added in neither order.
FILL = """
select graphile_worker.add_job(
  'step',
  json_build_object('name', format('%s/%s/%s', queue, priority, age), 'ms', 5),
  queue_name => 'queue ' || queue,
  run_at => now() - (100 - age) * interval '1 minute',
  priority => priority
)
from generate_series(1, 8) as queue, generate_series(0, 2) as priority, generate_series(0, 3) as age
order by md5(format('%s/%s/%s', queue, priority, age))
"""
HOLDING = """
select graphile_worker.add_job(
  'step', '{"name": "held", "hold": 1}', queue_name => 'queue ' || queue, priority => -1
)
from generate_series(1, 8) as queue
"""
LOCKED_QUEUES = """
select count(*) from graphile_worker._private_job_queues where locked_by is not null
"""


@pytest.mark.parametrize("prefetch", [-1, 10])
async def test_jobs_of_a_queue_never_overlap_and_keep_their_order(
    fleet: Fleet, prefetch: int
) -> None:
    with fleet.gate() as gate:
        fleet.query(HOLDING)
        for side in SIDES:
            fleet.start(side, jobs=4, prefetch=prefetch)
        if prefetch < 0:
            await fleet.began_times("held", 8)
        fleet.query(FILL)
        gate.open()
        await fleet.drained()
    runs = fleet.runs()
    assert fleet.query(OVERLAPS) == []
    assert len(runs) == 8 + 8 * 3 * 4
    for number in range(1, 9):
        names = [run.name for run in runs if run.queue == f"queue {number}"]
        steps = itertools.product(range(3), range(4))
        expected = ["held", *(f"{number}/{priority}/{age}" for priority, age in steps)]
        assert names == expected
    if prefetch < 0:
        assert {run.side for run in runs[:8]} == set(SIDES)
    await eventually(lambda: fleet.query(LOCKED_QUEUES) == [0])


@pytest.mark.parametrize("holder", SIDES)
@pytest.mark.parametrize("prefetch", [-1, 10])
async def test_a_queue_is_left_alone_while_the_other_side_runs_its_job(
    fleet: Fleet, holder: Side, prefetch: int
) -> None:
    with fleet.gate() as gate:
        await fleet.add(holder, payload={"name": "first", "hold": 1}, queue_name="q")
        process = fleet.start(holder, jobs=4)
        await fleet.began("first")
        await fleet.add(other(holder), payload={"name": "second"}, queue_name="q")
        fleet.start(other(holder), jobs=4, prefetch=prefetch)
        # What is free goes through both: each has looked for jobs since the second was added.
        await fleet.add(holder, payload={"name": "free"})
        await fleet.ended("free")
        assert sorted(map(str, fleet.names())) == ["first", "free"]
        gate.open()
        await fleet.ended("second")
    assert [run.name for run in fleet.runs() if run.queue] == ["first", "second"]
    assert fleet.query(OVERLAPS) == []
    await fleet.drained()
    assert process.returncode is None


async def test_idle_python_workers_do_not_take_a_queue_that_node_has(fleet: Fleet) -> None:
    empty: list[WorkerGetJobEmpty] = []
    events = Events()
    events.subscribe(WorkerGetJobEmpty, empty.append)
    ran: list[str] = []
    with fleet.gate() as gate:
        await fleet.add("node", payload={"name": "held", "hold": 1}, queue_name="q")
        fleet.start("node")
        await fleet.began("held")
        fleet.query("select graphile_worker.add_job('mine', queue_name => 'q')")
        tasks = {"mine": lambda _payload, ctx: ran.append(ctx.job.locked_by)}
        async with Runner(fleet.dsn, tasks=tasks, events=events, poll_interval=0.02) as runner:
            await eventually(lambda: len(empty) >= 5)
            assert ran == []
            gate.open()
            await eventually(lambda: ran == [runner.pool_id])


# Jobs are deleted when the gate is open.
SLOW_COMPLETION = """
create function slow_completion() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock_shared(1);
  return old;
end $$;
create trigger slow_completion before delete on graphile_worker._private_jobs
  for each row execute function slow_completion();
"""
QUEUED = """
select graphile_worker.add_job('step', json_build_object('name', number), queue_name => 'q')
from generate_series(1, 12) as number
"""


async def test_running_once_drains_a_queue_where_node_leaves_jobs_behind(fleet: Fleet) -> None:
    # Node looks for the next job before the queue of the last one is free, and gives up.
    fleet.query(SLOW_COMPLETION)
    fleet.query(QUEUED)
    with fleet.gate() as gate:
        node = fleet.launch("node", once=True)
        await node.seen("no job found")
        gate.open()
        assert node.wait() == 0, node.stderr
    assert len(fleet.jobs.ids()) == 11
    fleet.run_once("python", jobs=3)
    assert fleet.jobs.ids() == []
    assert [run.side for run in fleet.runs()] == ["node"] + 11 * ["python"]


@pytest.mark.parametrize("prefetch", [-1, 10])
async def test_a_queue_does_not_wait_for_polls(fleet: Fleet, prefetch: int) -> None:
    # Node with prefetching needs a poll for each job of a queue.
    fleet.query(QUEUED)
    fleet.start("python", jobs=4, poll=600, prefetch=prefetch)
    await fleet.drained()
    assert len(fleet.runs()) == 12


@pytest.mark.parametrize("side", SIDES)
async def test_no_worker_takes_a_job_of_a_paused_queue_until_it_is_resumed(
    fleet: Fleet, dsn: str, side: Side
) -> None:
    await run_migrations(dsn, side_schema=True)
    async with WorkerUtils(dsn) as utils:
        await utils.pause(queue="q", reason="the provider is down")
        await fleet.add(other(side), payload={"name": "paused"}, queue_name="q")
        fleet.start(side, jobs=4)
        for number in range(3):
            # Each has looked for jobs since the one before has ended.
            await fleet.add(side, payload={"name": f"free {number}"})
            await fleet.ended(f"free {number}")
        assert sorted(map(str, fleet.names())) == ["free 0", "free 1", "free 2"]
        await utils.resume(queue="q")
        await fleet.ended("paused")
