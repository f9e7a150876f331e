"""Tasks from a directory, or from a single file."""

import inspect
import logging
import os
import re
import stat
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from graphile_worker_py.checks import check_path
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.executors.executable import executable_task
from graphile_worker_py.loading.modules import collect_tasks, is_module
from graphile_worker_py.loading.watching import reloaded
from graphile_worker_py.records import Record
from graphile_worker_py.tasks.importing import forget, import_file, line_of, open_package
from graphile_worker_py.tasks.task import Task

ENTRY_NAMES: Final = ("task", "run", "default")
"""Functions that stand for their file: they are the task that the file is named after."""

_DIRECTORY_NAME: Final = r"[A-Za-z0-9_-]+"
_FILE_NAME: Final = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*"
_EXPECTED: Final = (
    "Python files with @task functions (or with a function named task, run or default), "
    "or executable files"
)


def load_tasks(
    path: str | Path, *, logger: logging.Logger | None = None, strict: bool = False
) -> dict[str, Task[Any]]:
    """Load the tasks of a directory and the directories in it, or of a single file.

    Of a Python file each `@task` function is a task under its own identifier. A function named
    `task`, `run` or `default` is the one that the file is named after (`reports/render.py` is
    `reports/render`), with `@task` or, if nothing else in the file is a task, without. An
    executable file of any other kind is a task under the name of the file. What begins with `_`
    or `.` is left out.

    Args:
        path: The directory, or the file. The name of a module, such as `myapp.tasks`, loads its
            tasks instead.
        logger: Where to log what is left out; None means this module's.
        strict: Whether a file that can't be loaded is an error. If not, it is logged, and the
            other tasks work.

    Raises:
        ConfigurationError: There is nothing to load there, two tasks share an identifier, or,
            if `strict`, a file can't be loaded.
    """
    check_path("task_directory", path)
    where = Path(path)
    if isinstance(path, str) and not where.exists() and is_module(path):
        return collect_tasks([path], name="task_directory")
    loader = _Loader(where, logger=logger or logging.getLogger(__name__), strict=strict)
    try:
        found = loader.load()
    except OSError as error:
        raise ConfigurationError(
            f"can't read {error.filename or str(where)!r} ({error.strerror}); expected is a "
            f"directory with {_EXPECTED}"
        ) from error
    if not found:
        faults = "".join(f"\n- {fault}" for fault in loader.faults)
        raise ConfigurationError(
            f"there is no task in {str(where)!r}: expected are {_EXPECTED}{faults}"
        )
    return dict(sorted(found.items()))


async def watch_tasks(
    path: str | Path, *, logger: logging.Logger | None = None, interval: float = 0.5
) -> AsyncGenerator[dict[str, Task[Any]], None]:
    """Load tasks now, and again whenever one of their files has changed. For development.

    The modules of the directory are imported anew; those that they import from elsewhere are not.
    What does not load is logged, and nothing is yielded until it does.

    Args:
        path: As for `load_tasks`.
        logger: As for `load_tasks`.
        interval: Seconds between two looks at the files.

    Raises:
        ConfigurationError: The tasks can't be loaded at the start.
    """
    log = logger or logging.getLogger(__name__)
    check_path("task_directory", path)
    versions = reloaded(
        partial(load_tasks, path, logger=log),
        lambda: [Path(path)],
        forget=lambda: forget(path),
        source=str(path),
        log=log,
        interval=interval,
    )
    async with aclosing(versions):
        async for tasks in versions:
            yield tasks


class _TaskFile(Record):
    """A file that may hold tasks.

    Attributes:
        path: Where it is. Not resolved: a link goes by its own name.
        identifier: The task identifier that its path gives.
        is_python: Whether it is imported.
        is_executable: Whether its owner may execute it.
    """

    path: Path
    identifier: str
    is_python: bool
    is_executable: bool


class _Loader:
    """One load of one directory or file."""

    def __init__(self, where: Path, *, logger: logging.Logger, strict: bool) -> None:
        self.faults: list[str] = []
        self._where = where.absolute()
        self._logger = logger
        self._strict = strict
        self._tasks: dict[str, Task[Any]] = {}
        self._places: dict[str, str] = {}

    def load(self) -> dict[str, Task[Any]]:
        """Load everything; the tasks by identifier."""
        if self._where.is_dir():
            directory, files = self._where, list(self._files_in(self._where, ""))
        else:
            directory, files = self._where.parent, [self._single_file()]
        self._reject_twins(files)
        package = self._open_package(directory)
        modules: list[tuple[_TaskFile, ModuleType]] = []
        for file in files:
            with self._tolerance(file):
                if file.is_python:
                    parts = file.path.relative_to(directory).with_suffix("").parts
                    modules.append((file, import_file(package, parts, file.path)))
                else:
                    self._add(executable_task(file.path, file.identifier), str(file.path))
        owners = _owners([module for _, module in modules])
        for file, module in modules:
            with self._tolerance(file):
                self._add_tasks_of(module, file, owners)
        return self._tasks

    def _open_package(self, directory: Path) -> str:
        try:
            return open_package(directory)
        except (Exception, SystemExit) as error:  # without its package no file can be loaded
            raise ConfigurationError(_fault(directory / "__init__.py", error)) from error

    def _single_file(self) -> _TaskFile:
        path = self._where
        mode = path.stat().st_mode
        file = _TaskFile(
            path=path,
            identifier=path.name.partition(".")[0],
            is_python=path.suffix == ".py",
            is_executable=_is_executable(mode),
        )
        if not file.is_python and not file.is_executable:
            raise ConfigurationError(f"{str(path)!r} is neither a Python file nor executable")
        return file

    def _files_in(self, directory: Path, prefix: str) -> Iterator[_TaskFile]:
        for path in sorted(directory.iterdir()):
            if path.name.startswith(("_", ".")):
                continue
            try:
                mode = path.stat().st_mode
            except OSError as error:
                self._logger.info("Skipped %s: %s", path, error.strerror)
                continue
            base, _, extension = path.name.partition(".")
            if stat.S_ISDIR(mode):
                yield from self._files_below(path, prefix)
            elif not stat.S_ISREG(mode):
                self._logger.info("Skipped %s: it is not a regular file", path)
            elif re.fullmatch(_FILE_NAME, path.name) is None:
                self._logger.info("Skipped %s: its name can't be a task identifier", path)
            elif extension == "py" or _is_executable(mode):
                # The whole extension counts: `send.test.py` is no Python file of tasks.
                yield _TaskFile(
                    path=path,
                    identifier=prefix + base,
                    is_python=extension == "py",
                    is_executable=_is_executable(mode),
                )
            else:
                self._logger.warning("Skipped %s: it is no Python file, nor executable", path)

    def _files_below(self, directory: Path, prefix: str) -> Iterator[_TaskFile]:
        if directory.is_symlink():
            self._logger.info("Skipped %s: links to directories are not followed", directory)
        elif re.fullmatch(_DIRECTORY_NAME, directory.name) is None:
            self._logger.info("Skipped %s: its name can't be part of an identifier", directory)
        else:
            yield from self._files_in(directory, f"{prefix}{directory.name}/")

    def _reject_twins(self, files: list[_TaskFile]) -> None:
        seen: dict[str, _TaskFile] = {}
        for file in files:
            other = seen.setdefault(file.identifier, file)
            if other is not file:
                raise ConfigurationError(
                    f"two files are named after task {file.identifier!r}: "
                    f"{other.path} and {file.path}"
                )

    def _add_tasks_of(
        self, module: ModuleType, file: _TaskFile, owners: dict[Task[Any], ModuleType]
    ) -> None:
        decorated = _tasks_in(module)
        for found in decorated:
            if owners[found] is module:
                named = _named_after_file(found, module, file.identifier)
                self._add(named, _place(named, file.path))
        if decorated:
            return
        function = _entry_function(module)
        if function is None:
            self._logger.warning(
                "Skipped %s: there is no @task function in it, and no function named %s; the "
                "name of a file without tasks should begin with an underscore",
                file.path,
                " or ".join(ENTRY_NAMES),
            )
        else:
            named = Task(function, file.identifier)
            self._add(named, _place(named, file.path))

    def _add(self, found: Task[Any], place: str) -> None:
        name = found.identifier
        if name in self._tasks:
            other = self._places[name]
            hint = " (imported twice; use a relative import)" if other == place else ""
            raise _TwinTasksError(f"two tasks are named {name!r}: {other} and {place}{hint}")
        self._tasks[name] = found
        self._places[name] = place

    @contextmanager
    def _tolerance(self, file: _TaskFile) -> Iterator[None]:
        """Keep the fault of one file from the rest."""
        try:
            yield
        except _TwinTasksError:
            raise
        except (Exception, SystemExit) as error:  # a module may raise anything
            fault = _fault(file.path, error)
            if self._strict:
                raise ConfigurationError(fault) from error
            self.faults.append(fault)
            self._logger.exception("Skipped a task file: %s", fault)


class _TwinTasksError(ConfigurationError):
    """Two tasks have the same identifier, so that either might run."""


def _is_executable(mode: int) -> bool:
    return os.name == "posix" and stat.S_ISREG(mode) and bool(mode & stat.S_IXUSR)


def _tasks_in(module: ModuleType) -> list[Task[Any]]:
    return list(dict.fromkeys(value for value in vars(module).values() if isinstance(value, Task)))


def _owners(modules: Iterable[ModuleType]) -> dict[Task[Any], ModuleType]:
    """The module that each task belongs to, although other modules import it."""
    owners: dict[Task[Any], ModuleType] = {}
    for module in modules:
        for found in _tasks_in(module):
            if found not in owners or found.__module__ == module.__name__:
                owners[found] = module
    return owners


def _named_after_file(found: Task[Any], module: ModuleType, identifier: str) -> Task[Any]:
    stands_for_it = vars(module).get(found.identifier) is found
    if found.identifier in ENTRY_NAMES and stands_for_it:
        return found.renamed(identifier)
    return found


def _entry_function(module: ModuleType) -> Callable[..., Any] | None:
    for name in ENTRY_NAMES:
        value: Callable[..., Any] | None = vars(module).get(name)
        # Defined here: `from subprocess import run` makes no task.
        if (
            callable(value)
            and not inspect.isclass(value)
            and getattr(value, "__module__", None) == module.__name__
        ):
            return value
    return None


def _place(found: Task[Any], path: Path) -> str:
    code = getattr(inspect.unwrap(found.function), "__code__", None)
    return str(path) if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _fault(path: Path, error: BaseException) -> str:
    line = line_of(path, error)
    where = str(path) if line is None else f"{path}, line {line}"
    return f"could not load {where}: {type(error).__name__}: {error}"
