"""Administration of jobs that the other side has: running ones are left alone, others are not."""

from collections.abc import Callable
from typing import Any

import pytest

from compat_tests.fleet import SIDES, Fleet, Side, other
from graphile_worker_py import SyncWorkerUtils

Calls = tuple[Callable[[SyncWorkerUtils, int], object], Callable[[str], list[Any]]]

METHODS: dict[str, Calls] = {
    "complete": (
        lambda utils, job_id: utils.complete_jobs([job_id]),
        lambda job_id: ["completeJobs", [job_id]],
    ),
    "fail": (
        lambda utils, job_id: utils.permanently_fail_jobs([job_id], "enough"),
        lambda job_id: ["permanentlyFailJobs", [job_id], "enough"],
    ),
    "reschedule": (
        lambda utils, job_id: utils.reschedule_jobs([job_id], attempts=3),
        lambda job_id: ["rescheduleJobs", [job_id], {"attempts": 3}],
    ),
}
JOBS = """
select attempts, max_attempts, last_error, locked_by is not null
from graphile_worker._private_jobs
"""
LEFT: dict[str, list[Any]] = {
    "complete": [],
    "fail": [(25, 25, "enough", False)],
    "reschedule": [(3, 25, None, False)],
}


@pytest.mark.parametrize("admin", SIDES)
@pytest.mark.parametrize("method", METHODS)
async def test_a_job_of_the_other_side_is_administered_unless_it_runs(
    fleet: Fleet, admin: Side, method: str
) -> None:
    with_python, for_node = METHODS[method]

    def administer(job_id: int) -> None:
        if admin == "node":
            fleet.call_node([for_node(str(job_id))])
            return
        with SyncWorkerUtils(fleet.dsn) as utils:
            with_python(utils, job_id)

    with fleet.gate() as gate:
        running = await fleet.add(other(admin), payload={"name": "running", "hold": 1})
        assert running is not None
        fleet.start(other(admin))
        await fleet.began("running")
        administer(running)
        assert fleet.query(JOBS) == [(1, 25, None, True)]
        gate.open()
        await fleet.drained()
    # Nobody has this task.
    waiting = await fleet.add(other(admin), "unknown", {"name": "waiting"})
    assert waiting is not None
    administer(waiting)
    assert fleet.query(JOBS) == LEFT[method]
