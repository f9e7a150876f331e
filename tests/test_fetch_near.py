"""Where most queues are free, fetches look at the first jobs only, and take the same ones."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from graphile_worker_py import run_once
from graphile_worker_py.options import LocalQueueOptions
from graphile_worker_py.postgres.query import Query, Statements, raw_cursor
from graphile_worker_py.sql.get_jobs import Fetched, get_jobs
from graphile_worker_py.sql.task_ids import read_task_ids
from tests.support.eventually import eventually
from tests.support.gate import Gate
from tests.support.running import Jobs

STATEMENTS = Statements("graphile_worker")
QUEUES = "graphile_worker._private_job_queues"
OF_QUEUES = "select id from graphile_worker._private_job_queues where locked_by = 'pool-1'"
READ_OF_QUEUES = """
select seq_tup_read + idx_tup_fetch as rows from pg_stat_user_tables
where relname = '_private_job_queues' and schemaname = 'graphile_worker'
"""
OF_WORKERS = """
select pid from pg_stat_activity
where datname = current_database() and application_name = 'graphile_worker_py'
"""
LOCK_QUEUE = "select from graphile_worker._private_job_queues where queue_name = %s for update"
LOCK_JOB = "select from graphile_worker._private_jobs where id = %s for update"


async def fetch(
    conn: AsyncConnection[Any], count: int, *, near: bool, forbidden: Sequence[str] = ("no",)
) -> tuple[Fetched, list[int]]:
    """Fetch jobs of the task `work` in this transaction; also the queues locked by it."""

    async def run(query: Query[Any]) -> Any:
        cursor = raw_cursor(conn)
        await cursor.execute(STATEMENTS[query.text], query.values)
        return query.read(await cursor.fetchall())

    task_ids = await run(read_task_ids(["work"]))
    fetched = await run(
        get_jobs(
            pool_id="pool-1", task_ids=task_ids, count=count, forbidden_flags=forbidden, near=near
        )
    )
    rows = await (await conn.execute(OF_QUEUES)).fetchall()
    return fetched, sorted(row[0] for row in rows)


def fill_at_random(jobs: Jobs, seed: int, *, queues: int) -> None:
    """Jobs that wait, are locked, not due, forbidden, of other tasks, with and without queues."""
    chance = random.Random(seed)
    for n in range(50):
        queue = chance.choice([None, *(f"q{n}" for n in range(queues))])
        job = jobs.add(
            chance.choice(["work"] * 9 + ["other"]),
            n,
            queue_name=queue,
            priority=chance.randrange(3),
            flags=chance.choice([None, None, ["no"], ["yes"]]),
            run_at=f"{chance.choice([2020] * 9 + [2100])}-01-01 00:00:{n:02}",
        )
        if chance.random() < 0.1:
            jobs.lock(job, pool_id="pool-other")


@pytest.mark.parametrize(("seed", "queues"), [(1, 200), (2, 40), (3, 15), (4, 4)])
async def test_the_same_jobs_are_taken_as_by_a_look_at_all_queues(
    dsn: str, seed: int, queues: int
) -> None:
    fill_at_random(Jobs(dsn), seed, queues=queues)
    full = 0
    async with await AsyncConnection.connect(dsn) as conn:
        for count in (1, 2, 5, 12, 30):
            async with conn.transaction(force_rollback=True):
                wide, wide_queues = await fetch(conn, count, near=False)
            async with conn.transaction(force_rollback=True):
                near, near_queues = await fetch(conn, count, near=True)
            ids = [job.id for job in near.jobs]
            assert ids == [job.id for job in wide.jobs][: len(ids)]
            assert near_queues == sorted(
                job.job_queue_id for job in near.jobs if job.job_queue_id is not None
            )
            assert near.more
            if len(ids) == count:
                full += 1
                assert near_queues == wide_queues
    assert full >= 1


@pytest.mark.parametrize("row", ["job without queue", "job", "queue"])
async def test_what_somebody_else_has_locked_is_passed_over(dsn: str, row: str) -> None:
    jobs = Jobs(dsn)
    first = jobs.add("work", queue_name=None if row == "job without queue" else "q")
    behind = jobs.add("work", queue_name="q")
    other = jobs.add("work", queue_name="other")
    with psycopg.connect(dsn) as holder:
        holder.execute(*((LOCK_QUEUE, ["q"]) if row == "queue" else (LOCK_JOB, [first])))
        async with await AsyncConnection.connect(dsn) as conn:
            await conn.execute("set statement_timeout = '10s'")
            fetched, _ = await fetch(conn, 3, near=True)
    left = [] if row == "queue" else [behind]
    assert [job.id for job in fetched.jobs] == [*left, other]


@contextmanager
def kept_from_locking(gate: Gate) -> Iterator[asyncio.Task[tuple[Fetched, list[int]]]]:
    """Fetch near jobs, and hold the fetch up between seeing and locking them."""

    async def fetching() -> tuple[Fetched, list[int]]:
        async with await AsyncConnection.connect(gate.dsn) as conn:
            return await fetch(conn, 3, near=True)

    with gate.closed():
        yield asyncio.create_task(fetching())


@pytest.mark.parametrize(
    ("change", "is_run"),
    [
        ("run_at = '2100-01-01'", False),
        ("attempts = max_attempts", False),
        ("locked_by = 'pool-other', locked_at = now()", False),
        ("task_id = task_id + 1000", False),
        ('flags = \'{"gate": true, "no": true}\'', False),
        ("job_queue_id = (select id from {queues} where queue_name = 'busy')", False),
        ("max_attempts = 7", True),
    ],
)
async def test_a_job_that_changes_between_being_seen_and_locked_is_run_if_it_is_still_due(
    dsn: str, change: str, is_run: bool
) -> None:
    gate = Gate(dsn)
    jobs = gate.jobs
    jobs.lock(jobs.add("other", queue_name="busy"))
    changed = jobs.add("work", flags=["gate"], queue_name="q")
    other = jobs.add("work", priority=1)
    with kept_from_locking(gate) as fetching:
        await gate.reached()
        jobs.change(changed, change.replace("{queues}", QUEUES))
        before = jobs.one(changed)
    fetched, queues = await fetching
    assert [job.id for job in fetched.jobs] == ([changed, other] if is_run else [other])
    assert [job.max_attempts for job in fetched.jobs if job.id == changed] == [7] * is_run
    after = jobs.one(changed)
    assert len(queues) == (2 if is_run else 1)  # that of `busy`, which is locked by the same pool
    assert is_run == (after["attempts"] > before["attempts"])


async def test_a_queue_that_was_locked_and_freed_meanwhile_is_locked_for_its_job(dsn: str) -> None:
    """Or another worker could run a job of it at the same time."""
    gate = Gate(dsn)
    jobs = gate.jobs
    job = jobs.add("work", flags=["gate"], queue_name="q")
    with kept_from_locking(gate) as fetching:
        await gate.reached()
        for lock in ("'pool-other', now()", "null, null"):
            jobs.query(
                "update graphile_worker._private_job_queues"
                f" set (locked_by, locked_at) = ({lock}) returning id"
            )
    fetched, queues = await fetching
    assert [(job.id, [job.job_queue_id]) for job in fetched.jobs] == [(job, queues)]


async def test_many_queues_are_not_all_read_for_each_fetch(dsn: str) -> None:
    jobs, queues = Jobs(dsn), 3_000
    jobs.query(
        "insert into graphile_worker._private_job_queues (queue_name)"
        " select 'idle' || n from generate_series(1, %s) as n returning id",
        queues,
    )
    jobs.query(
        """
        select count(*) from graphile_worker.add_jobs(array(
          select row('work', to_json(n), 'busy' || n, '2020-01-01', null, null, n, null)
            ::graphile_worker.job_spec from generate_series(0, 99) as n))
        """
    )
    (before,) = jobs.query(READ_OF_QUEUES)
    seen: list[Any] = []
    await run_once(
        dsn,
        tasks={"work": seen.append},
        concurrent_jobs=1,
        local_queue=LocalQueueOptions(size=5),
    )
    # They count what they have read when they end.
    await eventually(lambda: jobs.query(OF_WORKERS) == [])
    (after,) = jobs.query(READ_OF_QUEUES)
    assert seen == list(range(100))
    # At the start, at the end, and for what the last outcomes have freed; not 20 times.
    assert after["rows"] - before["rows"] < 10 * queues


async def test_what_stands_behind_many_jobs_of_one_queue_is_found_at_once(dsn: str) -> None:
    jobs = Jobs(dsn)
    for n in range(10):
        jobs.add("work", 0, queue_name=f"q{n}")
    jobs.add_many(30, "serial", queue_name="serial")
    for _ in range(10):
        jobs.add("work", 1)
    seen: list[Any] = []

    async def serial(_payload: Any) -> None:
        await eventually(lambda: seen.count(1) == 10)

    await run_once(
        dsn,
        tasks={"work": seen.append, "serial": serial},
        concurrent_jobs=4,
        local_queue=LocalQueueOptions(size=4),
    )
    assert jobs.all() == []
