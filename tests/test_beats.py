"""What plugins do after heartbeats, and the leader that does chores for all pools of a schema."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final, LiteralString

import psycopg
import pytest
from psycopg import AsyncConnection

from graphile_worker_py import Plugin, Runner
from graphile_worker_py.events import JobSuccess
from graphile_worker_py.outcomes import Completed, Failed, Settled
from graphile_worker_py.plugins import Chore
from graphile_worker_py.schema import own
from graphile_worker_py.sql import leaders
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

FAST: Final[dict[str, Any]] = {"heartbeat_interval": 0.05, "dead_after": 5, "poll_interval": 3600}
BRISK: Final[dict[str, Any]] = {**FAST, "dead_after": 1}
TABLE: LiteralString = "create table graphile_worker_py.beaten (pool_id text not null)"
LEADERS: LiteralString = "select worker_schema, pool_id from graphile_worker_py.leaders"


@pytest.fixture(autouse=True)
def no_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin each test with the table of leaders only, and forget what it has registered."""
    monkeypatch.setattr(own, "REGISTERED", {leaders.LEAF: own.REGISTERED[leaders.LEAF]})


@pytest.fixture
def jobs(dsn: str) -> Jobs:
    """The jobs of a database without a side schema."""
    jobs = Jobs(dsn)
    jobs.query("drop schema if exists graphile_worker_py cascade")
    return jobs


class Beating(Plugin):
    """Inserts a row with each heartbeat."""

    leaf = "beaten"

    def __init__(self, *migrations: LiteralString) -> None:
        own.register_migrations("beaten", [migrations or (TABLE,)])

    async def beat(self, pool: Any, conn: AsyncConnection[Any]) -> None:
        await conn.execute("insert into graphile_worker_py.beaten values (%s)", (pool.pool_id,))


class Sweeping(Plugin):
    """Counts the runs of a chore."""

    def __init__(self, interval: float = 0.0) -> None:
        self.interval = interval
        self.done: list[str] = []
        self.error: BaseException | None = None

    def chores(self, pool: Any) -> Iterable[Chore]:
        async def sweep(conn: AsyncConnection[Any]) -> None:
            if self.error is not None:
                raise self.error
            self.done.append(pool.pool_id)

        return [Chore(name="sweep", interval=self.interval, run=sweep)]


async def test_a_plugin_acts_after_each_heartbeat_from_the_first_one_on(
    dsn: str, jobs: Jobs
) -> None:
    beats = "select pool_id from graphile_worker_py.beaten"
    at_start: list[Any] = []

    async def work(_payload: Any) -> None:
        at_start.extend(jobs.query(beats))

    told = Told()
    jobs.add("work")
    async with Runner(
        dsn, tasks={"work": work}, hooks=[Beating()], events=told.events, **FAST
    ) as runner:
        await told.seen(JobSuccess)
        assert at_start
        await eventually(lambda: len(jobs.query(beats)) >= 3)
        assert {row["pool_id"] for row in jobs.query(beats)} == {runner.pool_id}
        assert runner.health().plugin_failures == 0


@pytest.mark.parametrize("error", [LookupError, SystemExit, asyncio.CancelledError])
async def test_a_plugin_that_fails_or_hangs_fails_no_heartbeat(
    dsn: str, jobs: Jobs, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    class Hanging(Plugin):
        async def beat(self, pool: Any, conn: AsyncConnection[Any]) -> None:
            await conn.execute("select pg_sleep(3600)")

    class Raising(Plugin):
        async def beat(self, pool: Any, conn: AsyncConnection[Any]) -> None:
            raise error("no beat")

    heartbeats = "select heartbeat_at from graphile_worker_py.pools"
    async with Runner(dsn, tasks={"work": print}, hooks=[Raising(), Hanging()], **BRISK) as runner:
        await eventually(lambda: runner.health().plugin_failures >= 4)
        before = jobs.query(heartbeats)
        await eventually(lambda: jobs.query(heartbeats) != before)
        assert runner.health().ready
        await eventually(lambda: "run Hanging.beat" in str(runner.health().plugin_error))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len([text for text in warnings if f"{error.__name__}: no beat" in text]) == 1


async def test_without_its_tables_a_plugin_is_not_asked(dsn: str, jobs: Jobs) -> None:
    told = Told()
    plugin = Beating("create table nowhere.at_all ()")
    jobs.add("work")
    async with Runner(
        dsn, tasks={"work": print}, hooks=[plugin], events=told.events, **FAST
    ) as runner:
        await told.seen(JobSuccess)
        assert runner.health().plugin_failures == 0


async def test_one_pool_does_the_chores_and_another_one_takes_over(dsn: str, jobs: Jobs) -> None:
    one, two = Sweeping(), Sweeping()
    async with Runner(dsn, tasks={"work": print}, hooks=[one], **FAST) as first:
        await eventually(lambda: len(one.done) >= 2)
        async with Runner(dsn, tasks={"work": print}, hooks=[two], **FAST) as second:
            await eventually(lambda: second.health().ready)
            assert jobs.query(LEADERS) == [
                {"worker_schema": "graphile_worker", "pool_id": first.pool_id}
            ]
            assert (first.health().leads, second.health().leads) == (True, False)
            assert two.done == []
            await first.stop()
            # The lease was given back: no one waits for its end.
            await eventually(lambda: two.done)
            assert set(two.done) == {second.pool_id}
    assert jobs.query(LEADERS) == []


@pytest.mark.parametrize("error", [LookupError, SystemExit, asyncio.CancelledError])
async def test_a_chore_that_fails_is_counted_and_done_again(
    dsn: str, jobs: Jobs, error: type[BaseException]
) -> None:
    plugin = Sweeping()
    plugin.error = error("no broom")
    async with Runner(dsn, tasks={"work": print}, hooks=[plugin], **FAST) as runner:
        await eventually(lambda: runner.health().plugin_failures >= 2)
        assert runner.health().plugin_error == f"sweep: {error.__name__}: no broom"
        plugin.error = None
        await eventually(lambda: plugin.done)
        assert runner.health().leads


async def test_a_pool_that_lacks_rights_for_a_chore_leaves_it_to_another(
    dsn: str, jobs: Jobs
) -> None:
    without, able = Sweeping(), Sweeping()
    without.error = psycopg.errors.InsufficientPrivilege("must be owner")
    async with Runner(dsn, tasks={"work": print}, hooks=[without], **FAST) as first:
        await eventually(lambda: first.health().plugin_failures)
        async with Runner(dsn, tasks={"work": print}, hooks=[able], **FAST) as second:
            await eventually(lambda: second.health().leads)
            failures = first.health().plugin_failures
            await eventually(lambda: len(able.done) >= 2)
            assert (first.health().leads, second.health().leads) == (False, True)
            assert first.health().plugin_failures == failures


async def test_a_plugin_counts_the_outcomes_that_were_recorded(dsn: str, jobs: Jobs) -> None:
    class Counting(Plugin):
        def __init__(self) -> None:
            self.seen: list[tuple[int, str]] = []

        def settled(self, pool: Any, batch: Sequence[Settled]) -> None:
            self.seen += [(job.id, type(outcome).__name__) for job, outcome, *_ in batch]
            raise LookupError("no counter")

    async def work(payload: dict[str, Any]) -> None:
        if payload.get("fails"):
            raise ValueError("failed")
        if payload.get("lost"):
            await asyncio.to_thread(
                jobs.query,
                "update graphile_worker._private_jobs set locked_by = 'another' returning id",
            )

    plugin, told = Counting(), Told()
    done, failed = jobs.add("work", {}), jobs.add("work", {"fails": True})
    options: dict[str, Any] = {"hooks": [plugin], "events": told.events}
    async with Runner(dsn, tasks={"work": work}, **options, **FAST):
        await eventually(lambda: len(plugin.seen) == 2)
        jobs.add("work", {"lost": True})
        await eventually(lambda: "job:lost" in told.names())
    assert sorted(plugin.seen) == [(done, Completed.__name__), (failed, Failed.__name__)]
