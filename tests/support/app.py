"""The application that the documentation speaks of, and a worker for it as its pages start one."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import Process, Processes
from tests.support.running import Jobs

TASKS = """
from pathlib import Path

from graphile_worker_py import task


@task
async def send_email(payload, ctx):
    print("began", payload["to"], flush=True)
    await ctx.abort_event.wait()
    Path("ended").write_text(payload["to"])


@task
def rollup(payload):
    pass
"""
GRACE = "GRAPHILE_WORKER_GRACEFUL_SHUTDOWN_ABORT_TIMEOUT"


def make_app(folder: Path) -> None:
    """Make the package `myapp` with its tasks, and a crontab."""
    package = folder / "myapp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(TASKS, encoding="utf-8")
    (folder / "crontab").write_text("0 4 * * * rollup\n", encoding="utf-8")


def work_until_sigterm(
    processes: Processes, command: Sequence[str], *, folder: Path, dsn: str
) -> Process:
    """Start a worker, and tell it to end by SIGTERM while it has a job, which ends first.

    Raises:
        AssertionError: It did not work, or did not end well.
    """
    jobs = Jobs(dsn)
    jobs.add("send_email", {"to": "ada@example.com"})
    programs = Path(sys.executable).parent
    environment = {
        "DATABASE_URL": dsn,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        # The job ends when the stop is some time old.
        GRACE: "0.1",
    }
    process = processes.start(command, cwd=folder, env=environment)
    process.wait_for("began ada@example.com")
    process.terminate()
    assert process.wait(timeout=15) == 0, process.stderr
    assert (folder / "ended").read_text() == "ada@example.com"
    assert jobs.ids() == []
    return process
