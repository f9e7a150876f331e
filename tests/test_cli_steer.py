"""The commands `cancel` and `retry`."""

import json
from collections.abc import Callable

import click.testing
import pytest

from graphile_worker_py import SyncWorkerUtils
from graphile_worker_py.cli.main import main
from tests.support.running import Jobs

Call = Callable[..., click.testing.Result]


@pytest.fixture
def call(dsn: str) -> Call:
    """Run a command on the test's database."""

    def run(*args: str, code: int = 0) -> click.testing.Result:
        environment = {"DATABASE_URL": dsn, "GRAPHILE_WORKER_SCHEMA": ""}
        result = click.testing.CliRunner().invoke(main, args, env=environment)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def failed(dsn: str) -> list[int]:
    """Ids of jobs that failed for good."""
    with SyncWorkerUtils(dsn) as utils:
        ids = [utils.add_job(name).id for name in ("invoice", "invoice", "mail")]
        utils.permanently_fail_jobs(ids[:1], "timeout after 5 s")
        utils.permanently_fail_jobs(ids[1:], "no such customer")
    return ids


def test_waiting_jobs_are_cancelled(dsn: str, call: Call) -> None:
    ids = [Jobs(dsn).add("work") for _ in range(2)]
    shown = call("cancel", str(ids[0]), "--reason", "not needed").stdout
    assert shown.split() == ["id", "state", str(ids[0]), "cancelled"]
    assert Jobs(dsn).ids() == ids[1:]
    done = json.loads(call("cancel", "--json", str(ids[1])).stdout)
    assert done == [{"job_id": ids[1], "state": "cancelled"}]


def test_a_dry_run_cancels_nothing(dsn: str, call: Call) -> None:
    job_id = Jobs(dsn).add("work")
    assert "cancelled" in call("cancel", "--dry-run", str(job_id)).stdout
    assert Jobs(dsn).ids() == [job_id]


def test_a_job_that_is_not_there_is_an_error(call: Call) -> None:
    assert "not there: 999" in call("cancel", "999", code=1).stderr


def test_failed_jobs_are_retried_by_ids_or_by_a_filter(
    dsn: str, call: Call, failed: list[int]
) -> None:
    call("retry", str(failed[2]))
    assert (
        "Would have retried 1 job"
        in call(
            "retry", "--state", "failed", "--task", "invoice", "--error", "timeout%", "--dry-run"
        ).stdout
    )
    call("retry", "--state", "failed", "--error", "timeout%")
    left = Jobs(dsn).query("select id from graphile_worker.jobs where attempts = max_attempts")
    assert [row["id"] for row in left] == [failed[1]]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give the ids of jobs, or --state"),
        (["1", "--state", "failed"], "not both"),
        (["1", "--task", "mail"], "--task and --error need --state"),
        (["x"], "a job id is a whole number, not 'x'"),
    ],
)
def test_what_can_not_be_meant_is_refused(call: Call, args: list[str], message: str) -> None:
    assert message in call("retry", *args, code=2).stderr
