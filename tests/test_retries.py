"""A job that failed is tried again, later each time, until its attempts are used up."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import psycopg_pool
import pytest

from graphile_worker_py import JobContext, run_migrations, run_once, task
from graphile_worker_py.errors import LONGEST_MESSAGE
from graphile_worker_py.events import JobComplete, JobError, JobFailed, JobSuccess
from graphile_worker_py.job import Job
from graphile_worker_py.outcomes import Failed, Settled
from graphile_worker_py.workers.settler import FAIL, MOST_CHARACTERS
from tests.support.processes import Processes
from tests.support.running import Jobs, Told
from tests.support.server import CREATE_LATIN1, Server


async def last_error(dsn: str, error: BaseException) -> str:
    """What is stored for a job whose task raised this."""
    jobs = Jobs(dsn)
    job_id = jobs.add("fail")

    async def fail(payload: Any) -> None:
        raise error

    await run_once(dsn, tasks={"fail": fail})
    assert jobs.locked() == []
    job = jobs.one(job_id)
    assert job["attempts"] == 1
    jobs.query("delete from graphile_worker._private_jobs")
    return str(job["last_error"])


async def test_the_wait_is_e_to_the_attempts_at_most_ten_in_seconds(dsn: str) -> None:
    jobs = Jobs(dsn)
    attempts = [1, 2, 3, 4, 9, 10, 11, 25]
    for each in attempts:
        job_id = jobs.add("fail", each, max_attempts=30)
        jobs.change(job_id, f"attempts = {each - 1}")

    async def fail(payload: int, ctx: JobContext) -> None:
        assert ctx.job.attempts == payload
        # So that the wait is counted from a time that the test knows.
        jobs.change(ctx.job.id, "run_at = '2100-01-01 00:00:00+00'")
        raise ValueError("no")

    await run_once(dsn, tasks={"fail": fail}, concurrent_jobs=3)
    waits = jobs.query(
        "select attempts, run_at = '2100-01-01 00:00:00+00'::timestamptz"
        " + exp(least(attempts, 10)) * interval '1 second' as exact,"
        " extract(epoch from run_at - '2100-01-01 00:00:00+00')::float8 as seconds"
        " from graphile_worker._private_jobs order by attempts"
    )
    assert [row["attempts"] for row in waits] == attempts
    assert all(row["exact"] for row in waits)
    assert [row["seconds"] for row in waits] == pytest.approx(
        [2.718282, 7.389056, 20.085537, 54.59815, 8103.083928, 22026.465795] + [22026.465795] * 2
    )


async def test_the_wait_begins_at_the_failure_if_the_job_was_overdue(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("fail", run_at="2020-01-01")

    async def fail(payload: Any) -> None:
        raise ValueError("no")

    (before,) = jobs.query("select clock_timestamp() as now")
    await run_once(dsn, tasks={"fail": fail})
    (after,) = jobs.query(
        "select run_at - exp(1) * interval '1 second' as failed_at, clock_timestamp() as now"
        " from graphile_worker._private_jobs"
    )
    assert before["now"] < after["failed_at"] < after["now"]


async def test_the_event_of_a_failure_has_the_time_of_the_next_attempt(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    for attempts in (0, 4, 15):
        job_id = jobs.add("fail")
        jobs.query(
            f"update graphile_worker._private_jobs set attempts = {attempts}"
            f" where id = {job_id} returning id"
        )

    async def fail(payload: Any) -> None:
        raise ValueError("no")

    await run_once(dsn, tasks={"fail": fail}, events=told.events)
    for event in told.of(JobError):
        assert event.retry_at is not None
        late = jobs.one(event.job.id)["run_at"] - event.retry_at
        assert timedelta(0) <= late < timedelta(seconds=1)


async def test_a_failure_changes_nothing_but_error_time_and_lock(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add(
        "fail",
        payload_json='{"a" :  1.50, "a": 2}',
        queue_name="q",
        job_key="k",
        priority=3,
        flags=["f"],
    )
    before = jobs.one(job_id)

    async def fail(payload: Any) -> None:
        raise ValueError("no")

    await run_once(dsn, tasks={"fail": fail})
    after = jobs.one(job_id)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"attempts", "last_error", "run_at"}
    assert after["last_error"] == "no"
    assert jobs.locked() == []


async def test_the_last_attempt_is_the_last(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("fail", max_attempts=2, queue_name="q")
    told = Told()

    async def fail(payload: Any, ctx: JobContext) -> None:
        raise ValueError(f"attempt {ctx.job.attempts}, before: {ctx.job.last_error}")

    for _ in range(4):
        await run_once(dsn, tasks={"fail": fail}, events=told.events)
        jobs.make_due()
    job = jobs.one(job_id)
    assert job["attempts"] == 2
    assert job["is_available"] is False
    assert job["last_error"] == "attempt 2, before: attempt 1, before: None"
    assert [type(event) for event in told.of(JobError)] == [JobError, JobError, JobFailed]
    assert [event.retry_at is None for event in told.of(JobError)] == [False, True, True]
    assert len(told.of(JobComplete)) == 2
    assert jobs.locked() == []


async def test_a_retry_that_succeeds_deletes_the_job(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("sometimes")
    told = Told()

    async def sometimes(payload: Any, ctx: JobContext) -> None:
        if ctx.job.attempts < 3:
            raise ValueError("not yet")

    for _ in range(3):
        await run_once(dsn, tasks={"sometimes": sometimes}, events=told.events)
        jobs.make_due()
    assert jobs.ids() == []
    assert len(told.of(JobError)) == 2
    assert [event.job.attempts for event in told.of(JobSuccess)] == [3]


class UnspeakableError(Exception):
    """An error that can't describe itself."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_the_message_is_what_is_stored(dsn: str) -> None:
    assert await last_error(dsn, ValueError("a\nb")) == "a\nb"
    assert await last_error(dsn, ValueError("long " * 200_000)) == "long " * 200_000


async def test_an_error_that_says_nothing_is_stored_as_its_kind(dsn: str) -> None:
    assert await last_error(dsn, ValueError()) == "ValueError"
    assert await last_error(dsn, KeyError("name")) == "KeyError: 'name'"
    assert await last_error(dsn, UnspeakableError()) == "UnspeakableError"


async def test_a_group_of_errors_is_stored_with_each_of_them(dsn: str) -> None:
    inner = ExceptionGroup("inner", [KeyError("k"), UnspeakableError()])
    group = ExceptionGroup("several", [ValueError("one"), inner])
    stored = await last_error(dsn, group)
    assert "several" in stored
    for part in ("one", "inner", "KeyError: 'k'", "UnspeakableError"):
        assert part in stored


async def test_text_that_postgres_cannot_store_is_stored_readably(dsn: str) -> None:
    stored = await last_error(dsn, ValueError("nul \0, surrogate \ud800, \N{SNOWMAN}, \\u0000"))
    assert stored == "nul \\u0000, surrogate \\ud800, \N{SNOWMAN}, \\u0000"


@pytest.fixture
def latin_dsn(server: Server, empty_dsn: str) -> Iterator[str]:
    """A database whose encoding has few characters."""
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(CREATE_LATIN1)
    dsn = server.dsn("latin")
    yield dsn
    server.drop_database(dsn)


@pytest.mark.parametrize("connections", ["ours", "a caller's"])
async def test_text_that_the_encoding_of_a_database_lacks_is_stored_readably(
    latin_dsn: str, connections: str
) -> None:
    await run_migrations(latin_dsn)
    jobs = Jobs(latin_dsn)
    message = jobs.add("fail", "caf\xe9")
    batch = jobs.add("batch", payload_json='["ok", "\\u2603 \\ud83d\\ude00 \\u00e9"]')
    jobs.add("work", run_at="2020-01-01", priority=1)

    async def fail(payload: str) -> None:
        raise ValueError(f"{payload} \N{SNOWMAN}")

    async def refuse(payload: str) -> None:
        raise ValueError("no")

    async def several(payload: list[str]) -> list[Any]:
        assert payload[1] == "\N{SNOWMAN} \N{GRINNING FACE} \xe9"
        return [None, refuse(payload[1])]

    tasks: dict[str, Any] = {"fail": fail, "batch": several, "work": print}
    if connections == "ours":
        await run_once(latin_dsn, tasks=tasks)
    else:
        # Their encoding is that of the database.
        async with psycopg_pool.AsyncConnectionPool(latin_dsn, open=False) as pool:
            await run_once(pool, tasks=tasks)
    assert jobs.ids() == [message, batch]
    assert jobs.one(message)["last_error"] == "caf\\xe9 \\u2603"
    assert jobs.one(batch)["json"].isascii()
    assert json.loads(jobs.one(batch)["json"]) == ["\N{SNOWMAN} \N{GRINNING FACE} \xe9"]
    assert jobs.locked() == []


RAISED = [
    (lambda: SystemExit(3), "SystemExit: 3"),
    (lambda: asyncio.CancelledError("mine"), "CancelledError: mine"),
    (lambda: GeneratorExit("odd"), "odd"),
    (lambda: BaseException("bare"), "bare"),
    (lambda: StopAsyncIteration("last"), "last"),
]


@pytest.mark.parametrize(("make", "stored"), RAISED, ids=[stored for _, stored in RAISED])
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_errors_that_usually_end_a_program_fail_the_job_only(
    dsn: str, make: Callable[[], BaseException], stored: str, kind: str
) -> None:
    jobs = Jobs(dsn)
    failing = jobs.add("fail", queue_name="q")
    jobs.add("work", run_at="2020-01-01", priority=1)
    ran = []

    async def fail(payload: Any) -> None:
        raise make()

    def fail_in_thread(payload: Any) -> None:
        raise make()

    async def work(payload: Any) -> None:
        ran.append(payload)

    tasks = {"fail": fail if kind == "async" else fail_in_thread, "work": work}
    await run_once(dsn, tasks=tasks)
    assert len(ran) == 1
    assert jobs.ids() == [failing]
    assert jobs.one(failing)["last_error"].endswith(stored)
    assert jobs.one(failing)["attempts"] == 1
    assert jobs.locked() == []


@pytest.mark.parametrize("kind", ["async", "async that waits", "inline", "thread", "batch"])
async def test_a_keyboard_interrupt_that_a_task_raises_fails_the_job_only(
    dsn: str, kind: str
) -> None:
    jobs = Jobs(dsn)
    failing = jobs.add("fail", [1])
    jobs.add("work")

    def plain(payload: Any) -> None:
        raise KeyboardInterrupt

    async def modern(payload: Any) -> None:
        plain(payload)

    async def waiting(payload: Any) -> None:
        await asyncio.sleep(0)
        plain(payload)

    async def batch(payload: Any) -> list[Any]:
        return [waiting(item) for item in payload]

    tasks: dict[str, Any] = {
        "async": modern,
        "async that waits": waiting,
        "inline": task(executor="inline")(plain),
        "thread": plain,
        "batch": batch,
    }
    await run_once(dsn, tasks={"fail": tasks[kind], "work": print})
    assert jobs.ids() == [failing]
    assert jobs.one(failing)["last_error"].endswith("task raised KeyboardInterrupt")


INTERRUPTED = """
import asyncio, sys, time
from graphile_worker_py import Runner

async def work(payload):
    print("begun", flush=True)
    for _ in range(200):
        time.sleep(0.05)  # where the handler raises

async def main():
    async with Runner(sys.argv[1], tasks={"work": work}, no_handle_signals=True) as runner:
        await runner.wait()

if sys.argv[2] == "asyncio.run":
    asyncio.run(main())
else:
    asyncio.new_event_loop().run_until_complete(main())
"""


@pytest.mark.parametrize("by", ["asyncio.run", "run_until_complete"])
def test_ctrl_c_stops_a_program_that_leaves_it_to_python(
    dsn: str, processes: Processes, by: str
) -> None:
    Jobs(dsn).add("work")
    process = processes.start([sys.executable, "-c", INTERRUPTED, dsn, by])
    process.wait_for("begun")
    deadline = time.monotonic() + 8  # the task runs for 10 seconds
    while process.returncode is None:
        assert time.monotonic() < deadline
        process.interrupt()
        time.sleep(0.2)
    assert "KeyboardInterrupt" in process.stderr


async def test_a_task_that_cancels_itself_fails_and_its_worker_goes_on(dsn: str) -> None:
    jobs = Jobs(dsn)
    cancelled = jobs.add("cancel")
    ran = []

    async def cancel(payload: Any) -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        current.cancel()
        await asyncio.sleep(0)

    async def work(payload: Any) -> None:
        ran.append(payload)

    jobs.add_many(3, "work")
    await run_once(dsn, tasks={"cancel": cancel, "work": work})
    assert len(ran) == 3
    assert jobs.ids() == [cancelled]
    assert jobs.one(cancelled)["last_error"] == "CancelledError"


async def test_a_task_that_cancels_itself_leaves_no_trace_in_the_next_job(dsn: str) -> None:
    """Task groups and time limits ask how often their asyncio task was cancelled."""
    jobs = Jobs(dsn)
    jobs.add_many(4, "work")
    seen: list[int] = []

    async def work(payload: Any) -> None:
        current = asyncio.current_task()
        assert current is not None
        seen.append(current.cancelling())
        current.cancel()
        if payload["n"] % 2:
            await asyncio.sleep(0)

    await run_once(dsn, tasks={"work": work})
    assert seen == [0, 0, 0, 0]


async def test_a_task_that_cancels_itself_and_returns_has_succeeded(dsn: str) -> None:
    """The cancellation would strike the worker at its next wait."""
    jobs = Jobs(dsn)
    jobs.add_many(3, "cancel")

    async def cancel(payload: Any) -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()

    await run_once(dsn, tasks={"cancel": cancel})
    assert jobs.ids() == []
    assert jobs.locked() == []


async def test_a_task_that_runs_too_long_is_cut_off_and_fails(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("slow")
    cut_off = []

    @task(timeout=0.05)
    async def slow(payload: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cut_off.append(True)
            raise

    await run_once(dsn, tasks=[slow])
    assert cut_off == [True]
    assert jobs.one(job_id)["last_error"] == "task 'slow' ran longer than its timeout of 0.05 s"


async def test_a_time_out_of_the_tasks_own_keeps_its_words(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("impatient")

    @task(timeout=10)
    async def impatient(payload: Any) -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    await run_once(dsn, tasks=[impatient])
    assert jobs.one(job_id)["last_error"] == "TimeoutError"


async def test_a_failure_is_logged_whatever_the_error_can_say(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = Jobs(dsn).add("fail", max_attempts=1)

    async def fail(payload: Any) -> None:
        raise UnspeakableError

    with caplog.at_level(logging.INFO):
        await run_once(dsn, tasks={"fail": fail})
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage().startswith(f"Failed job {job_id} (fail, ")
    assert record.getMessage().endswith("attempt 1 of 1, giving up): UnspeakableError")
    assert record.__dict__["job_id"] == job_id


async def test_of_a_long_error_head_and_tail_are_stored(dsn: str) -> None:
    text = "begin\0" + "x" * 5_000_000 + "end"
    stored = await last_error(dsn, ValueError(text))
    assert LONGEST_MESSAGE - 100 < len(stored) <= LONGEST_MESSAGE + 10
    assert stored.startswith("begin\\u0000xxx")
    assert stored.endswith("xxxend")
    assert stored.count(" characters left out …\n") == 1
    fits = "é" * LONGEST_MESSAGE
    assert await last_error(dsn, ValueError(fits)) == fits


class HostileError(Exception):
    """An error with odd manners."""

    def __init__(self, said: Callable[[], Any]) -> None:
        self.said = said

    def __str__(self) -> str:
        return self.said()  # type: ignore[no-any-return]


class Odd(str):
    """A text that is none."""

    __slots__ = ()

    def __str__(self) -> str:
        raise KeyboardInterrupt


def leave() -> None:
    """End the process, if nobody minds."""
    raise SystemExit(3)


def nested(depth: int) -> BaseException:
    """A group of errors within groups."""
    error: Exception = ValueError("innermost")
    for level in range(depth):
        error = ExceptionGroup(f"level {level}", [error])
    return error


@pytest.mark.parametrize(
    ("error", "stored"),
    [
        (HostileError(leave), "HostileError"),
        (HostileError(lambda: 5), "HostileError"),
        (HostileError(lambda: Odd("odd")), "odd"),
        (nested(2), "level 1 (1 sub-exception)\n- level 0 (1 sub-exception)\n- innermost"),
        (ExceptionGroup("many", [ValueError("x" * 500_000)] * 3), None),
        (nested(340), None),
    ],
)
async def test_no_error_is_too_odd_to_be_recorded(
    dsn: str, error: BaseException, stored: str | None
) -> None:
    found = await last_error(dsn, error)
    assert found == stored if stored else len(found) <= LONGEST_MESSAGE


def test_a_statement_has_a_bounded_size() -> None:
    def failed(size: int) -> Settled:
        failure = Failed(error=ValueError("no"), message="no", is_final=False, payload="x" * size)
        return Job((), "fail"), failure, 0.0, 0.0

    def sizes(batch: list[Settled]) -> list[int]:
        """How many outcomes each statement has."""
        found = []
        while batch:
            found.append(len(FAIL.portion(batch)))
            batch = batch[found[-1] :]
        return found

    third = MOST_CHARACTERS // 3
    assert sizes([failed(third - 10)] * 7) == [3, 3, 1]
    assert sizes([failed(2 * MOST_CHARACTERS)] * 2 + [failed(0)] * 1000) == [1, 1, 1000]
    assert sizes([failed(0), failed(2 * MOST_CHARACTERS)]) == [1, 1]
