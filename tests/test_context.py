"""What a task is given besides its payload."""

import asyncio
import contextvars
import json
import logging
import threading
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import (
    AsyncClientCursor,
    AsyncCursor,
    AsyncRawCursor,
    ClientCursor,
    Cursor,
    RawCursor,
)
from psycopg_pool import AsyncConnectionPool

from graphile_worker_py import (
    GraphileWorkerError,
    JobContext,
    JobSpec,
    Part,
    Plugin,
    Runner,
    SyncJobContext,
    run_once,
    task,
)
from graphile_worker_py.cli.logs import JsonFormatter
from graphile_worker_py.events import JobEvent, JobStart, JobSuccess, WorkerEvent
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


async def run_in(kind: str, dsn: str, function: Any, **options: Any) -> None:
    """Run jobs of the task `work` on the loop or in a thread."""

    async def modern(payload: Any, ctx: JobContext) -> None:
        result = function(payload, ctx)
        if asyncio.iscoroutine(result):
            await result

    def plain(payload: Any, ctx: SyncJobContext) -> None:
        function(payload, ctx)

    await run_once(dsn, tasks={"work": modern if kind == "async" else plain}, **options)


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_it_knows_the_job_as_it_was_fetched(dsn: str, kind: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add(
        "work",
        {"n": 1},
        queue_name="q",
        run_at="2020-01-01 00:00:00.123456+00",
        max_attempts=7,
        job_key="k",
        priority=-3,
        flags=["f", "g"],
    )
    jobs.change(job_id, "last_error = 'before', attempts = 2, revision = 4")
    stored: list[dict[str, Any]] = []
    contexts: list[Any] = []

    def look(payload: Any, ctx: Any) -> None:
        contexts.append(ctx)
        stored.append(jobs.one(job_id))

    await run_in(kind, dsn, look)
    job, row = contexts[0].job, stored[0]
    expected = {
        "id": job_id,
        "task_identifier": "work",
        "payload": {"n": 1},
        "priority": -3,
        "run_at": datetime(2020, 1, 1, 0, 0, 0, 123456, tzinfo=UTC),
        "attempts": 3,
        "max_attempts": 7,
        "last_error": "before",
        "key": "k",
        "revision": 4,
        "flags": {"f": True, "g": True},
        "locked_by": contexts[0].pool_id,
        "is_available": False,
    }
    assert {name: getattr(job, name) for name in expected} == expected
    assert job.to_dict() == {name: row[name] for name in job.to_dict()}


async def test_async_tasks_add_jobs_and_borrow_connections(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("work", queue_name="lane")
    added: list[Any] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        one = await ctx.add_job("later", {"n": 1}, priority=3, flags=["x"])
        many = await ctx.add_jobs([JobSpec("later", {"n": 2}), JobSpec("last", job_key="k")])
        added.extend([one, *many])
        assert await ctx.get_queue_name() == "lane"
        async with ctx.connection() as conn, conn.transaction():
            await ctx.add_job("rolled_back", conn=conn)
            raise psycopg.Rollback

    await run_once(dsn, tasks={"work": work})
    left = [(job["id"], job["task_identifier"], job["payload"]) for job in jobs.all()]
    assert left == [(job.id, job.task_identifier, job.payload) for job in added]
    assert [job["priority"] for job in jobs.all()] == [3, 0, 0]


async def test_plain_tasks_add_jobs_and_have_a_connection_of_their_own(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("work", queue_name="lane")
    jobs.add("work")
    names: list[str | None] = []

    def work(payload: Any, ctx: SyncJobContext) -> None:
        one = ctx.add_job("later", {"n": 1}, run_at=datetime(2100, 1, 1, tzinfo=UTC))
        two, three = ctx.add_jobs([JobSpec("later", {"n": 2}), JobSpec("later", {"n": 3})])
        assert [job.payload["n"] for job in (one, two, three)] == [1, 2, 3]
        with ctx.connection() as conn:
            assert conn.autocommit
            conn.execute("select 1")
        names.append(ctx.get_queue_name())

    await run_once(dsn, tasks={"work": work})
    assert names == ["lane", None]
    assert sorted(job["payload"]["n"] for job in jobs.all()) == [1, 1, 2, 2, 3, 3]


class OddCursor(AsyncRawCursor[Any]):
    """One of the program's own."""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (AsyncCursor, Cursor),
        (AsyncClientCursor, ClientCursor),
        (AsyncRawCursor, RawCursor),
        (OddCursor, RawCursor),
    ],
)
async def test_connections_of_plain_tasks_have_cursors_like_those_of_the_pool(
    dsn: str, given: type[AsyncCursor[Any]], expected: type[Cursor[Any]]
) -> None:
    Jobs(dsn).add("work")
    kinds: list[type] = []

    def work(payload: Any, ctx: SyncJobContext) -> None:
        with ctx.connection() as conn:
            assert conn.execute("select 1").fetchone() == (1,)
            kinds.append(conn.cursor_factory)

    kwargs = {"cursor_factory": given}
    async with AsyncConnectionPool[Any](dsn, open=False, min_size=1, kwargs=kwargs) as pool:
        await run_once(pool, tasks={"work": work})
    assert kinds == [expected]


def test_a_thread_that_outlived_its_worker_is_told_so(dsn: str) -> None:
    Jobs(dsn).add("work")
    contexts: list[SyncJobContext] = []

    def work(payload: Any, ctx: SyncJobContext) -> None:
        contexts.append(ctx)

    asyncio.run(run_once(dsn, tasks={"work": work}))
    with pytest.raises(GraphileWorkerError, match=r"worker that began job \d+ has ended"):
        contexts[0].add_job("later")


async def test_a_blocking_context_is_refused_on_the_event_loop_that_it_waits_for(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("work")
    refused: list[str] = []

    async def work_on_loop(ctx: SyncJobContext) -> None:
        for call in (lambda: ctx.add_job("later"), lambda: ctx.checkpoint(1)):
            with pytest.raises(GraphileWorkerError, match=r"await the same .* ctx\.async_context"):
                call()
        await ctx.async_context.add_job("later")
        refused.append("both")

    def work(payload: Any, ctx: SyncJobContext) -> None:
        ctx.wait(work_on_loop(ctx))

    await run_once(dsn, tasks={"work": work}, raise_errors=True)
    assert refused == ["both"]
    assert [job["task_identifier"] for job in jobs.all()] == ["later"]


async def test_a_job_that_is_added_with_the_tasks_own_data_goes_with_it(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.query("create table sent (id int)")
    jobs.add("work")

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn, conn.transaction():
            await conn.execute("insert into sent values (1)")
            await ctx.add_job("later", conn=conn)
            assert jobs.query("select * from sent") == []
            assert len(jobs.ids()) == 1

    await run_once(dsn, tasks={"work": work})
    assert jobs.query("select * from sent") == [{"id": 1}]
    assert [job["task_identifier"] for job in jobs.all()] == ["later"]


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_its_logger_tells_which_job_speaks(
    dsn: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = Jobs(dsn).add("work")
    contexts: list[Any] = []

    def speak(payload: Any, ctx: Any) -> None:
        contexts.append(ctx)
        ctx.logger.info("said %s", "something")

    with caplog.at_level(logging.INFO):
        await run_in(kind, dsn, speak, logger=logging.getLogger("mine"))
    (record,) = [each for each in caplog.records if each.getMessage() == "said something"]
    told = {name: record.__dict__[name] for name in ("job_id", "task_identifier", "attempt")}
    assert told == {"job_id": job_id, "task_identifier": "work", "attempt": 1}
    assert record.name == "mine"
    assert record.__dict__["pool_id"] == contexts[0].pool_id
    assert record.__dict__["worker_id"] == contexts[0].worker_id


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_lone_worker_may_have_an_id_of_ones_own(
    dsn: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    contexts: list[Any] = []
    with caplog.at_level(logging.INFO):
        await run_in(
            kind,
            dsn,
            lambda payload, ctx: contexts.append(ctx),
            worker_id="the-one",
            events=told.events,
        )
    assert contexts[0].worker_id == "the-one"
    assert {event.worker_id for event in told.of(WorkerEvent)} == {"the-one"}
    assert {event.worker_id for event in told.of(JobEvent)} == {"the-one"}
    (record,) = [each for each in caplog.records if "Completed job" in each.getMessage()]
    assert record.__dict__["worker_id"] == "the-one"


async def test_a_plain_task_does_not_hold_up_the_loop(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("plain")
    jobs.add("modern")
    modern_ran = threading.Event()

    def plain(payload: Any) -> None:
        # Would wait for ever on the loop's own thread.
        assert threading.current_thread() is not threading.main_thread()
        assert modern_ran.wait(10)

    async def modern(payload: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        modern_ran.set()

    tasks: dict[str, Any] = {"plain": plain, "modern": modern}
    await run_once(dsn, tasks=tasks, concurrent_jobs=2)
    assert jobs.ids() == []


async def test_plain_tasks_run_at_the_same_time_and_threads_are_used_again(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(12, "work")
    together = threading.Barrier(3)
    threads: set[int] = set()

    def work(payload: Any) -> None:
        threads.add(threading.get_ident())
        together.wait(10)

    await run_once(dsn, tasks={"work": work}, concurrent_jobs=3)
    assert jobs.ids() == []
    assert len(threads) == 3


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_context_variables_of_the_program_are_seen(dsn: str, kind: str) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "work")
    seen: list[str] = []

    def look(payload: Any, ctx: Any) -> None:
        seen.append(COLOUR.get())

    token = COLOUR.set("blue")
    try:
        await run_in(kind, dsn, look)
    finally:
        COLOUR.reset(token)
    assert seen == ["blue", "blue"]


async def test_what_one_plain_task_sets_the_next_one_does_not_see(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "work")
    seen: list[str] = []

    def work(payload: Any) -> None:
        seen.append(COLOUR.get())
        COLOUR.set("red")

    await run_once(dsn, tasks={"work": work})
    assert seen == ["none", "none"]


async def test_a_plain_task_that_ran_into_its_time_limit_may_still_use_its_context(
    dsn: str,
) -> None:
    """Its job has failed by then, and its result is dropped; the thread runs on."""
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("work")
    limit_passed, done = threading.Event(), threading.Event()

    @task(timeout=0.05)
    def work(payload: Any, ctx: SyncJobContext) -> None:
        assert limit_passed.wait(10)
        ctx.add_job("late")
        done.set()

    async with Runner(
        dsn, tasks=[work, task("other")(print)], poll_interval=3600, events=told.events
    ) as runner:
        await eventually(lambda: jobs.one(job_id)["last_error"])
        limit_passed.set()
        assert await asyncio.to_thread(done.wait, 10)
        await runner.add_job("other")
        await told.seen(JobSuccess)
    assert [job["task_identifier"] for job in jobs.all()] == ["work", "late"]
    assert jobs.one(job_id)["attempts"] == 1


class Keeping(Plugin):
    """Keeps the pool that it is a part of."""

    def __init__(self) -> None:
        self.pool: Any = None

    def parts(self, pool: Any) -> list[Part]:
        self.pool = pool
        return []


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_single_running_job_can_be_asked_to_end(dsn: str, kind: str) -> None:
    jobs, told, plugin = Jobs(dsn), Told(), Keeping()
    first, second = jobs.add("work"), jobs.add("work")
    contexts: dict[int, Any] = {}

    async def modern(payload: Any, ctx: JobContext) -> None:
        contexts[ctx.job.id] = ctx
        await ctx.abort_event.wait()

    def plain(payload: Any, ctx: SyncJobContext) -> None:
        contexts[ctx.job.id] = ctx
        assert ctx.abort_event.wait(10)

    tasks: dict[str, Any] = {"work": modern if kind == "async" else plain}
    async with Runner(
        dsn,
        tasks=tasks,
        hooks=[plugin],
        concurrent_jobs=2,
        events=told.events,
        graceful_shutdown_abort_timeout=0.01,
    ) as runner:
        await eventually(lambda: len(contexts) == 2)
        assert sorted(plugin.pool.running) == [first, second]
        running = plugin.pool.running[first]
        assert (running.worker_id, running.task.identifier) == (contexts[first].worker_id, "work")
        assert abs((datetime.now(UTC) - running.started_at).total_seconds()) < 20
        running.abort.set("shutdown")
        await told.seen(JobSuccess)
        assert [event.job.id for event in told.of(JobSuccess)] == [first]
        assert (contexts[first].abort_reason, contexts[second].abort_reason) == ("shutdown", None)
        await runner.stop()
    assert jobs.ids() == []


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_it_tells_why_a_job_should_end(dsn: str, kind: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    reasons: list[Any] = []

    async def modern(payload: Any, ctx: JobContext) -> None:
        reasons.append(ctx.abort_reason)
        await ctx.abort_event.wait()
        reasons.append(ctx.abort_reason)

    def plain(payload: Any, ctx: SyncJobContext) -> None:
        reasons.append(ctx.abort_reason)
        assert ctx.abort_event.wait(10)
        reasons.append(ctx.abort_reason)

    tasks: dict[str, Any] = {"work": modern if kind == "async" else plain}
    async with Runner(
        dsn, tasks=tasks, events=told.events, graceful_shutdown_abort_timeout=0.01
    ) as runner:
        await told.seen(JobStart)
        await eventually(lambda: reasons)
        await runner.stop()
    assert reasons == [None, "shutdown"]
    assert jobs.ids() == []


async def test_a_job_learns_that_other_pools_have_freed_it(dsn: str) -> None:
    plugin, reasons = Keeping(), []
    Jobs(dsn).add("work")

    async def work(payload: Any, ctx: JobContext) -> None:
        plugin.pool.lose()
        await ctx.abort_event.wait()
        reasons.append(ctx.abort_reason)

    async with Runner(dsn, tasks={"work": work}, hooks=[plugin]):
        await eventually(lambda: reasons)
    assert reasons == ["lost"]


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_its_logger_keeps_the_fields_that_a_task_gives(
    dsn: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = Jobs(dsn).add("work")
    fields = {"order": 7, "level": "mine", "job_id": "mine", "name": "mine", "message": "mine"}

    def speak(payload: Any, ctx: Any) -> None:
        ctx.logger.info("spoke", extra=fields)
        ctx.logger.info("spoke again")

    with caplog.at_level(logging.INFO):
        await run_in(kind, dsn, speak, logger=logging.getLogger("given"))
    first, second = [each for each in caplog.records if each.getMessage().startswith("spoke")]
    assert (first.__dict__["order"], first.__dict__["level"]) == (7, "mine")
    assert (first.__dict__["job_id"], first.name, first.getMessage()) == (job_id, "given", "spoke")
    assert (second.__dict__["job_id"], "order" in vars(second)) == (job_id, False)
    line = json.loads(JsonFormatter().format(first))
    assert (line["order"], line["level"], line["job_id"]) == (7, "info", job_id)
