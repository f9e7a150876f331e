"""Python and Node workers share one backlog; jobs added by anybody are run by either."""

import json
from typing import Any

import pytest

from compat_tests.fleet import SIDES, Fleet, Side, other
from graphile_worker_py import JobSpec, WorkerUtils
from tests.support.node import BOTH_INSTALLERS

FILL = """
select graphile_worker.add_job('step', json_build_object('name', 'job ' || number))
from generate_series(1, 400) as number
"""
HOLDING = """
select graphile_worker.add_job('step', '{"name": "held", "hold": 1}', priority => -1)
from generate_series(1, 20)
"""


@pytest.mark.parametrize("prefetch", [-1, 10])
async def test_both_drain_one_backlog_and_run_each_job_once(fleet: Fleet, prefetch: int) -> None:
    with fleet.gate() as gate:
        for side in SIDES:
            fleet.start(side, jobs=4, prefetch=prefetch)
        # More of these than one side can take: none goes on before both sides are at work.
        fleet.query(HOLDING)
        await fleet.began_times("held", 8)
        fleet.query(FILL)
        gate.open()
        await fleet.drained()
    runs = fleet.runs()
    held = [run.side for run in runs if run.name == "held"]
    assert sorted(held[:8]) == ["node"] * 4 + ["python"] * 4
    assert len(held) == 20
    assert sorted(run.name or "" for run in runs if run.name != "held") == sorted(
        f"job {number}" for number in range(1, 401)
    )
    assert {run.attempt for run in runs} == {1}


TRIGGER = """
create table orders (id int primary key);
create function order_placed() returns trigger language plpgsql as $$
begin
  perform graphile_worker.add_job('step', json_build_object('name', 'order ' || new.id));
  return new;
end $$;
create trigger order_placed after insert on orders
  for each row execute function order_placed();
"""


@BOTH_INSTALLERS
@pytest.mark.parametrize("runner", SIDES)
async def test_jobs_of_a_trigger_of_node_and_of_python_are_run_by_either(
    fleet: Fleet, runner: Side
) -> None:
    fleet.query(TRIGGER)
    fleet.query("insert into orders values (1), (2)")
    fleet.call_node(
        [
            ["addJob", "other", {"name": "node, one"}],
            ["addJobs", [{"identifier": t, "payload": {"name": f"node, {t}"}} for t in TASKS]],
        ]
    )
    async with WorkerUtils(fleet.dsn) as utils:
        await utils.add_job("other", {"name": "python, one"})
        await utils.add_jobs([JobSpec(t, {"name": f"python, {t}"}) for t in TASKS])
    fleet.run_once(runner)
    assert fleet.jobs.ids() == []
    assert sorted((run.name, run.task, run.side) for run in fleet.runs()) == sorted(
        (name, task, runner)
        for name, task in {
            "order 1": "step",
            "order 2": "step",
            "node, one": "other",
            "node, step": "step",
            "node, other": "other",
            "python, one": "other",
            "python, step": "step",
            "python, other": "other",
        }.items()
    )


TASKS = ("step", "other")


@pytest.mark.parametrize("runner", SIDES)
async def test_a_job_added_by_the_other_side_is_announced(fleet: Fleet, runner: Side) -> None:
    fleet.start(runner, poll=600)
    await fleet.listening(1)
    await fleet.add(other(runner), payload={"name": "announced"})
    await fleet.ended("announced")


PAYLOADS: dict[str, Any] = {
    "text": 'Grüße, 世界 🚀 \u2028 \x1f " \\ /',
    "a NUL": "a\0b",
    "nested": {"a": [1, {"b": [None, True, False, [], {}]}], "": {"c d": -0.5}},
    "floats": [0.1, 1e21, 1.5e-7, -1234567.875],
    "integers": [0, -1, 2**53 - 1, -(2**53 - 1)],
    "keys": {"__proto__": 1, "constructor": 2, "1": "one"},
    "deep": json.loads("[" * 60 + "]" * 60),
}


@pytest.mark.parametrize("adder", SIDES)
@pytest.mark.parametrize("runner", SIDES)
async def test_payloads_of_every_kind_arrive_as_they_were_given(
    fleet: Fleet, adder: Side, runner: Side
) -> None:
    payload = {"name": "kinds", **PAYLOADS}
    if adder == "python":
        await fleet.add("python", "step", payload)
    else:
        fleet.call_node([["addJob", "step", payload]])
    fleet.run_once(runner)
    [seen] = fleet.query("select payload::text from ledger.runs")
    assert json.loads(seen) == payload
    assert fleet.jobs.ids() == []


@pytest.mark.parametrize("payload", [None, "text", 12.5, True, [1, [2]]])
@pytest.mark.parametrize("adder", SIDES)
async def test_payloads_that_are_no_objects_are_stored_alike(
    fleet: Fleet, adder: Side, payload: Any
) -> None:
    job_id = await fleet.add(adder, "step", payload)
    assert job_id is not None
    assert fleet.jobs.one(job_id)["payload"] == ({} if payload is None else payload)


async def test_python_keeps_integers_that_node_rounds(fleet: Fleet) -> None:
    big = 12345678901234567890123
    await fleet.add("python", payload={"name": "big", "n": big})
    [stored] = fleet.query("select payload ->> 'n' from graphile_worker._private_jobs")
    assert stored == str(big)
    fleet.run_once("python")
    await fleet.add("python", payload={"name": "big", "n": big})
    fleet.run_once("node")
    seen = fleet.query("select payload ->> 'n' from ledger.runs order by id")
    assert seen == [str(big), "1.2345678901234568e+22"]


@pytest.mark.parametrize("adder", SIDES)
@pytest.mark.parametrize("runner", SIDES)
async def test_flags_of_one_side_are_forbidden_by_the_other(
    fleet: Fleet, adder: Side, runner: Side
) -> None:
    for name, flags in {"free": None, "empty": [], "eu": ["eu", "slow"], "us": ["us"]}.items():
        await fleet.add(adder, payload={"name": name}, flags=flags)
    stored = "select flags::text from graphile_worker._private_jobs order by id"
    assert fleet.query(stored) == [None, None, '{"eu": true, "slow": true}', '{"us": true}']
    fleet.run_once(runner, forbidden_flags=["slow", "unknown"], jobs=1)
    assert sorted(map(str, fleet.names())) == ["empty", "free", "us"]
    left = "select attempts, locked_by from graphile_worker._private_jobs"
    assert fleet.query(left) == [(0, None)]
    fleet.run_once(other(runner), forbidden_flags=["us"])
    assert fleet.jobs.ids() == []
