"""When and how often jobs run can be changed from outside."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from graphile_worker_py import WorkerUtils
from tests.support.jobs import Jobs

LATER = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5)))


async def test_each_value_that_is_given_is_set_and_the_error_is_kept(
    utils: WorkerUtils, stored: Jobs
) -> None:
    job = await utils.add_job("a", {"n": 1}, priority=5, max_attempts=7, job_key="k")
    stored.exhaust(job.id)

    (changed,) = await utils.reschedule_jobs(
        [job.id], run_at=LATER, priority=-3, attempts=2, max_attempts=9
    )

    assert (changed.id, changed.task_identifier, changed.payload) == (job.id, "a", {"n": 1})
    assert changed.run_at == LATER
    assert changed.run_at.utcoffset() == timedelta(0)
    assert (changed.priority, changed.attempts, changed.max_attempts) == (-3, 2, 9)
    assert (changed.last_error, changed.key, changed.revision) == ("no", "k", 0)
    assert changed.updated_at > job.updated_at
    assert stored.one(job.id)["run_at"] == LATER


@pytest.mark.parametrize(
    ("given", "column"),
    [({"priority": 0}, "priority"), ({"attempts": 0}, "attempts")],
)
async def test_zero_is_a_value(
    utils: WorkerUtils, stored: Jobs, given: dict[str, Any], column: str
) -> None:
    job = await utils.add_job("a", priority=5)
    stored.exhaust(job.id)
    await utils.reschedule_jobs([job.id], **given)
    assert stored.one(job.id)[column] == 0


async def test_what_is_not_given_stays_as_it_is(utils: WorkerUtils, stored: Jobs) -> None:
    job = await utils.add_job("a", priority=5, max_attempts=7, run_at=LATER)
    stored.exhaust(job.id)
    before = stored.one(job.id)

    await utils.reschedule_jobs([job.id])

    after = stored.one(job.id)
    assert after.pop("updated_at") > before.pop("updated_at")
    assert after == before


async def test_running_jobs_are_skipped_unless_their_lock_is_older_than_four_hours(
    utils: WorkerUtils, stored: Jobs
) -> None:
    running, stale = [await utils.add_job("a") for _ in range(2)]
    stored.lock(running.id)
    stored.lock(stale.id, ago="5 hours")
    changed = await utils.reschedule_jobs([running.id, stale.id, 999], priority=3)
    assert [job.id for job in changed] == [stale.id]
    assert stored.one(running.id)["priority"] == 0
