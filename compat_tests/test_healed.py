"""Faults of the Node package that Python workers do not have, each shown on both sides.

More of them are shown where they belong: `test_shared_queue.py`, `test_shared_job_keys.py`,
`test_handover.py`, `test_schema_changes.py`, `test_installers.py`.
"""

import pytest

from compat_tests.fleet import OUR_INSTALL, SIDES, Fleet, Side
from graphile_worker_py import SyncWorkerUtils
from tests.support.eventually import eventually

pytestmark = OUR_INSTALL

JOBS = "select attempts, locked_by is not null, last_error from graphile_worker._private_jobs"


@pytest.mark.parametrize("side", SIDES)
async def test_an_error_text_with_a_nul_ends_the_node_worker_and_is_stored_by_python(
    fleet: Fleet, side: Side
) -> None:
    await fleet.add(side, payload={"name": "x", "fail": "before\0after"})
    process = fleet.start(side)
    if side == "node":
        assert process.wait() == 1
        assert fleet.query(JOBS) == [(1, True, None)]
    else:
        await fleet.settled(JOBS, [(1, False, "before\\u0000after")])
        assert process.returncode is None


REFUSE_TWICE = """
create sequence ledger.tries;
create function refuse_twice() returns trigger language plpgsql as $$
begin
  if nextval('ledger.tries') <= 2 then
    raise exception 'refused' using errcode = '40001';
  end if;
  return old;
end $$;
create trigger refuse_twice before delete on graphile_worker._private_jobs
  for each row execute function refuse_twice();
"""


@pytest.mark.parametrize("side", SIDES)
async def test_a_batch_of_outcomes_that_the_database_refuses_for_a_moment_is_lost_by_node(
    fleet: Fleet, side: Side
) -> None:
    fleet.query(REFUSE_TWICE)
    await fleet.add(side, payload={"name": "x"})
    process = fleet.start(side, batch_delay=0)
    if side == "node":
        await process.seen("stopping")
        await eventually(lambda: process.returncode is not None)
        assert fleet.query(JOBS) == [(1, True, None)]
    else:
        await fleet.drained()
        assert fleet.query("select last_value from ledger.tries") == [3]
        assert process.returncode is None


@pytest.mark.parametrize("side", SIDES)
async def test_prefetched_jobs_run_in_order_of_priority_with_python_alone(
    fleet: Fleet, side: Side
) -> None:
    for priority in (3, 2, 1):
        await fleet.add(side, payload={"name": f"{priority}"}, priority=priority)
    fleet.start(side, prefetch=10)
    await fleet.drained()
    assert fleet.names() == (["1", "2", "3"] if side == "python" else ["3", "2", "1"])


@pytest.mark.parametrize("side", SIDES)
async def test_attempts_can_be_set_back_to_zero_by_python_alone(fleet: Fleet, side: Side) -> None:
    job_id = await fleet.add(side, payload={"name": "x", "fail": "no"}, priority=5)
    fleet.run_once(side)
    if side == "node":
        fleet.call_node([["rescheduleJobs", [str(job_id)], {"attempts": 0, "priority": 0}]])
    else:
        assert job_id is not None
        with SyncWorkerUtils(fleet.dsn) as utils:
            utils.reschedule_jobs([job_id], attempts=0, priority=0)
    text = "select attempts, priority from graphile_worker._private_jobs"
    assert fleet.query(text) == [(0, 0) if side == "python" else (1, 5)]
