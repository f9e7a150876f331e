"""Limits of tasks: how many of their jobs run at once in all pools of the schema together."""

import asyncio
import logging
from typing import Any

import pytest

from graphile_worker_py import (
    Cause,
    ConcurrencyLimit,
    ConfigurationError,
    JobContext,
    RateLimit,
    Runner,
    Task,
    WorkerUtils,
    run_migrations,
    run_once,
    task,
)
from graphile_worker_py.events import JobStart
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told


class Gauge:
    """Counts the jobs that run, which last until they are let go."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.ended = 0
        self.gate = asyncio.Event()

    async def work(self, _payload: Any) -> None:
        """Run, and be counted."""
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with asyncio.timeout(10):  # where a test fails, too
                await self.gate.wait()
        finally:
            self.running -= 1
            self.ended += 1

    def task(self, amount: int, *, name: str = "stripe", identifier: str = "work") -> Task[Any]:
        """A task with a limit."""
        return task(identifier, limits=[ConcurrencyLimit(amount, name=name)])(self.work)


async def test_all_pools_together_run_as_many_jobs_as_the_limit_allows(dsn: str) -> None:
    gauge = Gauge()
    ids = Jobs(dsn).add_many(20, "work")
    async with (
        Runner(dsn, tasks=[gauge.task(3)], concurrent_jobs=4),
        Runner(dsn, tasks=[gauge.task(3)], concurrent_jobs=4),
        WorkerUtils(dsn) as utils,
    ):
        await eventually(lambda: gauge.running == 3)
        (limit,) = await utils.limits()
        assert (limit.name, limit.in_use, limit.state) == ("stripe", 3, "full")
        assert sum(limit.pools.values()) == 3
        waiting = [job for job in Jobs(dsn).all() if job["locked_at"] is None]
        why = (await utils.explain(waiting[0]["id"])).reasons[0]
        assert why.cause is Cause.LIMITED
        assert "'stripe' of its task is reached: 3 of 3" in why.fact
        assert len(waiting) == 17
        assert {job["attempts"] for job in waiting} == {0}
        gauge.gate.set()
        await eventually(lambda: gauge.ended == len(ids))
    assert gauge.most == 3


async def test_tasks_share_a_limit_by_its_name_and_leave_others_alone(dsn: str) -> None:
    gauge, free = Gauge(), Gauge()
    Jobs(dsn).add_many(3, "charge")
    Jobs(dsn).add_many(3, "refund")
    Jobs(dsn).add_many(3, "mail")
    tasks = [gauge.task(2, identifier=name) for name in ("charge", "refund")]
    async with Runner(dsn, tasks=[*tasks, Task(free.work, "mail")], concurrent_jobs=9):
        await eventually(lambda: gauge.running == 2 and free.running == 3)
        gauge.gate.set()
        free.gate.set()
        await eventually(lambda: gauge.ended == 6)
    assert gauge.most == 2


async def test_an_operators_number_counts_until_it_is_cleared_and_ends_no_job(dsn: str) -> None:
    gauge = Gauge()
    Jobs(dsn).add_many(30, "work")
    async with Runner(dsn, tasks=[gauge.task(4)], concurrent_jobs=8), WorkerUtils(dsn) as utils:
        await eventually(lambda: gauge.running == 4)
        lowered = await utils.set_limit("stripe", 1)
        assert (lowered.amount, lowered.declared, lowered.set_amount) == (1, 4, 1)
        assert (lowered.in_use, lowered.state) == (4, "draining")
        assert (gauge.running, gauge.ended) == (4, 0)

        raised = await utils.set_limit("stripe", 6)
        assert raised.amount == 6
        await eventually(lambda: gauge.running == 6, timeout=1)  # told, and not polled

        await utils.set_limit("stripe", 0)
        gauge.gate.set()
        await eventually(lambda: gauge.running == 0)
        gauge.gate.clear()
        (limit,) = await utils.limits()
        assert limit.state == "paused"
        assert gauge.ended == 6

        assert (await utils.clear_limit("stripe")).set_amount is None
        await eventually(lambda: gauge.running == 4, timeout=1)
        gauge.gate.set()
    assert gauge.most == 6


async def test_once_a_limit_is_lowered_a_pool_starts_nothing_with_a_permit_that_is_left(
    dsn: str,
) -> None:
    gauge, other = Gauge(), Gauge()
    charge = gauge.task(4, identifier="charge")
    refund = other.task(4, identifier="refund")
    async with (
        Runner(dsn, tasks=[charge], poll_interval=60, concurrent_jobs=3),
        Runner(dsn, tasks=[refund], poll_interval=60),
        WorkerUtils(dsn) as utils,
    ):
        Jobs(dsn).add_many(3, "charge")
        await eventually(lambda: gauge.running == 3)
        other.gate.set()
        Jobs(dsn).add("refund")
        await eventually(lambda: other.ended == 1)  # its pool keeps the permit for a second
        await utils.set_limit("stripe", 3)

        async def is_given_back() -> bool:
            (limit,) = await utils.limits()
            return limit.in_use == 3

        await eventually(is_given_back, timeout=0.7)
        Jobs(dsn).add("refund")
        gauge.gate.set()
        await eventually(lambda: other.ended == 2)


async def test_what_one_pool_does_not_need_serves_another_at_once(dsn: str) -> None:
    gauge, other = Gauge(), Gauge()
    charge = gauge.task(1, identifier="charge")
    refund = other.task(1, identifier="refund")
    async with (
        Runner(dsn, tasks=[charge], poll_interval=60),
        Runner(dsn, tasks=[refund], poll_interval=60),
    ):
        gauge.gate.set()
        Jobs(dsn).add("charge")
        await eventually(lambda: gauge.ended == 1)
        Jobs(dsn).add("refund")  # the other pool still has the only permit
        await eventually(lambda: other.running == 1, timeout=0.9)
        other.gate.set()
    assert other.ended == 1


async def test_a_pool_without_a_free_place_keeps_no_permit_from_others(dsn: str) -> None:
    jobs, ends = Jobs(dsn), dict[int, asyncio.Event]()

    async def work(_payload: Any, ctx: JobContext) -> None:
        ends[ctx.job.id] = asyncio.Event()
        async with asyncio.timeout(4):  # where the test fails, too
            await ends[ctx.job.id].wait()

    tasks = [task("charge", limits=[ConcurrencyLimit(2, name="stripe")])(work), task("mail")(work)]
    # Heartbeats would tell what a pool can use, too.
    options: dict[str, Any] = {"poll_interval": 60, "heartbeat_interval": 30, "dead_after": 100}
    claims = "select name from graphile_worker_py.limit_permits where wants > permits"
    async with Runner(dsn, tasks=tasks[:1], concurrent_jobs=2, **options):
        charges = [jobs.add("charge") for _ in range(3)]
        await eventually(lambda: len(ends) == 2)
        async with Runner(dsn, tasks=tasks, concurrent_jobs=1, **options):
            await eventually(lambda: len(jobs.query(claims)) == 1)
            mail = jobs.add("mail")
            await eventually(lambda: mail in ends)
            first, third = charges[0], charges[2]
            ends[first].set()
            await eventually(lambda: third in ends, timeout=1)
            for end in ends.values():
                end.set()
            await eventually(lambda: jobs.all() == [])


async def test_pools_take_turns_where_there_are_fewer_permits_than_pools(dsn: str) -> None:
    order: list[str] = []

    def taking_turns(name: str) -> Task[Any]:
        async def work(_payload: Any) -> None:
            order.append(name)
            await asyncio.sleep(0.01)

        return task(name, limits=[ConcurrencyLimit(1, name="one")])(work)

    Jobs(dsn).add_many(1000, "charge")
    Jobs(dsn).add_many(1000, "refund")
    async with (
        Runner(dsn, tasks=[taking_turns("charge")]),
        Runner(dsn, tasks=[taking_turns("refund")]),
    ):
        await eventually(lambda: {"charge", "refund"} <= set(order[-100:]), timeout=10)


async def test_of_two_versions_of_the_code_the_smaller_number_counts(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    gauge = Gauge()
    options: dict[str, Any] = {"heartbeat_interval": 0.1, "concurrent_jobs": 9}
    with caplog.at_level(logging.WARNING):
        async with Runner(dsn, tasks=[gauge.task(5)], **options):
            async with Runner(dsn, tasks=[gauge.task(2)], **options):
                await eventually(lambda: "Limit 'stripe' is 2 in one version" in caplog.text)
                Jobs(dsn).add_many(9, "work")
                await eventually(lambda: gauge.running == 2)
                gauge.gate.set()
                await eventually(lambda: gauge.ended == 9)
                assert gauge.most == 2
            gauge.gate.clear()
            Jobs(dsn).add_many(9, "work")
            await eventually(lambda: gauge.running == 5)
            gauge.gate.set()
            await eventually(lambda: gauge.ended == 18)
    assert gauge.most == 5


async def test_a_rate_spreads_starts_and_waiting_jobs_are_not_locked(dsn: str) -> None:
    told = Told()
    loop = asyncio.get_running_loop()
    starts: list[float] = []

    @task("work", limits=[RateLimit(20, burst=4, name="api")])
    async def work(_payload: Any) -> None:
        starts.append(loop.time())

    Jobs(dsn).add_many(24, "work")
    async with Runner(dsn, tasks=[work], concurrent_jobs=10, events=told.events):
        await told.seen(JobStart)
        left = [job for job in Jobs(dsn).all() if job["locked_at"] is None]
        assert len(left) >= 20 - 4
        assert {job["attempts"] for job in left} == {0}
        await eventually(lambda: len(starts) == 24)
    # 20 a second, of which 4 at once; each starts a moment after its token was taken.
    assert starts[3] - starts[0] < 0.2
    assert starts[-1] - starts[0] > (24 - 4) / 20 - 0.1
    assert starts[-1] - starts[0] < (24 - 4) / 20 * 1.5 + 0.2


async def test_a_run_until_nothing_is_due_waits_for_tokens_and_for_permits(dsn: str) -> None:
    ran: list[int] = []

    @task("work", limits=[RateLimit(50, burst=1), ConcurrencyLimit(1)])
    async def work(payload: Any) -> None:
        ran.append(payload["n"])

    Jobs(dsn).add_many(6, "work")
    await run_once(dsn, tasks=[work])
    assert sorted(ran) == list(range(6))


async def test_a_retry_takes_a_token_like_any_start(dsn: str) -> None:
    starts: list[float] = []

    @task("work", limits=[RateLimit(10, burst=1)])
    async def work(_payload: Any) -> None:
        starts.append(asyncio.get_running_loop().time())
        raise ValueError("again")

    Jobs(dsn).add_many(2, "work")
    async with Runner(dsn, tasks=[work]):
        await eventually(lambda: len(starts) == 2)
        Jobs(dsn).make_due()
        await eventually(lambda: len(starts) == 3)
    assert starts[2] - starts[0] > 0.15


async def test_without_the_tables_limited_tasks_wait_and_others_run(dsn: str) -> None:
    gauge, free = Gauge(), Gauge()
    await run_migrations(dsn, side_schema=True)
    await Jobs(dsn).in_thread("drop table graphile_worker_py.limits")
    Jobs(dsn).add("work")
    Jobs(dsn).add("mail")
    tasks = [gauge.task(1), Task(free.work, "mail")]
    async with Runner(dsn, tasks=tasks, poll_interval=0.1) as runner:
        await eventually(lambda: free.running == 1)
        assert any("tables of limits" in text for text in runner.health().troubles)
        free.gate.set()
        await eventually(lambda: free.ended == 1)
    assert gauge.most == 0


async def test_limits_that_can_not_be_read_keep_only_their_tasks_waiting(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    gauge, free = Gauge(), Gauge()
    gauge.gate.set()
    free.gate.set()
    tasks = [gauge.task(1), Task(free.work, "mail")]
    # A poll would take a permit before the table is gone.
    async with Runner(dsn, tasks=tasks, poll_interval=60) as runner:
        Jobs(dsn).add("work")
        await eventually(lambda: gauge.ended == 1)
        in_use = "select in_use from graphile_worker_py.limits"
        await eventually(lambda: Jobs(dsn).query(in_use) == [{"in_use": 0}])  # given back
        await Jobs(dsn).in_thread("alter table graphile_worker_py.limits rename to gone")
        await eventually(lambda: runner.health().plugin_failures)
        Jobs(dsn).add("work")
        Jobs(dsn).add("mail")
        await eventually(lambda: free.ended == 1)
        await eventually(lambda: "could not be read" in str(runner.health().troubles))
        assert gauge.ended == 1
        await Jobs(dsn).in_thread("alter table graphile_worker_py.gone rename to limits")
        await eventually(lambda: gauge.ended == 2 and runner.health().troubles == ())
    assert "Could not read limits" in caplog.text


def test_settings_that_can_not_be_kept_are_refused_at_the_start(dsn: str) -> None:
    async def work(_payload: Any) -> None:
        pass

    for make, said in (
        (lambda: ConcurrencyLimit(-1), "at least 0"),
        (lambda: ConcurrencyLimit(1.5), "whole number"),  # type: ignore[arg-type]
        (lambda: RateLimit(0), "above 0"),
        (lambda: RateLimit(float("inf")), "finite"),
        (lambda: RateLimit(float("nan")), "above 0"),
        (lambda: RateLimit(10**400), "finite"),
        (lambda: RateLimit(1, per=0), "above 0"),
        (lambda: RateLimit(1, burst=0), "at least 1"),
        (lambda: ConcurrencyLimit(1, name=""), "name of a ConcurrencyLimit"),
        (lambda: task("a", limits=[5])(work), "must be a list of"),  # type: ignore[list-item]
        (lambda: task("a", limits=[ConcurrencyLimit(1), ConcurrencyLimit(2)])(work), "two of"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            make()
    first = task("a", limits=[ConcurrencyLimit(1, name="x")])(work)
    second = task("b", limits=[ConcurrencyLimit(2, name="x")])(work)
    with pytest.raises(ConfigurationError, match="'a' and 'b' have different settings"):
        Runner(dsn, tasks=[first, second])
    with pytest.raises(ConfigurationError, match="need the side schema"):
        Runner(dsn, tasks=[first], no_side_schema=True)


async def test_an_unknown_limit_can_not_be_set(dsn: str) -> None:
    await run_migrations(dsn, side_schema=True)
    async with Runner(dsn, tasks=[Gauge().task(2)]), WorkerUtils(dsn) as utils:
        await eventually(utils.limits)
        with pytest.raises(ConfigurationError, match=r"no limit 'strip'.*'stripe'"):
            await utils.set_limit("strip", 2)
        with pytest.raises(ConfigurationError, match="at least 0"):
            await utils.set_limit("stripe", -1)
