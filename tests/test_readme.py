"""What the README shows is run, and not only read."""

import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support.app import make_app, work_until_sigterm
from tests.support.processes import Processes

pytestmark = pytest.mark.any_server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_program_runs_its_job(empty_dsn: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PYTHON_BLOCKS[0], encoding="utf-8")
    subprocess.run(
        [sys.executable, program], env={"DATABASE_URL": empty_dsn}, check=True, timeout=15
    )
    with psycopg.connect(empty_dsn) as conn:
        assert conn.execute("select count(*) from graphile_worker.jobs").fetchone() == (0,)
        assert conn.execute("select identifier from graphile_worker._private_tasks").fetchall() == [
            ("send_email",)
        ]


def test_the_program_about_adding_jobs_adds_them(empty_dsn: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PYTHON_BLOCKS[1], encoding="utf-8")
    subprocess.run(
        [sys.executable, program], env={"DATABASE_URL": empty_dsn}, check=True, timeout=15
    )
    with psycopg.connect(empty_dsn) as conn:
        rows = conn.execute(
            "select task_identifier, queue_name, priority, key"
            " from graphile_worker.jobs order by id"
        ).fetchall()
    assert rows == [
        ("send_email", "mail", -1, "reminder:ada"),
        ("send_email", None, 0, None),
        ("send_email", None, 0, None),
        ("send_email", None, 0, None),
        ("ship", None, 0, None),
    ]


def test_the_sql_call_adds_a_job(dsn: str) -> None:
    (statement,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(statement.replace("new.email", "'ada@example.com'"))
        row = conn.execute("select task_identifier from graphile_worker.jobs").fetchone()
    assert row == ("send_email",)


def test_the_command_starts_a_worker_that_ends_well_by_sigterm(
    dsn: str, tmp_path: Path, processes: Processes
) -> None:
    (command,) = re.findall(r"^graphile-worker-py --tasks .*$", README, re.MULTILINE)
    make_app(tmp_path)
    work_until_sigterm(processes, ["bash", "-c", f"exec {command}"], folder=tmp_path, dsn=dsn)
    with psycopg.connect(dsn) as conn:
        known = conn.execute("select identifier from graphile_worker._private_known_crontabs")
        assert known.fetchall() == [("rollup",)]


@pytest.mark.timeout(60)
def test_the_demo_shows_everything_and_ends_well(processes: Processes) -> None:
    process = processes.start([sys.executable, "-m", "graphile_worker_py", "demo"])
    assert process.wait(timeout=45) == 0, process.stderr
    text = process.stdout
    for shown in (
        "send_receipt: order 1",
        "rollup: the minute of",
        "attempt 2 succeeded",
        "entry 5 in queue 'ledger'",
        "publish: 'final text'",
        "jobs done in",
    ):
        assert shown in text
    assert "first draft" not in text
