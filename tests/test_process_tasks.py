"""Tasks in processes of their own: what they are given, and every way in which they can end."""

import asyncio
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from graphile_worker_py import ConfigurationError, Runner, Task, run_once, task
from graphile_worker_py.errors import TaskTimeoutError
from graphile_worker_py.events import (
    JobComplete,
    JobDiscarded,
    JobError,
    JobReturned,
    JobSnoozed,
    JobStart,
    JobSuccess,
)
from graphile_worker_py.executors import guard, memory
from graphile_worker_py.executors.process_use import ProcessUse
from graphile_worker_py.executors.talk import TaskMemoryError
from graphile_worker_py.executors.wire import ProcessTaskError
from graphile_worker_py.loading.directory import load_tasks
from tests import process_tasks as tasks
from tests.support.eventually import eventually
from tests.support.processes import Processes, is_alive
from tests.support.running import Jobs, Told, impatient

pytestmark = pytest.mark.any_server

ALL = [value for value in vars(tasks).values() if isinstance(value, Task)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in which tasks write lines."""
    return tmp_path / "noted"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def no_more_files() -> Iterator[None]:
    """Within the block this process can open no file."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def errors_of(dsn: str, told: Told) -> list[BaseException]:
    await run_once(dsn, tasks=ALL, events=told.events)
    return [event.error for event in told.of(JobError) if type(event) is JobError]


# What it is given.


async def test_it_runs_in_another_process_and_knows_its_job(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("tell", {"path": str(path), "text": "é", "big": 10**25})
    await run_once(dsn, tasks=ALL, events=told.events)
    (success,) = told.of(JobSuccess)
    (line,) = lines(path)
    pid, *rest = line.split()
    assert int(pid) != os.getpid()
    assert rest == [str(job_id), "True", success.worker_id, success.pool_id]
    assert jobs.ids() == []


async def test_processes_are_used_again_and_there_are_no_more_than_concurrent_jobs(
    dsn: str, path: Path
) -> None:
    jobs = Jobs(dsn)
    for _ in range(12):
        jobs.add("pid", str(path))
    await run_once(dsn, tasks=ALL, concurrent_jobs=2)
    assert len(lines(path)) == 12
    assert 1 <= len(set(lines(path))) <= 2
    assert all(line.endswith(" True") for line in lines(path))
    # At the end of the worker they have ended, too.
    assert not any(is_alive(int(line.split()[0])) for line in lines(path))


async def test_typed_payloads_are_built_in_the_process(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("typed", {"path": str(path), "count": 3})
    jobs.add("typed", {"path": str(path), "count": "x"}, max_attempts=1)
    (error,) = await errors_of(dsn, told)
    assert lines(path) == ["Order 3"]
    assert type(error).__name__ == "PayloadError"
    assert "$.count" in str(error)


async def test_functions_of_classes_and_awaitables_and_forks_and_signals_work(
    dsn: str, path: Path
) -> None:
    jobs, told = Jobs(dsn), Told()
    for name in ("held", "awaited", "fork", "ignore_signals"):
        jobs.add(name, str(path))
    assert await errors_of(dsn, told) == []
    assert lines(path) == ["method", "awaited", "0 -15", "alive"]


async def test_its_log_records_are_written_by_the_worker(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("log", "world")
    caplog.set_level(logging.INFO)
    await run_once(dsn, tasks=ALL)
    own = [record for record in caplog.records if record.pathname == tasks.__file__]
    assert [record.getMessage() for record in own] == ["hello world", "mine", "went wrong"]
    first, second, third = own
    assert (first.name, vars(first)["job_id"]) == ("graphile_worker_py", job_id)
    assert (second.name, second.levelname) == ("theirs", "WARNING")
    assert (vars(second)["odd"], vars(second)["even"]) == ("<class 'object'>", 2)
    assert third.exc_text is not None
    assert third.exc_text.endswith("ValueError: invalid literal for int() with base 10: 'inner'")
    assert own[0].process != os.getpid()


async def test_it_adds_jobs_through_the_worker(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("add", str(path), queue_name="mine")
    assert await errors_of(dsn, told) == []
    told_of, refused, unknown, by_the_new_one = lines(path)
    assert told_of == f"True {path} 2 mine"
    assert (refused, unknown) == ("ConfigurationError", "GraphileWorkerError")
    assert by_the_new_one.endswith(" True")
    left = [(job["task_identifier"], job["key"], job["json"]) for job in jobs.all()]
    assert left == [("other", "k0", "0"), ("other", "k1", "1")]


async def test_failed_items_of_a_batch_job_are_tried_again_alone(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("items", ["good", "bad", "plain", "badder"], max_attempts=1)
    jobs.add("items", ["good"])
    (error,) = await errors_of(dsn, told)
    assert str(error) == "Batch failures:\ncode 3\ncode 6"
    assert jobs.ids() == [job_id]
    assert jobs.one(job_id)["json"] == '["bad","badder"]'


async def test_awaitables_that_belong_to_no_item_fail_a_job_in_a_process(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("too_few_items", ["good", "bad"], max_attempts=1)
    (error,) = await errors_of(dsn, told)
    assert "returned 1 results for 2 payload items" in str(error)
    assert jobs.one(job_id)["json"] == '["good", "bad"]'


async def test_tasks_of_a_directory_are_found(dsn: str, tmp_path: Path, path: Path) -> None:
    directory = tmp_path / "my-tasks" / "sub"
    directory.mkdir(parents=True)
    (directory / "_names.py").write_text("WORD = 'relative'\n")
    (directory / "work.py").write_text(
        "from graphile_worker_py import task\n"
        "from ._names import WORD\n"
        "@task(executor='process')\n"
        "def run(payload):\n"
        "    open(payload, 'a').write(f'{WORD} {__name__}\\n')\n"
    )
    found = load_tasks(tmp_path / "my-tasks")
    Jobs(dsn).add("sub/work", str(path))
    await run_once(dsn, tasks=found)
    assert lines(path) == [f"relative {found['sub/work'].function.__module__}"]


# How it ends.


async def test_what_it_raises_is_the_error_of_the_job_with_the_place(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    expected = {
        "travels": (tasks.TravelsError, "code 7"),
        "stays": (tasks.StaysError, "this and that"),
        "exit": (ProcessTaskError, "SystemExit: 3"),
        "stop": (ProcessTaskError, "StopIteration"),
        "cancelled": (ProcessTaskError, "CancelledError"),
        "local": (ProcessTaskError, "of nowhere"),
    }
    ids = [jobs.add("fail", payload, max_attempts=1) for payload in expected]
    errors = await errors_of(dsn, told)
    assert [(type(error), str(error)) for error in errors] == list(expected.values())
    stored = [jobs.one(job_id)["last_error"] for job_id in ids]
    assert stored == [message for _, message in expected.values()]
    for error in errors:
        assert str(error.__cause__).strip().startswith("Traceback (most recent call last):")
        assert "in fail\n" in str(error.__cause__)
        assert "executors/child.py" not in str(error.__cause__)


@pytest.mark.parametrize("child", ["returns", "raises", "exits"])
@pytest.mark.parametrize("late", [False, True])
async def test_a_fork_of_a_task_ends_without_an_outcome(
    dsn: str, path: Path, child: str, late: bool
) -> None:
    jobs, told = Jobs(dsn), Told()
    forking = jobs.add("fork_and", {"path": str(path), "child": child, "late": late})
    following = jobs.add("slow", str(path))
    assert await errors_of(dsn, told) == []
    first, second = told.of(JobSuccess)
    assert (first.job.id, second.job.id) == (forking, following)
    assert second.duration > 0.5
    status = {"returns": "0", "raises": "1", "exits": "3"}[child]
    assert lines(path) == (["slow"] if late else [status, "slow"])


async def test_a_fork_can_not_use_the_context_of_the_job(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("fork_and", {"path": str(path), "child": "adds", "late": False})
    assert await errors_of(dsn, told) == []
    refused, status = lines(path)
    assert "was forked by a task" in refused
    assert status == "0"
    assert jobs.ids() == []


async def test_what_an_earlier_job_left_behind_can_not_use_the_context_of_a_later_one(
    dsn: str, path: Path
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("leave_a_thread", str(path))
    jobs.add("slow", str(path))
    assert await errors_of(dsn, told) == []
    assert lines(path) == ["the job of this context is over", "slow"]
    assert jobs.ids() == []


@pytest.mark.parametrize("how", ["raised", "written"])
async def test_nothing_that_a_process_sends_runs_code_in_the_worker(
    dsn: str, path: Path, how: str
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("bomb", {"path": str(path), "how": how}, max_attempts=1)
    (error,) = await errors_of(dsn, told)
    assert lines(path) == []
    assert type(error) is (tasks.BombError if how == "raised" else ProcessTaskError)


async def test_a_decision_of_a_task_in_a_process_counts(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    snoozed, returned = jobs.add("decides", "snooze"), jobs.add("decides", "snooze by return")
    retried, discarded = jobs.add("decides", "retry at"), jobs.add("decides", "discard")
    await run_once(dsn, tasks=ALL, events=told.events)
    assert {event.job.id for event in told.of(JobSnoozed)} == {snoozed, returned}
    assert [event.job.id for event in told.of(JobDiscarded)] == [discarded]
    assert jobs.one(retried)["last_error"] == "later"
    assert jobs.one(retried)["run_at"].year == 2050


async def test_a_process_that_ends_fails_its_job_and_nothing_else(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    no_memory = "; maybe the system had no memory left"
    expected = {
        "exit": ("exited with code 3 before the task was done", 3),
        "clean": ("exited with code 0 before the task was done", 0),
        "killed": (f"was ended by SIGKILL before the task was done{no_memory}", -9),
        "segfault": ("was ended by SIGSEGV before the task was done", -11),
        "abort": ("was ended by SIGABRT before the task was done", -6),
        "garbage": ("broke the connection to its worker", None),
    }
    ids = [jobs.add("crash", payload, max_attempts=1) for payload in expected]
    closed = jobs.add("crash", "closed", max_attempts=1)
    jobs.add("pid", str(path))
    *errors, last = await errors_of(dsn, told)
    said = [(str(error), getattr(error, "returncode", "")) for error in errors]
    assert said == [(f"the process of task 'crash' {how}", n) for how, n in expected.values()]
    assert [jobs.one(job_id)["last_error"] for job_id in ids] == [text for text, _ in said]
    # It ends by itself, unless its guard is quicker.
    assert isinstance(last, ProcessTaskError)
    assert last.returncode in (1, -signal.SIGKILL)
    assert jobs.one(closed)["last_error"] == str(last)
    assert len(lines(path)) == 1


async def test_at_its_timeout_it_is_killed_with_all_that_it_has_started(
    dsn: str, path: Path
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("pid", str(path))
    # Now and then half a second is too short to start a program.
    while len(lines(path)) < 2:
        told.all.clear()
        jobs.add("forever", str(path), max_attempts=1)
        (error,) = await errors_of(dsn, told)
        assert isinstance(error, TaskTimeoutError)
        assert str(error) == (
            "task 'forever' ran longer than its timeout of 0.5 s; its process was killed"
        )
    one, other = map(int, lines(path)[1].split())
    await eventually(lambda: not is_alive(one) and not is_alive(other))


@pytest.mark.parametrize("inside", [True, False])
async def test_at_its_memory_limit_it_is_killed(dsn: str, inside: bool) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("take", {"bytes": 2**20, "hold": 0, "inside": inside})
    jobs.add("take", {"bytes": 300 * 2**20, "hold": 15, "inside": inside}, max_attempts=1)
    (error,) = await errors_of(dsn, told)
    assert isinstance(error, TaskMemoryError)
    assert "of memory, it may take 150 MiB; it was killed" in str(error)
    assert "the process of task 'take' took " in str(error)


async def test_memory_that_cannot_be_measured_for_a_moment_fails_no_job(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    often = ProcessUse(look=0.01, looks_per_group=2, group_age=0.0)
    async with impatient(process_use=often)(dsn, tasks=ALL, events=told.events):
        jobs.add("take", {"bytes": 2**20, "hold": 0, "inside": True})
        await told.seen(JobSuccess)
        jobs.add("take", {"bytes": 2**20, "hold": 1, "inside": True}, max_attempts=1)
        await told.seen(JobStart, count=2)
        with no_more_files():
            await asyncio.sleep(0.3)
        await told.seen(JobComplete, count=2)
    assert [event.error for event in told.of(JobError)] == []


async def test_a_process_that_has_grown_is_not_used_again(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    for megabytes in (1, 20, 20, 20, 1):
        jobs.add("leak", {"path": str(path), "megabytes": megabytes})
    use = ProcessUse(growth=30 * 2**20)
    async with impatient(process_use=use)(dsn, tasks=ALL, events=told.events):
        await told.seen(JobSuccess, count=5)
    one, two, three, four, five = lines(path)
    assert one == two == three != four
    assert four == five


async def test_a_process_is_replaced_after_so_many_jobs(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    for _ in range(4):
        jobs.add("pid", str(path))
    use = ProcessUse(jobs=2)
    async with impatient(process_use=use)(dsn, tasks=ALL, events=told.events):
        await told.seen(JobSuccess, count=4)
    one, two, three, four = lines(path)
    assert one == two != three
    assert three == four


async def test_a_process_without_a_job_is_ended(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    use = ProcessUse(idle=0.3)
    async with impatient(process_use=use)(dsn, tasks=ALL, events=told.events):
        jobs.add("pid", str(path))
        await told.seen(JobSuccess)
        first = int(lines(path)[0].split()[0])
        await eventually(lambda: not is_alive(first))
        jobs.add("pid", str(path))
        await told.seen(JobSuccess, count=2)
    assert int(lines(path)[1].split()[0]) != first


async def test_a_process_that_was_killed_while_idle_is_not_missed(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks=ALL, events=told.events):
        jobs.add("pid", str(path))
        await told.seen(JobSuccess)
        first = int(lines(path)[0].split()[0])
        os.kill(first, signal.SIGKILL)
        jobs.add("pid", str(path))
        await told.seen(JobSuccess, count=2)
    assert int(lines(path)[1].split()[0]) != first
    assert told.of(JobError) == []


async def test_what_is_larger_than_a_pipe_goes_both_ways(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told, text = Jobs(dsn), Told(), "x" * 5 * 2**20
    for _ in range(2):
        jobs.add("echo", text)
    caplog.set_level(logging.INFO)
    await run_once(dsn, tasks=ALL, events=told.events)
    assert [len(record.getMessage()) for record in caplog.records if text in record.msg] == [
        len(text)
    ] * 2
    assert len(told.of(JobSuccess)) == 2


async def test_a_job_that_has_begun_is_not_begun_again_in_another_process(
    dsn: str, path: Path
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("pid", str(path))
    jobs.add("note_and_die", str(path), max_attempts=1)
    async with Runner(dsn, tasks=ALL, events=told.events, concurrent_jobs=1):
        await told.seen(JobComplete, count=2)
    first, *others = lines(path)
    assert others == [first.split()[0]]
    assert isinstance(told.of(JobError)[0].error, ProcessTaskError)


async def test_a_graceful_stop_waits_for_it(dsn: str, path: Path, tmp_path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    until = tmp_path / "until"
    jobs.add("wait_for_file", {"path": str(path), "until": str(until)})
    async with Runner(dsn, tasks=ALL, events=told.events) as runner:
        await eventually(lambda: len(lines(path)) == 1)
        stopping = asyncio.create_task(runner.stop())
        await eventually(lambda: "pool:gracefulShutdown" in told.names())
        until.touch()
        await stopping
    assert lines(path)[1] == "ended"
    assert jobs.ids() == []
    assert not is_alive(int(lines(path)[0]))


async def test_its_abort_event_is_set(dsn: str, path: Path) -> None:
    Jobs(dsn).add("wait_for_abort", str(path))
    async with Runner(dsn, tasks=ALL, graceful_shutdown_abort_timeout=0.1) as runner:
        await eventually(lambda: lines(path) == ["begun"])
        await runner.stop()
    assert lines(path) == ["begun", "True"]


async def test_a_forced_stop_kills_it_and_returns_its_job(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("forever_without_limit", str(path))
    async with Runner(dsn, tasks=ALL, events=told.events) as runner:
        await eventually(lambda: len(lines(path)) == 1)
        started = time.monotonic()
        await runner.kill()
        assert time.monotonic() - started < 5
    one, other = map(int, lines(path)[0].split())
    assert not is_alive(one)
    await eventually(lambda: not is_alive(other))
    assert jobs.one(job_id)["attempts"] == 0
    assert jobs.locked() == []
    assert len(told.of(JobReturned)) == 1
    assert told.of(JobError) == []


async def test_a_forced_stop_while_it_starts_leaves_nothing_behind(dsn: str, path: Path) -> None:
    jobs, told = Jobs(dsn), Told()
    job_id = jobs.add("forever_without_limit", str(path))
    async with Runner(dsn, tasks=ALL, events=told.events) as runner:
        await told.seen(JobStart)
        await runner.kill()
    assert jobs.one(job_id)["attempts"] == 0
    assert jobs.locked() == []


async def test_what_ends_processes_is_started_anew_where_that_has_failed(
    dsn: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks=ALL, events=told.events):
        jobs.add("pid", str(path), max_attempts=1)
        await told.seen(JobError)
        monkeypatch.undo()
        jobs.add("pid", str(path))
        await told.seen(JobSuccess)
        commands = [child.cmdline() for child in psutil.Process().children()]
    assert [command[-1] for command in commands if "guard" in command[-1]] == [guard.__file__]


def test_a_worker_that_is_killed_leaves_no_process_behind(
    dsn: str, path: Path, processes: Processes
) -> None:
    Jobs(dsn).add("forever_without_limit", str(path))
    worker = processes.start(
        [sys.executable, "-m", "graphile_worker_py", "-c", dsn, "--tasks", "tests.process_tasks"]
    )
    wait_until(lambda: len(lines(path)) == 1)
    one, other = map(int, lines(path)[0].split())
    assert is_alive(one)
    assert is_alive(other)
    worker.kill()
    worker.wait()
    try:
        wait_until(lambda: not is_alive(one) and not is_alive(other))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(one, signal.SIGKILL)


def test_a_signal_to_all_processes_of_a_terminal_lets_the_job_finish(
    dsn: str, path: Path, tmp_path: Path, processes: Processes
) -> None:
    jobs = Jobs(dsn)
    until = tmp_path / "until"
    jobs.add("wait_for_file", {"path": str(path), "until": str(until)})
    worker = processes.start(
        [sys.executable, "-m", "graphile_worker_py", "-c", dsn, "--tasks", "tests.process_tasks"]
    )
    wait_until(lambda: len(lines(path)) == 1)
    os.killpg(worker.pid, signal.SIGINT)
    wait_until(lambda: "Stopping" in worker.stderr + worker.stdout)
    until.touch()
    assert worker.wait() == 0
    assert lines(path)[1] == "ended"
    assert jobs.ids() == []


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What is refused.


def plain(payload: Any) -> None: ...


async def coroutine(payload: Any) -> None: ...


class Callable:
    def __call__(self, payload: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (coroutine, {"executor": "process"}, "an async function runs on the event loop"),
        (coroutine, {"executor": "inline"}, "an async function runs on the event loop"),
        (plain, {"executor": "greenlet"}, "must be one of thread, inline, process"),
        (plain, {"executor": "inline", "timeout": 1}, "nothing can cut it off"),
        (plain, {"memory": 2**30}, 'only be limited in a process: executor="process"'),
        (plain, {"executor": "process", "memory": 2**20}, "at least 67108864 .64 MiB., not"),
        (plain, {"executor": "process", "memory": "1 GB"}, "whole number of bytes"),
        (lambda payload: None, {"executor": "process"}, "is not a function of a module"),
        (Callable(), {"executor": "process"}, "is not a function of a module"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    function: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        Task(function, "mine", **settings)
    assert "'mine'" in str(refused.value)


def test_a_closure_is_refused() -> None:
    def inner(payload: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="'inner' can't run in a process"):
        task(executor="process")(inner)


hidden: Task[Any] = Task(plain, "hidden", executor="process")


def _made() -> Any:
    def made(payload: Any) -> None: ...

    made.__qualname__ = "plain"
    return made


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("__main__", "plain", "the program that runs can't be imported"),
        (__name__, "nobody", "there is no such function"),
        (__name__, "plain", "there it would find"),
    ],
)
async def test_what_a_process_would_not_find_is_refused_at_the_start(
    empty_dsn: str, module: str, name: str, message: str
) -> None:
    function = _made()
    function.__module__, function.__qualname__ = module, name
    lost: Task[Any] = Task(function, "lost", executor="process")
    with pytest.raises(ConfigurationError, match=message):
        await run_once(empty_dsn, tasks=[lost])


def test_functions_of_built_in_modules_have_a_place() -> None:
    place = Task(time.sleep, "sleep", executor="process").place
    assert (place.module, place.name, place.directory) == ("time", "sleep", None)


def test_settings_go_with_a_task_that_is_named_anew() -> None:
    named = tasks.take.renamed("other")
    assert (named.identifier, named.executor, named.memory) == ("other", "process", 150 * 2**20)


# Memory.


def test_memory_is_measured_alike_in_both_ways(processes: Processes) -> None:
    inner = (
        "import time; x = bytearray(b'x') * (40 << 20); print('ready', flush=True); time.sleep(9)"
    )
    outer = (
        "import subprocess, sys; x = bytearray(b'x') * (20 << 20); "
        f"subprocess.run([sys.executable, '-c', {inner!r}])"
    )
    child = processes.start([sys.executable, "-c", outer])
    child.wait_for("ready")
    alone, whole = memory.resident(child.pid), memory.resident_of_groups()[child.pid]
    assert 20 << 20 < alone < 60 << 20
    assert 60 << 20 < whole < 140 << 20
    assert memory.resident_by_psutil(child.pid) == pytest.approx(alone, rel=0.1)
    by_psutil = [size for group, size in memory.processes_by_psutil() if group == child.pid]
    assert len(by_psutil) == 2
    assert sum(by_psutil) == pytest.approx(whole, rel=0.1)
    pid = child.pid
    child.end()
    assert memory.resident(pid) == memory.resident_by_psutil(pid) == 0
    # What it had started is killed with it, but not waited for.
    wait_until(lambda: memory.resident_of_groups().get(pid, 0) == 0)


async def test_one_look_at_all_processes_is_for_all_groups() -> None:
    looks: list[None] = []

    def look() -> dict[int, int]:
        looks.append(None)
        return {1: 10, 2: 20}

    groups = memory.Groups(60.0, look)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(groups.resident(leader)) for leader in (1, 2, 3)]
    assert [each.result() for each in asked] == [10, 20, 0]
    assert len(looks) == 1
