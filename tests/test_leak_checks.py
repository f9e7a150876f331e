"""The checks around every test find what a test leaves behind."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.processes import Processes

LEAKS = """
import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg

from graphile_worker_py.executors import guard, process

KEPT = []


async def test_task():
    KEPT.append(asyncio.create_task(asyncio.sleep(60), name="forgotten task"))


async def test_connection(empty_dsn):
    KEPT.append(await psycopg.AsyncConnection.connect(empty_dsn, application_name="forgotten"))


def test_thread(request):
    stop = threading.Event()
    request.config.add_cleanup(stop.set)
    threading.Thread(target=stop.wait, name="forgotten thread").start()


def test_process(request):
    child = subprocess.Popen([sys.executable, guard.__file__], stdin=subprocess.PIPE)
    request.config.add_cleanup(child.communicate)
    while guard.__file__.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes():
        time.sleep(0.01)  # the kernel is about to fill it in


async def test_tidy(empty_dsn):
    async with await psycopg.AsyncConnection.connect(empty_dsn) as connection:
        await connection.execute("select 1")
    await asyncio.create_task(asyncio.sleep(0))
    await asyncio.to_thread(threading.get_ident)
"""


@pytest.mark.timeout(60)
async def test_tests_that_leave_a_task_a_connection_a_thread_or_a_process_fail(
    processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    root = Path(__file__).parents[1]
    options = [
        "--leak-patience=1",
        "-n0",
        "-c",
        "pyproject.toml",
        f"--rootdir={root}",
        "-p",
        "no:cacheprovider",
    ]
    run = processes.start(
        [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_leaks.py")], cwd=root
    )
    assert run.wait(timeout=50) == 1
    verdicts = re.findall(r"^ERROR \S*::(\w+) - (.*)", run.stdout, re.MULTILINE)
    tests = [test for test, _ in verdicts]
    assert tests == ["test_task", "test_connection", "test_thread", "test_process"]
    assert "forgotten task" in run.stdout
    assert "application_name 'forgotten'" in run.stdout
    assert "threads running: forgotten thread" in run.stdout
    assert "left processes of tasks running: " in run.stdout


async def test_waiting_returns_the_first_true_value() -> None:
    values = iter([0, None, "", "there"])
    assert await eventually(lambda: next(values)) == "there"


async def test_waiting_asks_again_while_an_assertion_fails() -> None:
    values = iter([1, 2, 3])

    async def is_three() -> bool:
        assert next(values) == 3
        return True

    assert await eventually(is_three)


async def test_waiting_fails_at_its_deadline_and_says_what_was_missing() -> None:
    with pytest.raises(AssertionError, match=r"not so after 0\.05 s: .* returned None"):
        await eventually(lambda: None, timeout=0.05)


async def test_line_of_a_child_that_has_ended_is_found_or_missed_at_once(
    processes: Processes,
) -> None:
    child = processes.start([sys.executable, "-c", "print('one'); print('two')"])
    assert child.wait() == 0
    assert await child.seen("tw") == "two"
    assert child.wait_for("one") == "one"
    with pytest.raises(AssertionError, match="no line number 1 that starts with 'three'"):
        child.wait_for("three", timeout=60)
