"""What dead worker pools had locked can be freed."""

from graphile_worker_py import WorkerUtils
from tests.worker_utils_support import Tables


async def test_jobs_and_queues_of_the_named_pools_only_are_freed(
    utils: WorkerUtils, tables: Tables
) -> None:
    first = await utils.add_job("a", queue_name="one")
    second = await utils.add_job("a")
    other = await utils.add_job("a", queue_name="two")
    tables.lock(first.id, pool_id="pool-1")
    tables.lock(second.id, pool_id="otpool-2")
    tables.lock(other.id, pool_id="pool-3")
    before = tables.job(first.id)

    unlocked = await utils.force_unlock_workers(["pool-1", "otpool-2", "pool-unknown"])

    assert (unlocked.jobs, unlocked.queues) == (2, 1)
    after = tables.job(first.id)
    assert after == {**before, "locked_at": None, "locked_by": None, "is_available": True}
    assert after["attempts"] == 1
    assert tables.job(second.id)["locked_by"] is None
    assert tables.job(other.id)["locked_by"] == "pool-3"
    queues = tables.query(
        "select queue_name, locked_by, locked_at is null as free from"
        " graphile_worker._private_job_queues order by 1"
    )
    assert [tuple(queue.values()) for queue in queues] == [
        ("one", None, True),
        ("two", "pool-3", False),
    ]


async def test_no_pools_free_nothing(utils: WorkerUtils, tables: Tables) -> None:
    job = await utils.add_job("a")
    tables.lock(job.id)
    unlocked = await utils.force_unlock_workers([])
    assert (unlocked.jobs, unlocked.queues) == (0, 0)
    assert tables.job(job.id)["locked_by"] == "pool-1"
