"""The fields that a task gives to its logger are on the records, with those of its job."""

import asyncio
import json
import logging
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py import (
    Discard,
    JobContext,
    Snooze,
    SyncJobContext,
    Task,
    WorkerUtils,
    run_once,
    task,
)
from graphile_worker_py.clock import utc_now
from tests.process_tasks import log_fields
from tests.support.processes import Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

FIELDS = {
    "order": {"id": 7, "lines": [1, 2]},
    "user": "ada",
    "job_id": "mine",
    "name": "mine",
    "message": "mine",
    "args": "mine",
    "exc_info": "mine",
    "level": "gold",
    "timestamp": "noon",
}


@task
async def log_on_the_loop(payload: dict[str, Any], ctx: JobContext) -> None:
    ctx.logger.info("logged", extra=payload)


@task
def log_in_a_thread(payload: dict[str, Any], ctx: SyncJobContext) -> None:
    ctx.logger.info("logged", extra=payload)


@pytest.mark.parametrize("logging_task", [log_on_the_loop, log_in_a_thread, log_fields])
async def test_fields_of_a_call_are_kept_and_those_of_the_job_win(
    dsn: str, caplog: pytest.LogCaptureFixture, logging_task: Task[Any]
) -> None:
    job_id = Jobs(dsn).add(logging_task.identifier, FIELDS)
    with caplog.at_level(logging.INFO):
        await run_once(dsn, tasks=[logging_task])
    (record,) = [each for each in caplog.records if each.getMessage() == "logged"]
    fields = vars(record)
    assert (fields["order"], fields["user"]) == (FIELDS["order"], "ada")
    assert (fields["level"], fields["timestamp"]) == ("gold", "noon")
    assert (record.job_id, record.name) == (job_id, "graphile_worker_py")  # type: ignore[attr-defined]
    assert (fields["task_identifier"], fields["attempt"]) == (logging_task.identifier, 1)


@pytest.mark.parametrize("given", [None, {}])
async def test_a_call_without_fields_has_those_of_the_job(
    dsn: str, caplog: pytest.LogCaptureFixture, given: Any
) -> None:
    job_id = Jobs(dsn).add("log")

    async def log(_payload: Any, ctx: JobContext) -> None:
        ctx.logger.warning("logged", extra=given)

    await run_once(dsn, tasks={"log": log})
    (record,) = [each for each in caplog.records if each.getMessage() == "logged"]
    assert vars(record)["job_id"] == job_id


async def test_an_adapter_that_is_given_as_logger_keeps_the_fields_of_jobs(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)
    ids = [jobs.add("log_on_the_loop", {"order": 7}), jobs.add("fail")]

    async def fail(_payload: Any) -> None:
        raise ValueError("no")

    logger: Any = logging.LoggerAdapter(logging.getLogger("mine"), {"service": "mail"})
    with caplog.at_level(logging.INFO):
        await run_once(dsn, tasks=[log_on_the_loop, Task(fail, "fail")], logger=logger)
    records = [vars(each) for each in caplog.records if each.name == "mine"]
    assert {each["service"] for each in records} == {"mail"}
    (logged,) = [each for each in records if each["msg"] == "logged"]
    assert (logged["order"], logged["job_id"]) == (7, ids[0])
    (failed,) = [each for each in records if each["msg"].startswith("Failed job")]
    assert failed["job_id"] == ids[1]


async def test_a_failure_below_the_level_of_the_logger_is_not_logged(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)
    jobs.add("fail", "retried")
    jobs.add("fail", "last", max_attempts=1)

    async def fail(payload: str) -> None:
        raise ValueError(payload)

    logger = logging.getLogger("graphile_worker_py.tests")
    logger.setLevel(logging.ERROR)
    await run_once(dsn, tasks={"fail": fail}, logger=logger)
    (message,) = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert message.endswith("giving up): last")


async def test_the_line_of_a_job_has_its_outcome_and_times(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    @task
    async def work(payload: str) -> object:
        await asyncio.sleep(0.05)
        match payload:
            case "snooze":
                return Snooze(60)
            case "discard":
                return Discard("unwanted")
            case "fail" | "give up":
                raise ValueError(payload)
        return None

    due = utc_now() - timedelta(seconds=90)
    async with WorkerUtils(dsn) as utils:
        for payload in ("complete", "snooze", "discard", "fail"):
            await utils.add_job(work, payload, run_at=due)
        await utils.add_job(work, "give up", run_at=due, max_attempts=1)
    with caplog.at_level(logging.INFO):
        await run_once(dsn, tasks=[work], concurrent_jobs=5)
    lines = [vars(each) for each in caplog.records if hasattr(each, "job_id")]
    outcomes = ["completed", "discarded", "failed", "given_up", "snoozed"]
    assert sorted(line["outcome"] for line in lines) == outcomes
    for line in lines:
        assert 0.05 <= line["duration"] < 5
        assert 90 <= line["wait"] < 120
        assert line["attempt"] == 1


MODULE = """
from graphile_worker_py import task

class Odd:
    def __str__(self):
        return "odd"

@task
async def log(payload, ctx):
    ctx.logger.info("logged", extra={**payload, "odd": Odd()})
    raise ValueError("no answer")
"""


def test_the_json_log_has_them_below_its_own_names(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    job_id = Jobs(dsn).add("log", FIELDS)
    (tmp_path / "fields_of_logs.py").write_text(MODULE)
    command = [sys.executable, "-m", "graphile_worker_py", "-c", dsn, "--once"]
    options = ["--tasks", "fields_of_logs", "--log-format", "json"]
    process = processes.start([*command, *options], cwd=tmp_path)
    assert process.wait() == 0
    lines = [json.loads(line) for line in process.stderr.splitlines()]
    (line,) = [line for line in lines if line["event"] == "logged"]
    assert (line["level"], line["logger"], line["job_id"]) == ("info", "graphile_worker_py", job_id)
    assert line["timestamp"] != "noon"
    assert (line["order"], line["user"], line["odd"]) == (FIELDS["order"], "ada", "odd")
    (failed,) = [line for line in lines if line.get("outcome") == "failed"]
    assert failed["exception"].endswith("ValueError: no answer")
    assert {"timestamp", "level", "logger", "event", "wait", "duration"} < set(failed)
