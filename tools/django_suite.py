"""Run Django's own tests of task backends against ours: `python -m tools.django_suite`.

They come with the source of Django, which is fetched from its package, or given by `--sdist`. Where
Django is older than version 6, they are run against the package `django-tasks`. They test two
backends: one that only records tasks, and one that runs them at once. Ours takes the place of both,
on a real server: the first adds jobs, the second adds them and runs a worker until they are done.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

import django
from psycopg.conninfo import conninfo_to_dict

from graphile_worker_py.dev.postgres import EmbeddedPostgres

SOURCE: Final = "6.1"
"""Version of Django that the tests are taken from."""
FILES: Final = (
    "__init__.py",
    "tasks.py",
    "test_dummy_backend.py",
    "test_immediate_backend.py",
    "test_tasks.py",
    "test_custom_backend.py",
)

OTHERWISE = {
    # Of the recording backend.
    "DummyBackendTestCase.test_refresh_result": "it changes the list of that backend",
    "DummyBackendTestCase.test_refresh_result_async": "it changes the list of that backend",
    "TaskTestCase.test_refresh_result": "it changes the list of that backend",
    # Of the backend that runs tasks at once, in the process that adds them.
    "ImmediateBackendTestCase.test_cannot_get_result": "ours can",
    "ImmediateBackendTestCase.test_cannot_refresh_result": "ours can",
    "ImmediateBackendTestCase.test_cannot_pass_run_after": "ours can",
    "ImmediateBackendTransactionTestCase.test_doesnt_wait_until_transaction_commit_by_default": (
        "no worker sees a job before the commit"
    ),
    "ImmediateBackendTestCase.test_throws_keyboard_interrupt": "a worker does not end by it",
}
"""Tests that ours is right to fail, with the reason."""
NEWER: Final = "newer than django-tasks"
if django.VERSION < (6, 0):
    OTHERWISE |= dict.fromkeys(
        [
            "DummyBackendTestCase.test_validate_disallowed_async_task",
            "TaskTestCase.test_pickle_task",
            "TaskTestCase.test_pickle_task_result",
            "TaskTestCase.test_run_after_in_decorator",
            "TaskTestCase.test_unpickle_arbitrary_string",
            "TaskTestCase.test_unpickle_non_task_object",
        ],
        NEWER,
    )

BACKENDS = """
import asyncio, threading
from concurrent.futures import ThreadPoolExecutor
from django.db import connection
from graphile_worker_py import run_once
from graphile_worker_py.contrib.django.backend import GraphileWorkerBackend
from graphile_worker_py.contrib.django.connecting import connection_string
from graphile_worker_py.contrib.django.running import as_task


class RecordingBackend(GraphileWorkerBackend):
    def __init__(self, alias, params):
        super().__init__(alias, params)
        self.results = []

    def enqueue(self, task, args, kwargs):
        result = super().enqueue(task, args, kwargs)
        self.results.append(result)
        return result

    def clear(self):
        self.utils.complete_jobs(result.id for result in self.results)
        self.results.clear()


class RunningBackend(GraphileWorkerBackend):
    def __init__(self, alias, params):
        super().__init__(alias, params)
        self._max_attempts = 1

    def enqueue(self, task, args, kwargs):
        self.utils.complete_jobs(job.id for job in self.utils.list_jobs(limit=None))
        result = super().enqueue(task, args, kwargs)
        dsn = connection_string("default")
        with ThreadPoolExecutor(1) as executor:
            executor.submit(
                lambda: asyncio.run(
                    run_once(
                        dsn, tasks=[as_task(task)], history_payloads=True, no_handle_signals=True
                    )
                )
            ).result()
        result.refresh()
        return result
"""

SETTINGS = """
SECRET_KEY = "only for tests"
DATABASES = {{"default": {database!r}}}
INSTALLED_APPS = ["django.contrib.contenttypes", {backport}"graphile_worker_py.contrib.django"]
TASKS = {{"default": {{"BACKEND": "suite_backends.RecordingBackend", "QUEUES": []}}}}
USE_TZ = True
"""

RUN = """
import django.test
from django.core.management import execute_from_command_line
django.test.SimpleTestCase.databases = {"default"}
execute_from_command_line(["manage.py", "test", "tasks", "-v2", "--keepdb", "--noinput"])
"""


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdist", type=Path, help="source distribution of Django")
    parser.add_argument("--dsn", help="a server on which a database may be made; default: our own")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_suite(given.sdist or fetched(folder), folder)
        if given.dsn:
            sys.exit(run(folder, given.dsn))
        with EmbeddedPostgres() as postgres:
            sys.exit(run(folder, postgres.dsn))


def fetched(folder: Path) -> Path:
    """The source of Django, from its package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary"]
    command += [":all:", "--ignore-requires-python", "--dest", str(folder), f"django~={SOURCE}.0"]
    subprocess.run(command, check=True)
    return next(folder.glob("[Dd]jango-*.tar.gz"))


def write_suite(sdist: Path, folder: Path) -> None:
    """Put the tests into a folder, with ours in place of their backends."""
    # The backport does not export what the tests of custom backends import.
    files = FILES if django.VERSION >= (6, 0) else FILES[:-1]
    target = folder / "tasks"
    target.mkdir()
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            path = Path(member.name)
            if path.parts[1:3] == ("tests", "tasks") and path.name in files:
                content = archive.extractfile(member)
                text = "" if content is None else content.read().decode()
                (target / path.name).write_text(rewritten(text), encoding="utf-8")
    (folder / "suite_backends.py").write_text(BACKENDS, encoding="utf-8")


def rewritten(text: str) -> str:
    """A module of tests, for our backend and for the installed API of tasks."""
    ours = {
        "dummy.DummyBackend": "RecordingBackend",
        "immediate.ImmediateBackend": "RunningBackend",
    }
    for theirs, own in ours.items():
        module, _, kind = theirs.partition(".")
        text = text.replace(f"django.tasks.backends.{theirs}", f"suite_backends.{own}")
        text = text.replace(
            f"from django.tasks.backends.{module} import {kind}",
            f"from suite_backends import {own} as {kind}",
        )
    for name, reason in OTHERWISE.items():
        case, _, test = name.partition(".")
        if f"class {case}(" in text:
            pattern = rf"(    (?:async )?def {test}\()"
            text = re.sub(pattern, rf"    @__import__('unittest').skip({reason!r})\n\1", text)
    if django.VERSION < (6, 0):
        text = text.replace("django.tasks", "django_tasks")
        text = re.sub(r"\bInvalidTask\b", "InvalidTaskError", text)
        text = re.sub(r"\bInvalidTaskBackend\b", "InvalidTaskBackendError", text)
    return text


def run(folder: Path, dsn: str) -> int:
    """Run the tests on a server; returns the exit code."""
    parts = conninfo_to_dict(dsn)
    names = {
        "NAME": "dbname",
        "USER": "user",
        "PASSWORD": "password",
        "HOST": "host",
        "PORT": "port",
    }
    database = {"ENGINE": "django.db.backends.postgresql"}
    database |= {key: str(parts[name]) for key, name in names.items() if name in parts}
    database["TEST"] = {"NAME": "django_suite"}  # type: ignore[assignment]
    backport = '"django_tasks", ' if django.VERSION < (6, 0) else ""
    (folder / "suite_settings.py").write_text(
        SETTINGS.format(database=database, backport=backport), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        env={
            "DJANGO_SETTINGS_MODULE": "suite_settings",
            "DJANGO_ALLOW_ASYNC_UNSAFE": "1",
            "PYTHONPATH": str(folder),
        },
        check=False,
    )
    return done.returncode


if __name__ == "__main__":
    main()
