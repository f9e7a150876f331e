"""The pytest plugin: fixtures for tests of tasks and of the code that adds jobs."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from graphile_worker_py import (
    ConfigurationError,
    CrontabError,
    Discard,
    JobContext,
    PayloadError,
    Snooze,
    SyncJobContext,
    UnknownTaskError,
    WorkerUtils,
    task,
)
from graphile_worker_py.clock import utc_now
from graphile_worker_py.testing import Kit, SyncKit, TestClock
from graphile_worker_py.testing.server import TestDatabases
from tests.support.processes import Processes
from tests.support.server import Server

WANTED_PLUGINS = {"graphile_worker_py", "asyncio", "anyio", "xdist", "xdist.looponfail"}
EXAMPLE = Path(__file__).parent.parent / "examples" / "tests_of_your_tasks"
INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""
PROJECT = """
from graphile_worker_py import task


@task
async def greet(payload):
    return f"Hello {payload['name']}"


async def test_greet(gw):
    await gw.utils.add_job(greet, {"name": "Ada"})
    await gw.assert_added("greet", {"name": "Ada"})
    report = await gw.drain(tasks=[greet])
    assert list(report.results.values()) == ["Hello Ada"]


def test_greet_without_event_loop(gw_sync):
    assert gw_sync.perform(greet, {"name": "Grace"}) == "Hello Grace"
"""
ANYIO = """
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.any_server]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def filled(gw):
    await gw.utils.add_job("greet", {"name": "Ada"})
    yield gw
    await gw.assert_added("greet")


async def test_greet(filled):
    await filled.assert_added("greet", {"name": "Ada"})
"""
POSTGRESQL = """
import pytest


@pytest.fixture(scope="session")
def gw_server_dsn(postgresql_noproc):
    server = postgresql_noproc
    return f"postgresql://{server.user}:{server.password}@{server.host}:{server.port}/postgres"


def test_greet(gw_sync, gw_dsn, postgresql_noproc):
    gw_sync.utils.add_job("greet")
    gw_sync.assert_added("greet")
    assert f":{postgresql_noproc.port}" in gw_dsn or f"port={postgresql_noproc.port}" in gw_dsn
"""
LIGHT = """
import sys


def test_nothing_is_imported():
    names = [name for name in sys.modules if name.startswith("graphile_worker_py")]
    assert sorted(names) == [
        "graphile_worker_py",
        "graphile_worker_py.testing",
        "graphile_worker_py.testing.plugin",
    ]
    assert "psycopg" not in sys.modules
"""


@dataclass
class Mail:
    """A payload."""

    to: str


@task
async def send_email(payload: Mail, ctx: JobContext) -> str:
    """Return what it was given."""
    return f"{payload.to}, attempt {ctx.job.attempts}"


@task
async def forward(payload: dict[str, str], ctx: JobContext) -> None:
    """Add a job."""
    await ctx.add_job("send_email", payload)


@task
def forward_in_thread(payload: dict[str, str], ctx: SyncJobContext) -> None:
    """Add a job from a thread."""
    ctx.add_job("send_email", payload)


@task(max_attempts=3)
async def fail(_payload: Any) -> None:
    """Fail."""
    raise ValueError("no answer")


@task
async def decide(payload: str) -> object:
    """Discard or snooze the job."""
    return Discard("unwanted") if payload == "discard" else Snooze(60)


@task
async def commit(_payload: Any, ctx: JobContext) -> None:
    """Complete the job in a transaction."""
    async with ctx.transaction() as conn:
        await conn.execute("create table done (at timestamptz)")


TASKS = [send_email, forward, forward_in_thread, fail, decide, commit]


@pytest.fixture(scope="session")
def gw_databases(server: Server) -> Iterator[TestDatabases]:
    """The databases of the fixtures, on the server of these tests."""
    databases = TestDatabases(server.dsn("postgres"))
    yield databases
    databases.close()


@pytest.fixture
def gw_tasks() -> Any:
    """The tasks of this module."""
    return TASKS


def run_pytest(
    processes: Processes, folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> str:
    """Run pytest in a folder, which must succeed; what it prints."""
    # Other plugins that are installed here take seconds to import.
    others = {each.name for each in metadata.entry_points(group="pytest11")} - WANTED_PLUGINS
    without = [word for name in sorted(others) for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *without, *arguments]
    process = processes.start(command, cwd=folder, env=env)
    assert process.wait(timeout=19) == 0, process.stdout + process.stderr
    return process.stdout


def project(folder: Path, text: str) -> None:
    """Write a project that has one file of tests."""
    (folder / "pytest.ini").write_text(INI)
    (folder / "test_project.py").write_text(text)


def test_a_small_project_is_green_without_a_server(processes: Processes, tmp_path: Path) -> None:
    project(tmp_path, PROJECT)
    assert "2 passed" in run_pytest(processes, tmp_path)


def test_workers_of_xdist_share_a_server(
    processes: Processes, tmp_path: Path, server: Server
) -> None:
    project(tmp_path, PROJECT)
    dsn = server.dsn("postgres")
    env = {"GRAPHILE_WORKER_TEST_DSN": dsn}
    assert "2 passed" in run_pytest(processes, tmp_path, "-n", "2", env=env)
    with psycopg.connect(dsn) as conn:
        left = conn.execute("select 1 from pg_database where datname like 'gw_test_%'").fetchall()
    # What this process itself has made may be there.
    assert len(left) <= 1


def test_fixtures_work_with_the_plugin_of_anyio(
    processes: Processes, tmp_path: Path, server: Server
) -> None:
    project(tmp_path, ANYIO)
    env = {"GRAPHILE_WORKER_TEST_DSN": server.dsn("postgres")}
    assert "1 passed" in run_pytest(
        processes,
        tmp_path,
        "-p",
        "no:asyncio",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
        env=env,
    )


def test_a_server_of_pytest_postgresql_can_be_used(
    processes: Processes, tmp_path: Path, server: Server
) -> None:
    project(tmp_path, POSTGRESQL)
    parts = conninfo_to_dict(server.dsn("postgres"))
    options = [f"--postgresql-{name}={parts.get(name, '')}" for name in ("host", "port", "user")]
    options.append(f"--postgresql-password={parts.get('password', '')}")
    options += ["-p", "pytest_postgresql.plugin"]
    assert "1 passed" in run_pytest(processes, tmp_path, *options)


def test_the_plugin_imports_neither_driver_nor_package(
    processes: Processes, tmp_path: Path
) -> None:
    project(tmp_path, LIGHT)
    assert "1 passed" in run_pytest(processes, tmp_path)


def test_the_example_is_green(processes: Processes, tmp_path: Path, server: Server) -> None:
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder)
    env = {"GRAPHILE_WORKER_TEST_DSN": server.dsn("postgres")}
    assert "7 passed" in run_pytest(processes, folder, env=env)


async def test_a_part_of_the_payload_finds_a_job(gw: Kit) -> None:
    added = await gw.utils.add_job(
        "send_email", {"to": "ada", "cc": [{"to": "grace", "n": 1}]}, queue_name="mail", priority=2
    )
    job = await gw.assert_added(
        send_email, {"cc": [{"to": "grace"}]}, queue_name="mail", priority=2, job_key=None
    )
    assert job.id == added.id
    assert await gw.all_added("send_email", {"to": ANY}) == [job]
    assert (await gw.assert_added("send_email", Mail("ada"))).id == added.id
    await gw.refute_added("send_email", {"to": "grace"})
    await gw.refute_added("send_email", {"cc": []})
    await gw.refute_added("send_email", {"cc": [{"n": True}]})
    await gw.refute_added("send_email", queue_name=None)


async def test_a_missing_job_shows_near_misses_and_what_explain_says(gw: Kit) -> None:
    await gw.utils.add_job("send_email", {"to": "ada"}, run_in=timedelta(hours=3))
    with pytest.raises(AssertionError) as raised:
        await gw.assert_added("send_email", {"to": "eve", "cc": 1}, queue_name="mail")
    lines = str(raised.value).splitlines()
    wanted = "task 'send_email' and payload {'to': 'eve', 'cc': 1} and queue_name='mail'"
    assert lines[:5] == [
        f"no job of {wanted} was added",
        "  job 1 (scheduled): {'to': 'ada'}",
        "    payload.to is 'ada', not 'eve'",
        "    payload.cc is missing",
        "    queue_name is None, not 'mail'",
    ]
    assert lines[5].startswith("    explain: due in 3 h")


async def test_jobs_of_an_open_transaction_are_seen_on_its_connection(gw: Kit) -> None:
    async with await psycopg.AsyncConnection.connect(gw.dsn) as conn:
        await gw.utils.add_job(send_email, Mail("ada"), conn=conn)
        await gw.refute_added("send_email")
        assert (await gw.assert_added("send_email", {"to": "ada"}, conn=conn)).attempts == 0
        assert len(await gw.all_added(conn=conn)) == 1
        with pytest.raises(AssertionError, match=r"payload.to is 'ada', not 'bob'"):
            await gw.assert_added("send_email", {"to": "bob"}, conn=conn)
        with pytest.raises(AssertionError, match=r"1 job\(s\) of task 'send_email' were added"):
            await gw.refute_added("send_email", conn=conn)
        await conn.rollback()
    assert await gw.all_added() == []


def test_plain_tests_see_an_open_transaction_too(gw_sync: SyncKit) -> None:
    with psycopg.connect(gw_sync.dsn) as conn:
        gw_sync.utils.add_job("send_email", {"to": "ada"}, conn=conn)
        gw_sync.refute_added("send_email")
        gw_sync.assert_added("send_email", {"to": "ada"}, conn=conn)
        assert len(gw_sync.all_added(conn=conn)) == 1
        with pytest.raises(AssertionError, match="there are only jobs of 'send_email'; did you me"):
            gw_sync.assert_added("send_emails", conn=conn)
        gw_sync.refute_added("sms", conn=conn)
        conn.rollback()


async def test_a_database_that_tests_share_is_cleared(gw: Kit) -> None:
    await gw.utils.add_job("send_email")
    await gw.utils.add_job("later", run_at=utc_now() + timedelta(days=1), queue_name="q")
    await gw.clear()
    assert await gw.all_added() == []


def test_plain_tests_clear_it_too(gw_sync: SyncKit) -> None:
    gw_sync.utils.add_job("send_email")
    gw_sync.clear()
    gw_sync.refute_added("send_email")


async def test_a_missing_job_names_a_similar_task_and_what_was_drained(gw: Kit) -> None:
    with pytest.raises(AssertionError, match="there are no jobs at all"):
        await gw.assert_added("send_email")
    await gw.utils.add_job("send_email", {"to": "ada"})
    with pytest.raises(AssertionError, match="did you mean 'send_email'"):
        await gw.assert_added("send_mail")
    with pytest.raises(AssertionError, match=r"1 job\(s\) of task 'send_email' were added:\n  job"):
        await gw.refute_added(send_email)
    await gw.drain()
    with pytest.raises(AssertionError, match="assert before it"):
        await gw.assert_added("send_email")


async def test_drain_runs_jobs_that_jobs_add(gw: Kit) -> None:
    await gw.utils.add_job(forward, {"to": "ada"})
    await gw.utils.add_job(forward_in_thread, {"to": "grace"}, run_in=9999)
    report = await gw.drain()
    assert [job.task_identifier for job in report.completed].count("send_email") == 2
    assert {"ada, attempt 1", "grace, attempt 1"} < set(report.results.values())
    assert await gw.all_added() == []


async def test_recurring_jobs_are_added_for_the_time_that_the_clock_passes(
    gw: Kit, gw_clock: TestClock
) -> None:
    @task(cron="30 2 * * *", timezone="Europe/Vienna")
    async def rollup(payload: Any) -> Any:
        return payload["_cron"]["ts"]

    assert await gw.add_recurring([rollup]) == []
    gw_clock.travel(days=3)
    added = await gw.add_recurring([rollup], crontab="0 0 * * * sweep ?max=2")
    assert [job.task_identifier for job in added].count("rollup") == 3
    sweeps = [job for job in added if job.task_identifier == "sweep"]
    assert [job.max_attempts for job in sweeps] == [2, 2, 2]
    assert [job.run_at for job in added] == sorted(job.run_at for job in added)
    assert await gw.add_recurring([rollup]) == []  # each is added once
    report = await gw.drain([rollup], with_scheduled=False)
    assert len(set(report.results.values())) == 3
    with pytest.raises(CrontabError, match="hour '25' is out of range"):
        await gw.add_recurring([rollup], crontab="0 25 * * * sweep")


def test_plain_tests_add_recurring_jobs_too(gw_sync: SyncKit, gw_clock: TestClock) -> None:
    gw_clock.travel(hours=1)
    # A minute may begin while the test runs.
    assert len(gw_sync.add_recurring(crontab="* * * * * tick")) in (60, 61)


async def test_drain_raises_the_error_of_a_task_and_tries_it_once(gw: Kit) -> None:
    await gw.utils.add_job(fail, {})
    with pytest.raises(ValueError, match="no answer"):
        await gw.drain()
    (job,) = await gw.all_added()
    assert (job.attempts, job.last_error) == (1, "no answer")
    report = await gw.drain(raise_errors=False)
    assert [str(event.error) for event in report.failed] == ["no answer"]
    assert (report.completed, report.results) == ((), {})


async def test_drain_reports_jobs_that_were_discarded_or_snoozed(gw: Kit) -> None:
    discarded = await gw.utils.add_job(decide, "discard")
    snoozed = await gw.utils.add_job(decide, "snooze")
    report = await gw.drain()
    assert [job.id for job in report.discarded] == [discarded.id]
    assert [job.id for job in report.snoozed] == [snoozed.id]
    assert report.failed == ()


async def test_drain_leaves_jobs_of_other_tasks(gw: Kit) -> None:
    await gw.utils.add_job("sms", {}, run_in=60)
    await gw.drain([send_email])
    assert (await gw.assert_added("sms")).state == "scheduled"


async def test_the_clock_decides_which_scheduled_jobs_are_due(gw: Kit, gw_clock: TestClock) -> None:
    await gw.utils.add_job(send_email, Mail("ada"), run_in=timedelta(days=3))
    await gw.utils.add_job(fail, {}, run_in=timedelta(days=1))
    assert (await gw.drain(with_scheduled=False)).completed == ()
    gw_clock.travel(days=2)
    report = await gw.drain(with_scheduled=False, raise_errors=False)
    assert (len(report.failed), report.completed) == (1, ())
    # The next attempt waits by the clock of the test.
    assert (await gw.drain(with_scheduled=False)).failed == ()
    gw_clock.travel(hours=25)
    report = await gw.drain(with_scheduled=False, raise_errors=False)
    assert (len(report.failed), len(report.completed)) == (1, 1)
    with pytest.raises(ConfigurationError, match="travels"):
        gw_clock.travel(days=-1)


async def test_perform_calls_a_task_as_a_worker_does_and_writes_nothing(gw: Kit) -> None:
    assert await gw.perform(send_email, Mail("ada"), attempt=2) == "ada, attempt 2"
    with pytest.raises(PayloadError):
        await gw.perform(send_email, {"from": "ada"})  # type: ignore[misc]
    with pytest.raises(ValueError, match="no answer"):
        await gw.perform(fail, {})
    assert isinstance(await gw.perform(decide, "snooze"), Snooze)
    with pytest.raises(ConfigurationError, match="attempt"):
        await gw.perform(fail, {}, attempt=0)
    assert await gw.all_added() == []
    await gw.perform(forward_in_thread, {"to": "ada"})
    await gw.assert_added("send_email", {"to": "ada"})


async def test_perform_commits_the_transaction_of_a_task(gw: Kit) -> None:
    await gw.perform(commit, {})
    with psycopg.connect(gw.dsn) as conn:
        assert conn.execute("select * from done").fetchall() == []


async def test_inline_runs_jobs_where_they_are_added(gw: Kit) -> None:
    with gw.inline():
        await gw.utils.add_job("forward", Mail("ada"))
        with pytest.raises(ValueError, match="no answer"):
            await gw.utils.add_job(fail, {})
        with pytest.raises(UnknownTaskError, match="'sms' to run inline"):
            await gw.utils.add_job("sms")
        with pytest.raises(PayloadError):
            await gw.utils.add_job("forward", {"of": "ada"})
    assert await gw.all_added() == []
    await gw.utils.add_job("forward", {"to": "ada"})
    await gw.assert_added("forward")


def test_plain_tests_have_the_same_methods(gw_sync: SyncKit, gw_clock: TestClock) -> None:
    with gw_sync.inline():
        gw_sync.utils.add_job(forward, {"to": "ada"})
    assert gw_sync.all_added() == []
    gw_sync.utils.add_job(send_email, Mail("ada"), run_in=60)
    gw_sync.assert_added("send_email", {"to": "ada"}, state="scheduled")
    gw_sync.refute_added("forward")
    gw_clock.travel(minutes=2)
    report = gw_sync.drain(with_scheduled=False)
    assert list(report.results.values()) == ["ada, attempt 1"]
    assert gw_sync.perform(send_email, Mail("eve"), attempt=3) == "eve, attempt 3"


async def test_the_database_serves_an_application_too(gw: Kit, gw_dsn: str) -> None:
    async with WorkerUtils(gw_dsn, migrate=False) as utils:
        await utils.add_job("send_email", {"to": "ada"})
    await gw.assert_added("send_email", {"to": "ada"})
    assert json.dumps((await gw.all_added())[0].payload) == '{"to": "ada"}'


async def test_drain_without_tasks_says_how_to_give_them(gw_dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="gw_tasks"):
        await Kit(gw_dsn).drain()
    with pytest.raises(ConfigurationError, match="'queue' is not compared"):
        await Kit(gw_dsn).assert_added("sms", queue="mail")  # type: ignore[call-arg]


def test_a_login_on_the_server_of_the_kit_hashes_the_password_once_and_checks_it(
    server: Server,
) -> None:
    dsn = server.dsn("postgres")
    with psycopg.connect(dsn) as conn:
        stored = conn.execute("select rolpassword from pg_authid where rolname = 'postgres'")
        assert str(stored.fetchone()).startswith("('SCRAM-SHA-256$1:")
    wrong = make_conninfo(dsn, password="wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
