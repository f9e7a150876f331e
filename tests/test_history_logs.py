"""The logs of an attempt are kept with its run, if the task says so."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py import (
    JobContext,
    Runner,
    SyncJobContext,
    SyncWorkerUtils,
    load_tasks,
    run_once,
    task,
)
from graphile_worker_py.events import JobComplete
from graphile_worker_py.history.logs import CaptureHandler, LogCapture
from graphile_worker_py.tasks.task import Task
from tests.process_tasks import log_in_process
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

app = logging.getLogger("app")


@pytest.fixture
def jobs(dsn: str) -> Iterator[Jobs]:
    """The jobs of a database without a side schema, before and after the test."""
    jobs = Jobs(dsn)
    jobs.query("drop schema if exists graphile_worker_py cascade")
    yield jobs
    jobs.query("drop schema if exists graphile_worker_py cascade")


def logs(dsn: str) -> list[str | None]:
    """The logs of all runs, the oldest first, without times."""
    with SyncWorkerUtils(dsn) as utils:
        found = [run.logs for run in utils.list_runs()]
    return [
        None
        if text is None
        else "\n".join(line.partition("Z ")[2] or line for line in text.split("\n"))
        for text in reversed(found)
    ]


@task("on_loop", capture_logs="INFO", history="all")
async def on_loop(payload: Any, ctx: JobContext) -> None:
    """Log in several ways."""
    ctx.logger.debug("left out")
    ctx.logger.info("n is %s", payload["n"])
    app.warning("by a logger")
    await asyncio.create_task(deeper())
    await asyncio.to_thread(app.error, "in a thread")


async def deeper() -> None:
    """Log in another asyncio task."""
    app.warning("in an asyncio task")


@task("in_thread", capture_logs="WARNING", history="all")
def in_thread(payload: Any, ctx: SyncJobContext) -> None:
    """Log in a thread."""
    ctx.logger.info("left out")
    ctx.logger.warning("in a thread")
    app.error("by a logger")


@task("inline", executor="inline", capture_logs="DEBUG", history="all")
def inline(payload: Any, ctx: JobContext) -> None:
    """Log on the loop, an error too."""
    ctx.logger.debug("below what is logged")
    try:
        raise LookupError("no such user")  # noqa: TRY301  # to be logged with its traceback
    except LookupError:
        ctx.logger.exception("failed: %s", payload["n"])


@task("usual", history="all")
async def usual(payload: Any, ctx: JobContext) -> None:
    """Log, without that being kept."""
    ctx.logger.error("not kept")
    app.error("not kept")


async def test_what_a_task_logs_is_kept_wherever_it_runs(dsn: str, jobs: Jobs) -> None:
    for name in ("on_loop", "in_thread", "inline", "usual"):
        jobs.add(name, {"n": 7})
        await run_once(dsn, tasks=[on_loop, in_thread, inline, usual])
    first, second, third, fourth = logs(dsn)
    assert first == (
        "INFO n is 7\nWARNING by a logger\nWARNING in an asyncio task\nERROR in a thread"
    )
    assert second == "WARNING in a thread\nERROR by a logger"
    assert third is not None
    assert third.startswith("DEBUG below what is logged\nERROR failed: 7\nTraceback")
    assert third.endswith("LookupError: no such user")
    assert fourth is None


async def test_the_logs_of_a_failed_attempt_are_kept_without_asking_for_all_runs(
    dsn: str, jobs: Jobs
) -> None:
    async def fail(payload: Any, ctx: JobContext) -> None:
        ctx.logger.warning("about to fail")
        raise ValueError("no")

    failing: Task[Any] = Task(fail, "fail", capture_logs="INFO")
    jobs.add("fail")
    await run_once(dsn, tasks=[failing])
    assert logs(dsn) == ["WARNING about to fail"]


async def test_jobs_that_run_at_once_keep_their_own_logs(dsn: str, jobs: Jobs) -> None:
    async def say(payload: Any, ctx: JobContext) -> None:
        for _ in range(3):
            app.warning("%s", payload["n"])
            await asyncio.sleep(0.01)

    saying: Task[Any] = Task(say, "say", capture_logs="INFO", history="all")
    jobs.add_many(6, "say")
    told = Told()
    # Two pools of one process: each record is kept once.
    options: dict[str, Any] = {"concurrent_jobs": 3, "events": told.events}
    async with (
        Runner(dsn, tasks=[saying], **options),
        Runner(dsn, tasks=[saying], **options),
    ):
        await told.seen(JobComplete, count=6)
        await eventually(lambda: jobs.ids() == [])
    assert sorted(map(str, logs(dsn))) == ["\n".join(3 * [f"WARNING {n}"]) for n in range(6)]
    assert not [each for each in logging.root.handlers if isinstance(each, CaptureHandler)]


async def test_the_logs_of_a_task_in_a_process_are_kept(dsn: str, jobs: Jobs) -> None:
    jobs.add("log_in_process", {})
    await run_once(dsn, tasks=[log_in_process])
    assert logs(dsn) == ["INFO by the context\nWARNING by a logger"]


async def test_what_an_executable_writes_to_its_standard_error_is_kept(
    dsn: str, jobs: Jobs, tmp_path: Path
) -> None:
    program = tmp_path / "complain"
    program.write_text("#!/bin/sh\necho fine\necho one >&2\necho two >&2\nexit 3\n")
    program.chmod(0o755)
    jobs.add("complain")
    await run_once(dsn, tasks=load_tasks(tmp_path))
    assert logs(dsn) == ["ERROR one\nERROR two"]


def record(text: Any, *args: Any) -> logging.LogRecord:
    """A record at level info."""
    return logging.LogRecord("app", logging.INFO, "", 0, text, args, None)


def test_of_long_logs_the_begin_and_the_end_are_kept() -> None:
    capture = LogCapture(logging.INFO)
    for number in range(10_000):
        capture.add(record("line %05d", number))
    text = capture.text()
    assert text is not None
    assert 60_000 < len(text) < 66_000
    lines = text.split("\n")
    assert lines[0].endswith("line 00000")
    assert lines[-1].endswith("line 09999")
    (gap,) = [line for line in lines if "records are missing" in line]
    assert gap == f"… {10_000 - len(lines) + 1} records are missing …"
    capture.add(record("x" * 1_000_000))
    assert len(capture.text() or "") < 66_000


def test_records_that_can_not_be_formatted_are_kept_as_they_are() -> None:
    capture = LogCapture(logging.INFO)
    capture.add(record("%d", "no number"))
    capture.add(record({"an": "object"}))
    assert "%d\n" in str(capture.text())
    assert str(capture.text()).endswith("{'an': 'object'}")


def test_logs_are_captured_from_many_threads() -> None:
    capture = LogCapture(logging.INFO)

    def log() -> None:
        for _ in range(200):
            capture.add(record("x"))

    threads = [threading.Thread(target=log) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert str(capture.text()).count("INFO x") == 800
