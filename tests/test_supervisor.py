"""Several worker processes under one parent: what becomes of them, whoever is killed."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from graphile_worker_py.config import Setting, read_settings
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.processes.cores import cores
from graphile_worker_py.processes.signals import handle_signals, pass_on
from graphile_worker_py.processes.supervised import VARIABLE
from graphile_worker_py.processes.supervisor import Patience
from tests.support.processes import Process, Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-W", "error", "-m", "graphile_worker_py"]
TASKS = """
import asyncio
import os
from graphile_worker_py import task

def say(word):
    # In one piece: two processes write to the same file.
    os.write(1, f"{word} {os.getpid()}\\n".encode())

@task
async def hello(payload):
    say("hello")

@task
async def until_abort(payload, ctx):
    say("began")
    await ctx.abort_event.wait()
    say("done")

@task
async def hang(payload):
    say("began")
    await asyncio.sleep(3600)
"""
CONNECTIONS = """
select count(*)::int as count from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""


@pytest.fixture
def start(processes: Processes, tmp_path: Path, dsn: str) -> Callable[..., Process]:
    """Starts the command with two processes, on the test's database."""
    (tmp_path / "app_tasks.py").write_text(TASKS)

    def start_command(*arguments: str, **environment: str) -> Process:
        variables = {
            "DATABASE_URL": dsn,
            "GRAPHILE_WORKER_PROCESSES": "2",
            "GRAPHILE_WORKER_GRACEFUL_SHUTDOWN_ABORT_TIMEOUT": "0.1",
            **environment,
        }
        command = [*COMMAND, *(arguments or ("--tasks", "app_tasks"))]
        return processes.start(command, cwd=tmp_path, env=variables)

    return start_command


@pytest.fixture
def pretend(processes: Processes) -> Callable[[str], Process]:
    """Starts a supervisor of two processes that only pretend to be workers."""

    def start_pretending(what: str) -> Process:
        command = [sys.executable, "-m", "tests.supervising", what]
        return processes.start(command, cwd=ROOT)

    return start_pretending


def eventually(process: Process, text: str, count: int = 1) -> None:
    """Wait until something stands in the log, so often."""
    deadline = time.monotonic() + 15
    while process.stderr.count(text) < count:
        assert time.monotonic() < deadline, process.stderr
        time.sleep(0.02)


def workers(process: Process) -> list[int]:
    """The process ids of the workers that were started, once two of them work."""
    eventually(process, "Working as", 2)
    return [int(pid) for pid in re.findall(r"Process \d started, pid (\d+)", process.stderr)]


def pause_for_a_second_signal() -> None:
    """Let the time pass in which a signal that comes again is taken for the same one."""
    time.sleep(0.35)


def numbers(process: Process, text: str) -> list[str]:
    """The numbers of the processes that logged a text."""
    return sorted(re.findall(rf"\[(\d)\] {text}", process.stderr))


def test_each_process_runs_jobs_and_all_end_with_the_parent(
    dsn: str, start: Callable[..., Process]
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "until_abort")
    process = start()
    process.wait_for("began", count=2)
    assert len(set(process.lines("began"))) == 2
    process.terminate()
    assert process.wait() == 0, process.stderr
    assert len(process.lines("done")) == 2
    assert jobs.ids() == []
    assert numbers(process, "Stopping: Graceful worker shutdown due to SIGTERM") == ["1", "2"]
    assert "at once" not in process.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_was_ended_is_replaced_while_the_other_works_on(
    dsn: str, start: Callable[..., Process], number: signal.Signals
) -> None:
    process = start()
    first, second = workers(process)
    os.kill(second, number)
    eventually(process, "starting another one in")
    eventually(process, "[2] Working as", 2)
    (third,) = {*workers(process)} - {first, second}
    jobs = Jobs(dsn)
    jobs.add_many(2, "until_abort")
    process.wait_for("began", count=2)
    assert sorted(process.lines("began")) == sorted([f"began {first}", f"began {third}"])
    process.terminate()
    assert process.wait() == 0, process.stderr
    assert jobs.ids() == []


def test_workers_end_in_order_when_the_parent_was_killed(
    dsn: str, start: Callable[..., Process]
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "until_abort")
    process = start()
    process.wait_for("began", count=2)
    pids = workers(process)
    process.kill()
    process.wait()
    try:
        eventually(process, "The supervisor has ended", 2)
        eventually(process, "Stopped", 2)
        deadline = time.monotonic() + 15
        while jobs.query(CONNECTIONS) != [{"count": 0}]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    except BaseException:
        # Nobody else would: the parent is gone, and the group's id with it.
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        raise
    assert len(process.lines("done")) == 2
    assert jobs.ids() == []


def test_a_ctrl_c_that_reaches_the_whole_group_counts_once(
    dsn: str, start: Callable[..., Process]
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "until_abort")
    process = start()
    process.wait_for("began", count=2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 0, process.stderr
    assert len(process.lines("done")) == 2
    assert "at once" not in process.stderr
    assert jobs.ids() == []


async def test_what_is_told_twice_by_different_means_is_obeyed_once() -> None:
    """Also if the signal comes long after the supervisor's word, or before it."""
    told: list[str] = []
    assert not pass_on("SIGTERM", force=False)
    with handle_signals(stop=told.append, kill=lambda name: told.append(f"kill {name}")):
        assert pass_on("SIGTERM", force=False)
        await asyncio.sleep(0.35)
        os.kill(os.getpid(), signal.SIGINT)
        assert pass_on("SIGTERM", force=False)
        await asyncio.sleep(0.01)
        assert told == ["SIGTERM"]
        assert pass_on("SIGINT", force=True)
        await asyncio.sleep(0.01)
        assert told == ["SIGTERM", "kill SIGINT"]
    assert not pass_on("SIGTERM", force=True)


@pytest.mark.parametrize("to_group", [False, True])
def test_a_second_signal_cuts_the_jobs_of_all_off(
    dsn: str, start: Callable[..., Process], to_group: bool
) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "hang")
    before = jobs.snapshot()
    process = start()
    process.wait_for("began", count=2)
    for stops in ("Stopping all processes due to", "Stopping all processes at once due to"):
        if to_group:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        eventually(process, stops)
        pause_for_a_second_signal()
    assert process.wait() == 1, process.stderr
    assert jobs.snapshot() == before
    assert jobs.locked() == []


def test_a_storm_of_signals_ends_all_in_order(dsn: str, start: Callable[..., Process]) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(2, "hang")
    before = jobs.snapshot()
    process = start()
    process.wait_for("began", count=2)
    sent = 0
    while process.returncode is None and sent < 5000:
        process.terminate()
        sent += 1
        time.sleep(0.001)
    assert process.wait() == 1, process.stderr
    assert process.stderr.count("Stopping all processes at once due to SIGTERM") == 1
    assert jobs.snapshot() == before
    assert jobs.locked() == []


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["--tasks", "nowhere"], {}, 2, "there is no module 'nowhere'"),
        (["--tasks", "app_tasks", "--crontab", "bad"], {}, 2, "line 1, column"),
        (["--tasks", "app_tasks", "-c", "host=127.0.0.1 port=1"], {}, 1, "refused"),
        (["--tasks", "app_tasks", "-P", "many"], {}, 2, "processes must be a whole number"),
        (["--tasks", "app_tasks", "-P", "0"], {}, 2, "'auto' for one per processor core"),
        (["--tasks", "app_tasks"], {"GRAPHILE_WORKER_WORKER_ID": "me"}, 2, "is for one worker"),
        (["--tasks", "app_tasks", "--health-port", "65535"], {}, 2, "it may be at most 65534"),
        (["--tasks", "app_tasks"], {VARIABLE: "1:99"}, 2, f"{VARIABLE} is '1:99'"),
    ],
)
def test_what_no_process_can_do_is_told_once_and_ends_the_parent(
    start: Callable[..., Process],
    tmp_path: Path,
    arguments: list[str],
    environment: dict[str, str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "bad").write_text("* * * nonsense\n")
    process = start(*arguments, **environment)
    assert process.wait() == code
    assert len(re.findall("^Error: ", process.stderr, re.MULTILINE)) == 1
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert "Process 2 started" not in process.stderr


def test_a_schema_that_became_too_new_ends_all_with_57(
    dsn: str, start: Callable[..., Process]
) -> None:
    process = start()
    workers(process)
    with psycopg.connect(dsn) as conn:
        conn.execute("insert into graphile_worker.migrations (id, breaking) values (21, true)")
        conn.execute("""notify "worker:migrate", '{"migrationNumber":21,"breaking":true}'""")
    assert process.wait() == 57, process.stderr
    assert "starting another one" not in process.stderr


def test_once_ends_when_all_have_ended(dsn: str, start: Callable[..., Process]) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(20, "hello")
    process = start("--once", "--tasks", "app_tasks", "--log-format", "json")
    assert process.wait() == 0, process.stderr
    assert len(process.lines("hello")) == 20
    assert jobs.ids() == []
    records = [json.loads(line) for line in process.stderr.splitlines()]
    done = [record for record in records if "job_id" in record]
    assert len(done) == 20
    assert {record["process_number"] for record in done} <= {1, 2}
    # The parent speaks for itself.
    (parents,) = [record for record in records if record["event"].startswith("Supervising")]
    assert "process_number" not in parents


def test_watching_processes_go_on_with_changed_tasks_and_end_with_the_parent(
    dsn: str, start: Callable[..., Process], tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "say.py").write_text("async def task(payload):\n    print('one', flush=True)\n")
    process = start("--watch")
    workers(process)
    # At once: nobody is to see half of it.
    (tmp_path / "new").write_text("async def task(payload):\n    print('another', flush=True)\n")
    (tmp_path / "new").rename(tasks / "say.py")
    eventually(process, "Working as", 4)
    Jobs(dsn).add("say")
    process.wait_for("another")
    process.terminate()
    assert process.wait() == 0, process.stderr
    assert numbers(process, "Stopped") == ["1", "1", "2", "2"]


def test_one_process_needs_no_parent(dsn: str, start: Callable[..., Process]) -> None:
    Jobs(dsn).add("hello")
    process = start("--once", "--tasks", "app_tasks", "--processes", "1")
    assert process.wait() == 0, process.stderr
    assert process.lines() == [f"hello {process.pid}"]


def test_auto_can_be_said_in_every_source(tmp_path: Path) -> None:
    def processes(flag: str | None, variable: str, file: str) -> Setting:
        (tmp_path / "graphile_worker.toml").write_text(file)
        environment = {"GRAPHILE_WORKER_PROCESSES": variable}
        return read_settings({"processes": flag}, directory=tmp_path, environment=environment)[
            "processes"
        ]

    assert processes(None, "", "").value == 1
    assert processes(None, "", "processes = 'auto'").value == "auto"
    assert processes(None, "auto", "processes = 3").value == "auto"
    assert processes("auto", "2", "processes = 3").value == "auto"
    with pytest.raises(ConfigurationError, match="'auto' for one per processor core, not 'all'"):
        processes(None, "all", "")


# Processes that only pretend.


def test_the_parent_gives_up_when_all_die_again_and_again(
    pretend: Callable[[str], Process],
) -> None:
    process = pretend("dies")
    assert process.wait() == 7
    # One of them may be slow, and the other one has many lives meanwhile.
    assert 3 <= len(process.lines("1 ")) <= 200
    assert 3 <= len(process.lines("2 ")) <= 200
    assert "all processes keep dying at their start" in process.stderr


def test_the_parent_goes_on_while_another_one_works(pretend: Callable[[str], Process]) -> None:
    process = pretend("first ends")
    process.wait_for("1 works", count=6)
    process.wait_for("2 works")
    process.terminate()
    # That of the second one, which was told to stop.
    assert process.wait() == 1
    assert process.lines("2 ") == ["2 works", "2 stop SIGTERM"]


def test_a_worker_that_does_not_even_stop_by_force_is_killed(
    pretend: Callable[[str], Process],
) -> None:
    process = pretend("stuck")
    process.wait_for("2 works")
    process.terminate()
    process.wait_for("1 stop SIGTERM")
    pause_for_a_second_signal()
    process.interrupt()
    assert process.wait() == 128 + signal.SIGKILL
    assert sorted(process.lines()) == sorted(
        f"{number} {said}" for number in (1, 2) for said in ("works", "stop SIGTERM", "kill SIGINT")
    )
    assert process.stderr.count("killing it with SIGKILL, its jobs stay locked") == 2


def test_a_worker_that_has_not_begun_is_not_waited_for(pretend: Callable[[str], Process]) -> None:
    process = pretend("never ready")
    process.wait_for("1 starts")
    process.terminate()
    assert process.wait() == 0
    assert process.lines() == ["1 starts"]


def test_the_highest_exit_code_is_that_of_the_parent(pretend: Callable[[str], Process]) -> None:
    assert pretend("once").wait() == 3


def test_waits_before_a_restart_grow_and_are_scattered() -> None:
    restart = Patience().restart
    for deaths, expected in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (10_000, 60)]:
        delays = [restart.delay(deaths) for _ in range(50)]
        assert all(0.5 * expected <= delay <= 1.5 * expected for delay in delays)
        assert len(set(delays)) > 1


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("cpu.max", "max 100000", None),
        ("cpu.max", "100000 100000", 1),
        ("cpu.max", "10000 100000", 1),
        ("cpu.max", "nonsense", None),
        ("cpu/cpu.cfs_quota_us", "100000", 1),
        ("cpu/cpu.cfs_quota_us", "-1", None),
        ("other", "", None),
    ],
)
def test_auto_is_what_the_process_may_use_of_its_cores(
    tmp_path: Path, file: str, text: str, expected: int | None
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / file).write_text(text)
    assert cores(tmp_path) == (expected or len(os.sched_getaffinity(0)))
