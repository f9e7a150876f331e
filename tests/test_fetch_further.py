"""Where looking at all jobs is slow, fetches go on where the last one ended, and miss nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from graphile_worker_py import FetchRequest, Plugin, Runner, run_once
from graphile_worker_py.events import JobStart, JobSuccess
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.workers.waits import Waits
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

LOCKED_QUEUES = "select id from graphile_worker._private_job_queues where not is_available"
OF_WORKERS = """
select pid from pg_stat_activity
where datname = current_database() and application_name = 'graphile_worker_py'
"""


ALWAYS_RESUME = Waits(slow_scan=(0, 0), resume_factor=1e9, resume_longest=3600)


class Looks(Plugin):
    """What the fetches looked at: `all`, or what comes `further` on."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Note the fetch: only after a look at all is it decided for how long to resume it."""
        before = len(self.kinds)
        fetched = await proceed(request)
        if len(self.kinds) == before:
            self.kinds.append("further")
        return fetched

    def noted(self, resume_for: Callable[..., float]) -> Waits:
        """Waits that note when a look at all decides for how long fetches resume it."""

        class Noted(Waits):
            def resume_for(_self, took: float, *, jobs: int) -> float:  # noqa: N805
                self.kinds.append("all")
                return resume_for(took, jobs=jobs)

        return Noted()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Take each look at all jobs for a slow one, after which others go on for an hour."""
    looks = Looks()
    monkeypatch.setattr(Runner, "_waits", looks.noted(ALWAYS_RESUME.resume_for))
    return looks


async def test_a_backlog_is_run_in_order_and_at_its_end_all_is_looked_at(
    dsn: str, looks: Looks
) -> None:
    jobs = Jobs(dsn)
    seen: list[Any] = []
    for n in range(6):
        jobs.add("work", n, priority=n % 3)
    await run_once(dsn, tasks={"work": seen.append}, hooks=[looks])
    assert seen == [0, 3, 1, 4, 2, 5]
    # At the end there may be one more look, for what the last outcome has freed.
    assert looks.kinds[:8] == ["all", *["further"] * 6, "all"]
    assert set(looks.kinds[8:]) <= {"all"}


async def test_a_quick_look_at_all_jobs_is_made_each_time(
    dsn: str, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Waits(slow_scan=(60, 0))
    monkeypatch.setattr(Runner, "_waits", looks.noted(quick.resume_for))
    Jobs(dsn).add_many(3, "work")
    await run_once(dsn, tasks={"work": print}, hooks=[looks])
    assert set(looks.kinds) == {"all"}


async def test_what_is_more_urgent_is_found_as_soon_as_all_is_looked_at_again(
    dsn: str, looks: Looks
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add_many(3, "work")
    go_on = asyncio.Event()

    class ResumingRunner(Runner):
        _waits = looks.noted(lambda _took, **_jobs: 0 if go_on.is_set() else 3600)

    async def work(_payload: Any) -> None:
        await go_on.wait()

    tasks = {"work": work, "urgent": print}
    async with ResumingRunner(dsn, tasks=tasks, events=told.events, hooks=[looks]):
        await told.seen(JobStart)
        jobs.add("urgent", priority=-1)
        go_on.set()
        await told.seen(JobSuccess, count=4)
    ran = [event.job.task_identifier for event in told.of(JobStart)]
    assert ran == ["work", "work", "work", "urgent"]
    assert looks.kinds[:5] == ["all", "further", "further", "further", "all"]


async def test_when_a_queue_is_freed_all_is_looked_at(dsn: str, looks: Looks) -> None:
    jobs = Jobs(dsn)
    seen: list[Any] = []
    for n in range(3):
        jobs.add("work", f"queued {n}", queue_name="q")
    for n in range(30):
        jobs.add("work", f"other {n}")

    async def work(payload: str) -> None:
        seen.append(payload)
        if payload.startswith("other"):
            await eventually(lambda: jobs.query(LOCKED_QUEUES) == [])

    await run_once(dsn, tasks={"work": work}, hooks=[looks])
    queued = [seen.index(f"queued {n}") for n in range(3)]
    assert queued == sorted(queued)
    assert queued[-1] < 15
    assert len(seen) == 33
    assert "further" in looks.kinds


class LeavesOut(Plugin):
    """Leaves jobs of the task `slow` out of all fetches, as a pause does."""

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Fetch the others."""
        return await proceed(replace(request, tasks=request.tasks - {"slow"}))


@pytest.mark.parametrize("queues", [0, 2])
async def test_what_is_left_out_is_passed_once_although_others_are_in_queues(
    dsn: str, looks: Looks, queues: int
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(3, "slow")
    for n in range(20):
        jobs.add("work", n, queue_name=f"queue {n % 4}" if n % 4 < queues else None)
    seen: list[int] = []

    def work(n: int) -> None:
        seen.append(n)
        if n == 0:
            jobs.add("work", 99, priority=-1)  # before all that the fetches look at

    await run_once(dsn, tasks={"work": work, "slow": print}, hooks=[looks, LeavesOut])
    assert sorted(seen) == [*range(20), 99]
    for queue in range(queues):
        lane = [n for n in seen if n < 20 and n % 4 == queue]
        assert lane == sorted(lane)
    assert looks.kinds[0] == "all"
    # From the start it looks again after a rest, so how often depends on the time that this takes.
    assert looks.kinds.count("further") > 2 * looks.kinds.count("all")
    assert len(jobs.ids()) == 3


async def test_what_is_more_urgent_than_jobs_that_are_left_out_is_found_a_moment_later(
    dsn: str, looks: Looks
) -> None:
    jobs, seen = Jobs(dsn), list[str]()
    jobs.add_many(3, "slow")
    jobs.add("work", "first")
    tasks: dict[str, Any] = {"work": seen.append, "slow": print}
    # It would poll when the test is over.
    options: dict[str, Any] = {
        "concurrent_jobs": 5,
        "poll_interval": 60,
        "hooks": [looks, LeavesOut],
    }
    async with Runner(dsn, tasks=tasks, **options):
        await eventually(lambda: seen == ["first"])
        jobs.add("work", "urgent", priority=-1)
        await eventually(lambda: seen == ["first", "urgent"])
        jobs.add("work", "last")
        await eventually(lambda: seen == ["first", "urgent", "last"])
    assert {"all", "further"} <= set(looks.kinds)


async def test_jobs_of_free_queues_in_sight_are_not_passed(dsn: str, looks: Looks) -> None:
    jobs = Jobs(dsn)
    seen: list[Any] = []
    jobs.add("work", 0)
    jobs.add("work", 1, queue_name="q")
    jobs.add("work", 2)
    await run_once(dsn, tasks={"work": seen.append}, hooks=[looks])
    assert seen == [0, 1, 2]


async def test_what_is_gone_costs_the_next_fetches_nothing(dsn: str, looks: Looks) -> None:
    """Beside an old transaction, which keeps what is gone in the index."""
    jobs, gone = Jobs(dsn), 20_000
    with psycopg.connect(dsn) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select from graphile_worker._private_jobs limit 1")
        jobs.query(
            """
            select count(*) from graphile_worker.add_jobs(array(
              select row('gone', null, null, '2020-01-01', null, null, null, null)
                ::graphile_worker.job_spec from generate_series(1, %s)))
            """,
            gone,
        )
        jobs.query("delete from graphile_worker._private_jobs")
        jobs.add_many(10, "work")
        await run_once(dsn, tasks={"work": lambda _payload: None}, hooks=[looks])
        # They count what they have read when they end.
        await eventually(lambda: jobs.query(OF_WORKERS) == [])
        passed = jobs.query(
            """
            select idx_tup_read from pg_stat_user_indexes
            where indexrelname = 'jobs_no_queue_index' and schemaname = 'graphile_worker'
            """
        )
    assert looks.kinds.count("further") == 10
    looks_at_all = looks.kinds.count("all")
    assert looks_at_all * gone <= passed[0]["idx_tup_read"] < (looks_at_all + 1) * gone
