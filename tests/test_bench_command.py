"""`graphile-worker-py bench` measures on a user's database and leaves it as it was."""

import json
import sys
import time

import psycopg
import pytest

from tests.support.processes import Process, Processes
from tests.support.rows import rows_of

pytestmark = pytest.mark.any_server

COMMAND = [sys.executable, "-m", "graphile_worker_py", "bench"]
SMALL = ["--count", "100", "--json"]
OWN_SCHEMA = "graphile_worker_bench"


class Bench:
    """Runs the command on the test's database."""

    def __init__(self, processes: Processes, dsn: str) -> None:
        self._processes = processes
        self._dsn = dsn

    def start(self, *arguments: str, **variables: str) -> Process:
        env = {"DATABASE_URL": self._dsn, **variables}
        return self._processes.start([*COMMAND, *arguments], env=env)

    def run(self, *arguments: str, **variables: str) -> Process:
        process = self.start(*arguments, **variables)
        process.wait(timeout=18)
        return process

    def start_until_it_adds_jobs(self) -> Process:
        process = self.start("--count", "5000")
        deadline = time.monotonic() + 10
        while "adding jobs" not in process.stderr:
            assert time.monotonic() < deadline, process.stderr
            time.sleep(0.02)
        return process

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            cursor = conn.execute(statement)
            return rows_of(cursor)

    def schemas(self) -> list[tuple[object, ...]]:
        return self.sql("select nspname from pg_namespace order by nspname")

    def make_it_killed(self) -> None:
        process = self.start_until_it_adds_jobs()
        process.kill()
        process.wait()
        assert (OWN_SCHEMA,) in self.schemas()


@pytest.fixture
def bench(processes: Processes, dsn: str) -> Bench:
    return Bench(processes, dsn)


def test_it_measures_and_leaves_the_database_as_it_was(bench: Bench) -> None:
    bench.sql("select graphile_worker.add_job('noop')")
    before = bench.schemas()
    process = bench.run(*SMALL)
    assert process.returncode == 0, process.stderr
    figures = json.loads(process.stdout)
    assert {name: figure["unit"] for name, figure in figures.items()} == {
        "round_trip": "ms",
        "add_job": "jobs/s",
        "add_jobs": "jobs/s",
        "default": "jobs/s",
        "batched": "jobs/s",
        "latency_p50": "ms",
        "latency_p95": "ms",
        "latency_p99": "ms",
    }
    assert all(figure["value"] > 0 for figure in figures.values())
    assert bench.schemas() == before
    assert bench.sql("select task_identifier, attempts from graphile_worker.jobs") == [("noop", 0)]


def test_a_schema_that_is_there_is_refused_also_with_force(bench: Bench) -> None:
    bench.sql(f"create schema {OWN_SCHEMA}")
    bench.sql(f"create table {OWN_SCHEMA}.precious as select 1")
    for arguments in ([], ["--force"]):
        process = bench.run(*SMALL, *arguments)
        assert process.returncode == 2
        assert "exists; give another name with --schema" in process.stderr
    assert bench.sql(f"select * from {OWN_SCHEMA}.precious") == [(1,)]


def test_a_time_that_is_none_is_refused(bench: Bench) -> None:
    process = bench.run(*SMALL, "--seconds", "nan")
    assert process.returncode == 2
    assert process.stderr == "Error: --seconds must be seconds, 0 or above, not nan\n"


def test_the_schema_of_the_users_jobs_is_refused_before_it_exists(bench: Bench) -> None:
    process = bench.run(*SMALL, "--schema", "mine", GRAPHILE_WORKER_SCHEMA="mine")
    assert process.returncode == 2
    assert "this is the schema of your jobs" in process.stderr


def test_what_a_killed_one_left_is_replaced_with_force_only(bench: Bench) -> None:
    bench.make_it_killed()
    refused = bench.run(*SMALL)
    assert refused.returncode == 2
    assert "--force drops it first" in refused.stderr
    forced = bench.run(*SMALL, "--force")
    assert forced.returncode == 0, forced.stderr
    assert (OWN_SCHEMA,) not in bench.schemas()


@pytest.mark.parametrize("ending", ["interrupt", "terminate"])
def test_its_schema_is_dropped_when_it_is_told_to_end(bench: Bench, ending: str) -> None:
    process = bench.start_until_it_adds_jobs()
    getattr(process, ending)()
    assert process.wait() == 1
    assert "Aborted!" in process.stderr
    assert (OWN_SCHEMA,) not in bench.schemas()
