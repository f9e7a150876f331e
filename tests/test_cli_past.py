"""The commands that show what became of jobs, and the cleanup of old ones."""

import asyncio
import json
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import click.testing
import pytest

from graphile_worker_py import SyncWorkerUtils, run_once
from graphile_worker_py.cli.main import main
from graphile_worker_py.tasks.task import Task
from tests.support.running import Jobs

Call = Callable[..., click.testing.Result]


@pytest.fixture
def jobs(dsn: str) -> Iterator[Jobs]:
    """The jobs of a database without a side schema, before and after the test."""
    jobs = Jobs(dsn)
    jobs.query("drop schema if exists graphile_worker_py cascade")
    yield jobs
    jobs.query("drop schema if exists graphile_worker_py cascade")


@pytest.fixture
def call(dsn: str) -> Call:
    """Run a command on the test's database."""

    def run(*args: str, code: int = 0) -> click.testing.Result:
        runner = click.testing.CliRunner()
        environment = {"DATABASE_URL": dsn, "GRAPHILE_WORKER_SCHEMA": "", "COLUMNS": "200"}
        result = runner.invoke(main, args, env=environment)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def ended(dsn: str, jobs: Jobs) -> tuple[int, int]:
    """Ids of a job that has succeeded and of one that waits for its next attempt."""

    async def work(payload: dict[str, Any]) -> Any:
        if payload.get("fails"):
            raise ValueError("no\nway\x1b[31m")
        return {"n": 2**70}

    task: Task[Any] = Task(work, "work", history="all", keep_result=True)
    done, failed = jobs.add("work", {}), jobs.add("work", {"fails": True})
    asyncio.run(run_once(dsn, tasks=[task], concurrent_jobs=2))
    return done, failed


def test_runs_are_listed(call: Call, ended: tuple[int, int]) -> None:
    done, failed = ended
    table = call("runs").stdout.splitlines()
    assert table[0].split()[:5] == ["ended", "job", "task", "attempt", "outcome"]
    assert len(table) == 3
    line = next(line for line in table if f" {failed} " in line)
    assert "retried" in line
    assert "no\\nway\\x1b[31m" in line
    (found,) = json.loads(call("runs", "--json", "--outcome", "completed").stdout)
    assert (found["job_id"], found["outcome"], found["result"]) == (done, "completed", {"n": 2**70})
    assert found["wait"] >= 0
    assert json.loads(call("runs", "--json", "--job", str(failed)).stdout)[0]["job_id"] == failed
    assert len(json.loads(call("runs", "--json", "--since", "1h").stdout)) == 2
    assert call("runs", "--until", "1h").stdout == "No attempts.\n"
    assert call("runs", "--since", "2999-01-01").stdout == "No attempts.\n"
    first = call("runs", "--limit", "1")
    cursor = first.stderr.partition("--after ")[2].strip()
    (second,) = call("runs", "--after", cursor).stdout.splitlines()[1:]
    assert second != first.stdout.splitlines()[1]


def test_a_job_is_shown_with_its_runs_also_when_it_is_gone(
    call: Call, ended: tuple[int, int]
) -> None:
    done, failed = ended
    shown = call("job", str(failed), "--runs").stdout
    assert "last error" in shown
    assert "retried" in shown
    found = json.loads(call("job", str(done), "--runs", "--json").stdout)
    assert (found["id"], [run["outcome"] for run in found["runs"]]) == (done, ["completed"])
    assert "completed" in call("job", str(done), "--runs").stdout
    assert "--runs shows" in call("job", str(done), code=1).stderr
    assert "there is no job 999" in call("job", "999", "--runs", code=1).stderr


def test_stats_are_counted_by_task_and_step(call: Call, ended: tuple[int, int]) -> None:
    header, row = call("stats").stdout.splitlines()
    assert header.split()[:4] == ["task", "completed", "failed", "retried"]
    assert row.split()[:4] == ["work", "1", "0", "1"]
    (found,) = json.loads(call("stats", "--since", "10m", "--task", "work", "--json").stdout)
    assert (found["completed"], found["retried"], found["discarded"]) == (1, 1, 0)
    assert found["run"].keys() == {"p50", "p95", "p99"}
    assert "at" in call("stats", "--step", "5m").stdout.splitlines()[0].split()
    assert call("stats", "--task", "other").stdout == "No job has ended.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs", "--since", "yesterday"), "'yesterday' is not an ISO 8601 time"),
        (("runs", "--outcome", "done"), "is not one of 'completed'"),
        (("runs", "--after", "x"), "after must be a run of the page before"),
        (("runs", "--job", "x"), "a job id is a whole number"),
        (("stats", "--step", "0m"), "step must be seconds, above 0"),
        (("stats", "--step", "5"), "'5' is not a time such as 90m"),
        (("cleanup", "GC_JOB_QUEUES", "--older-than", "1d", "-y"), "older_than is for DELETE"),
        (("cleanup", "DELETE_PERMAFAILED_JOBS", "--older-than", "1", "-y"), "is not a time such"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    call: Call, ended: tuple[int, int], arguments: tuple[str, ...], message: str
) -> None:
    assert message in " ".join(call(*arguments, code=2).stderr.split())


def test_without_history_the_commands_say_what_is_missing(call: Call, jobs: Jobs) -> None:
    for command in ("runs", "stats"):
        assert "migrate --side-schema" in call(command, code=1).stderr


def test_only_jobs_that_failed_long_ago_are_cleaned_up(call: Call, dsn: str, jobs: Jobs) -> None:
    ids = [jobs.add("work") for _ in range(4)]
    with SyncWorkerUtils(dsn) as utils:
        utils.permanently_fail_jobs(ids[:3])
    ago = "now() - '31 days'::interval"
    for job_id in (ids[0], ids[3]):
        jobs.change(job_id, f"run_at = {ago}, updated_at = {ago}")
    # One that failed now, after it had waited for long.
    jobs.change(ids[1], f"updated_at = {ago}")
    arguments = ("cleanup", "DELETE_PERMAFAILED_JOBS", "-y", "--older-than", "30d")
    shown = call(*arguments, "--dry-run").stdout
    assert shown == "DELETE_PERMAFAILED_JOBS: would have deleted 1 row.\n"
    assert json.loads(call(*arguments, "--json").stdout) == {"DELETE_PERMAFAILED_JOBS": 1}
    assert jobs.ids() == ids[1:]


def test_the_command_has_a_second_short_name() -> None:
    scripts = {each.name: each.value for each in entry_points(group="console_scripts")}
    assert scripts["gwp"] == scripts["graphile-worker-py"]
