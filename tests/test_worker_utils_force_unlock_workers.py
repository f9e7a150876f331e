"""What dead worker pools had locked can be freed."""

from graphile_worker_py import WorkerUtils
from tests.support.jobs import Jobs


async def test_jobs_and_queues_of_the_named_pools_only_are_freed(
    utils: WorkerUtils, stored: Jobs
) -> None:
    first = await utils.add_job("a", queue_name="one")
    second = await utils.add_job("a")
    other = await utils.add_job("a", queue_name="two")
    stored.lock(first.id, pool_id="pool-1")
    stored.lock(second.id, pool_id="otpool-2")
    stored.lock(other.id, pool_id="pool-3")
    before = stored.one(first.id)

    unlocked = await utils.force_unlock_workers(["pool-1", "otpool-2", "pool-unknown"])

    assert (unlocked.jobs, unlocked.queues) == (2, 1)
    after = stored.one(first.id)
    assert after == {**before, "locked_at": None, "locked_by": None, "is_available": True}
    assert after["attempts"] == 1
    assert stored.one(second.id)["locked_by"] is None
    assert stored.one(other.id)["locked_by"] == "pool-3"
    queues = stored.query(
        "select queue_name, locked_by, locked_at is null as free from"
        " graphile_worker._private_job_queues order by 1"
    )
    assert [tuple(queue.values()) for queue in queues] == [
        ("one", None, True),
        ("two", "pool-3", False),
    ]


async def test_no_pools_free_nothing(utils: WorkerUtils, stored: Jobs) -> None:
    job = await utils.add_job("a")
    stored.lock(job.id)
    unlocked = await utils.force_unlock_workers([])
    assert (unlocked.jobs, unlocked.queues) == (0, 0)
    assert stored.one(job.id)["locked_by"] == "pool-1"
