"""Python pools recover each other, and leave alone what Node workers have locked."""

from typing import Any

from compat_tests.fleet import Fleet
from graphile_worker_py import Runner
from graphile_worker_py.events import PoolListenSuccess, PoolRecovered
from tests.faults.ledger import FAST
from tests.support.eventually import eventually
from tests.support.running import Told

BEATEN = """
select heartbeat_at - started_at > interval '1.5 seconds' from graphile_worker_py.pools
where pool_id = %s
"""
LOCKED_BY = "select locked_by from graphile_worker._private_jobs where locked_by is not null"


async def test_what_a_killed_node_worker_had_locked_is_left_alone(fleet: Fleet) -> None:
    told = Told()
    with fleet.gate() as gate:
        await fleet.add("python", payload={"name": "held", "hold": 1}, queue_name="serial")
        node = fleet.start("node")
        await fleet.began("held")
        (holder,) = fleet.query(LOCKED_BY)
        node.kill()
        async with Runner(fleet.dsn, tasks={"step": print}, events=told.events, **FAST) as runner:
            await told.seen(PoolListenSuccess)
            await eventually(lambda: fleet.query(BEATEN, runner.pool_id) == [True])
        gate.open()
    assert told.of(PoolRecovered) == []
    assert fleet.query(LOCKED_BY) == [holder]
    assert fleet.query(
        "select locked_by from graphile_worker._private_job_queues where queue_name = 'serial'"
    ) == [holder]


async def test_what_a_killed_python_worker_had_locked_is_run_by_node_within_seconds(
    fleet: Fleet,
) -> None:
    told = Told()

    def others(payload: Any) -> None: ...

    with fleet.gate() as gate:
        await fleet.add("python", payload={"name": "held", "hold": 1})
        python = fleet.start("python", **FAST)
        await fleet.began("held")
        # Announced, not found by polling.
        fleet.start("node", poll=3600)
        async with Runner(fleet.dsn, tasks={"others": others}, events=told.events, **FAST):
            await told.seen(PoolListenSuccess)
            python.kill()
            await told.seen(PoolRecovered)
            gate.open()
            await fleet.drained()
    assert [(run.side, run.attempt) for run in fleet.runs()] == [("python", 1), ("node", 2)]
