"""Jobs run by the task whose name they carry, also when ids of tasks change under a worker."""

from typing import Any

import pytest

from graphile_worker_py import LocalQueueOptions, Runner, WorkerUtils, run_migrations, run_once
from graphile_worker_py.events import JobSuccess, PoolListenSuccess
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.get_jobs import get_jobs
from graphile_worker_py.sql.task_ids import TaskIds, read_task_ids, register_tasks
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

RESTART = "truncate graphile_worker._private_tasks restart identity"
REGISTER = "insert into graphile_worker._private_tasks (identifier) values (%s), (%s)"
TASKS = "select identifier from graphile_worker._private_tasks order by identifier"


class Seen:
    """Two tasks, and what each of them was called with."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.deleted: list[Any] = []

    def tasks(self) -> dict[str, Any]:
        """The tasks by their identifiers."""
        return {"send_email": self.sent.append, "delete_account": self.deleted.append}


@pytest.mark.parametrize("options", [{}, {"local_queue": LocalQueueOptions(size=10)}])
async def test_no_other_task_runs_jobs_after_tasks_were_numbered_anew(
    dsn: str, options: Any
) -> None:
    jobs, told, seen = Jobs(dsn), Told(), Seen()
    async with Runner(dsn, tasks=seen.tasks(), events=told.events, **options):
        await told.seen(PoolListenSuccess)
        jobs.add("send_email", 1)
        await told.seen(JobSuccess)
        await jobs.in_thread(RESTART)
        jobs.query(REGISTER, "send_email", "delete_account")  # the worker had the other order
        for n in range(2, 6):
            jobs.add("send_email", n)
            jobs.add("delete_account", -n)
        await told.seen(JobSuccess, count=9)
    assert (sorted(seen.sent), sorted(seen.deleted)) == ([1, 2, 3, 4, 5], [-5, -4, -3, -2])


async def test_no_other_task_runs_jobs_after_the_schema_was_installed_again(dsn: str) -> None:
    jobs, told, seen = Jobs(dsn), Told(), Seen()
    async with Runner(dsn, tasks=seen.tasks(), events=told.events, poll_interval=0.1):
        await told.seen(PoolListenSuccess)
        jobs.add("delete_account", 0)
        await told.seen(JobSuccess)
        await eventually(lambda: jobs.ids() == [])
        await jobs.in_thread("drop schema graphile_worker cascade")
        await run_migrations(dsn)
        jobs.add("send_email", 1)
        jobs.add("delete_account", 2)
        await told.seen(JobSuccess, count=3)
    assert (seen.sent, seen.deleted) == ([1], [0, 2])


async def test_tasks_whose_rows_were_deleted_are_registered_by_the_next_fetch(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told, seen = Jobs(dsn), Told(), Seen()
    async with Runner(dsn, tasks=seen.tasks(), events=told.events, poll_interval=0.05):
        await told.seen(PoolListenSuccess)
        jobs.query("delete from graphile_worker._private_tasks where identifier = 'send_email'")
        await eventually(lambda: len(jobs.query(TASKS)) == 2, timeout=5)
        jobs.add("send_email", 1)
        await told.seen(JobSuccess)
    assert seen.sent == [1]
    assert caplog.text.count("Ids of tasks have changed") == 1


async def test_nothing_is_locked_where_an_id_stands_for_another_task(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("a", queue_name="q")
    jobs.add("b")
    before = jobs.snapshot()
    async with WorkerUtils(dsn) as utils:
        database = Database(utils.pool, schema="graphile_worker")
        await database.run(register_tasks(["a", "b"]))
        ids = await database.run(read_task_ids(["a", "b"]))
        number = {name: task_id for task_id, name in ids.items()}
        swapped = {number["a"]: "b", number["b"]: "a"}
        for known in (swapped, {**ids, 999: "c"}, {number["a"]: "a", number["b"]: "x"}):
            query = get_jobs(pool_id="p", task_ids=TaskIds(known), count=5, forbidden_flags=None)
            assert await database.run(query) is None
            assert jobs.snapshot() == before
        fetched = await database.run(
            get_jobs(pool_id="p", task_ids=ids, count=1, forbidden_flags=None)
        )
        assert fetched is not None
        (job,) = fetched.jobs
        before = jobs.snapshot()
        further = get_jobs(
            pool_id="p",
            task_ids=TaskIds(swapped),
            count=5,
            forbidden_flags=None,
            after=(job.priority, job.run_at),
        )
        fetched = await database.run(further)
        assert fetched is not None
        assert (fetched.jobs, fetched.more) == ([], True)
        assert jobs.snapshot() == before


@pytest.mark.parametrize("name", ['a"b', "a\\b", "{a,b}", "NULL", "a b", "ä€", "a\nb"])
async def test_jobs_of_tasks_with_odd_names_are_run(dsn: str, name: str) -> None:
    jobs, seen = Jobs(dsn), Seen()
    jobs.add(name, 1)
    await run_once(dsn, tasks={name: seen.sent.append, "other": seen.deleted.append})
    assert (seen.sent, seen.deleted) == ([1], [])
