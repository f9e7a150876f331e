"""A worker ends although its tasks have left threads, or do not end themselves."""

import sys
from pathlib import Path

import pytest

from tests.support.processes import Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

TASKS = """
import asyncio, threading, time
from graphile_worker_py import task

@task
def thread(payload):
    threading.Thread(target=time.sleep, args=(60,), name="left", daemon=False).start()

@task(timeout=0.1)
async def to_thread(payload):
    await asyncio.to_thread(time.sleep, 60)

@task
async def unending(payload):
    async def swallow():
        while True:
            try:
                await asyncio.sleep(60)
            except BaseException:
                pass
    global left
    left = asyncio.create_task(swallow(), name="left")
    await asyncio.sleep(0.05)

@task
def nothing(payload):
    pass
"""


@pytest.mark.parametrize("by", ["once", "SIGTERM"])
@pytest.mark.parametrize("name", ["thread", "to_thread", "unending", "nothing"])
def test_the_process_ends_soon_and_names_what_runs_on(
    dsn: str, processes: Processes, tmp_path: Path, name: str, by: str
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add(name)
    (tmp_path / "left_tasks.py").write_text(TASKS)
    once = ["--once"] if by == "once" else []
    worker = processes.start(
        [sys.executable, "-m", "graphile_worker_py", "-c", dsn, "--tasks", "left_tasks", *once],
        cwd=tmp_path,
    )
    ended = "Failed job" if name == "to_thread" else "Completed job"
    if by == "SIGTERM":
        while ended not in worker.stderr + worker.stdout:
            assert worker.returncode is None
        worker.terminate()
    assert worker.wait(15) == 0
    said = worker.stderr + worker.stdout
    assert ended in said
    if name == "to_thread":
        assert jobs.one(job_id)["last_error"].startswith("task 'to_thread' ran longer")
    else:
        assert jobs.ids() == []
    assert ("Ending without 1 thread(s) or asyncio task(s)" in said) is (name != "nothing")
    if name in ("thread", "unending"):
        assert "'left'" in said
