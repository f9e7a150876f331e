"""The commands that add, show and change jobs."""

import asyncio
import json
import os
import pty
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import click.testing
import pytest

from graphile_worker_py import GraphileWorkerError, JobSpec, Runner, SyncWorkerUtils
from graphile_worker_py.cli.main import main
from graphile_worker_py.events import PoolListenSuccess
from tests.support.jobs import Jobs
from tests.support.processes import clean_environment
from tests.support.running import Told

LATER = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)

Call = Callable[..., click.testing.Result]


@pytest.fixture
def call(dsn: str) -> Call:
    """Run a command on the test's database."""

    def run(*args: str, code: int = 0, stdin: str = "", **env: str) -> click.testing.Result:
        environment = {"DATABASE_URL": dsn, "GRAPHILE_WORKER_SCHEMA": "", **env}
        runner = click.testing.CliRunner()
        result = runner.invoke(main, args, input=stdin, env=environment)
        assert result.exit_code == code, result.output
        return result

    return run


def test_add_jobs_adds_all_lines_of_a_file_or_none(
    call: Call, stored: Jobs, tmp_path: Path
) -> None:
    full = {
        "task": "send", "payload": {"n": 2**70}, "queue_name": "mail", "job_key": "k",
        "job_key_mode": "replace", "run_at": "2030-01-02T03:04:05Z", "priority": 3,
        "max_attempts": 2, "flags": ["eu"],
    }  # fmt: skip
    lines = [json.dumps(full), "", *('{"task": "many", "run_in": 60}' for _ in range(2500))]
    file = tmp_path / "jobs.ndjson"
    file.write_text("\n".join(lines))
    assert call("add-jobs", str(file), "--dry-run").stdout == "Would have added 2501 jobs.\n"
    assert stored.ids() == []
    assert rows(call("add-jobs", str(file), "--json")) == {"added": 2501}
    (first,) = (row for row in stored.all() if row["task_identifier"] == "send")
    assert (first["payload"], first["run_at"], first["flags"]) == (
        {"n": 2**70}, LATER, {"eu": True},
    )  # fmt: skip
    before = len(stored.ids())
    for line, said in (
        ("{", "line 2502: "),
        ("[]", 'line 2502: must be an object such as {"task": "send_email"}'),
        ('{"task": "a", "priority": "high"}', "line 2502: priority must be a whole number"),
        (
            '{"task": "a", "queue": "b"}',
            "line 2502: unknown argument 'queue'; did you mean 'queue_name'?",
        ),
        ('{"task": 7}', "line 2502: task must be text, not 7"),
    ):
        many = "\n".join(['{"task": "many"}'] * 2501 + [line])
        assert said in call("add-jobs", "-", stdin=many, code=2).stderr, line
    assert len(stored.ids()) == before


@pytest.fixture
def jobs(dsn: str, stored: Jobs) -> list[int]:
    """Ids of jobs that are ready, scheduled, failed and running."""
    with SyncWorkerUtils(dsn) as utils:
        ready = utils.add_job("a", {"n": 1}, queue_name="q", job_key="k")
        scheduled = utils.add_job("b", {"n": 2.50}, run_at=LATER)
        failed = utils.add_job("b", {"n": 2**70})
        running = utils.add_job("a", queue_name="r", job_key="running")
        utils.permanently_fail_jobs([failed.id], "no\x1b[31m way\n" + "!" * 100)
    stored.lock(running.id)
    return [ready.id, scheduled.id, failed.id, running.id]


def rows(result: click.testing.Result) -> Any:
    """What a command printed as JSON."""
    return json.loads(result.stdout)


def test_add_job_adds_what_is_typed(call: Call, stored: Jobs) -> None:
    result = call(
        "add-job", "send", '{"to": "ä"}', "--queue", "mail", "--key", "k", "--key-mode", "replace",
        "--run-at", "2030-01-02T03:04:05Z", "--priority", "0", "--max-attempts", "3",
        "--flag", "eu", "--flag", "big",
    )  # fmt: skip
    (row,) = stored.all()
    assert result.stdout == f"Added job {row['id']}.\n"
    assert (row["task_identifier"], row["payload"]) == ("send", {"to": "ä"})
    assert (row["queue_name"], row["key"], row["run_at"]) == ("mail", "k", LATER)
    assert (row["priority"], row["max_attempts"]) == (0, 3)
    assert row["flags"] == {"eu": True, "big": True}


def test_add_job_reads_the_payload_from_standard_input(call: Call, stored: Jobs) -> None:
    call("add-job", "a", "-", stdin="[1, 2]\n")
    call("add-job", "a")
    assert [row["payload"] for row in stored.all()] == [[1, 2], {}]


def test_add_job_prints_the_job_as_json(call: Call) -> None:
    big = 12345678901234567890123
    job = rows(call("add-job", "a", f'{{"n": {big}}}', "--key", "k", "--json"))
    assert (job["task_identifier"], job["payload"], job["key"]) == ("a", {"n": big}, "k")
    again = call("add-job", "a", "--key", "k")
    assert again.stdout == f"Job {job['id']} had the key; it is now at revision 1.\n"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("+10m", {"minutes": 10}), ("+1w2d3h4m5s", {"weeks": 1, "days": 2, "seconds": 11045})],
)
def test_run_at_may_be_a_time_from_now(
    call: Call, stored: Jobs, typed: str, expected: dict[str, float]
) -> None:
    before = datetime.now(UTC)
    call("add-job", "a", "--run-at", typed)
    after = datetime.now(UTC)
    (row,) = stored.all()
    assert before <= row["run_at"] - timedelta(**expected) <= after


def test_wrong_usage_exits_with_2_and_names_the_value(call: Call, stored: Jobs) -> None:
    for args, named in (
        (("add-job", "a", "{no"), "PAYLOAD"),
        (("add-job", "a", "-"), "PAYLOAD"),
        (("add-job", "i" * 129), "identifier"),
        (("add-job", "a", "--key", ""), "job_key"),
        (("add-job", "a", "--key-mode", "x"), "--key-mode"),
        (("add-job", "a", "--run-at", "soon"), "--run-at"),
        (("add-job", "a", "--run-at", "+"), "--run-at"),
        (("add-job", "a", "--run-at", "+99999999999w"), "--run-at"),
        (("add-job", "a", "--priority", "32768"), "priority"),
        (("cleanup", ","), "GC_JOB_QUEUES"),
        (("add-job", "a", "--max-attempts", "0"), "max_attempts"),
        (("jobs", "--state", "done"), "--state"),
        (("jobs", "--limit", "0"), "--limit"),
        (("jobs", "--after", "x"), "after"),
        (("complete",), "ID"),
        (("complete", "x"), "ids"),
        (("fail", "1.5"), "ids"),
        (("reschedule", "1"), "--run-at"),
        (("reschedule", "1", "--attempts", "-1"), "attempts"),
        (("unlock",), "POOL"),
        (("cleanup",), "TASK"),
        (("cleanup", "everything"), "EVERYTHING"),
        (("remove", ""), "job_key"),
        (("counts", "--schema", ""), "schema"),
        (("counts", "--connection", "nonsense"), "nonsense"),
    ):
        result = call(*args, code=2)
        assert named in result.stderr, args
        assert result.stdout == "", args
    assert stored.all() == []


def test_jobs_are_shown_as_a_table_that_no_text_can_break(call: Call, jobs: list[int]) -> None:
    lines = call("jobs").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["id", *map(str, reversed(jobs))]
    assert max(map(len, lines)) <= 80
    assert [line.split()[1] for line in lines[1:]] == ["running", "failed", "scheduled", "ready"]
    assert re.search(r"  in \d+ d  ", lines[3])
    assert r"no\x1b[31m way\n!!!" in lines[2]
    assert lines[2].endswith("…")
    assert "!" * 60 not in lines[2]


def test_jobs_are_filtered_and_shown_page_by_page(call: Call, jobs: list[int]) -> None:
    def ids(*args: str) -> list[int]:
        return [job["id"] for job in rows(call("jobs", "--json", *args))]

    ready, scheduled, failed, running = jobs
    assert ids("--state", "ready") == [ready]
    assert ids("--task", "b") == [failed, scheduled]
    assert ids("--queue", "q") == [ready]
    assert ids("--key", "k") == [ready]
    assert ids("--text", "no\x1b") == [failed]
    assert ids("--locked-by", "pool-1") == [running]
    page = call("jobs", "--limit", "2")
    assert page.stderr == f"Older ones: --after {failed}\n"
    assert ids("--limit", "2", "--after", str(failed)) == [scheduled, ready]
    assert call("jobs", "--task", "none").stdout == "No jobs.\n"
    assert ids("--task", "none") == []


def test_a_job_that_is_tried_again_is_retrying(call: Call, jobs: list[int], stored: Jobs) -> None:
    stored.change(jobs[1], "attempts = 1, last_error = 'no way'")
    assert call("jobs", "--task", "b").stdout.splitlines()[2].split()[:2] == ["2", "retrying"]
    assert "state       retrying\n" in call("job", str(jobs[1])).stdout
    found = rows(call("jobs", "--state", "retrying", "--json"))
    assert [(job["id"], job["state"]) for job in found] == [(jobs[1], "scheduled")]
    assert call("jobs", "--state", "retrying", "--task", "a").stdout == "No jobs.\n"
    with_limit = call("jobs", "--state", "retrying", "--limit", "1")
    assert with_limit.stderr == f"Older ones: --after {jobs[1]}\n"


def test_json_has_all_jobs_and_a_table_says_that_there_are_more(call: Call, dsn: str) -> None:
    with SyncWorkerUtils(dsn) as utils:
        ids = [job.id for job in utils.add_jobs([JobSpec("a")] * 60)]
    assert len(rows(call("jobs", "--json"))) == 60
    table = call("jobs")
    assert len(table.stdout.splitlines()) == 51
    assert table.stderr == f"Older ones: --after {ids[10]}\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_table_fits_into_the_terminal(call: Call, dsn: str, columns: int) -> None:
    with SyncWorkerUtils(dsn) as utils:
        long = "x" * 100
        job = utils.add_job(long, queue_name=long, job_key=long, run_at=LATER)
        utils.permanently_fail_jobs([job.id], long)
    for command in ("jobs", "queues", "counts"):
        lines = call(command, COLUMNS=str(columns)).stdout.splitlines()
        assert max(map(len, lines)) == columns
        assert "x…" in lines[1]


def test_jobs_as_json_have_all_columns_and_the_payload_as_stored(
    call: Call, jobs: list[int], stored: Jobs
) -> None:
    printed = {job["id"]: job for job in rows(call("jobs", "--json"))}
    assert list(printed) == list(reversed(jobs))
    assert printed[jobs[2]]["payload"] == {"n": 2**70}
    assert '"payload":{"n":2.5}' in call("jobs", "--json", "--task", "b").stdout
    for row in stored.all():
        job = printed[row["id"]]
        assert set(job) == {*row, "state"} - {"json"}
        assert (job["queue_name"], job["locked_by"]) == (row["queue_name"], row["locked_by"])
        assert datetime.fromisoformat(job["run_at"]) == row["run_at"]


def test_one_job_is_shown_whole(call: Call, jobs: list[int], stored: Jobs) -> None:
    ready, _, failed, running = jobs
    shown = call("job", str(failed)).stdout
    fields = dict(line.split(None, 1) for line in shown.splitlines() if line[:1].strip())
    assert (fields["id"], fields["state"], fields["task"]) == (str(failed), "failed", "b")
    assert fields["queue"] == fields["key"] == fields["flags"] == "-"
    assert f'payload     {{"n":{2**70}}}\n' in shown
    assert shown.endswith("last error  no\\x1b[31m way\n            " + "!" * 100 + "\n")
    assert "queue       q\nkey         k\n" in call("job", str(ready)).stdout
    assert "locked by   pool-1\n" in call("job", str(running)).stdout
    printed = rows(call("job", str(failed), "--json"))
    assert printed == next(job for job in rows(call("jobs", "--json")) if job["id"] == failed)


def test_characters_that_the_terminal_lacks_are_shown_as_escapes(dsn: str, jobs: list[int]) -> None:
    with SyncWorkerUtils(dsn) as utils:
        job = utils.add_job("caf\xe9", {"sky": "\N{SNOWMAN}"})
    runner = click.testing.CliRunner(charset="latin-1")
    result = runner.invoke(main, ["job", str(job.id)], env={"DATABASE_URL": dsn})
    assert result.exit_code == 0
    assert "task        caf\xe9\n" in result.stdout
    assert 'payload     {"sky":"\\u2603"}\n' in result.stdout


def test_a_job_that_is_not_there_is_told(call: Call) -> None:
    expected = "Error: there is no job 4711; completed jobs are deleted; --runs shows attempts"
    assert call("job", "4711", code=1).stderr.startswith(expected)
    assert "a job id is a whole number, not 'x'" in call("job", "x", code=2).stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("migrat", "'migrate'"),
        ("reshedule", "'reschedule' or 'resume'"),
        ("jobss", "'jobs' or 'job' or 'add-jobs'"),
        ("cancle", "'cancel'"),
        ("delete", "'remove KEY' or 'complete ID'"),
        ("version", "'--version'"),
    ],
)
def test_a_misspelt_command_is_told_with_the_one_that_may_be_meant(
    call: Call, typed: str, meant: str
) -> None:
    assert f"No such command {typed!r}; did you mean {meant}?" in call(typed, code=2).stderr


def test_counts_queues_and_workers_are_shown(call: Call, jobs: list[int]) -> None:
    counted = rows(call("counts", "--json"))
    assert counted.pop("tasks") == {
        "a": {"ready": 1, "scheduled": 0, "running": 1, "failed": 0, "total": 2},
        "b": {"ready": 0, "scheduled": 1, "running": 0, "failed": 1, "total": 2},
    }
    assert counted == {"ready": 1, "scheduled": 1, "running": 1, "failed": 1, "total": 4}
    assert call("counts").stdout.splitlines()[-1].split() == ["(all)", "1", "1", "1", "1", "4"]

    queues = rows(call("queues", "--json"))
    assert [(each["name"], each["jobs"], each["locked_by"]) for each in queues] == [
        ("q", 1, None),
        ("r", 1, "pool-1"),
    ]
    assert call("queues").stdout.splitlines()[1].split() == ["q", "1", "-", "-"]

    (worker,) = rows(call("workers", "--json"))
    assert (worker["pool_id"], worker["jobs"], worker["queues"]) == ("pool-1", 1, 1)
    assert "pool-1" in call("workers").stdout


async def test_pools_that_have_registered_are_shown_with_their_process(
    dsn: str, call: Call, jobs: list[int]
) -> None:
    told = Told()
    async with Runner(dsn, tasks={"none": print}, events=told.events) as runner:
        await told.seen(PoolListenSuccess)
        holder, registered = rows(await asyncio.to_thread(call, "workers", "--json"))
        assert (holder["pool_id"], holder["state"], holder["pid"]) == ("pool-1", None, None)
        assert (registered["pool_id"], registered["jobs"]) == (runner.pool_id, 0)
        assert (registered["state"], registered["pid"]) == ("alive", os.getpid())
        assert 0 <= registered["heartbeat_age"] < 8


def test_jobs_are_completed(call: Call, jobs: list[int], stored: Jobs) -> None:
    result = call("complete", str(jobs[0]), str(jobs[1]))
    assert result.stdout.endswith("Completed 2 of 2 jobs.\n")
    assert [row["id"] for row in stored.all()] == jobs[2:]


def test_what_is_left_alone_is_told_and_exits_with_1(
    call: Call, jobs: list[int], stored: Jobs
) -> None:
    result = call("complete", str(jobs[0]), str(jobs[3]), "999", code=1)
    assert result.stdout.endswith("Completed 1 of 3 jobs.\n")
    assert f"{jobs[3]}, 999" in result.stderr
    assert [row["id"] for row in stored.all()] == jobs[1:]
    assert rows(call("complete", "999", "--json", code=1)) == []


def test_jobs_are_failed(call: Call, jobs: list[int], stored: Jobs) -> None:
    (failed,) = rows(call("fail", str(jobs[0]), "--reason", "why not", "--json"))
    assert (failed["id"], failed["last_error"], failed["attempts"]) == (jobs[0], "why not", 25)
    call("fail", str(jobs[1]))
    assert stored.one(jobs[1])["last_error"] == "Manually marked as failed"


def test_jobs_are_rescheduled(call: Call, jobs: list[int], stored: Jobs) -> None:
    call(
        "reschedule", str(jobs[2]), "--run-at", "2030-01-02T04:04:05+01:00", "--priority", "0",
        "--attempts", "0", "--max-attempts", "4",
    )  # fmt: skip
    row = stored.one(jobs[2])
    assert (row["run_at"], row["attempts"], row["max_attempts"]) == (LATER, 0, 4)


@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        (["complete"], "scheduled"),
        (["fail"], "failed"),
        (["reschedule", "--run-at", "+0s"], "ready"),
        (["reschedule", "--run-at", "+0s", "--dry-run"], "ready"),
    ],
    ids=" ".join,
)
def test_jobs_that_were_changed_have_all_fields_of_listed_ones_as_json(
    call: Call, dsn: str, arguments: list[str], state: str
) -> None:
    with SyncWorkerUtils(dsn) as utils:
        job = utils.add_job("a", queue_name="q", run_at=LATER)
    (listed,) = rows(call("jobs", "--json"))
    command, *flags = arguments
    (changed,) = rows(call(command, str(job.id), *flags, "--json"))
    assert changed.keys() == listed.keys()
    assert (changed["queue_name"], changed["state"]) == ("q", state)


def test_jobs_are_removed_by_key(call: Call, jobs: list[int], stored: Jobs) -> None:
    assert call("remove", "k").stdout.endswith("Removed 1 job.\n")
    removed = call("remove", "running").stdout
    assert f"Removed the key and the retries of job {jobs[3]}, which runs on." in removed
    assert "'k'" in call("remove", "k", code=1).stderr
    assert [row["id"] for row in stored.all()] == jobs[1:]
    assert stored.one(jobs[3])["key"] is None


def test_a_job_without_attempts_left_that_is_rescheduled_is_reported(
    call: Call, jobs: list[int], stored: Jobs
) -> None:
    result = call("reschedule", str(jobs[2]), str(jobs[3]), "--run-at", "+0s", code=1)
    assert f"no attempts left, so these jobs will not run: {jobs[2]}; give --attempts 0" in (
        result.stderr
    )
    assert f"running, or not there: {jobs[3]}" in result.stderr
    call("reschedule", str(jobs[2]), "--attempts", "0")
    assert stored.one(jobs[2])["attempts"] == 0


def test_workers_are_unlocked(call: Call, jobs: list[int], stored: Jobs) -> None:
    assert call("unlock", "pool-1").stdout == "Unlocked 1 job and 1 queue.\n"
    assert stored.one(jobs[3])["locked_by"] is None


def test_unlocking_an_unknown_pool_is_an_error_that_lists_the_known_ones(
    call: Call, jobs: list[int], stored: Jobs
) -> None:
    result = call("unlock", "pool-2", "pool-1", code=1)
    assert result.stderr == "Error: unknown worker pools: pool-2; known are: pool-1\n"
    assert stored.one(jobs[3])["locked_by"] is None
    result = call("unlock", "pool-1", "--json", code=1)
    assert rows(result) == {"jobs": 0, "queues": 0}
    assert result.stderr == "Error: unknown worker pools: pool-1; known are: none\n"


async def test_a_living_pool_is_unlocked_only_by_force(dsn: str, call: Call, stored: Jobs) -> None:
    started, end = asyncio.Event(), asyncio.Event()

    async def wait(payload: Any) -> None:
        started.set()
        await end.wait()

    async with Runner(dsn, tasks={"wait": wait}) as runner:
        job = await runner.add_job("wait")
        await started.wait()
        refused = await asyncio.to_thread(call, "unlock", runner.pool_id, code=1)
        assert f"{runner.pool_id} is alive: process {os.getpid()} on " in refused.stderr
        assert "or give --force" in refused.stderr
        assert stored.one(job.id)["locked_by"] == runner.pool_id
        with SyncWorkerUtils(dsn) as utils, pytest.raises(GraphileWorkerError, match="is alive"):
            await asyncio.to_thread(utils.force_unlock_workers, [runner.pool_id])
        result = await asyncio.to_thread(call, "unlock", runner.pool_id, "--force")
        assert result.stdout == "Unlocked 1 job and 0 queues.\n"
        end.set()


@pytest.mark.parametrize(
    "typed",
    [
        ["GC_JOB_QUEUES", "DELETE_PERMAFAILED_JOBS"],
        ["gc_job_queues,Delete_Permafailed_Jobs"],
        ["gc_job_queues, delete_permafailed_jobs"],
    ],
)
def test_cleanup_takes_upstreams_names_as_one_types_them(
    call: Call, jobs: list[int], stored: Jobs, typed: list[str]
) -> None:
    assert rows(call("cleanup", *typed, "--json")) == {
        "DELETE_PERMAFAILED_JOBS": 1,
        "GC_JOB_QUEUES": 0,
    }
    assert len(stored.all()) == 3


def test_cleanup_keeps_the_task_identifiers_that_are_named(call: Call, stored: Jobs) -> None:
    for identifier in ("a", "b", "c"):
        call("add-job", identifier)
    stored.query("delete from graphile_worker._private_jobs")
    result = call("cleanup", "GC_TASK_IDENTIFIERS", "--keep", "a", "--keep", "b")
    assert result.stdout == "GC_TASK_IDENTIFIERS: deleted 1 row.\n"


def test_cleanup_keeps_the_tasks_of_a_module_and_of_a_folder(
    call: Call, stored: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    task = "from graphile_worker_py import task\n\n@task({!r})\ndef kept(payload):\n    pass\n"
    needs = "import program_of_cleanup\nassert program_of_cleanup.ready\n"
    (tmp_path / "tasks_of_cleanup.py").write_text(needs + task.format("of the module"))
    setup = "ready = []\n\ndef init():\n    ready.append(1)\n"
    (tmp_path / "program_of_cleanup.py").write_text(setup)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.py").write_text(task.format("of the folder"))
    for identifier in ("of the module", "of the folder", "named", "of nobody"):
        call("add-job", identifier)
    stored.query("delete from graphile_worker._private_jobs")
    keep = ["--tasks", "tasks_of_cleanup", "--task-directory", "folder", "--keep", "named"]
    result = call("cleanup", "GC_TASK_IDENTIFIERS", *keep, "--setup", "program_of_cleanup:init")
    assert result.stdout == "GC_TASK_IDENTIFIERS: deleted 1 row.\n"
    left = stored.query("select identifier from graphile_worker._private_tasks order by 1")
    assert [row["identifier"] for row in left] == ["named", "of the folder", "of the module"]


def test_cleanup_deletes_nothing_if_the_tasks_to_keep_can_not_be_read(
    call: Call, stored: Jobs, tmp_path: Path
) -> None:
    call("add-job", "kept")
    stored.query("delete from graphile_worker._private_jobs")
    (tmp_path / "broken.py").write_text("import nothing_like_that\n")
    call("cleanup", "GC_TASK_IDENTIFIERS", "--task-directory", str(tmp_path), code=2)
    call("cleanup", "GC_TASK_IDENTIFIERS", "--tasks", "nothing_like_that", code=2)
    assert len(stored.query("select id from graphile_worker._private_tasks")) == 1


def test_a_dry_run_shows_what_would_change_and_changes_nothing(
    call: Call, jobs: list[int], stored: Jobs
) -> None:
    before = stored.all()
    ids = [str(each) for each in jobs[:3]]
    assert "Would have completed 3 of 3 jobs." in call("complete", *ids, "--dry-run").stdout
    assert "Would have failed 3 of 3 jobs." in call("fail", *ids, "--dry-run").stdout
    shown = rows(call("reschedule", *ids, "--priority", "7", "--dry-run", "--json", code=1))
    assert [(job["id"], job["priority"]) for job in shown] == [(each, 7) for each in jobs[:3]]
    assert "Would have removed 1 job." in call("remove", "k", "--dry-run").stdout
    assert "Would have unlocked 1 job and 1 queue." in call("unlock", "pool-1", "--dry-run").stdout
    cleaned = call("cleanup", "delete_permafailed_jobs", "--dry-run").stdout
    assert cleaned == "DELETE_PERMAFAILED_JOBS: would have deleted 1 row.\n"
    assert stored.all() == before


@pytest.mark.parametrize(
    ("options", "answer", "left"), [([], "n\n", 2), ([], "y\n", 0), (["--yes"], "", 0)]
)
def test_somebody_at_a_terminal_is_asked_before_several_jobs_change(
    dsn: str, stored: Jobs, options: list[str], answer: str, left: int
) -> None:
    with SyncWorkerUtils(dsn) as utils:
        ids = [str(job.id) for job in utils.add_jobs([JobSpec("a"), JobSpec("a")])]
    command = [sys.executable, "-m", "graphile_worker_py", "complete", *ids, *options]
    typed, terminal = pty.openpty()
    try:
        os.write(typed, answer.encode())
        environment = clean_environment({"DATABASE_URL": dsn})
        with Popen(command, stdin=terminal, stdout=PIPE, stderr=PIPE, env=environment) as process:
            out, err = process.communicate(timeout=15)
    finally:
        os.close(typed)
        os.close(terminal)
    assert ("2 jobs will be completed. Go on?" in err.decode()) == (not options), (out, err)
    assert process.returncode == (1 if left else 0), (out, err)
    assert len(stored.all()) == left


@pytest.mark.parametrize(("answer", "left"), [("n", 2), ("y", 0)])
def test_cleanup_says_what_it_would_delete_before_it_asks(
    dsn: str, stored: Jobs, answer: str, left: int
) -> None:
    with SyncWorkerUtils(dsn) as utils:
        for job in utils.add_jobs([JobSpec("a"), JobSpec("a")]):
            utils.permanently_fail_jobs([job.id])
            ago = "now() - interval '12 days'"
            stored.change(job.id, f"updated_at = {ago}, run_at = {ago}")
    command = [sys.executable, "-m", "graphile_worker_py", "cleanup", "delete_permafailed_jobs"]
    typed, terminal = pty.openpty()
    try:
        os.write(typed, f"{answer}\n".encode())
        environment = clean_environment({"DATABASE_URL": dsn})
        with Popen(command, stdin=terminal, stdout=PIPE, stderr=PIPE, env=environment) as process:
            _, err = process.communicate(timeout=15)
    finally:
        os.close(typed)
        os.close(terminal)
    assert "DELETE_PERMAFAILED_JOBS: 2 rows, the oldest failed 12 d ago\n" in err.decode()
    assert "Delete them?" in err.decode()
    assert len(stored.all()) == left


def test_migrate_installs_the_schema_where_other_commands_ask_for_it(empty_dsn: str) -> None:
    runner = click.testing.CliRunner()
    schema = 'Other-S "x"'
    where = ["-c", empty_dsn, "--schema", schema]
    refused = runner.invoke(main, ["jobs", *where])
    assert refused.exit_code == 1
    assert refused.stderr == (
        f"Error: schema {schema!r} is not installed in this database; "
        f"`graphile-worker-py migrate` installs it\n"
    )
    for _ in range(2):
        done = runner.invoke(main, ["migrate", *where])
        assert (done.exit_code, done.stdout) == (0, f"Schema {schema!r} is at revision 20.\n")
    assert runner.invoke(main, ["jobs", *where]).stdout == "No jobs.\n"


def test_a_schema_that_is_too_new_is_refused(call: Call, stored: Jobs) -> None:
    stored.query("insert into graphile_worker.migrations (id, breaking) values (21, true)")
    for args in (("jobs",), ("complete", "1"), ("add-job", "a"), ("migrate",)):
        assert "revision 21" in call(*args, code=1).stderr


def test_a_database_that_is_away_is_one_line_without_the_password(call: Call) -> None:
    for args in (("jobs",), ("complete", "1"), ("add-job", "a"), ("migrate",)):
        result = call(*args, "-c", "postgresql://u:secret@127.0.0.1:1/x?password=secret", code=1)
        assert len(result.stderr.splitlines()) == 1
        assert "127.0.0.1" in result.stderr
        assert "secret" not in result.output
