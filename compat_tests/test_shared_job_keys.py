"""Jobs with a key, replaced or removed from the one side and run by the other."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from compat_tests.fleet import SIDES, Fleet, Side, other

EARLIER = datetime(2020, 1, 1, tzinfo=UTC)
JOBS = """
select payload ->> 'name', key, attempts, max_attempts, locked_by is not null, revision, last_error
from graphile_worker._private_jobs order by id
"""


@pytest.mark.parametrize("first", SIDES)
async def test_a_waiting_job_is_replaced_from_the_other_side(fleet: Fleet, first: Side) -> None:
    old = await fleet.add(
        first,
        payload={"name": "old"},
        job_key="k",
        queue_name="q",
        priority=3,
        max_attempts=5,
        flags=["f"],
    )
    new = await fleet.add(other(first), "other", {"name": "new"}, job_key="k")
    assert new == old
    columns = "job_queue_id, priority, max_attempts, flags, revision"
    [row] = fleet.query(f"select {columns} from graphile_worker._private_jobs")
    assert row == (None, 0, 25, None, 1)
    fleet.run_once(first)
    [run] = fleet.runs()
    assert (run.name, run.task, run.side) == ("new", "other", first)


@pytest.mark.parametrize("first", SIDES)
@pytest.mark.parametrize("mode", ["replace", "preserve_run_at", "unsafe_dedupe"])
async def test_each_mode_treats_a_job_of_the_other_side_alike(
    fleet: Fleet, first: Side, mode: str
) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    await fleet.add(first, payload={"name": "old"}, job_key="k", run_at=EARLIER)
    await fleet.add(
        other(first), payload={"name": "new"}, job_key="k", run_at=soon, job_key_mode=mode
    )
    text = "select payload ->> 'name', run_at < now(), revision from graphile_worker._private_jobs"
    assert (
        fleet.query(text)
        == {
            "replace": [("new", False, 1)],
            "preserve_run_at": [("new", True, 1)],
            "unsafe_dedupe": [("old", True, 1)],
        }[mode]
    )


@pytest.mark.parametrize("first", SIDES)
async def test_a_failed_job_of_the_other_side_starts_anew(fleet: Fleet, first: Side) -> None:
    await fleet.add(first, payload={"name": "old", "fail": "no"}, job_key="k")
    fleet.run_once(first)
    assert fleet.query(JOBS) == [("old", "k", 1, 25, False, 0, "no")]
    await fleet.add(
        other(first), payload={"name": "new"}, job_key="k", job_key_mode="preserve_run_at"
    )
    assert fleet.query(JOBS) == [("new", "k", 0, 25, False, 1, None)]
    fleet.run_once(first)
    assert fleet.names() == ["old", "new"]


@pytest.mark.parametrize("runner", SIDES)
async def test_a_job_that_runs_on_the_other_side_is_evicted_and_the_new_one_runs(
    fleet: Fleet, runner: Side
) -> None:
    with fleet.gate() as gate:
        await fleet.add(runner, payload={"name": "old", "hold": 1}, job_key="k")
        fleet.start(runner, jobs=2)
        await fleet.began("old")
        await fleet.add(other(runner), payload={"name": "new", "hold": 1}, job_key="k")
        await fleet.began("new")
        assert fleet.query(JOBS) == [
            ("old", None, 25, 25, True, 0, None),
            ("new", "k", 1, 25, True, 0, None),
        ]
        gate.open()
        await fleet.drained()
    assert [(run.name, run.side) for run in fleet.runs()] == [("old", runner), ("new", runner)]


@pytest.mark.parametrize("runner", SIDES)
async def test_an_evicted_job_that_fails_is_not_tried_again(fleet: Fleet, runner: Side) -> None:
    with fleet.gate() as gate:
        await fleet.add(runner, payload={"name": "old", "hold": 1, "fail": "no"}, job_key="k")
        fleet.start(runner)
        await fleet.began("old")
        await fleet.add(other(runner), payload={"name": "new"}, job_key="k")
        gate.open()
        await fleet.settled(JOBS, [("old", None, 25, 25, False, 0, "no")])
        fleet.query("update graphile_worker._private_jobs set run_at = now()")
        await fleet.add(runner, payload={"name": "after"})
        await fleet.ended("after")
    assert fleet.names() == ["old", "new", "after"]


@pytest.mark.parametrize("remover", SIDES)
async def test_a_waiting_job_of_the_other_side_is_removed(fleet: Fleet, remover: Side) -> None:
    await fleet.add(other(remover), payload={"name": "never"}, job_key="k")
    await fleet.remove(remover, "k")
    assert fleet.jobs.ids() == []


@pytest.mark.parametrize("runner", SIDES)
@pytest.mark.parametrize("fails", [False, True])
async def test_a_job_removed_while_it_runs_on_the_other_side_runs_for_the_last_time(
    fleet: Fleet, runner: Side, fails: bool
) -> None:
    payload: dict[str, Any] = {"name": "last", "hold": 1}
    if fails:
        payload["fail"] = "no"
    with fleet.gate() as gate:
        await fleet.add(runner, payload=payload, job_key="k")
        fleet.start(runner)
        await fleet.began("last")
        await fleet.remove(other(runner), "k")
        assert fleet.query(JOBS) == [("last", None, 25, 25, True, 0, None)]
        gate.open()
        # The one that comes after shows that the first was not tried again.
        await fleet.ended("last")
        await fleet.add(runner, payload={"name": "after"})
        await fleet.ended("after")
    left = [("last", None, 25, 25, False, 0, "no")] if fails else []
    await fleet.settled(JOBS, left)
    assert fleet.names() == ["last", "after"]


@pytest.mark.parametrize("first", SIDES)
async def test_array_payloads_of_both_sides_are_merged(fleet: Fleet, first: Side) -> None:
    await fleet.add(first, "batch", [{"name": "a"}], job_key="k")
    await fleet.add(other(first), "batch", [{"name": "b"}, {"name": "c"}], job_key="k")
    fleet.run_once(first)
    [run] = fleet.runs()
    assert run.payload == [{"name": "a"}, {"name": "b"}, {"name": "c"}]


@pytest.mark.parametrize("adder", SIDES)
async def test_a_job_added_while_the_other_one_is_fetched_is_lost_by_node_and_kept_by_python(
    fleet: Fleet, adder: Side
) -> None:
    await fleet.add("node", payload={"name": "old"}, job_key="k")
    with fleet.fetching():
        call = fleet.launch_add(adder, "step", {"name": "new"}, job_key="k")
        await fleet.jobs.seen_waiting("%add_job%")
    assert call.wait() == 0, call.stderr
    names = fleet.query("select payload ->> 'name' from graphile_worker._private_jobs order by id")
    assert names == (["old"] if adder == "node" else ["old", "new"])
