"""Many jobs are copied into the table where that is the same as calling the function."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import psycopg
import pytest

from graphile_worker_py import JobSpec, SyncWorkerUtils, WorkerUtils
from graphile_worker_py.adding import statements
from tests.support.jobs import Jobs

LATER = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MANY = 1500
"""The function announces them in two calls, a copy at once."""
FEW = 100
"""So few are not copied."""


class Announced:
    """What is announced on `jobs:insert`, as counts."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self._conn = conn

    async def counts(self) -> list[int]:
        """What has come in since the last time."""
        await self._conn.execute("select 1")
        return [
            orjson.loads(notification.payload)["count"]
            async for notification in self._conn.notifies(timeout=0)
        ]


@pytest.fixture
async def announced(dsn: str) -> AsyncIterator[Announced]:
    """Listens on the test's database."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute('listen "jobs:insert"')
        yield Announced(conn)


def specs(count: int = MANY) -> list[JobSpec]:
    """Jobs that say something of everything, and some that say nothing."""
    return [
        JobSpec(
            f"task {number % 3}",
            {"n": number, "text": "a\\b\n\t\r\0 ü 😀"},
            queue_name=f"queue\t\\{number % 5}" if number % 2 else None,
            run_at=LATER + timedelta(microseconds=number) if number % 3 else None,
            priority=number % 7 - 3 if number % 4 else None,
            max_attempts=number % 9 + 1 if number % 5 else None,
            flags=["b\n", "\\a", "ü", "b\n", "long\x7f"] if number % 6 else [],
        )
        for number in range(count)
    ]


async def test_copied_jobs_are_stored_as_the_function_stores_them(
    dsn: str, stored: Jobs, announced: Announced
) -> None:
    def without_moment() -> list[dict[str, Any]]:
        return [
            {name: value for name, value in row.items() if name not in {"id", "created_at"}}
            for row in stored.all()
        ]

    async with WorkerUtils(dsn) as utils:
        async with utils.pool.connection() as conn, conn.transaction():  # at the same moment
            copied = await utils.add_jobs(specs(), conn=conn)
            added = [
                job
                for start in range(0, MANY, FEW)
                for job in await utils.add_jobs(specs()[start : start + FEW], conn=conn)
            ]
        for job in (copied[0], copied[1], copied[-1], added[-1]):
            assert await utils.get_job(job.id) == job
    assert await announced.counts() == [MANY, *[FEW] * (MANY // FEW)]
    rows = without_moment()
    assert rows[:MANY] == sorted(rows[MANY:], key=lambda row: int(row["payload"]["n"]))
    assert [job.id for job in copied] == sorted(job.id for job in copied)


async def test_every_result_is_what_is_stored(utils: WorkerUtils) -> None:
    jobs = await utils.add_jobs(specs(300))
    listed = await utils.list_jobs(limit=300, task="task 1")
    by_id = {job.id: job for job in jobs}
    assert len(listed) == 100
    assert all(by_id[job.id] == job for job in listed)


async def test_payloads_that_are_json_text_already_may_have_line_breaks(
    utils: WorkerUtils, stored: Jobs
) -> None:
    text = orjson.Fragment(b'{\n\t"a":\r\n "\\\\n" }')
    await utils.add_jobs([JobSpec("t", text) for _ in range(statements.COPY_FROM)])
    assert {orjson.dumps(row["payload"]) for row in stored.all()} == {b'{"a":"\\\\n"}'}


NEWER = "insert into graphile_worker.migrations values (21)"
TRIGGER = """
create function public.later() returns trigger language plpgsql as
  $$begin new.priority = 7; return new; end$$;
create trigger later before insert on graphile_worker._private_jobs
  for each row execute function public.later();
"""


@pytest.mark.parametrize(("change", "priority"), [(NEWER, 0), (TRIGGER, 7)])
async def test_where_the_function_may_do_something_else_it_is_called(
    utils: WorkerUtils, stored: Jobs, announced: Announced, change: str, priority: int
) -> None:
    stored.query(change)
    jobs = await utils.add_jobs([JobSpec("t") for _ in range(MANY)])
    assert await announced.counts() == [1000, 500]
    assert {row["priority"] for row in stored.all()} == {job.priority for job in jobs}
    assert jobs[0].priority == priority


async def test_a_role_that_may_not_take_ids_adds_by_the_function(
    dsn: str, stored: Jobs, announced: Announced
) -> None:
    await stored.in_thread(
        """
        create role adder_without_ids login bypassrls password 'x';
        grant usage on schema graphile_worker to adder_without_ids;
        grant select, insert, update, delete on all tables in schema graphile_worker
          to adder_without_ids;
        """
    )
    try:
        as_adder = psycopg.conninfo.make_conninfo(dsn, user="adder_without_ids", password="x")
        async with WorkerUtils(as_adder) as utils:
            jobs = await utils.add_jobs([JobSpec("t") for _ in range(MANY)])
        assert await announced.counts() == [1000, 500]
        assert len({job.id for job in jobs}) == len(stored.all()) == MANY
    finally:
        await stored.in_thread("drop owned by adder_without_ids; drop role adder_without_ids")


async def test_in_a_pipeline_where_nothing_can_be_copied_jobs_are_added_too(
    dsn: str, stored: Jobs
) -> None:
    async with WorkerUtils(dsn) as utils, utils.pool.connection() as conn, conn.pipeline():
        await utils.add_jobs([JobSpec("t", n) for n in range(MANY)], conn=conn)
    assert len(stored.all()) == MANY


def test_a_connection_that_begins_by_itself_leaves_the_commit_to_its_owner(
    dsn: str, stored: Jobs
) -> None:
    with SyncWorkerUtils(dsn) as utils, psycopg.connect(dsn) as conn:
        utils.add_jobs([JobSpec("t") for _ in range(MANY)], conn=conn)
        assert stored.all() == []
    assert len(stored.all()) == MANY


async def test_a_payload_that_is_no_json_leaves_the_callers_transaction_usable(
    dsn: str, stored: Jobs
) -> None:
    bad = [JobSpec("t", {"n": n} if n < MANY - 1 else object()) for n in range(MANY)]
    async with WorkerUtils(dsn) as utils, utils.pool.connection() as conn, conn.transaction():
        with pytest.raises(ValueError, match=rf"^jobs\[{MANY - 1}\]: payload of task 't' is not"):
            await utils.add_jobs(bad, conn=conn)
        await utils.add_job("t", "still", conn=conn)
    assert [row["payload"] for row in stored.all()] == ["still"]


async def test_two_that_add_the_same_new_names_at_once_both_succeed(dsn: str, stored: Jobs) -> None:
    wanted = [JobSpec("new", queue_name="new") for _ in range(MANY)]
    async with (
        WorkerUtils(dsn) as utils,
        asyncio.TaskGroup() as group,
        utils.pool.connection() as conn,
        conn.transaction(),
    ):
        await utils.add_jobs(wanted, conn=conn)
        group.create_task(utils.add_jobs(wanted))
        await stored.seen_waiting()
    assert len(stored.all()) == 2 * MANY
    assert len({row["job_queue_id"] for row in stored.all()}) == 1
