"""The flags of Graphile Worker's command mean the same to ours, in both of their forms."""

import json
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support.processes import Processes

COMMAND = [sys.executable, "-m", "graphile_worker_py"]
TASKS = """
import threading
from graphile_worker_py import task

together = threading.Barrier(2)

@task
def meet(payload):
    together.wait(15)
    print("met\\n", end="", flush=True)
"""
LONG = {
    "-c": "--connection",
    "-s": "--schema",
    "-j": "--jobs",
    "-m": "--max-pool-size",
    "-C": "--config",
}


@pytest.mark.parametrize("form", ["short", "long"])
def test_the_flags_of_graphile_worker_mean_the_same(
    empty_dsn: str, tmp_path: Path, processes: Processes, form: str
) -> None:
    (tmp_path / "flag_tasks.py").write_text(TASKS, encoding="utf-8")
    (tmp_path / "mine.toml").write_text('tasks = "flag_tasks"\n', encoding="utf-8")
    common = {"-c": empty_dsn, "-s": "Other schema", "-C": "mine.toml"}
    of_a_worker = {**common, "-j": "2", "-m": "5", "--poll-interval": "0.5"}

    def run(flags: dict[str, str], *more: str) -> str:
        words = [
            word
            for name, value in flags.items()
            for word in (LONG.get(name, name) if form == "long" else name, value)
        ]
        process = processes.start([*COMMAND, *words, *more], cwd=tmp_path)
        assert process.wait(timeout=15) == 0, process.stderr
        return process.stdout

    assert run(common, "--schema-only") == "Schema updated\n"
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        for _ in range(2):
            conn.execute("""select "Other schema".add_job('meet')""")
        # Two jobs that wait for each other end only if two run at a time.
        assert run(of_a_worker, "--no-prepared-statements", "--once").split() == ["met", "met"]
        left = conn.execute("""select count(*) from "Other schema".jobs""").fetchone()
    assert left == (0,)


def test_cleanup_is_a_command_that_takes_several_tasks(
    dsn: str, tmp_path: Path, processes: Processes
) -> None:
    """Where Graphile Worker has the flag `--cleanup` with a list."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "select graphile_worker.add_job('gone', queue_name => 'gone', max_attempts => 1)"
        )
        conn.execute("select graphile_worker.permanently_fail_jobs('{1}')")
    tasks = ["DELETE_PERMAFAILED_JOBS", "GC_TASK_IDENTIFIERS", "GC_JOB_QUEUES"]
    words = ["cleanup", *tasks, "--yes", "--json", "--connection", dsn]
    process = processes.start([*COMMAND, *words], cwd=tmp_path)
    assert process.wait(timeout=15) == 0, process.stderr
    assert json.loads(process.stdout) == dict.fromkeys(tasks, 1)


def test_a_flag_that_does_not_exist_is_refused_with_2(processes: Processes, tmp_path: Path) -> None:
    process = processes.start([*COMMAND, "--no-such-flag"], cwd=tmp_path)
    assert process.wait(timeout=15) == 2
    assert "No such option" in process.stderr
    told = processes.start([*COMMAND, "--help"], cwd=tmp_path)
    assert told.wait(timeout=15) == 0
    assert "--version" in told.stdout
