"""The same executable is run alike by Node's worker and by ours."""

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from graphile_worker_py import run_once
from tests.support.node import LATEST, Node

NODE_RUN_ONCE = """
import { runOnce, Logger } from "graphile-worker";
const [connectionString, taskDirectory] = process.argv.slice(2);
const logger = new Logger((scope) => (level, message) => {
  if (scope.label === "job") console.log(JSON.stringify([level, message]));
});
await runOnce({ connectionString, taskDirectory, logger, noHandleSignals: true });
"""

TELL = """#!/usr/bin/env python3
import json, os, sys

told = {name: value for name, value in os.environ.items() if name.startswith("GRAPHILE_")}
told["input"] = sys.stdin.read()
told["arguments"] = sys.argv[1:]
told["other"] = os.environ["OF_THE_WORKER"]
with open(os.environ["TOLD"], "w") as file:
    json.dump(told, file)
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory of executables; they read their input, or Node's worker might crash."""
    tasks = tmp_path / "tasks"
    for name, text in {
        "sub/tell.py3": TELL,
        "fail.sh": "#!/bin/sh\ncat > /dev/null\necho out\necho oh >&2\nexit 3\n",
        "no-interpreter": "cat > /dev/null\n",
        "background": "#!/bin/sh\ncat > /dev/null\n(sleep 0.3; echo late) &\n",
        "plain.txt": "#!/bin/sh\n",
    }.items():
        path = tasks / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644 if name == "plain.txt" else 0o755)
    return tasks


async def add_job(dsn: str, call: str) -> int:
    """Add a job with a call of the SQL function; its id."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        # The call is the text of a test.
        rows = await conn.execute(f"select id from graphile_worker.add_job({call})".encode())
        [(job_id,)] = await rows.fetchall()
        return int(job_id)


async def rows(dsn: str) -> list[tuple[Any, ...]]:
    """The jobs that are left."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        found = await conn.execute(
            "select task_identifier, attempts, locked_at, locked_by from graphile_worker.jobs "
            "order by id"
        )
        return await found.fetchall()


@pytest.mark.parametrize(
    "call",
    [
        "'sub/tell'",
        "'sub/tell', '[1,{\"a\":null}]', job_key => 'käy', max_attempts => 3",
        "'sub/tell', '{\"text\":\"é→\"}', run_at => '2024-02-03 04:05:06.123999Z'",
        "'sub/tell', '\"text\"', priority => -7, run_at => '1999-12-31 23:59:59+14'",
    ],
)
async def test_an_executable_is_told_the_same_by_both_workers(
    dsn: str, node: Node, tasks: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    # Both jobs are of one moment, unless the call gives another, so that their times are the same.
    if "run_at" not in call:
        call += ", run_at => '2024-05-06 07:08:09.1Z'"
    surroundings = {"OF_THE_WORKER": "inherited", "GRAPHILE_WORKER_JOB_KEY": "of another job"}
    told = {}
    for worker in ("node", "python"):
        told_to = tasks.parent / worker
        environment = {**surroundings, "TOLD": str(told_to)}
        job_id = await add_job(dsn, call)
        if worker == "node":
            node.run(LATEST, NODE_RUN_ONCE, dsn, str(tasks), env=environment)
        else:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            await run_once(dsn, task_directory=tasks, no_handle_signals=True)
        told[worker] = json.loads(told_to.read_text())
        assert told[worker].pop("GRAPHILE_WORKER_JOB_ID") == str(job_id)
    assert int(told["python"].pop("GRAPHILE_WORKER_PROGRESS_FD")) > 2
    assert told["python"] == told["node"]
    assert await rows(dsn) == []


async def test_executables_have_the_same_outcome_in_both_workers(
    dsn: str, node: Node, tasks: Path
) -> None:
    left = {}
    for worker in ("node", "python"):
        for name in ("fail", "no-interpreter", "background", "plain"):
            await add_job(dsn, f"'{name}'")
        if worker == "node":
            node.run(LATEST, NODE_RUN_ONCE, dsn, str(tasks))
        else:
            await run_once(dsn, task_directory=tasks, no_handle_signals=True)
        left[worker] = await rows(dsn)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute("delete from graphile_worker._private_jobs")
    # Both leave the file that is not executable alone.
    assert left["python"] == left["node"] == [("fail", 1, None, None), ("plain", 0, None, None)]


async def test_both_workers_log_what_it_writes_at_the_same_levels(
    dsn: str, node: Node, tasks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await add_job(dsn, "'fail'")
    lines = node.run(LATEST, NODE_RUN_ONCE, dsn, str(tasks)).splitlines()
    by_node = {(level.upper(), message.strip()) for level, message in map(json.loads, lines)}
    await add_job(dsn, "'fail'")
    await run_once(dsn, task_directory=tasks, no_handle_signals=True)
    by_python = {(record.levelname, record.getMessage()) for record in caplog.records}
    assert by_node == {("INFO", "out"), ("ERROR", "oh")}
    assert by_node <= by_python
