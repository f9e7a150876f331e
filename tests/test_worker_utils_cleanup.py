"""What nobody needs any more can be deleted."""

from graphile_worker_py import WorkerUtils
from tests.worker_utils_support import Tables

TASKS = "select identifier from graphile_worker._private_tasks order by 1"
QUEUES = "select queue_name from graphile_worker._private_job_queues order by 1"


def names(rows: list[dict[str, str]]) -> list[str]:
    """The only column of rows."""
    return [next(iter(row.values())) for row in rows]


async def test_delete_permafailed_jobs_deletes_what_has_no_attempts_left(
    utils: WorkerUtils, tables: Tables
) -> None:
    failed, beyond, failing, waiting, running = [await utils.add_job("a") for _ in range(5)]
    tables.exhaust(failed.id, running.id)
    await utils.reschedule_jobs([beyond.id], attempts=30)
    await utils.reschedule_jobs([failing.id], attempts=24)
    tables.query(
        "update graphile_worker._private_jobs set locked_by = 'pool-1', locked_at = now()"
        " where id = %s",
        running.id,
    )

    deleted = await utils.cleanup(["DELETE_PERMAFAILED_JOBS"])

    assert deleted == {"DELETE_PERMAFAILED_JOBS": 2}
    assert [job["id"] for job in tables.jobs()] == [failing.id, waiting.id, running.id]


async def test_gc_task_identifiers_deletes_those_without_jobs_that_are_not_to_be_kept(
    utils: WorkerUtils, tables: Tables
) -> None:
    for identifier in ("used", "kept", "done", "Kept"):
        await utils.add_job(identifier)
    tables.query("delete from graphile_worker._private_jobs where task_id > 1")

    deleted = await utils.cleanup(["GC_TASK_IDENTIFIERS"], task_identifiers_to_keep=["kept"])

    assert deleted == {"GC_TASK_IDENTIFIERS": 2}
    assert names(tables.query(TASKS)) == ["kept", "used"]


async def test_gc_job_queues_deletes_unlocked_ones_without_jobs(
    utils: WorkerUtils, tables: Tables
) -> None:
    for queue in ("used", "locked", "empty"):
        await utils.add_job("a", queue_name=queue)
    tables.lock(2)
    tables.query("delete from graphile_worker._private_jobs where id > 1")

    assert await utils.cleanup(["GC_JOB_QUEUES"]) == {"GC_JOB_QUEUES": 1}

    assert names(tables.query(QUEUES)) == ["locked", "used"]


async def test_the_order_is_fixed_so_that_what_failed_jobs_held_goes_too(
    utils: WorkerUtils, tables: Tables
) -> None:
    job = await utils.add_job("a", queue_name="q")
    tables.exhaust(job.id)

    tasks = ["GC_JOB_QUEUES", "GC_TASK_IDENTIFIERS", "DELETE_PERMAFAILED_JOBS"]
    deleted = await utils.cleanup(tasks)

    assert list(deleted.items()) == [
        ("DELETE_PERMAFAILED_JOBS", 1),
        ("GC_TASK_IDENTIFIERS", 1),
        ("GC_JOB_QUEUES", 1),
    ]
    assert tables.query(TASKS) == tables.query(QUEUES) == tables.jobs() == []


async def test_without_tasks_it_does_what_upstream_does(utils: WorkerUtils, tables: Tables) -> None:
    await utils.add_job("a", queue_name="q")
    await utils.add_job("b", queue_name="r")
    tables.query("delete from graphile_worker._private_jobs")

    assert await utils.cleanup([]) == {}
    assert await utils.cleanup() == {"GC_JOB_QUEUES": 2}
    assert names(tables.query(TASKS)) == ["a", "b"]
    deleted = await utils.cleanup(task_identifiers_to_keep=["b"])
    assert deleted == {"GC_TASK_IDENTIFIERS": 1, "GC_JOB_QUEUES": 0}
    assert names(tables.query(TASKS)) == ["b"]
