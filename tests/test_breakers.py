"""Circuit breakers: after too many failures of a task, its jobs wait until one has succeeded."""

import asyncio
from typing import Any

import pytest

from graphile_worker_py import (
    Cause,
    CircuitBreaker,
    ConfigurationError,
    Discard,
    JobContext,
    LocalQueueOptions,
    MissingTablesError,
    RetryIn,
    Runner,
    Snooze,
    SyncJobContext,
    SyncWorkerUtils,
    Task,
    WorkerUtils,
    run_migrations,
    task,
)
from graphile_worker_py.events import PoolListenSuccess
from tests.support.eventually import eventually
from tests.support.node import WITHOUT_SIDE_SCHEMA
from tests.support.running import Jobs, Told

OPEN = "select open_until is not null as open from graphile_worker_py.breakers"
ADD_NUMBERS = """
select count(graphile_worker.add_job('charge', to_json(n))) as count
from generate_series(0, %s) as n
"""


class Endpoint:
    """What the task calls, which can be down."""

    def __init__(self, *, is_down: bool = True) -> None:
        self.is_down = is_down
        self.calls: list[int] = []
        self.ended: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def call(self, payload: Any) -> None:
        """Fail if it is down."""
        self.calls.append(payload)
        await self.gate.wait()
        if self.is_down:
            raise ConnectionError("503")
        self.ended.append(payload)

    def task(self, identifier: str = "charge", **settings: Any) -> Task[Any]:
        """A task with a breaker that opens after three failures."""
        given = {"failures": 3, "open_for": 3600.0, **settings}
        return task(identifier, breaker=CircuitBreaker("stripe", **given))(self.call)


@pytest.fixture
async def jobs(dsn: str) -> Jobs:
    """The jobs, in a database that has the side schema."""
    await run_migrations(dsn, side_schema=True)
    return Jobs(dsn)


def is_open(jobs: Jobs) -> bool:
    return jobs.query(OPEN) == [{"open": True}]


@pytest.mark.parametrize(("count", "prefetched"), [(100, 0), (100, 50), (10_000, 0)])
async def test_an_endpoint_that_is_down_costs_no_more_attempts_than_failures_and_probes(
    dsn: str, jobs: Jobs, count: int, prefetched: int
) -> None:
    endpoint, free = Endpoint(), Endpoint(is_down=False)
    endpoint.gate.clear()
    jobs.query(ADD_NUMBERS, count - 1)
    tasks = [endpoint.task(), Task(free.call, "mail")]
    queue: dict[str, Any] = (
        {"local_queue": LocalQueueOptions(size=prefetched)} if prefetched else {}
    )
    async with (
        Runner(dsn, tasks=tasks, concurrent_jobs=10, **queue) as runner,
        WorkerUtils(dsn) as utils,
    ):
        await eventually(lambda: len(endpoint.calls) == 10)
        endpoint.gate.set()  # ten fail at once
        await eventually(lambda: is_open(jobs) and jobs.locked() == [])
        assert sum(job["attempts"] for job in jobs.all()) == 3
        jobs.add("mail", 1)
        await eventually(lambda: free.ended == [1])
        (trouble,) = runner.health().troubles
        assert "breaker 'stripe' is open for another" in trouble
        assert "ConnectionError: 503" in trouble
        waiting = next(job["id"] for job in jobs.all() if job["attempts"] == 0)
        why = (await utils.explain(waiting)).reasons[0]
        assert why.cause is Cause.LIMITED
        assert "opened by: ConnectionError: 503" in why.fact

        endpoint.is_down = False
        jobs.make_due()
        await utils.reset_breaker("stripe")
        await eventually(lambda: len(endpoint.ended) == count, timeout=15)
    assert sorted(endpoint.ended) == list(range(count))


async def test_one_job_is_let_through_when_the_time_is_over_and_decides(
    dsn: str, jobs: Jobs
) -> None:
    endpoint = Endpoint()
    jobs.add_many(3, "charge")
    async with Runner(dsn, tasks=[endpoint.task(open_for=0.3)], concurrent_jobs=5):
        await eventually(lambda: is_open(jobs))
        jobs.add_many(10, "charge")
        endpoint.gate.clear()
        await eventually(lambda: len(endpoint.calls) == 4)
        endpoint.gate.set()  # it fails, too
        await eventually(lambda: [job["attempts"] for job in jobs.all()].count(1) == 4)
        endpoint.gate.clear()
        await eventually(lambda: len(endpoint.calls) == 5)
        endpoint.is_down = False
        assert len(endpoint.calls) == 5
        endpoint.gate.set()
        await eventually(lambda: len(endpoint.ended) == 9)
        assert not is_open(jobs)
    assert sum(job["attempts"] for job in jobs.all()) == 4


async def test_all_pools_wait_once_one_has_opened_it_and_one_lets_a_job_through(
    dsn: str, jobs: Jobs
) -> None:
    first, second = Endpoint(), Endpoint(is_down=False)
    async with Runner(dsn, tasks=[first.task(open_for=0.5)], concurrent_jobs=3):
        jobs.add_many(3, "charge")
        await eventually(lambda: is_open(jobs))
        first.gate.clear()
        second.gate.clear()
        options: dict[str, Any] = {"heartbeat_interval": 0.1, "concurrent_jobs": 3}
        async with Runner(dsn, tasks=[second.task(open_for=0.5)], **options) as other:
            await eventually(lambda: any("'stripe'" in text for text in other.health().troubles))
            jobs.add_many(8, "charge")
            await eventually(lambda: len(first.calls) + len(second.calls) == 4)
            first.is_down = False
            first.gate.set()
            second.gate.set()
            await eventually(lambda: len(first.ended) + len(second.ended) == 8)
            assert not is_open(jobs)


async def test_decisions_of_tasks_are_no_failures_and_old_failures_do_not_count(
    dsn: str, jobs: Jobs
) -> None:
    decisions = [Discard("no"), RetryIn(3600), Snooze(3600)]
    ended: list[str] = []

    @task("charge", breaker=CircuitBreaker("stripe", failures=2, window=0.2, open_for=3600))
    async def charge(payload: str) -> Any:
        ended.append(payload)
        if payload == "fail":
            raise ConnectionError
        decision = decisions[len(ended) % 3]
        if payload == "raise":
            raise decision
        return decision

    async with Runner(dsn, tasks=[charge], concurrent_jobs=1):
        for payload in ["raise"] * 4 + ["return"] * 4 + ["fail"]:
            jobs.add("charge", payload)
        await eventually(lambda: len(ended) == 9)
        began = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() > began + 0.25)
        jobs.add("charge", "fail")
        await eventually(lambda: len(ended) == 10 and jobs.locked() == [])
        assert not is_open(jobs)
        jobs.add("charge", "fail")
        await eventually(lambda: is_open(jobs))


async def test_cancelled_jobs_are_no_failures_whatever_they_raise_then(
    dsn: str, jobs: Jobs
) -> None:
    breaker = CircuitBreaker("stripe", failures=2, open_for=3600)
    begun: list[int] = []
    told = Told()

    @task("waits", breaker=breaker)
    async def waits(_payload: Any, ctx: JobContext) -> None:
        begun.append(ctx.job.id)
        await asyncio.Event().wait()

    @task("listens", breaker=breaker)
    def listens(_payload: Any, ctx: SyncJobContext) -> None:
        begun.append(ctx.job.id)
        ctx.abort_event.wait()
        raise ConnectionError("closed")

    ids = [jobs.add(name) for name in ("waits", "listens") for _ in range(2)]
    async with (
        Runner(dsn, tasks=[waits, listens], concurrent_jobs=4, events=told.events) as runner,
        WorkerUtils(dsn) as utils,
    ):
        await eventually(lambda: len(begun) == 4)
        await told.seen(PoolListenSuccess)
        await eventually(lambda: jobs.query("select 1 from graphile_worker_py.pools") != [])
        await utils.cancel_jobs(ids)
        await eventually(lambda: jobs.ids() == [])
        assert runner.health().troubles == ()


async def test_a_cancelled_error_of_the_tasks_own_is_a_failure(dsn: str, jobs: Jobs) -> None:
    @task("charge", breaker=CircuitBreaker("stripe", failures=2, open_for=3600))
    async def charge(_payload: Any) -> None:
        raise asyncio.CancelledError("of a client")

    jobs.add_many(2, "charge")
    async with Runner(dsn, tasks=[charge]):
        await eventually(lambda: is_open(jobs))


async def test_a_pool_that_starts_while_a_breaker_is_open_waits_and_a_dead_probe_is_replaced(
    dsn: str, jobs: Jobs
) -> None:
    endpoint = Endpoint(is_down=False)
    async with Runner(dsn, tasks=[endpoint.task()]):
        jobs.add("charge", 1)
        await eventually(lambda: endpoint.ended == [1])
        await eventually(lambda: jobs.query(OPEN) == [{"open": False}])
    jobs.query(
        "update graphile_worker_py.breakers"
        " set open_until = now() + interval '1 hour', reason = 'before'"
    )
    async with Runner(dsn, tasks=[endpoint.task()], heartbeat_interval=0.1) as runner:
        await eventually(lambda: "before" in str(runner.health().troubles))
        jobs.add("charge", 2)
        jobs.query(
            "update graphile_worker_py.breakers"
            " set open_until = now(), probe_by = 'a pool that died'"
        )
        await eventually(lambda: endpoint.ended == [1, 2])
    assert not is_open(jobs)


@WITHOUT_SIDE_SCHEMA
async def test_without_the_side_schema_each_pool_counts_for_itself(dsn: str) -> None:
    endpoint, jobs = Endpoint(), Jobs(dsn)
    jobs.add_many(10, "charge")
    options: dict[str, Any] = {"no_side_schema": True, "concurrent_jobs": 2}
    async with Runner(dsn, tasks=[endpoint.task(open_for=0.3)], **options) as runner:
        await eventually(lambda: "is open" in str(runner.health().troubles))
        endpoint.is_down = False
        await eventually(lambda: len(endpoint.ended) == 7)
    async with WorkerUtils(dsn) as utils:
        with pytest.raises(MissingTablesError, match="there is no graphile_worker_py"):
            await utils.reset_breaker("stripe")


async def test_a_breaker_that_no_pool_has_had_can_not_be_reset(dsn: str, jobs: Jobs) -> None:
    endpoint = Endpoint(is_down=False)
    with SyncWorkerUtils(dsn) as utils:
        with pytest.raises(ConfigurationError, match=r"no breaker 'stripe'; .* are: none"):
            utils.reset_breaker("stripe")
        async with Runner(dsn, tasks=[endpoint.task()]):
            await eventually(lambda: jobs.query(OPEN) == [{"open": False}])
        utils.reset_breaker("stripe")
        with pytest.raises(ConfigurationError, match=r"no breaker 'strip'; .* are: 'stripe'"):
            utils.reset_breaker("strip")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": ""}, "name of a CircuitBreaker"),
        ({"name": "x", "failures": 0}, "failures of a CircuitBreaker must be .*at least 1"),
        ({"name": "x", "window": 0}, "window of a CircuitBreaker"),
        ({"name": "x", "open_for": float("inf")}, "open_for of a CircuitBreaker"),
        ({"name": "x", "open_for": -1}, "open_for of a CircuitBreaker"),
    ],
)
def test_values_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        CircuitBreaker(**given)


async def test_tasks_that_share_a_breaker_must_agree_about_it(dsn: str) -> None:
    endpoint = Endpoint()
    with pytest.raises(ConfigurationError, match=r"'charge' and 'refund' have different settings"):
        Runner(dsn, tasks=[endpoint.task(), endpoint.task("refund", failures=9)])
    with pytest.raises(ConfigurationError, match=r"breaker of task 'x' must be CircuitBreaker"):
        task("x", breaker="stripe")(endpoint.call)  # type: ignore[call-overload]
