"""The server's limit: pgbench sends the statements of this package, without Python.

One client locks a batch of jobs, reads the rows, and deletes the jobs by their ids, as a worker
does, in two transactions. pgbench can't read ids from rows. But the ids of the backlog are
consecutive and no other client takes its jobs, so the script counts them. A job that was not
locked would not be deleted, and the check at the end would find it.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.environments import UnavailableError
from benchmarks.lab import Lab
from benchmarks.sides import add_backlog, environment
from graphile_worker_py.dev.postgres import embedded_bin_dir
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Query, Statements
from graphile_worker_py.sql.complete_jobs import complete_jobs
from graphile_worker_py.sql.get_jobs import get_jobs
from graphile_worker_py.sql.task_ids import TaskIds

POOL = "worker-pool-of-pgbench"
PLACE = 987_654_321
"""Id of a placeholder job; the script's ids replace the list that contains it."""
SETTINGS = (
    "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_sort=off"
    " -c enable_bitmapscan=off -c jit=off"
)
"""The settings of our workers' connections."""
TOLD = re.compile(r"^tps = ([\d.]+) ", re.MULTILINE)


def rate(lab: Lab, jobs: int, batch: int) -> float:
    """Jobs per second of one client.

    Raises:
        UnavailableError: There is no pgbench.
    """
    turns = max(jobs // batch, 1)
    with lab.database(lab.ours) as dsn, tempfile.TemporaryDirectory() as folder:
        add_backlog(dsn, turns * batch)
        with psycopg.connect(dsn) as conn:
            row = conn.execute(
                "select id, (select min(id) from graphile_worker._private_jobs)"
                " from graphile_worker._private_tasks"
            ).fetchone()
        assert row is not None
        text, variables = script(task_id=row[0], batch=batch)
        file = Path(folder) / "worker.sql"
        file.write_text(text)
        command = [program(), "--no-vacuum", "--client=1", f"--transactions={turns}"]
        # Prepared, with values as parameters, as our workers send them.
        command += ["--protocol=prepared", f"--file={file}", f"--define=next={row[1]}"]
        command += [f"--define={name}={value}" for name, value in variables.items()]
        done = subprocess.run(
            [*command, dsn],
            capture_output=True,
            text=True,
            check=False,
            env={**environment(), "PGOPTIONS": SETTINGS},
        )
        told = TOLD.search(done.stdout)
        if done.returncode != 0 or told is None:
            raise RuntimeError(f"pgbench failed\n{done.stdout}\n{done.stderr}")
        left = lab.ours.left(dsn)
        if left != 0:
            raise RuntimeError(f"pgbench left {left} jobs behind")
        return float(told[1]) * batch


def script(*, task_id: int, batch: int) -> tuple[str, dict[str, str]]:
    """The script, and its variables other than `next`, the id of the first job."""
    fetch = get_jobs(
        pool_id=POOL, task_ids=TaskIds({task_id: "noop"}), count=batch, forbidden_flags=None
    )
    complete = complete_jobs([Job((PLACE, None), "noop")], pool_id=POOL)
    ids = f"array(select generate_series(:next::int8, :next::int8 + {batch - 1}))"
    variables: dict[str, str] = {}
    completing = _with_variables(complete, "complete", variables, jobs=ids)
    if ids not in completing:
        raise RuntimeError(f"no place for the ids of the jobs in\n{completing}")
    lines = [_with_variables(fetch, "fetch", variables), completing, f"\\set next :next + {batch}"]
    return "\n".join(lines) + "\n", variables


def program() -> str:
    """The path of pgbench: that of the embedded server, otherwise that of the system."""
    embedded = embedded_bin_dir() / "pgbench"
    found = str(embedded) if embedded.exists() else shutil.which("pgbench")
    if found is None:
        raise UnavailableError("pgbench is not installed")
    return found


def _with_variables(
    query: Query[Any], prefix: str, variables: dict[str, str], *, jobs: str = ""
) -> str:
    """The statement with variables of pgbench for its values, and `jobs` for the job ids."""

    def variable(found: re.Match[str]) -> str:
        value = query.values[int(found[1]) - 1]
        if value is None:
            return "null"
        if jobs and str(PLACE) in str(value):
            return jobs
        name = f"{prefix}_{found[1]}"
        variables[name] = _text(value)
        return f":{name}"

    text = Statements("graphile_worker")[query.text].decode()
    return re.sub(r"\$(\d+)", variable, text).strip() + ";"


def _text(value: str | int | Sequence[int]) -> str:
    if isinstance(value, str | int):
        return str(value)
    return "{" + ",".join(map(str, value)) + "}"
