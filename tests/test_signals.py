"""Real signals to real processes: the first one stops, the second one kills."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from graphile_worker_py import run_once
from tests.support.eventually import eventually
from tests.support.locking import table_locked
from tests.support.processes import Process, Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

ROOT = Path(__file__).parents[1]
Start = Callable[[str], Process]
COMMAND = """
from graphile_worker_py import Runner
from graphile_worker_py.cli.main import main
from graphile_worker_py.workers.waits import Waits

Runner._waits = Waits(kill=0.5)
main()
"""
"""The command line, which gives up soon what can't be cancelled."""


@pytest.fixture
def start(processes: Processes, dsn: str) -> Start:
    """Starts one of the functions of `signalled.py`."""

    def start_function(name: str) -> Process:
        command = [sys.executable, "-W", "error", "-m", "tests.signalled", dsn, name]
        return processes.start(command, cwd=ROOT)

    return start_function


def pause_for_a_second_signal() -> None:
    """Let the time pass in which a signal that comes again is taken for the same one."""
    time.sleep(0.35)


@pytest.mark.parametrize("function", ["one", "once"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_the_first_signal_lets_running_jobs_end(
    dsn: str, start: Start, number: signal.Signals, function: str
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "until_abort", "q")
    process = start(function)
    process.wait_for("job:start")
    os.kill(process.pid, number)
    assert process.wait() == 0
    # `run_once` has no runner, and so no event of its end.
    said = ["job:start", "gracefulShutdown", "done", "stop", "ended"]
    if function == "once":
        said = ["job:start", "done", "ended"]
    assert process.lines() == said
    assert process.stderr == ""
    assert len(jobs.ids()) == 1
    assert jobs.locked() == []


@pytest.mark.parametrize("function", ["one", "once"])
@pytest.mark.parametrize(
    ("number", "again"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_graceful_stop_says_which_jobs_it_waits_for(
    dsn: str, start: Start, function: str, number: signal.Signals, again: str
) -> None:
    ids = Jobs(dsn).add_many(2, "until_abort")
    process = start(f"logged_{function}")
    process.wait_for("job:start", count=2)
    os.kill(process.pid, number)
    assert process.wait() == 0
    named = ", ".join(f"{job_id} (until_abort)" for job_id in ids)
    assert f"Waiting for 2 jobs: {named}; {again} again returns them" in process.stderr


def test_sigabrt_keeps_its_meaning(dsn: str, start: Start) -> None:
    """Native code has failed; nothing in the process can be relied upon."""
    Jobs(dsn).add("until_abort")
    process = start("one")
    process.wait_for("job:start")
    os.kill(process.pid, signal.SIGABRT)
    assert process.wait() == -signal.SIGABRT


@pytest.mark.parametrize("function", ["one", "once"])
def test_the_second_signal_cuts_running_jobs_off_and_returns_them(
    dsn: str, start: Start, function: str
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "hang", "q")
    jobs.add_many(2, "hang")
    before = jobs.snapshot()
    process = start(function)
    process.wait_for("job:start", count=2)
    process.terminate()
    if function == "one":
        process.wait_for("gracefulShutdown")
        pause_for_a_second_signal()
        process.interrupt()
    while function == "once" and process.returncode is None and not process.lines("cut off"):
        # It does not tell when it has heard of the first. Both at once are one: then it takes more.
        pause_for_a_second_signal()
        process.interrupt()
    assert process.wait() == 0
    assert process.lines("cut off") == ["cut off"] * 2
    assert process.lines()[-1] == "ended"
    assert "Traceback" not in process.stderr
    assert jobs.snapshot() == before
    assert jobs.locked() == []


def test_a_signal_that_comes_again_at_once_is_the_same_signal(dsn: str, start: Start) -> None:
    """A terminal and a process manager may both hand on one Ctrl-C."""
    jobs = Jobs(dsn)
    jobs.add("until_abort")
    process = start("one")
    process.wait_for("job:start")
    # It is to hear of all of them at one moment, however long this takes.
    os.kill(process.pid, signal.SIGSTOP)
    for _ in range(5):
        process.interrupt()
        process.terminate()
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait() == 0
    assert process.lines() == ["job:start", "gracefulShutdown", "done", "stop", "ended"]
    assert jobs.ids() == []


def test_a_storm_of_signals_ends_it_in_order(dsn: str, start: Start) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "hang", "q")
    before = jobs.snapshot()
    process = start("one")
    process.wait_for("job:start")
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2]
    deadline = time.monotonic() + 10
    sent = 0
    while process.returncode is None and time.monotonic() < deadline:
        # The default actions are back when the worker has ended, and may end the process.
        if process.lines("stop"):
            break
        os.kill(process.pid, numbers[sent % len(numbers)])
        sent += 1
        time.sleep(0.001)
    process.wait()
    assert sent > 1
    assert process.lines("gracefulShutdown") == ["gracefulShutdown"]
    assert process.lines("cut off") == ["cut off"]
    assert process.lines("stop") == ["stop"]
    assert jobs.snapshot() == before
    assert jobs.locked() == []


@pytest.mark.parametrize("pause", [0.001, 0.1])
def test_a_storm_of_signals_does_not_change_how_the_process_ends(
    dsn: str, start: Start, pause: float
) -> None:
    process = start("idle")
    process.wait_for("ready")
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2]
    for sent in range(5000):
        if process.returncode is not None:
            break
        os.kill(process.pid, numbers[sent % len(numbers)])
        time.sleep(pause)
    assert process.wait() == 0
    assert process.lines() == ["ready", "ended"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_web_server_and_its_runner(
    dsn: str, start: Start, number: signal.Signals
) -> None:
    job_id = Jobs(dsn).add("until_abort")
    process = start("web")
    process.wait_for("job:start")
    asyncio.run(eventually(lambda: "Application startup complete" in process.stderr))
    os.kill(process.pid, number)
    # uvicorn ends by the signal that it received.
    assert process.wait() in (-number, 130)
    assert process.lines() == ["job:start", "gracefulShutdown", "done", "stop"]
    assert "Application shutdown complete" in process.stderr
    assert Jobs(dsn).ids() == []
    assert job_id


@pytest.mark.parametrize("function", ["one", "once", "command"])
@pytest.mark.parametrize("first", [True, False], ids=["PID 1", "any process"])
async def test_a_signal_during_the_start_ends_it(
    dsn: str, processes: Processes, function: str, first: bool
) -> None:
    """The first process of a container ignores signals that have no handler."""
    command = [sys.executable, "-m", "tests.signalled", dsn, function]
    if function == "command":
        command = [sys.executable, "-m", "graphile_worker_py", "-c", dsn]
        command += ["--tasks", "tests.signalled:TASKS"]
    if first:
        command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", *command]
    async with table_locked(dsn, "graphile_worker.migrations"):
        process = processes.start(command, cwd=ROOT)
        await eventually(lambda: waits_for_a_lock(dsn), timeout=15)
        os.kill(child_of(process.pid) if first else process.pid, signal.SIGTERM)
        code = await asyncio.to_thread(process.wait)
    if function == "one":
        assert (code, process.lines()) == (0, ["gracefulShutdown", "ended"])
    elif function == "once":
        assert code == 1
        assert "SIGTERM stopped the worker before it had started" in process.stderr
    else:
        assert code == 128 + signal.SIGTERM if first else code == -signal.SIGTERM
        assert "SIGTERM stopped the worker before it had started" in process.stderr


def waits_for_a_lock(dsn: str) -> bool:
    """Whether a session of this database waits for a lock."""
    waiting = "select pid from pg_stat_activity where datname = current_database()"
    return bool(Jobs(dsn).query(f"{waiting} and wait_event_type = 'Lock'"))


def child_of(pid: int) -> int:
    """The only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return int(child)


def test_two_runners_in_one_process_both_obey(dsn: str, start: Start) -> None:
    jobs = Jobs(dsn)
    process = start("two")
    process.wait_for("ready")
    process.terminate()
    assert process.wait() == 0
    assert sorted(process.lines()) == [
        "a gracefulShutdown",
        "a stop",
        "b gracefulShutdown",
        "b stop",
        "ended",
        "ready",
    ]
    assert process.stderr == ""
    assert jobs.locked() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_runner_obeys_whichever_others_have_ended(
    dsn: str, start: Start, number: signal.Signals
) -> None:
    process = start("staggered")
    process.wait_for("ready")
    os.kill(process.pid, number)
    process.wait_for("ended")
    assert process.lines() == ["a stop", "ready", "b gracefulShutdown", "b stop", "ended"]
    # Then the process has the default actions back.
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    assert process.stderr == ""


def test_when_it_has_ended_signals_do_what_they_did_before(dsn: str, start: Start) -> None:
    process = start("afterwards")
    process.wait_for("ready")
    process.terminate()
    assert process.wait() == -signal.SIGTERM


def test_without_handling_ctrl_c_still_ends_it_gracefully(dsn: str, start: Start) -> None:
    """It cancels the main task; other signals do what Python makes of them."""
    jobs = Jobs(dsn)
    jobs.add("until_abort")
    process = start("unhandled")
    process.wait_for("job:start")
    process.interrupt()
    assert process.wait() in (130, -signal.SIGINT)
    assert process.lines("done") == ["done"]
    assert jobs.ids() == []

    jobs.add("until_abort")
    process = start("unhandled")
    process.wait_for("job:start")
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    assert process.lines("done") == []


def test_a_thread_that_never_returns_does_not_keep_the_process_alive(
    dsn: str, start: Start
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("block")
    process = start("one")
    process.wait_for("job:start")
    process.terminate()
    process.wait_for("gracefulShutdown")
    pause_for_a_second_signal()
    process.terminate()
    assert process.wait() == 0
    assert jobs.one(job_id)["attempts"] == 0
    assert jobs.locked() == []


def test_a_task_that_ignores_everything_does_not_keep_the_command_alive(
    dsn: str, processes: Processes
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("stubborn")
    command = [sys.executable, "-c", COMMAND, "-c", dsn]
    process = processes.start([*command, "--tasks", "tests.signalled:TASKS"], cwd=ROOT)
    process.wait_for("stubborn")
    process.terminate()
    asyncio.run(eventually(lambda: "Stopping: " in process.stderr))
    pause_for_a_second_signal()
    process.terminate()
    assert process.wait() == 1
    assert "did not end within 0.5 s" in process.stderr
    assert jobs.one(job_id)["attempts"] == 0
    assert jobs.locked() == []


async def test_outside_of_the_main_thread_it_says_that_signals_do_nothing(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)
    jobs.add("work")
    before = signal.getsignal(signal.SIGTERM)
    with caplog.at_level(logging.WARNING):
        await asyncio.to_thread(lambda: asyncio.run(run_once(dsn, tasks={"work": print})))
    assert "signals do not stop this worker" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before
    assert jobs.ids() == []


FORKING = """
import multiprocessing, time, warnings
from graphile_worker_py import task

warnings.simplefilter("ignore", DeprecationWarning)

@task
def fork(payload):
    context = multiprocessing.get_context("fork")
    child = context.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    with context.Pool(2) as pool:
        assert pool.map(abs, [-1]) == [1]
    print(f"ended {child.exitcode}", flush=True)
"""


def test_a_process_that_a_task_forks_can_be_ended_and_the_worker_still_stops(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "forking.py").write_text(FORKING)
    jobs = Jobs(dsn)
    jobs.add("fork")
    worker = processes.start(
        [sys.executable, "-m", "graphile_worker_py", "-c", dsn, "--tasks", "forking"], cwd=tmp_path
    )
    assert worker.wait_for("ended") == "ended -15"
    worker.terminate()
    assert worker.wait() == 0
    assert jobs.ids() == []
