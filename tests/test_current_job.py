"""`current_job()`, and the log lines of the command line that carry the job for every logger."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from graphile_worker_py import JobContext, current_job, run_once, task
from graphile_worker_py.telemetry.structlog import add_job
from tests.support.processes import Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

TASKS = """
import asyncio
import logging
import threading

from graphile_worker_py import current_job, task

logger = logging.getLogger("saas.mail")

def log(where):
    logger.info("in %s of %s", where, current_job().id, extra={"address": "ada"})

@task(max_attempts=2)
async def on_loop(payload):
    log("a task")
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(log, "a thread of its own"))

@task
def in_thread(payload):
    log("a thread")

@task(executor="process")
def in_process(payload):
    log("a process")

@task
async def foreign(payload):
    threading.Thread(target=logger.info, args=["without a job"]).start()
"""


def id_now() -> int | None:
    job = current_job()
    return None if job is None else job.id


async def test_each_job_sees_itself_also_in_what_it_leaves_behind(dsn: str, stored: Jobs) -> None:
    seen: dict[str, list[int | None]] = {"begin": [], "end": [], "left behind": [], "thread": []}
    left: list[asyncio.Task[None]] = []
    others_are_done = asyncio.Event()

    async def later() -> None:
        await others_are_done.wait()
        seen["left behind"].append(id_now())

    @task
    async def work(payload: Any, ctx: JobContext) -> None:
        seen["begin"].append(id_now())
        left.append(asyncio.create_task(later()))
        await asyncio.sleep(0)
        seen["end"].append(id_now())

    @task
    def block(payload: Any) -> None:
        seen["thread"].append(id_now())

    ids = stored.add_many(4, "work")
    blocking = stored.add("block")
    assert current_job() is None
    await run_once(dsn, tasks=[work, block], concurrent_jobs=2, raise_errors=True)
    assert current_job() is None
    others_are_done.set()
    await asyncio.wait(left)
    assert sorted(map(str, seen["begin"])) == sorted(map(str, ids))
    assert sorted(map(str, seen["end"])) == sorted(map(str, ids))
    assert sorted(map(str, seen["left behind"])) == sorted(map(str, ids))
    assert seen["thread"] == [blocking]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_each_line_of_the_log_names_the_job_whatever_the_logger(
    log_format: str, processes: Processes, tmp_path: Path, dsn: str, stored: Jobs
) -> None:
    (tmp_path / "logging_tasks.py").write_text(TASKS, encoding="utf-8")
    ids = {name: stored.add(name) for name in ("on_loop", "in_thread", "in_process", "foreign")}
    stored.change(ids["on_loop"], "attempts = 1")
    command = [sys.executable, "-m", "graphile_worker_py", "--once", "--tasks", "logging_tasks"]
    worker = processes.start(
        [*command, "--log-format", log_format], cwd=tmp_path, env={"DATABASE_URL": dsn}
    )
    assert worker.wait() == 0, worker.stderr
    lines = worker.stderr.splitlines()
    if log_format == "text":
        name = f"Job {ids['on_loop']} (on_loop, attempt 2)"
        for where in ("a task", "a thread of its own"):
            assert any(f"{name}: in {where} of {ids['on_loop']}" in line for line in lines), lines
        assert any(line.endswith("INFO    without a job") for line in lines), lines
        return
    records = [each for each in map(json.loads, lines) if each["logger"] == "saas.mail"]
    told = {each["event"]: each for each in records}
    expected = {
        f"in a task of {ids['on_loop']}": ("on_loop", 2),
        f"in a thread of its own of {ids['on_loop']}": ("on_loop", 2),
        f"in a thread of {ids['in_thread']}": ("in_thread", 1),
        f"in a process of {ids['in_process']}": ("in_process", 1),
    }
    for message, (name, attempt) in expected.items():
        record = told.pop(message)
        assert record["job_id"] == ids[name]
        assert (record["task_identifier"], record["attempt"]) == (name, attempt)
        assert record["address"] == "ada"
    assert "job_id" not in told.pop("without a job")
    assert told == {}


async def test_a_processor_of_structlog_adds_the_job(dsn: str, stored: Jobs) -> None:
    lines: list[str] = []
    logger = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[add_job, structlog.processors.JSONRenderer(), _collecting(lines)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )

    @task
    async def mail(payload: Any) -> None:
        logger.info("sent", to="ada")
        logger.info("other", job_id=0)

    job_id = stored.add("mail")
    await run_once(dsn, tasks=[mail], raise_errors=True)
    logger.info("outside")
    about = {"task_identifier": "mail", "attempt": 1}
    assert list(map(json.loads, lines)) == [
        {"event": "sent", "to": "ada", "job_id": job_id, **about},
        {"event": "other", "job_id": 0, **about},
        {"event": "outside"},
    ]


def _collecting(lines: list[str]) -> Any:
    def collect(_logger: Any, _method: str, line: str) -> str:
        lines.append(line)
        raise structlog.DropEvent

    return collect
