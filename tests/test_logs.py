"""What a person and a machine read of a worker."""

import logging
import os
import pty
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from graphile_worker_py import JobSpec, WorkerUtils, clock, run_once, task
from graphile_worker_py.cli.logs import PlainFormatter, configure_logging
from tests.support.processes import Process, Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

TASKS = """
from graphile_worker_py import task

@task
async def work(payload):
    print("worked", flush=True)
"""


@task
async def fail(payload: Any) -> None:
    raise ValueError("boom")


async def records_of(
    dsn: str, caplog: pytest.LogCaptureFixture, *, max_attempts: int = 2
) -> list[logging.LogRecord]:
    """Run a job that fails; what was logged."""
    async with WorkerUtils(dsn) as utils:
        await utils.add_job("fail", {"secret": "do not show"}, max_attempts=max_attempts)
    with caplog.at_level(logging.INFO, logger="graphile_worker_py"):
        await run_once(dsn, tasks=[fail])
    return [record for record in caplog.records if hasattr(record, "job_id")]


async def test_a_failure_that_is_retried_is_a_warning_with_the_fields_of_its_job(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    (record,) = await records_of(dsn, caplog)
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("attempt 1 of 2, retry in 2.7 s): boom")
    fields = vars(record)
    assert fields["retry_at"] > datetime.now(UTC)
    assert (fields["task_identifier"], fields["attempt"]) == ("fail", 1)
    assert fields["worker_id"].startswith("worker-")
    assert fields["pool_id"].startswith("otpool-")


async def test_the_last_failure_is_an_error(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    (record,) = await records_of(dsn, caplog, max_attempts=1)
    assert record.levelno == logging.ERROR
    assert record.getMessage().endswith("attempt 1 of 1, giving up): boom")
    assert vars(record)["retry_at"] is None


@pytest.mark.parametrize(
    ("attempts", "told"), [(3, "20 s"), (5, "2.5 min"), (7, "18 min"), (9, "2.3 h"), (20, "6.1 h")]
)
async def test_the_delay_of_a_retry_is_logged_in_a_fitting_unit(
    dsn: str, caplog: pytest.LogCaptureFixture, attempts: int, told: str
) -> None:
    Jobs(dsn).add("fail")
    Jobs(dsn).query(
        f"update graphile_worker._private_jobs set attempts = {attempts - 1} returning id"
    )
    await run_once(dsn, tasks=[fail])
    assert f"attempt {attempts} of 25, retry in {told}): boom" in caplog.text


async def test_a_traceback_starts_in_the_task(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    (record,) = await records_of(dsn, caplog)
    assert record.exc_info is not None
    traceback = record.exc_info[2]
    assert traceback is not None
    assert traceback.tb_frame.f_code.co_name == "fail"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00152, "1.52 ms"),
        (0.9, "900.00 ms"),
        (2.635, "2.6 s"),
        (99, "99 s"),
        (150, "2.5 min"),
        (5999, "100 min"),
        (22026, "6.1 h"),
        (172800, "2.0 d"),
    ],
)
def test_a_duration_has_a_fitting_unit(seconds: float, text: str) -> None:
    assert clock.shortened(seconds) == text


def plain(message: str, error: BaseException | None = None, **about: object) -> list[str]:
    """The lines of a record in the text log, without their time."""
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", **about})
    if error is not None:
        record.exc_info = (type(error), error, None)
    first, *others = PlainFormatter(colour=False).format(record).split("\n")
    return [first.partition(" ")[2], *others]


def test_no_message_can_forge_a_line_or_move_the_cursor() -> None:
    forged = "\n19:04:05.123 INFO    Completed job 7\r\x1b[2K\x9b1A\u202e"
    escaped = r"\n19:04:05.123 INFO    Completed job 7\r\x1b[2K\x9b1A\u202e"
    assert plain(f"Failed: ä{forged}") == [f"INFO    Failed: ä{escaped}"]
    lines = plain("Failed", ValueError(forged))
    assert len(lines) == 3
    assert all(line.startswith("  ") and line.isprintable() for line in lines[1:])


def test_a_line_that_a_task_logs_names_its_job() -> None:
    about: dict[str, Any] = {"job_id": 7, "task_identifier": "work"}
    assert plain("at work", **about) == ["INFO    Job 7 (work): at work"]
    assert plain("Completed job 7 (work, 1 ms)", **about) == [
        "INFO    Completed job 7 (work, 1 ms)"
    ]
    assert plain("like job 77", **about) == ["INFO    Job 7 (work): like job 77"]


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_terminals_unless_the_environment_says_no(
    monkeypatch: pytest.MonkeyPatch, no_color: str, coloured: bool
) -> None:
    ours, theirs = pty.openpty()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("NO_COLOR", no_color)
        try:
            configure_logging(json=False, level="info")
            logging.getLogger("test").warning("look")
        finally:
            root.handlers[:] = before
            root.setLevel(level)
            logging.captureWarnings(capture=False)
        line = os.read(ours, 1000)
    os.close(ours)
    assert b"look" in line
    assert (b"\x1b[33m" in line) is coloured


async def test_no_payload_is_logged(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    await records_of(dsn, caplog)
    assert "do not show" not in caplog.text


async def test_success_is_not_logged_if_the_environment_says_so(
    dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_LOG_SUCCESS", "1")
    async with WorkerUtils(dsn) as utils:
        await utils.add_jobs([JobSpec("fail"), JobSpec("done")])
    with caplog.at_level(logging.INFO):
        await run_once(dsn, tasks={"fail": fail, "done": print})
    about_jobs = [record for record in caplog.records if hasattr(record, "job_id")]
    assert [record.getMessage().split(",")[0] for record in about_jobs] == ["Failed job 1 (fail"]


@pytest.mark.parametrize(("silent", "lines"), [("", 2), ("yes", 0)])
def test_the_command_line_does_not_log_success_if_the_environment_says_so(
    dsn: str, processes: Processes, tmp_path: Path, silent: str, lines: int
) -> None:
    process = start(processes, dsn, tmp_path, NO_LOG_SUCCESS=silent)
    told = [line for line in process.stderr.splitlines() if "Working as" in line or "Compl" in line]
    assert len(told) == lines, process.stderr
    assert "Stopped" in process.stderr


@pytest.mark.parametrize("variable", ["GRAPHILE_LOGGER_DEBUG", "GRAPHILE_WORKER_DEBUG"])
def test_debug_variables_show_everything_but_connection_strings_and_payloads(
    dsn: str, processes: Processes, tmp_path: Path, variable: str
) -> None:
    """`GRAPHILE_ENABLE_DANGEROUS_LOGS`, with which Node shows its options, has no meaning here."""
    shown = {variable: "1", "GRAPHILE_ENABLE_DANGEROUS_LOGS": "1"}
    process = start(processes, f"{dsn}?application_name=not+shown", tmp_path, **shown)
    assert " DEBUG " in process.stderr
    output = process.stdout + process.stderr
    assert "postgresql://" not in output
    assert (urlsplit(dsn).password or "no password") not in output
    assert "not shown" not in output
    assert "do not show" not in output


def start(processes: Processes, dsn: str, folder: Path, **environment: str) -> Process:
    """Run a worker until it has done a job and was told to stop."""
    (folder / "log_tasks.py").write_text(TASKS)
    Jobs(dsn).add("work", {"secret": "do not show"})
    command = [sys.executable, "-m", "graphile_worker_py", "--tasks", "log_tasks"]
    process = processes.start(command, cwd=folder, env={"DATABASE_URL": dsn, **environment})
    process.wait_for("worked")
    process.terminate()
    assert process.wait(timeout=15) == 0, process.stderr
    return process
