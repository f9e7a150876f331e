"""In Python's development mode, with warnings as errors: nothing is complained of, or left.

The development mode tells of what was never awaited, closed or freed, and does so at the exit.
"""

import asyncio
import re
import sys
import uuid
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.support.eventually import eventually
from tests.support.processes import Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

STRICT = [sys.executable, "-X", "dev", "-W", "error"]
MARK = "TEST_DEV_MODE_RUN"

TASKS = """
import os
from pathlib import Path

from graphile_worker_py import task


@task
async def modern(payload, ctx):
    async with ctx.connection() as conn:
        await conn.execute("select 1")
    await ctx.add_job("plain", payload)


@task
def plain(payload, ctx):
    with ctx.connection() as conn:
        conn.execute("select 1")


@task(executor="process")
def apart(payload, ctx):
    Path("apart").write_text(str(os.getpid()))
    ctx.add_job("plain", payload)
"""
RUN_ONCE = """
import asyncio
import dev_tasks
from graphile_worker_py import run_once

asyncio.run(run_once(tasks=[dev_tasks.modern, dev_tasks.plain], concurrent_jobs=2))
"""
RUNNER = """
import asyncio
import dev_tasks
from graphile_worker_py import LocalQueueOptions, Runner, WorkerUtils

async def main():
    done = asyncio.Event()
    tasks = [dev_tasks.modern, dev_tasks.plain]
    ahead = LocalQueueOptions(size=3)
    async with Runner(tasks=tasks, crontab="0 4 * * * plain", local_queue=ahead) as runner:
        runner.events.subscribe(
            "job:success", lambda event: event.job.task_identifier == "plain" and done.set()
        )
        await runner.add_job("modern", {"n": 1})
        await done.wait()
    async with WorkerUtils() as utils:
        assert await utils.list_jobs() == []

asyncio.run(main())
"""
FOLDER = """
import asyncio
from graphile_worker_py import run_once

asyncio.run(run_once(task_directory="tasks"))
"""
PROCESS = """
import asyncio
import dev_tasks
from graphile_worker_py import run_once

if __name__ == "__main__":
    asyncio.run(run_once(tasks=[dev_tasks.apart, dev_tasks.plain]))
"""
SYNC = """
from graphile_worker_py import JobSpec, SyncWorkerUtils

with SyncWorkerUtils() as utils:
    first = utils.add_jobs([JobSpec("modern", {"n": n}) for n in range(3)])
    utils.complete_jobs([job.id for job in first])
"""
COMMAND = ["-m", "graphile_worker_py", "--once", "--tasks", "dev_tasks", "--log-level", "warning"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with tasks of all kinds."""
    (tmp_path / "dev_tasks.py").write_text(TASKS, encoding="utf-8")
    script = tmp_path / "tasks" / "script"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\ncat > ran\n", encoding="utf-8")
    script.chmod(0o755)
    return tmp_path


def of_this_run(mark: str) -> list[psutil.Process]:
    """The processes that run and descend from the one with this mark in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:  # it has ended, or is somebody else's
            continue
    return found


def complaints(stderr: str) -> list[str]:
    """The lines of an output, without those that only say that the machine was slow."""
    slow = re.compile(r"Executing <.*> took \d+\.\d+ seconds")
    return [line for line in stderr.splitlines() if not slow.fullmatch(line)]


@pytest.mark.parametrize(
    ("arguments", "identifier", "proof"),
    [
        (["-c", RUN_ONCE], "modern", None),
        (["-c", RUNNER], None, None),
        (COMMAND, "modern", None),
        (["-c", FOLDER], "script", "ran"),
        (["program.py"], "apart", "apart"),
        (["-c", SYNC], None, None),
    ],
    ids=["run_once", "Runner", "command line", "executable", "process", "SyncWorkerUtils"],
)
def test_nothing_is_complained_of_and_nothing_is_left(
    dsn: str,
    folder: Path,
    processes: Processes,
    arguments: list[str],
    identifier: str | None,
    proof: str | None,
) -> None:
    jobs, mark = Jobs(dsn), uuid.uuid4().hex
    # A process of tasks finds its functions again by their module, so this one needs a file.
    (folder / "program.py").write_text(PROCESS, encoding="utf-8")
    if identifier is not None:
        jobs.add(identifier, {"n": 1})
    # By the environment, what it starts is as strict.
    strict = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error", "PYTHONPATH": str(folder)}
    process = processes.start(
        [*STRICT, *arguments], cwd=folder, env={"DATABASE_URL": dsn, MARK: mark, **strict}
    )
    assert process.wait(timeout=15) == 0, process.stderr
    assert complaints(process.stderr) == []
    # What watches over processes of tasks reads of the end of the worker, and ends after it.
    asyncio.run(eventually(lambda: of_this_run(mark) == []))
    assert jobs.ids() == []
    if proof is not None:
        assert (folder / proof).exists()


def test_what_is_left_or_complained_of_is_found(folder: Path, processes: Processes) -> None:
    """The test above would notice."""
    mark = uuid.uuid4().hex
    left = "import subprocess; subprocess.Popen(['sleep', '30']); open('program.py').read()"
    (folder / "program.py").touch()
    process = processes.start([*STRICT, "-c", left], cwd=folder, env={MARK: mark})
    process.wait()
    assert any("ResourceWarning" in line for line in complaints(process.stderr))
    (sleeping,) = of_this_run(mark)
    assert sleeping.name() == "sleep"
    sleeping.kill()
