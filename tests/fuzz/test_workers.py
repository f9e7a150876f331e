"""Whatever is announced or stored: a worker survives it, and works on."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graphile_worker_py import ConfigurationError, Job, JobSpec, Runner, WorkerUtils, task
from graphile_worker_py.events import JobError, JobSuccess, PoolFatalError, PoolListenSuccess
from tests.fuzz.strategies import any_text, json_values, storable_text
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

FUTURE = datetime(2999, 1, 1, tzinfo=UTC)
MOST_BYTES = 7999
"""Of a payload that PostgreSQL announces."""

DEEP = "[" * 6000 + "]" * 6000


class Bench:
    """A worker that runs for as long as there are examples, in an event loop of the test's."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.jobs = Jobs(dsn)
        self.told = Told()
        self.seen: dict[int, Any] = {}
        self.utils: WorkerUtils
        self._loop = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._loop.run(self._open())

    async def _open(self) -> None:
        @task
        async def note(payload: Any, ctx: Any) -> None:
            self.seen[ctx.job.id] = payload

        # What is announced must wake it: it would poll when the test is over.
        runner = Runner(
            self.dsn, tasks=[note], concurrent_jobs=4, poll_interval=60, events=self.told.events
        )
        await self._stack.enter_async_context(runner)
        self.utils = await self._stack.enter_async_context(WorkerUtils(self.dsn, nan_as_null=True))
        await self.told.seen(PoolListenSuccess)

    def run(self, work: Any) -> Any:
        """Let a coroutine run, and the worker beside it."""
        return self._loop.run(work)

    async def works(self) -> None:
        """Check that a job that is added is run."""
        job = await self.utils.add_job("note", {})
        await eventually(lambda: job.id in self.seen)
        assert self.told.of(PoolFatalError) == []

    def close(self) -> None:
        """Stop the worker."""
        self._loop.run(self._stack.aclose())
        self._loop.close()


@pytest.fixture
def bench(dsn: str) -> Iterator[Bench]:
    """A worker, and what it was given."""
    bench = Bench(dsn)
    yield bench
    bench.close()


announcements = (
    storable_text
    | json_values.map(json.dumps)
    | st.builds(
        lambda key, value: json.dumps({key: value}),
        st.sampled_from(["count", "breaking", "migrationNumber", "r"]),
        json_values,
    )
).filter(lambda text: len(text.encode()) <= MOST_BYTES)


def test_whatever_is_announced_a_worker_works_on(bench: Bench) -> None:
    with psycopg.connect(bench.dsn, autocommit=True) as conn:

        @given(st.sampled_from(["jobs:insert", "worker:migrate"]), announcements)
        @example("jobs:insert", "[" * MOST_BYTES)
        @example("jobs:insert", '{"count":' + "9" * 5000 + "}")
        @example("jobs:insert", '{"count":1e308}')
        @example("jobs:insert", '{"count":-1e999}')
        @example("jobs:insert", '{"count":NaN}')
        @example("jobs:insert", '{"count":"1"}')
        @example("worker:migrate", '{"breaking":true,"migrationNumber":99}')
        @example("worker:migrate", '{"breaking":{"a":[]}}')
        @example("worker:migrate", "true")
        def announce(channel: str, payload: str) -> None:
            conn.execute("select pg_notify(%s, %s)", (channel, payload))
            bench.run(bench.works())

        announce()
    # It never lost the connection on which it listens.
    assert len(bench.told.of(PoolListenSuccess)) == 1


def as_read(value: Any) -> Any:
    """A value as it comes back: NaN and infinities are null in JSON, keys are texts."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def test_whatever_is_added_arrives_as_it_was(bench: Bench) -> None:
    payloads = json_values | st.floats() | st.lists(st.floats(), max_size=3)

    # None stands for no payload, which is an empty object.
    @given(st.lists(payloads.filter(lambda value: value is not None), min_size=1, max_size=20))
    @example(["\ud800", "\0", 10**400, -0.0, [[], {"": None}], {"\ud800": "\0"}])
    @example([float("nan"), [float("inf")]])
    def add(values: list[Any]) -> None:
        async def work() -> list[Job]:
            added = await bench.utils.add_jobs([JobSpec("note", value) for value in values])
            await eventually(lambda: all(job.id in bench.seen for job in added))
            return added

        added = bench.run(work())
        assert [bench.seen[job.id] for job in added] == [as_read(value) for value in values]

    add()
    assert bench.told.of(JobError) == []


def is_readable(text: str) -> bool:
    """Whether Python can read a JSON text."""
    try:
        json.loads(text)
    except RecursionError:
        return False
    return True


def test_whatever_json_sql_adds_is_run_or_fails_by_itself(bench: Bench) -> None:
    texts = json_values.map(json.dumps) | st.text(
        '[]{}",:0123456789.eE+-\\u dDfalsnutr', max_size=30
    )

    @given(texts)
    @example(DEEP)
    @example('{"a":' * 6000 + "1" + "}" * 6000)
    @example("9" * 5000)
    @example('"\\ud800"')
    @example('{"a":1,"a":2}')
    @example("1e999")
    def add(text: str) -> None:
        async def work() -> None:
            try:
                job_id = bench.jobs.add("note", payload_json=text, max_attempts=1)
            except (psycopg.DataError, psycopg.OperationalError):
                return  # PostgreSQL takes no such text for JSON
            ended = bench.told.of
            await eventually(
                lambda: any(
                    event.job.id == job_id for event in (*ended(JobSuccess), *ended(JobError))
                )
            )

        bench.run(work())

    add()
    bench.run(bench.works())
    assert (
        bench.jobs.query("select id from graphile_worker.jobs where attempts < max_attempts") == []
    )
    failed = {str(event.error)[:20] for event in bench.told.of(JobError)}
    assert failed >= {"Exceeds the limit (4"}
    # How deep is too deep depends on the version of Python.
    assert ("JSON nested too deep" in failed) is not is_readable(DEEP)


names = storable_text | any_text | st.text(min_size=120, max_size=140) | st.just("note")


def test_whatever_things_are_called_it_is_kept_or_refused(bench: Bench) -> None:
    @given(
        identifier=names,
        queue_name=st.none() | names,
        job_key=st.none() | names | st.text("k", min_size=511, max_size=513),
        flags=st.none() | st.lists(names, max_size=3),
        priority=st.none() | st.integers(-40000, 40000),
        max_attempts=st.none() | st.integers(-2, 40000),
        mode=st.none() | st.sampled_from(["replace", "preserve_run_at", "unsafe_dedupe", "x"]),
    )
    @example(
        identifier="a'; drop schema graphile_worker cascade; --",
        queue_name="$1 %s {}",
        job_key=":GRAPHILE_WORKER_SCHEMA",
        flags=["{", '"', "\\", "NULL", "a,b", ""],
        priority=None,
        max_attempts=None,
        mode=None,
    )
    def add(**spec: Any) -> None:
        async def work() -> None:
            spec["job_key_mode"] = spec.pop("mode")
            try:
                job = await bench.utils.add_job(run_at=FUTURE, **spec)
            except ConfigurationError:
                return
            found = await bench.utils.get_job(job.id)
            assert found is not None
            assert (found.task_identifier, found.queue_name, found.key) == (
                spec["identifier"],
                spec["queue_name"],
                spec["job_key"],
            )
            assert found.flags == (dict.fromkeys(spec["flags"] or (), True) or None)
            # What others look for is found by its name.
            assert [each.id for each in await bench.utils.list_jobs(task=spec["identifier"])]
            if job.key is not None:
                removed = await bench.utils.remove_job(job.key)
                assert removed is not None
                assert removed.id == job.id

        bench.run(work())

    add()
    bench.run(bench.works())
