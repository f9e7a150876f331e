"""Which job is fetched next, also when others change or lock rows at that very moment."""

import asyncio
from typing import Any

import psycopg
import pytest

from graphile_worker_py import JobContext, Runner, run_once
from graphile_worker_py.events import JobSuccess, LocalQueueGetJobsComplete
from graphile_worker_py.options import LocalQueueOptions
from tests.support.gate import Gate
from tests.support.running import Jobs, Told


async def test_smaller_priorities_go_first_and_then_older_jobs(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("work", "fifth", run_at="2020-01-02")
    jobs.add("work", "last", priority=32767, run_at="2010-01-01")
    jobs.add("work", "fourth", run_at="2020-01-01", queue_name="q")
    jobs.add("work", "second", priority=-5, run_at="2020-01-01")
    jobs.add("work", "third", priority=-5, run_at="2021-01-01")
    jobs.add("work", "first", priority=-32768)
    seen = []

    async def work(payload: Any) -> None:
        seen.append(payload)

    await run_once(dsn, tasks={"work": work})
    assert seen == ["first", "second", "third", "fourth", "fifth", "last"]


async def test_order_holds_within_a_batch_that_was_fetched_ahead(dsn: str) -> None:
    jobs = Jobs(dsn)
    for n in range(20):
        jobs.add("work", n, priority=(n * 7) % 20, queue_name="q" if n == 10 else None)
    seen = []

    async def work(payload: int) -> None:
        seen.append((payload * 7) % 20)

    await run_once(dsn, tasks={"work": work}, local_queue=LocalQueueOptions(size=20))
    assert seen == list(range(20))


async def test_of_a_queue_one_job_is_fetched_at_a_time_and_the_batch_is_not_cut_short(
    dsn: str,
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(10, "work", "q")
    free = jobs.add_many(10, "work")
    told = Told()
    seen = []

    async def work(payload: Any, ctx: JobContext) -> None:
        seen.append(ctx.job.id)

    await run_once(
        dsn, tasks={"work": work}, local_queue=LocalQueueOptions(size=5), events=told.events
    )
    for event in told.of(LocalQueueGetJobsComplete):
        queues = [job.job_queue_id for job in event.jobs if job.job_queue_id is not None]
        assert len(queues) == len(set(queues))
    assert len(seen) == 20
    # The jobs without queue, all younger, do not wait for the whole queue.
    assert max(seen.index(job_id) for job_id in free) < 15


async def test_a_job_that_somebody_else_has_locked_is_passed_over(dsn: str) -> None:
    jobs = Jobs(dsn)
    head = jobs.add("work", "head")
    jobs.add("work", "next")
    seen = []

    async def work(payload: Any) -> None:
        seen.append(payload)

    with psycopg.connect(dsn) as other:
        other.execute(
            "select 1 from graphile_worker._private_jobs where id = %s for update", [head]
        )
        await run_once(dsn, tasks={"work": work})
        assert seen == ["next"]
    await run_once(dsn, tasks={"work": work})
    assert seen == ["next", "head"]


async def test_a_queue_that_somebody_else_has_locked_is_passed_over(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("work", "head", queue_name="q")
    jobs.add("work", "next", queue_name="r")
    seen = []

    async def work(payload: Any) -> None:
        seen.append(payload)

    with psycopg.connect(dsn) as other:
        other.execute(
            "select 1 from graphile_worker._private_job_queues where queue_name = 'q' for update"
        )
        await run_once(dsn, tasks={"work": work})
        assert seen == ["next"]
    await run_once(dsn, tasks={"work": work})
    assert seen == ["next", "head"]


@pytest.mark.parametrize(
    "change",
    [
        "run_at = '2100-01-01'",
        "attempts = max_attempts",
        "locked_by = 'pool-other', locked_at = now()",
        "task_id = task_id + 1000",
        'flags = \'{"gate": true, "no": true}\'',
    ],
)
async def test_a_job_that_changes_between_being_seen_and_locked_is_left(
    dsn: str, change: str
) -> None:
    gate = Gate(dsn)
    jobs = gate.jobs
    changed = jobs.add("work", "changed", flags=["gate"], queue_name="q")
    jobs.add("work", "other", priority=1)
    seen = []

    async def work(payload: Any) -> None:
        seen.append(payload)

    with gate.closed():
        running = asyncio.create_task(
            run_once(gate.dsn, tasks={"work": work}, forbidden_flags=["no"])
        )
        await gate.reached()
        jobs.change(changed, change)
        before = jobs.one(changed)
    await running
    assert seen == ["other"]
    assert jobs.one(changed) == before
    assert [lock for lock in jobs.locked() if lock.startswith("queue")] == []


async def test_a_job_that_changes_and_stays_due_is_run_as_it_is_then(dsn: str) -> None:
    gate = Gate(dsn)
    jobs = gate.jobs
    job_id = jobs.add("work", "before", flags=["gate"])
    seen = []

    async def work(payload: Any) -> None:
        seen.append(payload)

    with gate.closed():
        running = asyncio.create_task(
            run_once(gate.dsn, tasks={"work": work}, forbidden_flags=["no"])
        )
        await gate.reached()
        jobs.change(job_id, "payload = '\"after\"'")
    await running
    assert seen == ["after"]
    assert jobs.ids() == []


async def test_a_job_that_is_moved_into_a_busy_queue_waits_for_it(dsn: str) -> None:
    gate = Gate(dsn)
    jobs = gate.jobs
    moved = jobs.add("work", "moved", flags=["gate"])
    jobs.query(
        "insert into graphile_worker._private_job_queues (queue_name, locked_at, locked_by)"
        " values ('busy', now(), 'pool-other')"
    )
    seen = []

    async def work(payload: Any) -> None:
        seen.append(payload)

    with gate.closed():
        running = asyncio.create_task(
            run_once(gate.dsn, tasks={"work": work}, forbidden_flags=["no"])
        )
        await gate.reached()
        jobs.change(moved, "job_queue_id = (select id from graphile_worker._private_job_queues)")
    await running
    assert seen == []
    assert jobs.one(moved)["attempts"] == 0
    assert jobs.locked() == ["queue busy"]


async def test_a_job_that_is_moved_into_a_queue_of_the_same_batch_waits_for_it(dsn: str) -> None:
    gate = Gate(dsn)
    jobs = gate.jobs
    first = jobs.add("work", "first", queue_name="q", priority=-1)
    moved = jobs.add("work", "moved", flags=["gate"])
    seen: list[str] = []

    async def work(payload: Any) -> None:
        seen.append(f"{payload} begins")
        await asyncio.sleep(0.05)
        seen.append(f"{payload} ends")

    with gate.closed():
        running = asyncio.create_task(
            run_once(gate.dsn, tasks={"work": work}, forbidden_flags=["no"], concurrent_jobs=2)
        )
        await gate.reached()
        queue_id = jobs.one(first)["job_queue_id"]
        jobs.change(moved, f"job_queue_id = {queue_id}")
    await running
    assert seen == ["first begins", "first ends", "moved begins", "moved ends"]
    assert jobs.locked() == []


async def test_a_job_of_a_queue_that_was_locked_meanwhile_waits_for_it(dsn: str) -> None:
    gate = Gate(dsn)
    jobs = gate.jobs
    waiting = jobs.add("work", "mine", flags=["gate"], queue_name="q")
    told = Told()
    with gate.closed():
        running = asyncio.create_task(
            run_once(gate.dsn, tasks={"work": print}, forbidden_flags=["no"], events=told.events)
        )
        await gate.reached()
        jobs.query(
            "update graphile_worker._private_job_queues"
            " set locked_by = 'pool-other', locked_at = now()"
        )
    await running
    assert told.of(JobSuccess) == []
    assert jobs.one(waiting)["attempts"] == 0
    assert jobs.locked() == ["queue q"]


async def test_no_job_overtakes_the_first_of_its_queue_in_a_fetch_by_another(dsn: str) -> None:
    """Two fetches at the same moment: who does not get the queue takes none of its jobs."""
    gate = Gate(dsn)
    jobs = gate.jobs
    jobs.add("work", "first", flags=["gate"], queue_name="q")
    jobs.add("work", "second", queue_name="q")
    seen: list[str] = []

    async def work(payload: Any) -> None:
        seen.append(payload)
        await asyncio.sleep(0.05)

    with gate.closed():
        held_up = asyncio.create_task(
            run_once(gate.dsn, tasks={"work": work}, forbidden_flags=["no"], concurrent_jobs=2)
        )
        await gate.reached()
        await run_once(dsn, tasks={"work": work}, concurrent_jobs=2)
    await held_up
    assert seen == ["first", "second"]


async def test_tasks_of_others_are_left_to_them(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("theirs", priority=-1, queue_name="q")
    jobs.add("ours", queue_name="q")
    told = Told()
    async with Runner(dsn, tasks={"ours": print}, poll_interval=3600, events=told.events):
        await told.seen(JobSuccess)
    (left,) = jobs.all()
    assert left["task_identifier"] == "theirs"
    assert left["attempts"] == 0
