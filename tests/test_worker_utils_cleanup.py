"""What nobody needs any more can be deleted."""

from graphile_worker_py import WorkerUtils
from tests.support.jobs import Jobs

TASKS = "select identifier from graphile_worker._private_tasks order by 1"
QUEUES = "select queue_name from graphile_worker._private_job_queues order by 1"


def names(rows: list[dict[str, str]]) -> list[str]:
    """The only column of rows."""
    return [next(iter(row.values())) for row in rows]


async def test_delete_permafailed_jobs_deletes_what_has_no_attempts_left(
    utils: WorkerUtils, stored: Jobs
) -> None:
    failed, beyond, failing, waiting, running = [await utils.add_job("a") for _ in range(5)]
    stored.exhaust(failed.id, running.id)
    await utils.reschedule_jobs([beyond.id], attempts=30)
    await utils.reschedule_jobs([failing.id], attempts=24)
    stored.query(
        "update graphile_worker._private_jobs set locked_by = 'pool-1', locked_at = now()"
        " where id = %s",
        running.id,
    )

    deleted = await utils.cleanup(["DELETE_PERMAFAILED_JOBS"])

    assert deleted == {"DELETE_PERMAFAILED_JOBS": 2}
    assert [job["id"] for job in stored.all()] == [failing.id, waiting.id, running.id]


async def test_gc_task_identifiers_deletes_those_without_jobs_that_are_not_to_be_kept(
    utils: WorkerUtils, stored: Jobs
) -> None:
    for identifier in ("used", "kept", "done", "Kept"):
        await utils.add_job(identifier)
    stored.query("delete from graphile_worker._private_jobs where task_id > 1")

    deleted = await utils.cleanup(["GC_TASK_IDENTIFIERS"], task_identifiers_to_keep=["kept"])

    assert deleted == {"GC_TASK_IDENTIFIERS": 2}
    assert names(stored.query(TASKS)) == ["kept", "used"]


async def test_gc_job_queues_deletes_unlocked_ones_without_jobs(
    utils: WorkerUtils, stored: Jobs
) -> None:
    for queue in ("used", "locked", "empty"):
        await utils.add_job("a", queue_name=queue)
    stored.lock(2)
    stored.query("delete from graphile_worker._private_jobs where id > 1")

    assert await utils.cleanup(["GC_JOB_QUEUES"]) == {"GC_JOB_QUEUES": 1}

    assert names(stored.query(QUEUES)) == ["locked", "used"]


async def test_the_order_is_fixed_so_that_what_failed_jobs_held_goes_too(
    utils: WorkerUtils, stored: Jobs
) -> None:
    job = await utils.add_job("a", queue_name="q")
    stored.exhaust(job.id)

    tasks = ["GC_JOB_QUEUES", "GC_TASK_IDENTIFIERS", "DELETE_PERMAFAILED_JOBS"]
    deleted = await utils.cleanup(tasks)

    assert list(deleted.items()) == [
        ("DELETE_PERMAFAILED_JOBS", 1),
        ("GC_TASK_IDENTIFIERS", 1),
        ("GC_JOB_QUEUES", 1),
    ]
    assert stored.query(TASKS) == stored.query(QUEUES) == stored.all() == []


async def test_without_tasks_it_does_what_upstream_does(utils: WorkerUtils, stored: Jobs) -> None:
    await utils.add_job("a", queue_name="q")
    await utils.add_job("b", queue_name="r")
    stored.query("delete from graphile_worker._private_jobs")

    assert await utils.cleanup([]) == {}
    assert await utils.cleanup() == {"GC_JOB_QUEUES": 2}
    assert names(stored.query(TASKS)) == ["a", "b"]
    deleted = await utils.cleanup(task_identifiers_to_keep=["b"])
    assert deleted == {"GC_TASK_IDENTIFIERS": 1, "GC_JOB_QUEUES": 0}
    assert names(stored.query(TASKS)) == ["b"]
