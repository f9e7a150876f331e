"""How far bulk work is, is shown on a terminal, and nowhere else."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from graphile_worker_py.cli.bulk import Work
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.support.processes import clean_environment

LOCK = "select 1 from graphile_worker._private_jobs for update"


@contextmanager
def command(dsn: str, *args: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command whose standard error is a terminal, which is read by the second value."""
    reads, writes = os.openpty()
    program = [sys.executable, "-m", "graphile_worker_py", *args]
    environment = clean_environment({"DATABASE_URL": dsn, "TERM": "xterm"})
    process = subprocess.Popen(
        program,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=writes,
        text=True,
    )
    os.set_blocking(reads, False)
    try:
        yield process, reads
    finally:
        process.kill()
        process.communicate()
        os.close(writes)
        os.close(reads)


def read(terminal: int) -> str:
    """What was written to a terminal since it was read."""
    try:
        return os.read(terminal, 65536).decode()
    except BlockingIOError:
        return ""


async def test_a_terminal_shows_that_rows_are_being_deleted(dsn: str) -> None:
    jobs, seen = Jobs(dsn), ""
    jobs.exhaust(jobs.add("work"))

    def shows() -> bool:
        nonlocal seen
        seen += read(terminal)
        return "Deleting … " in seen

    with psycopg.connect(dsn) as conn:
        conn.execute(LOCK)
        with command(dsn, "cleanup", "DELETE_PERMAFAILED_JOBS") as (process, terminal):
            await eventually(shows, timeout=15)
            conn.rollback()
            stdout, _ = process.communicate(timeout=15)
            seen += read(terminal)
    assert stdout == "DELETE_PERMAFAILED_JOBS: deleted 1 row.\n"
    assert seen.split("\r")[-2].strip() == seen.split("\r")[-1] == ""


async def test_with_json_nothing_is_shown(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("work")
    with psycopg.connect(dsn) as conn:
        conn.execute(LOCK)
        with command(dsn, "cancel", str(job_id), "--json") as (process, terminal):
            await eventually(jobs.waiting, timeout=15)
            conn.rollback()
            stdout, _ = process.communicate(timeout=15)
            assert '"cancelled"' in stdout
            assert read(terminal) == ""


@pytest.mark.parametrize(
    ("total", "line"),
    [(None, "Deleting 500 … 0 s"), (1000, f"Deleting [{'#' * 15}{'-' * 15}] 500/1000 0 s")],
)
def test_the_line_says_how_much_is_done(total: int | None, line: str) -> None:
    work = Work("Deleting", total)
    chunks = work.chunks(range(1000))
    assert [len(next(chunks)), len(next(chunks))] == [500, 500]
    assert work.line() == line
