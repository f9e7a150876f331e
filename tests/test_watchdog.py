"""A worker in which nothing moves any more says so, and on the command line ends."""

import asyncio
import json
import logging
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py import Runner
from graphile_worker_py.events import JobSuccess
from graphile_worker_py.workers.waits import Waits
from graphile_worker_py.workers.watchdog import Pace, Watchdog
from tests.support.eventually import eventually
from tests.support.processes import Process, Processes
from tests.support.running import Jobs, Told, impatient

pytestmark = pytest.mark.any_server

TASKS = """
import re, time

async def block(payload):
    time.sleep(3600)

async def native(payload):
    re.match("(a+)+$", "a" * 64 + "b")

TASKS = {"block": block, "native": native}
"""


SOON: dict[str, Any] = {"look": 0.04, "first_warning": 0.12}
"""Waits of a watchdog that warns soon."""


def start_worker(dsn: str, processes: Processes, directory: Path, **env: str) -> Process:
    """A worker process that may stand still for a second."""
    (directory / "stuck.py").write_text(TASKS)
    command = [sys.executable, "-m", "graphile_worker_py", "-c", dsn, "--tasks", "stuck:TASKS"]
    root = str(Path(__file__).parent.parent)
    return processes.start(
        command,
        cwd=directory,
        env={"GRAPHILE_WORKER_WATCHDOG_TIMEOUT": "1", "PYTHONPATH": root, **env},
    )


async def test_it_watches_on_where_there_can_be_no_more_threads(
    dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def hog(_payload: Any) -> None:
        with monkeypatch.context() as exhausted:
            exhausted.setattr(threading.Thread, "start", refuse)
            time.sleep(0.4)  # noqa: ASYNC251  # the point of it

    Jobs(dsn).add("hog")
    async with impatient(**SOON)(dsn, tasks={"hog": hog}):
        await eventually(lambda: "The event loop turns again" in caplog.text)
    assert "The event loop has stood still" in caplog.text


@pytest.mark.parametrize("limit", [0.0, 300.0])
async def test_a_task_that_blocks_the_loop_is_named_with_its_stack(
    dsn: str, caplog: pytest.LogCaptureFixture, limit: float
) -> None:
    jobs, told = Jobs(dsn), Told()

    async def hog(_payload: Any) -> None:
        time.sleep(0.4)  # noqa: ASYNC251  # the point of it

    async with impatient(**SOON)(
        dsn, tasks={"hog": hog}, watchdog_timeout=limit, events=told.events
    ) as runner:
        job_id = jobs.add("hog", {"secret": "in the payload"})
        await told.seen(JobSuccess)
        await eventually(lambda: "The event loop turns again" in caplog.text)
        assert runner.health().live
    still = [r for r in caplog.records if "The event loop has stood still" in r.message]
    assert {record.levelno for record in still} == {logging.WARNING}
    assert f"in job {job_id} of task 'hog':" in still[0].message
    assert "time.sleep(0.4)" in str(still[0].stack_info)
    assert "in the payload" not in caplog.text


async def test_a_loop_that_turns_is_never_told_of(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(
        dsn,
        tasks={"work": lambda _payload: time.sleep(0.8)},
        poll_interval=3600,
        watchdog_timeout=0.5,
        events=told.events,
    ):
        jobs.add("work")
        await told.seen(JobSuccess)
    assert caplog.records == []


async def test_a_fetch_that_never_ends_is_told_and_the_worker_no_longer_counts_as_live(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    async def flags() -> None:
        await go_on.wait()

    async with Runner(
        dsn, tasks={"work": print}, forbidden_flags=flags, watchdog_timeout=0.2
    ) as runner:
        await eventually(lambda: "No job was fetched, nor looked for, for" in caplog.text)
        assert not runner.health().live
        assert not runner.health().ready
        go_on.set()
        await eventually(lambda: runner.health().ready)
    assert caplog.text.count("No job was fetched") == 1


async def test_the_thread_ends_with_the_pool(dsn: str) -> None:
    def watchdogs() -> list[str]:
        return [thread.name for thread in threading.enumerate() if "watchdog" in thread.name]

    before = watchdogs()
    async with Runner(dsn, tasks={"work": print}):
        await eventually(lambda: len(watchdogs()) == len(before) + 1)
    assert watchdogs() == before


def test_on_the_command_line_a_standstill_ends_the_process(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    job_id = Jobs(dsn).add("block")
    process = start_worker(dsn, processes, tmp_path, GRAPHILE_WORKER_LOG_FORMAT="json")
    assert process.wait(15) == 70
    last = json.loads(process.stderr.splitlines()[-1])
    assert last["level"] == "critical"
    said = last["event"]
    assert "Ending the process. The event loop has stood still" in said
    assert f"in job {job_id} of task 'block':" in said
    assert "time.sleep(3600)" in last["stack"]


def test_native_code_that_lets_no_other_thread_run_is_ended_too(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    Jobs(dsn).add("native")
    process = start_worker(dsn, processes, tmp_path)
    assert process.wait(15) == 1
    assert "Timeout (0:00:02)!" in process.stderr
    assert "in native" in process.stderr


async def test_the_time_for_which_a_machine_was_suspended_does_not_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looks, slept = 0, 0.0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return time.monotonic() + slept

    watchdog = Watchdog(
        limit=300,
        exits=False,
        at_work=str,
        fetching=lambda: Pace(step=1, patience=0),  # a fetch that goes on and on
        logger=logging.getLogger(__name__),
        about={},
        waits=Waits(**SOON),
        clock=clock,
    )
    watchdog.start()
    try:
        await eventually(lambda: looks > 5)
        looks, slept = 0, 1000.0
        await eventually(lambda: looks > 5)
        assert not watchdog.standing_still
    finally:
        watchdog.close()
    assert caplog.records == []


@pytest.mark.parametrize("given", [["--dev"], [], "python -X dev"])
def test_in_development_half_a_second_is_enough_for_a_warning_with_the_line(
    dsn: str, processes: Processes, tmp_path: Path, given: Any
) -> None:
    (tmp_path / "hogs.py").write_text(
        "import time\n"
        "from graphile_worker_py import task\n"
        "@task\n"
        "async def hog(payload):\n"
        "    time.sleep(1.2)\n"
    )
    jobs = Jobs(dsn)
    job_id = jobs.add("hog")
    python = [sys.executable, *(["-X", "dev"] if given == "python -X dev" else [])]
    flags = given if isinstance(given, list) else []
    worker = processes.start(
        [*python, "-m", "graphile_worker_py", "-c", dsn, "--tasks", "hogs", "--once", *flags],
        cwd=tmp_path,
    )
    assert worker.wait() == 0
    said = worker.stderr + worker.stdout
    warning = f"in job {job_id} of task 'hog':"
    assert (warning in said) is bool(given)
    if given:  # the task's own frame alone, on lines of its own
        stacks = re.findall(r"'hog':\n((?:  .*\n)+)", said)
        frame = re.compile(r" +File .*, in hog\n +time.sleep\(1.2\)\n")
        assert stacks
        assert all(frame.fullmatch(stack) for stack in stacks), stacks
    if given:
        assert 'hogs.py", line 5, in hog' in said
    assert jobs.ids() == []
