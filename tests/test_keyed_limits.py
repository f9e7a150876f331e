"""Limits with a key: how many jobs of each value run at once, in all pools together."""

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from graphile_worker_py import (
    Cause,
    ConcurrencyLimit,
    ConfigurationError,
    Runner,
    Task,
    WorkerUtils,
    run_migrations,
    run_once,
    task,
)
from tests.support.eventually import eventually
from tests.support.processes import Processes
from tests.support.running import Jobs


class Gauges:
    """Counts the jobs that run of each value, which last until they are let go."""

    def __init__(self, *values: str) -> None:
        self.values = values or ("tenant",)
        self.running: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()
        self.ended = 0
        self.gate = asyncio.Event()

    async def work(self, payload: Any) -> None:
        """Run, and be counted."""
        found = [
            payload.get(name) if isinstance(payload, Mapping) else None for name in self.values
        ]
        self.running.update(found)
        self.most |= self.running
        try:
            async with asyncio.timeout(15):  # where a test fails, too
                await self.gate.wait()
        finally:
            self.running.subtract(found)
            self.ended += 1

    def task(self, *limits: ConcurrencyLimit, identifier: str = "work") -> Task[Any]:
        """A task with limits."""
        return task(identifier, limits=list(limits))(self.work)

    def run(self, **counts: int) -> bool:
        """Whether so many jobs of each value run, and no others."""
        return +self.running == Counter(counts)


ADD_MANY = (
    "insert into graphile_worker._private_jobs (task_id, payload) "
    "select tasks.id, json_build_object('tenant', %s::text) "
    "from graphile_worker._private_tasks as tasks, generate_series(1, %s) "
    "where tasks.identifier = 'work'"
)


def add(dsn: str, count: int = 1, *, payload: str, flags: list[str] | None = None) -> None:
    """Add jobs by SQL, as a trigger does."""
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "select graphile_worker.add_job('work', %s::json, flags => %s) "
            "from generate_series(1, %s)",
            (payload, flags, count),
        )


@pytest.fixture
async def dsn(dsn: str) -> str:
    """A database with all tables, so that workers need not wait for them."""
    await run_migrations(dsn, side_schema=True)
    return dsn


async def test_each_value_has_its_own_number_of_jobs_in_all_pools_together(dsn: str) -> None:
    gauges = Gauges()
    two = ConcurrencyLimit(2, key="tenant")
    for tenant in "abc":
        add(dsn, 5, payload=f'{{"tenant": "{tenant}"}}')
    async with (
        Runner(dsn, tasks=[gauges.task(two)], concurrent_jobs=10),
        Runner(dsn, tasks=[gauges.task(two)], concurrent_jobs=10),
        WorkerUtils(dsn) as utils,
    ):
        await eventually(lambda: gauges.run(a=2, b=2, c=2))
        (limit,) = await utils.limits()
        assert (limit.name, limit.key, limit.amount) == ("work:tenant", "tenant", 2)
        assert (limit.in_use, limit.state) == (6, "full")
        assert limit.values == {"a": 2, "b": 2, "c": 2}
        assert sum(limit.pools.values()) == 6
        waiting = [job for job in Jobs(dsn).all() if job["locked_at"] is None]
        assert {job["attempts"] for job in waiting} == {0}
        why = (await utils.explain(waiting[0]["id"])).reasons[0]
        assert why.cause is Cause.LIMITED
        assert "2 of 2 jobs at once run with 'a' at 'tenant'" in why.fact
        gauges.gate.set()
        await eventually(lambda: gauges.ended == 15)
        await eventually(lambda: Jobs(dsn).all() == [])
    assert gauges.most == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize(
    ("key", "payload", "flags"),
    [
        ("customer.id", '{"customer": {"id": %s}}', None),
        ("0.id", '[{"id": %s}]', None),
        ("flag:tenant=", "{}", ["tenant=%s", "other"]),
    ],
)
async def test_a_value_is_a_field_of_a_field_or_in_a_flag(
    dsn: str, key: str, payload: str, flags: list[str] | None
) -> None:
    gauges = Gauges("id")
    async with (
        Runner(dsn, tasks=[gauges.task(ConcurrencyLimit(1, key=key))], concurrent_jobs=10),
        WorkerUtils(dsn) as utils,
    ):
        for value in (1, 22):
            with_value = flags and [each.replace("%s", str(value)) for each in flags]
            add(dsn, 2, payload=payload.replace("%s", str(value)), flags=with_value)
        await eventually(lambda: sum(gauges.running.values()) == 2)
        (limit,) = await utils.limits()
        assert limit.values == {"1": 1, "22": 1}
        gauges.gate.set()
        await eventually(lambda: gauges.ended == 4)


async def test_jobs_without_a_value_count_together_and_the_log_says_so_once(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    gauges = Gauges()
    odd = ["{}", "[1]", "null", '"text"', '{"tenant": null}', r'{"tenant": "a\u0000"}']
    odd += (r'{"tenant": "\ud83d"}', r'{"x": "\u0000", "tenant": "a"}')
    async with Runner(
        dsn, tasks=[gauges.task(ConcurrencyLimit(1, key="tenant"))], concurrent_jobs=20
    ):
        for payload in odd:
            add(dsn, payload=payload)
        add(dsn, payload=r'{"tenant": "\ud83d\ude00"}')
        await eventually(lambda: sum(gauges.running.values()) == 2)
        assert gauges.running["\N{GRINNING FACE}"] == 1
        gauges.gate.set()
        # Some of these payloads fail when the task reads them; all are tried.
        tried = "select count(*) from graphile_worker._private_jobs where attempts = 0"
        await eventually(lambda: Jobs(dsn).query(tried) == [{"count": 0}])
    assert caplog.text.count("has nothing at 'tenant'") == 1


async def test_thousands_of_jobs_of_one_value_keep_no_other_ones_waiting(dsn: str) -> None:
    gauges = Gauges()
    async with Runner(
        dsn, tasks=[gauges.task(ConcurrencyLimit(2, key="tenant"))], concurrent_jobs=6
    ):
        await Jobs(dsn).in_thread(ADD_MANY, "large", 25_000)
        add(dsn, 3, payload='{"tenant": "small"}')
        await eventually(lambda: gauges.run(large=2, small=2))
        gauges.gate.set()
        await eventually(lambda: gauges.ended > 100)
        gauges.gate.clear()
        await eventually(lambda: gauges.run(large=2))
        add(dsn, 2, payload='{"tenant": "late"}')
        await eventually(lambda: gauges.run(large=2, late=2))
        gauges.gate.set()
        await Jobs(dsn).in_thread(
            "delete from graphile_worker._private_jobs where locked_at is null"
        )


async def test_limits_with_and_without_a_key_all_hold_for_a_task(dsn: str) -> None:
    gauges = Gauges("tenant", "region")
    limits = [
        ConcurrencyLimit(4),
        ConcurrencyLimit(2, key="tenant"),
        ConcurrencyLimit(3, key="region"),
    ]
    for tenant in "abcd":
        for region in ("north", "south"):
            add(dsn, 3, payload=f'{{"tenant": "{tenant}", "region": "{region}"}}')
    async with Runner(dsn, tasks=[gauges.task(*limits)], concurrent_jobs=20):
        await eventually(lambda: sum(gauges.running.values()) == 8)
        gauges.gate.set()
        await eventually(lambda: gauges.ended == 24)
    assert max(gauges.most[tenant] for tenant in "abcd") == 2
    assert max(gauges.most[region] for region in ("north", "south")) <= 3


async def test_tasks_that_share_a_limit_count_a_value_together(dsn: str) -> None:
    gauges = Gauges()
    shared = ConcurrencyLimit(2, name="tenants", key="tenant")
    tasks = [gauges.task(shared, identifier=name) for name in ("work", "other")]
    async with Runner(dsn, tasks=tasks, concurrent_jobs=9):
        for name in ("work", "other"):
            for _ in range(3):
                Jobs(dsn).add(name, {"tenant": "a"})
        await eventually(lambda: gauges.run(a=2))
        gauges.gate.set()
        await eventually(lambda: gauges.ended == 6)
    assert gauges.most["a"] == 2


async def test_queues_stay_serial_under_a_limit_with_a_key(dsn: str) -> None:
    gauges = Gauges("queue")
    jobs = Jobs(dsn)
    async with Runner(
        dsn, tasks=[gauges.task(ConcurrencyLimit(2, key="tenant"))], concurrent_jobs=9
    ):
        for queue in ("first", "second", "third"):
            for _ in range(3):
                jobs.add("work", {"tenant": "a", "queue": queue}, queue_name=queue)
        await eventually(lambda: sum(gauges.running.values()) == 2)
        gauges.gate.set()
        await eventually(lambda: gauges.ended == 9)
    assert set(gauges.most.values()) == {1}
    locked = "select id from graphile_worker._private_job_queues where not is_available"
    assert jobs.query(locked) == []


async def test_an_operators_number_counts_for_each_value(dsn: str) -> None:
    gauges = Gauges()
    add(dsn, 9, payload='{"tenant": "a"}')
    async with (
        Runner(dsn, tasks=[gauges.task(ConcurrencyLimit(3, key="tenant"))], concurrent_jobs=9),
        WorkerUtils(dsn) as utils,
    ):
        await eventually(lambda: gauges.run(a=3))
        lowered = await utils.set_limit("work:tenant", 1)
        assert (lowered.state, lowered.in_use, lowered.declared) == ("draining", 3, 3)
        await utils.set_limit("work:tenant", 5)
        await eventually(lambda: gauges.run(a=5), timeout=1)  # told, and not polled
        await utils.set_limit("work:tenant", 0)
        gauges.gate.set()
        await eventually(lambda: gauges.ended == 5)
        gauges.gate.clear()
        assert (await utils.limits())[0].state == "paused"
        await utils.clear_limit("work:tenant")
        await eventually(lambda: gauges.run(a=3), timeout=1)
        gauges.gate.set()
    assert gauges.most["a"] == 5


async def test_a_lease_counts_only_while_its_job_is_locked_by_its_pool(dsn: str) -> None:
    gauges = Gauges()
    jobs = Jobs(dsn)
    add(dsn, 3, payload='{"tenant": "a"}')
    limited = gauges.task(ConcurrencyLimit(1, key="tenant"))
    async with Runner(dsn, tasks=[limited], concurrent_jobs=3), WorkerUtils(dsn) as utils:
        await eventually(lambda: gauges.run(a=1))
        held = jobs.query("select job_id from graphile_worker_py.limit_leases")
        assert len(held) == 1
        # As if the pool were gone, and another tool had freed its jobs.
        jobs.change(
            held[0]["job_id"], "locked_by = null, locked_at = null, run_at = now() + '1h'::interval"
        )
        await eventually(lambda: gauges.run(a=2))
        assert (await utils.limits())[0].in_use == 1
        gauges.gate.set()
        await eventually(lambda: gauges.ended == 3)
        # What is left is not due.
        await eventually(lambda: jobs.ids() == [held[0]["job_id"]])


WORKER = """
import asyncio
import sys

from graphile_worker_py import ConcurrencyLimit, run, task


@task(limits=[ConcurrencyLimit(1, key="tenant")])
async def work(payload):
    print("began", flush=True)
    await asyncio.Event().wait()


asyncio.run(run(sys.argv[1], tasks=[work], heartbeat_interval=0.2, dead_after=1.0))
"""


async def test_what_a_killed_worker_had_is_free_once_its_jobs_are(
    dsn: str, tmp_path: Path, processes: Processes
) -> None:
    gauges = Gauges()
    gauges.gate.set()
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    add(dsn, 2, payload='{"tenant": "a"}')
    child = processes.start([sys.executable, "worker.py", dsn], cwd=tmp_path)
    await asyncio.to_thread(child.wait_for, "began")
    limited = gauges.task(ConcurrencyLimit(1, key="tenant"))
    options: dict[str, Any] = {"heartbeat_interval": 0.2, "dead_after": 1.0}
    async with Runner(dsn, tasks=[limited], **options), WorkerUtils(dsn) as utils:
        await utils.add_job("work", {"tenant": "b"})
        await eventually(lambda: gauges.ended == 1)
        assert gauges.most == {"b": 1}  # the other worker has the only place of a
        child.kill()
        await eventually(lambda: gauges.ended == 3)
    assert gauges.most == {"a": 1, "b": 1}


async def test_a_run_until_nothing_is_due_runs_jobs_of_all_values(dsn: str) -> None:
    gauges = Gauges()
    gauges.gate.set()
    for tenant in "ab":
        add(dsn, 5, payload=f'{{"tenant": "{tenant}"}}')
    await run_once(dsn, tasks=[gauges.task(ConcurrencyLimit(1, key="tenant"))])
    assert gauges.ended == 10
    assert gauges.most == {"a": 1, "b": 1}


def test_keys_that_can_not_be_used_are_refused(dsn: str) -> None:
    async def work(_payload: Any) -> None:
        pass

    cases: list[tuple[Any, str]] = [
        ("", "must not be empty"),
        (5, "must be a string"),
        ("a..b", "must be a field of the payload"),
        ("flag:", "must name the flag"),
        ("x" * 200, "at most 128"),
    ]
    for key, said in cases:
        with pytest.raises(ConfigurationError, match=said):
            ConcurrencyLimit(1, key=key)
    same = [ConcurrencyLimit(1, key="a"), ConcurrencyLimit(2, key="a")]
    with pytest.raises(ConfigurationError, match="two of"):
        task("a", limits=same)(work)
    many = [ConcurrencyLimit(1, key=name) for name in "abcde"]
    with pytest.raises(ConfigurationError, match="4 limits with a key, not 5"):
        task("a", limits=many)(work)
    first = task("a", limits=[ConcurrencyLimit(1, name="x", key="a")])(work)
    second = task("b", limits=[ConcurrencyLimit(1, name="x", key="b")])(work)
    with pytest.raises(ConfigurationError, match="'a' and 'b' have different settings"):
        Runner(dsn, tasks=[first, second])
