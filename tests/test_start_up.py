"""A program reads the modules it needs, and a worker asks the database no more than it must."""

import compileall
import importlib
import inspect
import pkgutil
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import psycopg
import pytest

import graphile_worker_py
from graphile_worker_py import cli
from graphile_worker_py.cli.main import main
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.tasks.task import task
from tests.support.processes import Processes

PACKAGE = "graphile_worker_py"
# What a worker without recurring jobs, process executor or configuration file has no use for.
NOT_FOR_A_WORKER = [
    *(f"{PACKAGE}.{name}" for name in ("cron", "dev", "worker_utils", "sync_worker_utils")),
    *(f"{PACKAGE}.{name}" for name in ("sql.inspect", "sql.cleanup", "sql.known_crontabs")),
    *(f"{PACKAGE}.cli.{name}" for name in ("add", "admin", "config", "cron", "show")),
    *("json5", "tomllib", "difflib", "statistics", "secrets"),
    *("msgspec", "pydantic"),
]
NOT_FOR_TASKS = [
    *(f"{PACKAGE}.{name}" for name in ("cli", "runner", "workers", "fleet", "cron")),
    *(f"{PACKAGE}.{name}" for name in ("worker_utils", "schema", "config", "events")),
    *(f"{PACKAGE}.processes.{name}" for name in ("signals", "supervisor", "early")),
    *(f"{PACKAGE}.{name}" for name in ("postgres", "sql", "adding", "tasks.context")),
    *("psycopg", "psycopg_pool", "click", "json5", "tomllib", "msgspec", "pydantic"),
]
ONCE = """
import sys
from graphile_worker_py.cli.main import main

main(["--once", "--tasks", "few_tasks"], standalone_mode=False)
print(*sys.modules)
"""
# Prints the package's classes for which `dataclass` has compiled methods.
COMPILED = """
for name in [name for name in sys.modules if name.startswith("graphile_worker_py.")]:
    for kind in vars(sys.modules[name]).values():
        if isinstance(kind, type) and kind.__module__ == name:
            about = vars(kind).get("__dataclass_params__")
            if about and (about.init or about.repr or about.eq or about.frozen):
                print(f"compiled:{name}.{kind.__qualname__}")
"""
# What is made so often that it is to be as quick and as small as it can.
MADE_FOR_EVERY_JOB = {f"{PACKAGE}.{name}" for name in ("job.spec.JobSpec", "outcomes.Completed")}
FEW_TASKS = """
from graphile_worker_py import task

@task
async def hello(payload): ...
"""


def modules_after(processes: Processes, code: str, folder: Path, dsn: str = "") -> set[str]:
    """The modules that a program has read when it ends; it prints them last."""
    process = processes.start(
        [sys.executable, "-c", code], cwd=folder, env={"DATABASE_URL": dsn} if dsn else None
    )
    process.wait(timeout=15)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


def test_each_public_name_is_the_one_in_its_module() -> None:
    names = {name: getattr(graphile_worker_py, name) for name in graphile_worker_py.__all__}
    assert names["task"] is task
    for name, value in names.items():
        if inspect.isclass(value) or inspect.isfunction(value):
            assert getattr(sys.modules[value.__module__], name) is value
    assert names.keys() <= set(dir(graphile_worker_py))


def test_a_star_import_takes_the_public_names_and_nothing_else() -> None:
    namespace: dict[str, object] = {}
    exec(f"from {PACKAGE} import *", namespace)
    del namespace["__builtins__"]
    assert {"task", "run", "WorkerUtils"} < namespace.keys()
    assert sorted(namespace) == graphile_worker_py.__all__


def test_every_public_name_is_there_without_the_source(
    processes: Processes, tmp_path: Path
) -> None:
    """As in an image that holds bytecode only."""
    folder = tmp_path / PACKAGE
    shutil.copytree(Path(graphile_worker_py.__file__).parent, folder)
    compileall.compile_dir(folder, quiet=2, legacy=True)
    for source in folder.rglob("*.py"):
        source.unlink()
    names = ", ".join(graphile_worker_py.__all__)
    code = f"from {PACKAGE} import {names}; import {PACKAGE}; print({PACKAGE}.__file__)"
    assert modules_after(processes, code, tmp_path) == {str(folder / "__init__.pyc")}


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'graphile_worker_py' has no attribute 'jobs'"):
        _ = graphile_worker_py.jobs  # type: ignore[attr-defined]


@pytest.mark.parametrize("unneeded", [NOT_FOR_A_WORKER, NOT_FOR_TASKS])
def test_the_modules_that_are_not_to_be_read_exist(unneeded: list[str]) -> None:
    assert [name for name in unneeded if find_spec(name) is None] == []


def test_importing_the_package_reads_none_of_its_modules(
    processes: Processes, tmp_path: Path
) -> None:
    code = "import sys, graphile_worker_py; print(*sys.modules)"
    read = modules_after(processes, code, tmp_path)
    assert PACKAGE in read
    assert not [name for name in read if name.startswith(f"{PACKAGE}.")]
    assert "psycopg" not in read


def test_a_module_of_tasks_reads_nothing_that_runs_jobs(
    processes: Processes, tmp_path: Path
) -> None:
    read = modules_after(processes, f"{FEW_TASKS}\nimport sys; print(*sys.modules)", tmp_path)
    assert f"{PACKAGE}.tasks.task" in read
    assert read & set(NOT_FOR_TASKS) == set()


def test_a_worker_reads_only_modules_that_it_needs(
    processes: Processes, tmp_path: Path, dsn: str
) -> None:
    (tmp_path / "few_tasks.py").write_text(FEW_TASKS, encoding="utf-8")
    read = modules_after(processes, ONCE, tmp_path, dsn)
    assert f"{PACKAGE}.workers.pool" in read
    assert read & set(NOT_FOR_A_WORKER) == set()


@pytest.mark.parametrize(
    ("code", "compiled"),
    [
        pytest.param(FEW_TASKS + "\nimport sys\n", MADE_FOR_EVERY_JOB, id="tasks"),
        pytest.param(ONCE, MADE_FOR_EVERY_JOB | {f"{PACKAGE}.postgres.query.Query"}, id="worker"),
    ],
)
def test_only_classes_that_are_made_for_every_job_are_compiled_at_the_start(
    processes: Processes, tmp_path: Path, dsn: str, code: str, compiled: set[str]
) -> None:
    (tmp_path / "few_tasks.py").write_text(FEW_TASKS, encoding="utf-8")
    printed = modules_after(processes, code + COMPILED, tmp_path, dsn)
    found = [each.removeprefix("compiled:") for each in printed if each.startswith("compiled:")]
    assert set(found) == compiled


def test_help_does_not_wait_for_the_database_driver(processes: Processes, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom graphile_worker_py.cli.main import main\n"
        "main(['run', '--help'], standalone_mode=False)\nprint(*sys.modules)"
    )
    read = modules_after(processes, code, tmp_path)
    assert f"{PACKAGE}.cli.run" in read
    assert "psycopg" not in read


def test_every_command_that_is_written_can_be_called() -> None:
    context = click.Context(main)
    listed = {main.get_command(context, name) for name in main.list_commands(context)}
    written: set[click.Command | None] = set()
    for module in pkgutil.iter_modules(cli.__path__, f"{cli.__name__}."):
        names = vars(importlib.import_module(module.name))
        written |= {each for each in names.values() if isinstance(each, click.Command)}
    written.discard(main)
    groups = [each for each in written if isinstance(each, click.Group)]
    assert listed == written - {below for group in groups for below in group.commands.values()}


async def test_the_connection_that_was_tried_first_is_used(dsn: str) -> None:
    backends = "select pid from pg_stat_activity where application_name = 'graphile_worker_py'"
    async with opened_pool(dsn, max_size=2) as pool:
        with psycopg.connect(dsn) as other:
            tried = other.execute(f"{backends} and datname = current_database()").fetchall()
        assert len(tried) == 1
        async with pool.connection() as conn:
            assert conn.info.backend_pid == tried[0][0]
        async with pool.connection() as one, pool.connection() as two:
            assert {one.info.backend_pid, two.info.backend_pid} > {tried[0][0]}


async def test_a_pool_that_nobody_used_leaves_no_connection(dsn: str) -> None:
    async with opened_pool(dsn, max_size=2):
        pass
    # The fixture fails the test if a connection is left.
