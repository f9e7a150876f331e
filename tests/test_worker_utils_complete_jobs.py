"""Jobs can be completed from outside."""

from graphile_worker_py import WorkerUtils
from tests.support.jobs import Jobs


async def test_waiting_failing_and_failed_jobs_are_deleted_and_returned_as_they_were(
    utils: WorkerUtils, stored: Jobs
) -> None:
    waiting = await utils.add_job("a", {"n": 1}, queue_name="q")
    failed = await utils.add_job("b", {"n": 2}, job_key="k")
    kept = await utils.add_job("a", {"n": 3})
    stored.exhaust(failed.id)

    done = await utils.complete_jobs([failed.id, waiting.id])

    assert [(job.id, job.task_identifier, job.payload) for job in done] == [
        (waiting.id, "a", {"n": 1}),
        (failed.id, "b", {"n": 2}),
    ]
    assert done[0] == waiting
    assert (done[1].attempts, done[1].last_error, done[1].key) == (25, "no", "k")
    assert [job["id"] for job in stored.all()] == [kept.id]


async def test_running_jobs_are_skipped_unless_their_lock_is_older_than_four_hours(
    utils: WorkerUtils, stored: Jobs
) -> None:
    running, stale = [await utils.add_job("a") for _ in range(2)]
    stored.lock(running.id, ago="3 hours 59 minutes")
    stored.lock(stale.id, ago="4 hours 1 minute")

    done = await utils.complete_jobs([running.id, stale.id])

    assert [job.id for job in done] == [stale.id]
    assert [job["id"] for job in stored.all()] == [running.id]


async def test_ids_that_nobody_has_are_skipped(utils: WorkerUtils) -> None:
    assert await utils.complete_jobs([1, 2**63 - 1]) == []
    assert await utils.complete_jobs([]) == []


async def test_ids_may_be_text_as_node_writes_them(utils: WorkerUtils) -> None:
    job = await utils.add_job("a")
    assert [each.id for each in await utils.complete_jobs([str(job.id)])] == [job.id]


async def test_a_job_whose_task_was_deleted_can_be_completed(
    utils: WorkerUtils, stored: Jobs
) -> None:
    job = await utils.add_job("a")
    stored.query("delete from graphile_worker._private_tasks")
    assert [each.task_identifier for each in await utils.complete_jobs([job.id])] == [""]
