"""What is in the database can be looked at."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from graphile_worker_py import ConfigurationError, JobSpec, WorkerUtils
from graphile_worker_py.postgres.query import Statements
from graphile_worker_py.sql import inspect
from tests.support.jobs import Jobs

LATER = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


async def one_in_each_state(utils: WorkerUtils, stored: Jobs) -> dict[str, int]:
    """Add jobs of all kinds; ids by what they are."""
    ids = {
        "ready": (await utils.add_job("a", {"n": "Ä_x%"}, queue_name="q", job_key="k")).id,
        "scheduled": (await utils.add_job("a", run_at=LATER, queue_name="q")).id,
        "running": (await utils.add_job("b", queue_name="r")).id,
        "failed": (await utils.add_job("b", [1])).id,
        "removed": (await utils.add_job("b", job_key="removed")).id,
    }
    stored.lock(ids["running"], ids["removed"])
    await utils.remove_job("removed")  # has no attempts left, and still runs
    await utils.permanently_fail_jobs([ids["failed"]], "No Way")
    return ids


async def test_a_job_is_read_with_its_queue_and_state(utils: WorkerUtils, stored: Jobs) -> None:
    ids = await one_in_each_state(utils, stored)
    states = {"removed": "running"}
    for name, job_id in ids.items():
        job = await utils.get_job(str(job_id))
        assert job is not None
        row = stored.one(job_id)
        assert job.state == states.get(name, name)
        for column, value in job.to_dict().items():
            if column != "state":
                assert row[column] == value, column
    assert await utils.get_job(999) is None


async def test_a_job_that_was_read_equals_the_one_that_was_added(utils: WorkerUtils) -> None:
    job = await utils.add_job("a", {"n": 1}, queue_name="q")
    assert await utils.get_job(job.id) == job


async def test_jobs_are_listed_newest_first_by_any_condition(
    utils: WorkerUtils, stored: Jobs
) -> None:
    ids = await one_in_each_state(utils, stored)
    newest_first = list(reversed(ids))

    async def listed(**conditions: str) -> list[str]:
        names = {job_id: name for name, job_id in ids.items()}
        return [names[job.id] for job in await utils.list_jobs(**conditions)]  # type: ignore[arg-type]

    assert await listed() == newest_first
    assert await listed(state="ready") == ["ready"]
    assert await listed(state="scheduled") == ["scheduled"]
    assert await listed(state="running") == ["removed", "running"]
    assert await listed(state="failed") == ["failed"]
    assert await listed(task="a") == ["scheduled", "ready"]
    assert await listed(task="A") == []
    assert await listed(queue="q") == ["scheduled", "ready"]
    assert await listed(queue="") == []
    assert await listed(key="k") == ["ready"]
    assert await listed(locked_by="pool-1") == ["removed", "running"]
    assert await listed(text="Ä_X%") == ["ready"]
    assert await listed(text="K") == ["ready"]
    assert await listed(text="no way") == ["failed"]
    assert await listed(text="_") == ["ready"]
    assert await listed(text="") == newest_first
    assert await listed(state="running", queue="r", task="b", locked_by="pool-1") == ["running"]
    assert await listed(state="ready", task="b") == []


async def test_pages_follow_each_other_without_gap_or_overlap_while_jobs_come_and_go(
    utils: WorkerUtils,
) -> None:
    await utils.add_jobs([JobSpec("a", number) for number in range(10)])
    everything = [job.id for job in await utils.list_jobs(limit=None)]
    assert everything == sorted(everything, reverse=True)
    assert len(everything) == 10

    first = await utils.list_jobs(limit=4)
    await utils.add_job("a")
    await utils.complete_jobs([first[-1].id])
    second = await utils.list_jobs(limit=4, after=first[-1].id)
    third = await utils.list_jobs(limit=4, after=second[-1].id)

    assert [job.id for page in (first, second, third) for job in page] == everything
    assert await utils.list_jobs(after=third[-1].id) == []


async def test_a_hundred_jobs_are_listed_if_not_said_otherwise(utils: WorkerUtils) -> None:
    await utils.add_jobs([JobSpec("a") for _ in range(101)])
    assert len(await utils.list_jobs()) == 100
    assert len(await utils.list_jobs(limit=2**31 - 1)) == 101
    assert len(await utils.list_jobs(limit=None)) == 101


async def test_jobs_whose_payload_python_can_not_decode_are_listed(
    utils: WorkerUtils, stored: Jobs
) -> None:
    deep = "[" * 5000 + "]" * 5000
    stored.query("select graphile_worker.add_job('a', %s::json)", deep)
    (job,) = await utils.list_jobs()
    assert job.payload_json == deep.encode()


@pytest.mark.parametrize("identifier", ["", " a", "a\n"])
async def test_jobs_with_any_identifier_are_listed(
    utils: WorkerUtils, stored: Jobs, identifier: str
) -> None:
    stored.add(identifier)
    (job,) = await utils.list_jobs()
    assert job.task_identifier == identifier
    with pytest.raises(ConfigurationError, match="identifier"):
        await utils.add_job(identifier)


async def test_jobs_whose_task_or_queue_is_gone_are_listed(
    utils: WorkerUtils, stored: Jobs
) -> None:
    await utils.add_jobs([JobSpec("a", queue_name="q"), JobSpec("b", queue_name="q")])
    stored.query("delete from graphile_worker._private_tasks")
    stored.query("delete from graphile_worker._private_job_queues")
    for job in await utils.list_jobs():
        assert (job.task_identifier, job.queue_name, job.state) == ("", None, "ready")
    assert {name: each.ready for name, each in (await utils.counts()).tasks.items()} == {"": 2}


async def test_times_beyond_pythons_years_can_be_read(utils: WorkerUtils, stored: Jobs) -> None:
    job = await utils.add_job("a")
    stored.query("update graphile_worker._private_jobs set run_at = 'infinity'")
    read = await utils.get_job(job.id)
    assert read is not None
    assert (read.run_at.year, read.state) == (9999, "scheduled")


async def test_counts_are_by_state_and_by_task(utils: WorkerUtils, stored: Jobs) -> None:
    await one_in_each_state(utils, stored)

    counts = await utils.counts()

    assert (counts.ready, counts.scheduled, counts.running, counts.failed) == (1, 1, 2, 1)
    assert counts.total == 5
    assert list(counts.tasks) == ["a", "b"]
    a, b = counts.tasks.values()
    assert (a.ready, a.scheduled, a.running, a.failed, a.total) == (1, 1, 0, 0, 2)
    assert (b.ready, b.scheduled, b.running, b.failed, b.total) == (0, 0, 2, 1, 3)


async def test_an_empty_database_counts_nothing(utils: WorkerUtils) -> None:
    counts = await utils.counts()
    assert (counts.total, counts.tasks) == (0, {})
    assert await utils.list_jobs() == []
    assert await utils.queues() == []
    assert await utils.workers() == []


async def test_queues_are_listed_with_their_jobs_and_locks(
    utils: WorkerUtils, stored: Jobs
) -> None:
    ids = await one_in_each_state(utils, stored)
    emptied = await utils.add_job("a", queue_name="empty")
    await utils.complete_jobs([emptied.id])

    queues = await utils.queues()

    assert [(queue.name, queue.jobs, queue.locked_by) for queue in queues] == [
        ("empty", 0, None),
        ("q", 2, None),
        ("r", 1, "pool-1"),
    ]
    assert queues[0].locked_at is None
    assert queues[2].locked_at == stored.one(ids["running"])["locked_at"]


async def test_workers_are_those_that_hold_locks_the_oldest_first(
    utils: WorkerUtils, stored: Jobs
) -> None:
    jobs = [await utils.add_job("a", queue_name=queue) for queue in ("q", None, None, "r")]
    stored.lock(jobs[0].id, jobs[1].id, pool_id="pool-new", ago="1 minute")
    stored.lock(jobs[2].id, pool_id="otpool-old", ago="5 hours")
    stored.lock(jobs[3].id, pool_id="pool-leaked", ago="1 hour")
    stored.query("delete from graphile_worker._private_jobs where id = %s", jobs[3].id)

    workers = await utils.workers()

    assert [(each.pool_id, each.jobs, each.queues) for each in workers] == [
        ("otpool-old", 1, 0),
        ("pool-leaked", 0, 1),
        ("pool-new", 2, 1),
    ]
    assert workers[0].locked_at == stored.one(jobs[2].id)["locked_at"]
    now = datetime.now(UTC)
    assert all(each.locked_at and now - each.locked_at > timedelta(0) for each in workers)


def test_pages_and_single_jobs_are_found_by_an_index(dsn: str, stored: Jobs) -> None:
    stored.query(
        "select graphile_worker.add_jobs(array_agg("
        " row('a', null, null, null, null, 'k' || n, null, null)::graphile_worker.job_spec"
        ")) from generate_series(1, 5000) n"
    )
    stored.query("analyze graphile_worker._private_jobs")
    nothing: dict[str, Any] = dict.fromkeys(
        ("state", "task", "queue", "key", "text", "locked_by", "limit", "after")
    )
    statements = Statements("graphile_worker")
    with psycopg.connect(dsn) as conn, psycopg.RawCursor(conn) as cursor:
        for query, index in (
            (inspect.get_job(1000), "jobs_pkey1"),
            (inspect.list_jobs(**{**nothing, "limit": 10, "after": 1000}), "jobs_pkey1"),
            (inspect.list_jobs(**{**nothing, "key": "k1000"}), "jobs_key_key1"),
        ):
            cursor.execute(b"explain " + statements[query.text], query.values)
            plan = "\n".join(line for (line,) in cursor.fetchall())
            assert index in plan
            assert "Seq Scan on _private_jobs" not in plan
