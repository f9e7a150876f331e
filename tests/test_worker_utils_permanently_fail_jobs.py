"""Jobs can be given up from outside."""

import pytest

from graphile_worker_py import WorkerUtils
from tests.support.jobs import Jobs


async def test_all_attempts_are_used_up_and_the_reason_is_recorded(
    utils: WorkerUtils, stored: Jobs
) -> None:
    job = await utils.add_job("a", {"n": 1}, max_attempts=3)
    kept = await utils.add_job("a")

    (failed,) = await utils.permanently_fail_jobs([job.id], "it makes no sense")

    assert (failed.id, failed.task_identifier, failed.payload) == (job.id, "a", {"n": 1})
    assert (failed.attempts, failed.max_attempts) == (3, 3)
    assert failed.last_error == "it makes no sense"
    assert not failed.is_available
    assert failed.updated_at > job.updated_at
    row = stored.one(job.id)
    assert (row["attempts"], row["last_error"]) == (3, "it makes no sense")
    assert stored.one(kept.id)["attempts"] == 0


@pytest.mark.parametrize(
    ("reason", "recorded"), [(None, "Manually marked as failed"), ("", ""), ("50 % $1", "50 % $1")]
)
async def test_no_reason_is_upstreams_and_any_other_is_kept(
    utils: WorkerUtils, reason: str | None, recorded: str
) -> None:
    job = await utils.add_job("a")
    (failed,) = await utils.permanently_fail_jobs([job.id], reason)
    assert failed.last_error == recorded


async def test_running_jobs_are_skipped_unless_their_lock_is_older_than_four_hours(
    utils: WorkerUtils, stored: Jobs
) -> None:
    running, stale = [await utils.add_job("a") for _ in range(2)]
    stored.lock(running.id)
    stored.lock(stale.id, ago="5 hours")

    failed = await utils.permanently_fail_jobs([running.id, stale.id, 999])

    assert [job.id for job in failed] == [stale.id]
    assert stored.one(running.id)["attempts"] == 1
    assert stored.one(stale.id)["locked_by"] == "pool-1"
