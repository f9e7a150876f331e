"""Whoever read what a worker writes has gone, or was never there."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.processes import Processes, clean_environment
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

TASKS = """
from graphile_worker_py import task

@task
async def work(payload, ctx):
    ctx.logger.info("at work")

@task(executor="process")
def apart(payload):
    print("printed")
"""


CHATTY = """
from graphile_worker_py import task

@task
async def chat(payload, ctx):
    ctx.logger.info("x" * 8000)
"""


@contextmanager
def worker(
    folder: Path, dsn: str, output: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the command line that writes into a pipe; killed at the end."""
    command = [sys.executable, "-m", "graphile_worker_py", "--tasks", "few_tasks"]
    environment = clean_environment({"DATABASE_URL": dsn})
    joined = subprocess.STDOUT
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=output, stderr=joined
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_worker_whose_log_nobody_reads_any_more_works_on_and_ends_well(
    dsn: str, tmp_path: Path
) -> None:
    (tmp_path / "few_tasks.py").write_text(TASKS, encoding="utf-8")
    jobs = Jobs(dsn)
    with worker(tmp_path, dsn) as process:
        assert process.stdout is not None
        while b"Working as" not in (line := process.stdout.readline()):
            assert line != b""
        process.stdout.close()
        jobs.add_many(3, "work")
        await eventually(lambda: jobs.ids() == [])
        assert process.poll() is None
        process.terminate()
        assert process.wait(15) == 0
    assert jobs.locked() == []


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_worker_whose_log_is_full_works_on_and_says_later_what_is_lost(
    dsn: str, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "few_tasks.py").write_text(CHATTY, encoding="utf-8")
    jobs = Jobs(dsn)
    jobs.add_many(60, "chat")
    ours, theirs = os.pipe() if kind == "pipe" else (end.detach() for end in socket.socketpair())
    read = b""
    with worker(tmp_path, dsn, output=theirs) as process:
        os.close(theirs)
        await eventually(lambda: jobs.ids() == [], timeout=15)
        os.set_blocking(ours, False)
        with suppress(BlockingIOError):
            while True:
                read += os.read(ours, 2**16)
        jobs.add_many(60, "chat")
        await eventually(lambda: jobs.ids() == [], timeout=15)
        process.terminate()
        assert process.wait(15) == 0
    os.set_blocking(ours, True)
    while part := os.read(ours, 2**16):
        read += part
    os.close(ours)
    assert b"Working as" in read
    assert b"log line(s) were dropped, because nothing read the log" in read
    assert jobs.locked() == []


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_worker_that_has_no_standard_streams_works_like_any_other(
    dsn: str, tmp_path: Path, processes: Processes, count: str, closed: str
) -> None:
    (tmp_path / "few_tasks.py").write_text(TASKS, encoding="utf-8")
    jobs = Jobs(dsn)
    jobs.add("work", max_attempts=1)
    for _ in range(4):
        jobs.add("apart", max_attempts=1)
    command = f"exec '{sys.executable}' -m graphile_worker_py --tasks few_tasks --once {closed}"
    environment = {"DATABASE_URL": dsn, "GRAPHILE_WORKER_PROCESSES": count}
    worker = processes.start(["/bin/sh", "-c", command], cwd=tmp_path, env=environment)
    assert worker.wait(15) == 0
    assert jobs.snapshot() == []
