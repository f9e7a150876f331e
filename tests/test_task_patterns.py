"""Patterns of modules with tasks: `tasks="saas.*.tasks"`."""

import logging
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from graphile_worker_py import ConfigurationError, Runner
from graphile_worker_py.loading.modules import collect_tasks, watch_modules
from tests.support.processes import Processes
from tests.support.running import Jobs

TASK = "from graphile_worker_py import task\n@task\nasync def {name}(payload): ...\n"


@pytest.fixture
def saas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with applications, some of which have tasks; one has no `__init__.py`."""
    root = tmp_path / "saas"
    for name in ("app_mail", "app_bills", "web"):
        (root / name).mkdir(parents=True)
        (root / name / "tasks.py").write_text(TASK.format(name=f"{name}_task"), encoding="utf-8")
    for name in ("", "app_mail", "web", "empty"):
        (root / name).mkdir(exist_ok=True)
        (root / name / "__init__.py").write_text("", encoding="utf-8")
    (root / "settings.py").write_text("tasks = 7\n", encoding="utf-8")
    (root / "templates").mkdir()
    (root / "web" / "views.py").write_text("from saas.app_mail.tasks import app_mail_task\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "saas"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("saas.*.tasks", {"app_mail_task", "app_bills_task", "web_task"}),
        ("saas.app_*.tasks", {"app_mail_task", "app_bills_task"}),
        ("saas.web.*", {"web_task", "app_mail_task"}),
        ("saas.*.tasks:web_task", None),
        ("saas.w*.tasks:web_task", {"web_task"}),
    ],
)
@pytest.mark.usefixtures("saas")
def test_a_pattern_stands_for_all_modules_that_it_matches(
    pattern: str, found: set[str] | None
) -> None:
    if found is None:
        with pytest.raises(ConfigurationError, match="has no attribute 'web_task'"):
            collect_tasks([pattern])
    else:
        assert collect_tasks([pattern]).keys() == found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.tasks", r"tasks \*.tasks: a pattern begins with the name of a package"),
        ("saas.**", "a pattern begins with the name of a package, and has"),
        ("saas.*..tasks", "a pattern begins with the name of a package"),
        ("nothing.*.tasks", r"tasks nothing.\*.tasks: there are no such modules"),
        ("saas.*.jobs", r"tasks saas.\*.jobs: there are no such modules"),
        ("saas.s*", "none of these modules has @task functions: saas.settings"),
    ],
)
@pytest.mark.usefixtures("saas")
def test_a_pattern_that_finds_no_task_is_an_error(pattern: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Runner("", tasks=pattern)


def test_a_module_of_a_pattern_that_can_not_be_imported_is_an_error(saas: Path) -> None:
    (saas / "app_mail" / "tasks.py").write_text("1 / 0\n", encoding="utf-8")
    (saas / "web" / "__init__.py").write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"saas.\*.tasks: ZeroDivisionError"):
        collect_tasks(["saas.*.tasks"])
    with pytest.raises(ConfigurationError, match=r"saas.app_mail.tasks: ZeroDivisionError"):
        collect_tasks(["saas.app_*.tasks"])


def test_a_file_and_a_flag_take_patterns(
    saas: Path, processes: Processes, dsn: str, stored: Jobs
) -> None:
    (saas.parent / "graphile_worker.toml").write_text('tasks = ["saas.app_*.tasks"]\n')
    command = [sys.executable, "-m", "graphile_worker_py", "--once"]
    for flags in ([], ["--tasks", "saas.*.tasks"]):
        for name in ("app_mail_task", "web_task"):
            stored.add(name)
        worker = processes.start([*command, *flags], cwd=saas.parent, env={"DATABASE_URL": dsn})
        assert worker.wait() == 0, worker.stderr
        left = {job["task_identifier"] for job in stored.all()}
        assert left == (set() if flags else {"web_task"})


async def test_a_new_module_that_a_pattern_matches_is_loaded_while_watching(saas: Path) -> None:
    versions = watch_modules(
        ["saas.*.tasks"], name="--tasks", logger=logging.getLogger(__name__), interval=0.01
    )
    async with aclosing(versions):
        assert "empty_task" not in await anext(versions)
        (saas / "empty" / "tasks.py").write_text(TASK.format(name="empty_task"), encoding="utf-8")
        assert "empty_task" in await anext(versions)
