"""A job can be removed by its key."""

import pytest

from graphile_worker_py import WorkerUtils
from tests.support.jobs import Jobs


async def test_a_waiting_job_is_deleted_and_returned_as_it_was(
    utils: WorkerUtils, stored: Jobs
) -> None:
    job = await utils.add_job("a", {"n": 1}, job_key="k")
    other = await utils.add_job("a", job_key="other")
    removed = await utils.remove_job("k")
    assert removed == job
    assert removed is not None
    assert removed.task_identifier == "a"
    assert [row["id"] for row in stored.all()] == [other.id]


async def test_a_running_job_loses_its_key_and_its_retries(
    utils: WorkerUtils, stored: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    job = await utils.add_job("a", job_key="k")
    await utils.add_job("a", job_key="waiting")
    stored.lock(job.id)

    await utils.remove_job("waiting")
    assert caplog.messages == []
    running = await utils.remove_job("k")
    (said,) = caplog.messages
    assert f"Job {job.id} (a) is running and goes on" in said
    assert "has lost its key 'k' and its retries. cancel_jobs" in said

    assert running is not None
    assert (running.id, running.key, running.attempts) == (job.id, None, 25)
    assert running.locked_by == "pool-1"
    row = stored.one(job.id)
    assert (row["key"], row["attempts"], row["locked_by"]) == (None, 25, "pool-1")


async def test_a_key_that_no_job_has_removes_nothing(utils: WorkerUtils, stored: Jobs) -> None:
    await utils.add_job("a", job_key="k")
    assert await utils.remove_job("K") is None
    assert len(stored.all()) == 1
