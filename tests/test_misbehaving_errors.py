"""Errors of tasks that can't be shown fail their jobs, count their attempts, and end no worker."""

import logging
import sys
from typing import Any

import pytest

from graphile_worker_py import RetryPolicy, Task, WorkerUtils, run_once, task
from graphile_worker_py.errors import LONGEST_MESSAGE, message_of
from graphile_worker_py.events import JobError
from tests import misbehaving_errors
from tests.misbehaving_errors import ALL, ERRORS, ExitingError
from tests.support.processes import Processes
from tests.support.running import Jobs, Told

pytestmark = pytest.mark.any_server

NAMES = [task.identifier for task in ALL]


def payload_of(task_name: str, name: str) -> Any:
    return [name] if task_name == "batch" else name


def check_failed(jobs: Jobs, ids: dict[str, int]) -> None:
    """Each job has failed once, with some text, and is unlocked."""
    rows = {job["id"]: job for job in jobs.all()}
    assert {name: rows[job_id]["attempts"] for name, job_id in ids.items()} == dict.fromkeys(ids, 1)
    for name, job_id in ids.items():
        assert rows[job_id]["last_error"], name
        assert "exited with code" not in rows[job_id]["last_error"], name
        assert len(rows[job_id]["last_error"]) < LONGEST_MESSAGE + 200, name
    assert set(rows) == set(ids.values())
    assert jobs.locked() == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("timeout", [None, 20], ids=["unlimited", "limited"])
async def test_each_of_them_fails_its_job_only(
    dsn: str, name: str, timeout: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)
    ids = {error: jobs.add(name, payload_of(name, error)) for error in ERRORS}
    jobs.add(name, payload_of(name, "fine"), priority=100)
    (function,) = [each for each in ALL if each.identifier == name]
    options: dict[str, Any] = {} if function.executor == "inline" else {"timeout": timeout}
    tasks: list[Task[Any]] = [Task(function.function, name, executor=function.executor, **options)]
    await run_once(dsn, tasks=tasks, concurrent_jobs=3)
    check_failed(jobs, ids)
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert all(f"Failed job {job_id} ({name}" in logged for job_id in ids.values())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_worker_of_the_command_line_goes_on_and_logs_each_of_them(
    dsn: str, processes: Processes, log_format: str
) -> None:
    jobs = Jobs(dsn)
    ids = {error: jobs.add("on_the_loop", error) for error in ERRORS}
    command = [sys.executable, "-m", "graphile_worker_py", "-c", dsn, "--once"]
    worker = processes.start(
        [*command, "--tasks", misbehaving_errors.__name__, "--log-format", log_format]
    )
    assert worker.wait() == 0
    check_failed(jobs, ids)
    assert all(f"Failed job {job_id} (on_the_loop" in worker.stderr for job_id in ids.values())


async def test_history_has_each_of_them(dsn: str) -> None:
    jobs = Jobs(dsn)
    ids = {error: jobs.add("on_the_loop", error) for error in ERRORS}
    await run_once(dsn, tasks=ALL, concurrent_jobs=3)
    async with WorkerUtils(dsn) as utils:
        runs = {run.job_id: run for run in await utils.list_runs()}
    assert set(runs) == set(ids.values())
    assert all(run.error and run.error_group for run in runs.values())


async def test_the_errors_at_the_bottom_of_nested_groups_are_stored(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("on_the_loop", "nested 340 deep")
    await run_once(dsn, tasks=ALL)
    first, *lines = jobs.one(job_id)["last_error"].splitlines()
    assert first == "unhandled errors (1 sub-exception)"
    assert lines == ["- unhandled errors (1 sub-exception)"] * 9 + ["- the leaf"]


def test_a_group_of_many_errors_lists_a_thousand_of_them() -> None:
    lines = message_of(ERRORS["wide"]()).splitlines()
    assert len(lines) == 1002
    assert lines[1:3] == ["- 0", "- 1"]
    assert lines[-2:] == ["- 999", "… and more"]


def test_a_long_message_keeps_its_head_and_its_tail() -> None:
    message = message_of(ValueError("head" + "x" * 50_000_000 + "tail"))
    assert LONGEST_MESSAGE - 100 < len(message) <= LONGEST_MESSAGE
    assert message.startswith("headxx")
    assert message.endswith("xxtail")
    assert "\n… 49000058 characters left out …\n" in message


async def test_many_long_messages_at_once_are_all_stored(dsn: str) -> None:
    jobs = Jobs(dsn)
    ids = jobs.add_many(20, "fail")  # more than one statement may hold

    async def fail(_payload: Any) -> None:
        raise ValueError("x" * (LONGEST_MESSAGE + 1))

    await run_once(dsn, tasks={"fail": fail}, concurrent_jobs=20, fail_job_batch_delay=0.5)
    lengths = {len(job["last_error"]) for job in jobs.all()}
    assert len(lengths) == 1
    assert lengths.pop() <= LONGEST_MESSAGE
    assert jobs.ids() == ids


class PickyKind(type):
    """A class that exits where an error is compared with it."""

    def __instancecheck__(cls, instance: object) -> bool:
        sys.exit("instance")


class PickyError(Exception, metaclass=PickyKind):
    """An error of such a class."""


def exit_for_delay(_attempt: int, error: BaseException) -> float:
    raise SystemExit(str(error))


@pytest.mark.parametrize(
    "policy",
    [RetryPolicy(delay=exit_for_delay), RetryPolicy(discard_on=(PickyError,))],
    ids=["delay", "discard_on"],
)
@pytest.mark.parametrize("error", [ValueError("no"), ExitingError()], ids=["plain", "exits"])
async def test_a_retry_policy_that_exits_does_not_end_the_worker(
    dsn: str, policy: RetryPolicy, error: Exception
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("fail")
    jobs.add("work", priority=100)

    @task(retry=policy)
    async def fail(_payload: Any) -> None:
        raise error

    await run_once(dsn, tasks={"fail": fail, "work": lambda _: None}, concurrent_jobs=1)
    check_failed(jobs, {"fail": job_id})
    assert message_of(error) in jobs.one(job_id)["last_error"]


async def test_a_subscriber_that_exits_does_not_end_the_worker(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    told.events.subscribe(JobError, lambda event: str(event.error))
    job_id = jobs.add("on_the_loop", "exits")
    jobs.add("on_the_loop", "fine", priority=100)
    await run_once(dsn, tasks=ALL, concurrent_jobs=1, events=told.events)
    check_failed(jobs, {"exits": job_id})
    assert "failed on event job:error" in caplog.text


async def test_a_handler_without_means_against_them_logs_the_failure(dsn: str) -> None:
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Lines()
    logger = logging.getLogger("graphile_worker_py")
    logger.addHandler(handler)
    try:
        Jobs(dsn).add("on_the_loop", "notes exit")
        await run_once(dsn, tasks=ALL)
    finally:
        logger.removeHandler(handler)
    (line,) = [line for line in lines if line.startswith("Failed job")]
    assert "in on_the_loop\n" in line
    assert line.endswith("NotedError: noted")


class Proxy:
    """Stands for something that is not there, as proxies of web frameworks do."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("working outside of a request")


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_result_that_can_not_be_looked_at_fails_its_job_only(dsn: str, kind: str) -> None:
    jobs = Jobs(dsn)
    ids = [jobs.add("proxy")]
    jobs.add("work", priority=100)

    async def on_the_loop(_payload: Any) -> Any:
        return Proxy()

    tasks: dict[str, Any] = {"async": on_the_loop, "thread": lambda _: Proxy()}
    await run_once(dsn, tasks={"proxy": tasks[kind], "work": lambda _: None}, concurrent_jobs=1)
    check_failed(jobs, dict.fromkeys(["proxy"], ids[0]))
    assert "working outside of a request" in jobs.one(ids[0])["last_error"]
