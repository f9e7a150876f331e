"""Django: tasks as jobs in its transactions, a worker with fresh connections, commands, admin."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections, transaction
from django.test import Client, override_settings

from graphile_worker_py import ConfigurationError, Runner, SyncWorkerUtils, WorkerUtils, run_once
from graphile_worker_py.testing import SyncKit
from tests.contrib import django_support
from tests.support.eventually import eventually
from tests.support.jobs import Jobs

django_support.set_up()

from django.contrib.auth.models import Permission, User  # noqa: E402  # once Django is set up

from graphile_worker_py.contrib.django import api, utils  # noqa: E402
from graphile_worker_py.contrib.django.backend import GraphileWorkerBackend  # noqa: E402
from graphile_worker_py.contrib.django.running import own_thread, tasks_of_project  # noqa: E402
from tests.contrib.shop import tasks  # noqa: E402

Status = api.TaskResultStatus


@pytest.fixture(autouse=True)
def django_database(dsn: str) -> Iterator[None]:
    """Let Django use the database of the test."""
    with django_support.on_database(dsn):
        yield


@pytest.fixture
def side_schema() -> None:
    """Install our schemas, as `manage.py migrate` does."""
    call_command("migrate", verbosity=0)


async def run_all(dsn: str) -> Any:
    """Run the jobs that are due."""
    return await run_once(dsn, tasks=tasks_of_project())


@contextmanager
def heard(signal: Any, results: list[Any]) -> Iterator[None]:
    """Note the results that a signal is sent with."""

    def hear(task_result: Any, **_more: Any) -> None:
        results.append(task_result)

    signal.connect(hear)
    yield
    signal.disconnect(hear)


def test_a_task_belongs_to_the_transaction_of_django(stored: Jobs) -> None:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("create table orders (id int)")
        result = tasks.double.enqueue(2, plus=1)
        assert stored.all() == []
        assert result.status == Status.READY
    (job,) = stored.all()
    assert job["task_identifier"] == "tests.contrib.shop.tasks.double"
    with pytest.raises(RuntimeError, match="undo"), transaction.atomic():
        tasks.double.enqueue(3)
        utils().add_jobs([])
        raise RuntimeError("undo")
    with transaction.atomic():
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("select 1 / 0")
        tasks.double.enqueue(4)
    assert len(stored.all()) == 2


def test_tasks_become_jobs_with_all_that_they_ask_for(stored: Jobs) -> None:
    at = datetime(2030, 1, 2, tzinfo=UTC)
    result = tasks.attempt.using(run_after=at).enqueue()
    (job,) = stored.all()
    assert (job["priority"], job["run_at"], job["queue_name"]) == (-7, at, "ledger")
    assert job["flags"] == {"queue:ledger": True}
    assert job["payload"]["queue"] == "ledger"
    again = tasks.attempt.get_result(result.id)
    assert again.task == tasks.attempt.using(run_after=at)
    assert (again.id, again.status, again.attempts) == (result.id, Status.READY, 0)
    once = tasks.double.using(backend="once").enqueue(1)
    assert stored.all()[1]["max_attempts"] == 1
    assert once.task.get_result(once.id).backend == "once"
    with pytest.raises(TypeError):
        tasks.double.enqueue({1, 2})
    for unknown in ("999999", "nonsense"):
        with pytest.raises(api.TaskResultDoesNotExist):
            tasks.double.get_result(unknown)


@pytest.mark.usefixtures("side_schema")
async def test_results_of_tasks_can_be_read(dsn: str) -> None:
    async with own_thread():
        doubled = await tasks.double.aenqueue(2, plus=1)
        failed = await tasks.fail.using(backend="once").aenqueue("no answer")
        retried = await tasks.fail.aenqueue("not yet")
        counted = await tasks.attempt.aenqueue()
        started: list[Any] = []
        finished: list[Any] = []
        with heard(api.task_started, started), heard(api.task_finished, finished):
            await run_all(dsn)
        for result in (doubled, failed, retried, counted):
            await result.arefresh()
    assert doubled.status == Status.SUCCESSFUL
    assert doubled.return_value == {"doubled": 5}
    assert counted.return_value == 1
    assert counted.attempts == 1
    assert doubled.finished_at >= doubled.started_at >= doubled.enqueued_at
    assert failed.status == Status.FAILED
    assert failed.errors[0].exception_class is ValueError
    assert "raise ValueError(text)" in failed.errors[0].traceback
    assert failed.errors[0].traceback.endswith("ValueError: no answer\n")
    assert retried.status == Status.READY
    assert len(retried.errors) == 1
    assert len(started) == 4
    assert {result.status for result in finished} == {Status.SUCCESSFUL, Status.FAILED}
    assert len(finished) == 3


@pytest.mark.usefixtures("side_schema")
async def test_async_tasks_run_on_the_loop_each_with_a_thread_for_django(dsn: str) -> None:
    async with own_thread():
        added = [await tasks.double_later.aenqueue(number) for number in range(2)]
        assert (await run_all(dsn)).completed == 2
        for result in added:
            await result.arefresh()
    (first, thread, session), (second, other_thread, other_session) = [
        result.return_value for result in added
    ]
    assert (first, second) == (0, 2)
    assert session != other_session
    assert threading.get_ident() not in (thread, other_thread)


async def none_is_left(runner: Runner, stored: Jobs, pids: set[int]) -> bool:
    """Let the thread of a task hang up; whether these sessions have ended."""
    await runner.add_job(tasks.hang_up)
    await eventually(lambda: not any(job["attempts"] == 0 for job in stored.all()))
    return not stored.query("select pid from pg_stat_activity where pid = any(%s)", list(pids))


async def test_a_cut_connection_fails_one_job_at_most(dsn: str, stored: Jobs) -> None:
    tasks.seen.clear()
    connections.settings["default"]["CONN_MAX_AGE"] = None
    found = tasks_of_project()
    async with Runner(dsn, tasks=found, concurrent_jobs=1, poll_interval=0.2) as runner:
        await runner.add_job(tasks.sessions)
        await eventually(lambda: len(tasks.seen) == 1)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("select pg_terminate_backend(%s)", (tasks.seen[0][1],))
        # This one may fail, because nothing has told the client that its connection is gone.
        await runner.add_job(tasks.sessions, max_attempts=1)
        await eventually(lambda: not any(job["attempts"] == 0 for job in stored.all()))
        before = len(tasks.seen)
        await runner.add_jobs([tasks.sessions.spec(None, max_attempts=1) for _ in range(3)])
        await eventually(lambda: len(tasks.seen) == before + 3)
        await eventually(lambda: none_is_left(runner, stored, {pid for _, pid in tasks.seen}))
    assert len({thread for thread, _ in tasks.seen}) < len(tasks.seen)
    assert tasks.seen[-1][1] != tasks.seen[0][1]


def test_migrate_installs_the_schemas_of_jobs(empty_dsn: str) -> None:
    with django_support.on_database(empty_dsn):
        with override_settings(GRAPHILE_WORKER={"MIGRATE": False}):
            call_command("migrate", verbosity=0)
        with pytest.raises(DatabaseError):
            tasks.double.enqueue(1)
        call_command("migrate", verbosity=0)
        call_command("migrate", verbosity=0)
        assert tasks.double.enqueue(1).id == "1"
        assert utils().list_runs() == []


def test_the_command_line_uses_the_projects_database(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "none")
    for name in ("GRAPHILE_WORKER_SCHEMA", "GRAPHILE_WORKER_HISTORY_PAYLOADS"):
        monkeypatch.setenv(name, "")
    tasks.double.enqueue(1)
    call_command("graphile_worker", "jobs", "--", "--json")
    assert json.loads(capsys.readouterr().out)[0]["payload"]["args"] == [1]


def test_admin_pages_show_jobs_and_steer_them(side_schema: None, stored: Jobs) -> None:
    result = tasks.double.enqueue("<b>")
    stored.exhaust(int(result.id))
    waiting = tasks.double.enqueue(2)
    page = "/admin/graphile_worker_py/job/"
    user = User.objects.create_user("ada", is_staff=True)
    client = Client()
    client.force_login(user)
    assert client.get(page).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_job"))
    listed = client.get(page, {"state": "failed"}).content.decode()
    assert "tests.contrib.shop.tasks.double" in listed
    assert "1 job" in listed
    assert 'value="retry"' not in listed
    shown = client.get(f"{page}{result.id}/change/").content.decode()
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    for data in ({"action": "retry", "_selected_action": [result.id]},):
        client.post(page, data)
        assert stored.all()[0]["attempts"] > 0
    user.user_permissions.add(Permission.objects.get(codename="change_job"))
    answer = client.post(page, {"action": "retry", "_selected_action": [result.id]}, follow=True)
    assert "1 of 1 jobs are tried again" in answer.content.decode()
    assert stored.all()[0]["attempts"] == 0
    client.post(page, {"action": "cancel", "_selected_action": [waiting.id]})
    assert [job["id"] for job in stored.all()] == [int(result.id)]
    assert client.get(f"{page}add/").status_code == 403


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"DATABASE": "lite"}, "the database 'lite' is sqlite"),
        ({"DATABASE": "jobz"}, "'jobz', which DATABASES does not have; it has default, lite"),
        ({"DATABSE": "default"}, "has no key 'DATABSE'"),
        ({"SCHEMA": ""}, "schema"),
        ([], "must be a dict"),
    ],
)
def test_a_project_that_can_have_no_jobs_is_told_why(setting: Any, reason: str) -> None:
    with override_settings(GRAPHILE_WORKER=setting):
        with pytest.raises(ConfigurationError, match=reason):
            GraphileWorkerBackend("default", {}).enqueue(tasks.double, [1], {})
        found = [each for each in checks.run_checks() if each.id == "graphile_worker_py.E001"]
        assert found
        assert reason in found[0].msg
        with pytest.raises(CommandError, match=reason):
            call_command("graphile_worker", "jobs", stdout=StringIO(), skip_checks=True)
    assert not [each for each in checks.run_checks() if each.id == "graphile_worker_py.E001"]


def test_wrong_options_of_the_backend_are_refused() -> None:
    for options in ({"retries": 3}, {"max_attempts": 0}, {"serial_queues": "ledger"}):
        with pytest.raises(ImproperlyConfigured, match=r"TASKS\['default'\]\['OPTIONS'\]"):
            GraphileWorkerBackend("default", {"OPTIONS": options})


def test_the_pytest_kit_sees_jobs_in_the_transaction_of_a_test(dsn: str, stored: Jobs) -> None:
    with SyncKit(dsn) as kit, pytest.raises(RuntimeError, match="undo"), transaction.atomic():
        tasks.double.enqueue(2)
        name = "tests.contrib.shop.tasks.double"
        kit.assert_added(name, {"args": [2]}, conn=connection)
        kit.refute_added(name)
        raise RuntimeError("undo")
    assert stored.all() == []


async def test_connections_of_django_are_taken_by_blocking_utils_only(
    dsn: str, stored: Jobs
) -> None:
    def add() -> None:
        with SyncWorkerUtils(dsn) as own, transaction.atomic():
            own.add_job("ship", conn=connection)
            assert stored.all() == []

    async with own_thread():
        await sync_to_async(add)()
    assert len(stored.all()) == 1
    async with WorkerUtils(dsn) as own:
        with pytest.raises(
            ConfigurationError, match="'default', which works without an event loop"
        ):
            await own.add_job("ship", conn=connection)
        with pytest.raises(
            ConfigurationError, match="'lite', which is sqlite, but jobs need Postg"
        ):
            await own.add_job("ship", conn=connections["lite"])
    with SyncWorkerUtils(dsn) as blocking, pytest.raises(ConfigurationError, match="is sqlite"):
        blocking.add_job("ship", conn=connections["lite"])
    assert len(stored.all()) == 1


def test_a_task_may_wait_until_later(stored: Jobs) -> None:
    naive = datetime.now() + timedelta(hours=1)  # noqa: DTZ005  # as projects without time zones
    with override_settings(USE_TZ=False):
        tasks.double.using(run_after=naive).enqueue(1)
    assert stored.all()[0]["run_at"] > datetime.now(UTC)
