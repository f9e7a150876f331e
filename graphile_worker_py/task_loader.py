"""Tasks from a directory, or from a single file.

The files of a directory are the modules of one package: they import each other, and helpers whose
name begins with an underscore, by relative imports (`from ._lib import render`). A directory that
is a package which Python finds by itself (it has an `__init__.py`) is imported under its own name,
as everywhere else in the program. Any other becomes a private package, read anew by each load.
"""

import asyncio
import errno
import hashlib
import importlib
import importlib.util
import logging
import os
import re
import stat
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.executors.executable import executable_task
from graphile_worker_py.tasks import Task, task

ENTRY_NAMES: Final = ("task", "run", "default")
"""Functions that stand for their file: they are the task that the file is named after."""

_DIRECTORY_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_EXPECTED: Final = (
    "Python files with @task functions (or with a function named task, run or default), "
    "or executable files"
)


def load_tasks(
    path: str | Path, *, logger: logging.Logger | None = None, strict: bool = False
) -> dict[str, Task]:
    """Load the tasks of a directory and the directories in it, or of a single file.

    Of a Python file each `@task` function is a task under its own identifier. A function named
    `task`, `run` or `default` is the one that the file is named after (`reports/render.py` is
    `reports/render`), with `@task` or, if nothing else in the file is a task, without. An
    executable file of any other kind is a task under the name of the file. What begins with `_`
    or `.` is left out.

    Args:
        path: The directory, or the file.
        logger: Where to log what is left out; None means this module's.
        strict: Whether a file that can't be loaded is an error. If not, it is logged, and the
            other tasks work.

    Raises:
        ConfigurationError: There is nothing to load there, two tasks share an identifier, or,
            if `strict`, a file can't be loaded.
    """
    where = Path(path)
    loader = _Loader(where, logger=logger or logging.getLogger(__name__), strict=strict)
    importlib.invalidate_caches()
    try:
        if where.is_dir():
            found = loader.load(where, list(loader.files()))
        else:
            file = _TaskFile(where.absolute(), where.name.partition(".")[0], where.stat().st_mode)
            found = loader.load(where.absolute().parent, [file])
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"can't read the task directory {str(where)!r} ({reason}); expected is a directory "
            f"with {_EXPECTED}"
        ) from error
    if not found:
        faults = "".join(f"\n- {fault}" for fault in loader.faults)
        raise ConfigurationError(
            f"there is no task in {str(where)!r}: expected are {_EXPECTED}{faults}"
        )
    return dict(sorted(found.items()))


async def watch_tasks(
    path: str | Path, *, logger: logging.Logger | None = None, interval: float = 0.5
) -> AsyncIterator[dict[str, Task]]:
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
    # Looked at before they are read, so that a change during the load is seen as one.
    seen = _snapshot(Path(path))
    yield load_tasks(path, logger=log)
    while True:
        await asyncio.sleep(interval)
        now = _snapshot(Path(path))
        if now == seen:
            continue
        seen = now
        _forget_under(Path(path))
        try:
            tasks = load_tasks(path, logger=log, strict=True)
        except ConfigurationError as error:
            log.error("Tasks are not reloaded: %s", error)  # noqa: TRY400
            continue
        log.info("Reloaded %d task(s) from %s", len(tasks), path)
        yield tasks


@dataclass(frozen=True, slots=True)
class _TaskFile:
    """A file that may hold tasks.

    Attributes:
        path: Where it is; not resolved, because a link is named by its own name.
        identifier: The identifier that its path gives.
        mode: Its type and permissions.
    """

    path: Path
    identifier: str
    mode: int

    @property
    def is_python(self) -> bool:
        # The whole extension: `send.test.py` is no task.
        return self.path.name.partition(".")[2] == "py"

    @property
    def is_executable(self) -> bool:
        return os.name == "posix" and stat.S_ISREG(self.mode) and bool(self.mode & stat.S_IXUSR)


class _Loader:
    """One load of one directory or file."""

    def __init__(self, where: Path, *, logger: logging.Logger, strict: bool) -> None:
        self.faults: list[str] = []
        self._where = where
        self._logger = logger
        self._strict = strict
        self._tasks: dict[str, Task] = {}
        self._places: dict[str, str] = {}

    def files(self) -> Iterator[_TaskFile]:
        """The files of the directory and those below that can be tasks, in order."""
        yield from self._files_in(self._where.absolute(), "")

    def load(self, directory: Path, files: list[_TaskFile]) -> dict[str, Task]:
        """Load files of a directory; their tasks by identifier."""
        self._reject_twins(files)
        package = _Package(directory)
        for file in files:
            if file.is_python:
                self._load_python(package, file)
            elif file.is_executable:
                with self._guard(file):
                    self._add(executable_task(file.path, file.identifier), str(file.path))
            else:
                self._logger.warning(
                    "Skipped %s: it is neither a Python file nor executable", file.path
                )
        return self._tasks

    def _files_in(self, directory: Path, prefix: str) -> Iterator[_TaskFile]:
        for path in sorted(directory.iterdir()):
            if path.name.startswith(("_", ".")):
                continue
            try:
                mode = path.stat().st_mode
            except OSError as error:
                self._logger.info("Skipped %s: %s", path, error.strerror)
                continue
            if stat.S_ISDIR(mode):
                yield from self._files_below(path, prefix)
            elif not stat.S_ISREG(mode):
                self._logger.info("Skipped %s: it is not a regular file", path)
            elif _FILE_NAME.fullmatch(path.name) is None:
                self._logger.info("Skipped %s: its name can't be a task identifier", path)
            else:
                yield _TaskFile(path, prefix + path.name.partition(".")[0], mode)

    def _files_below(self, directory: Path, prefix: str) -> Iterator[_TaskFile]:
        if directory.is_symlink():
            self._logger.info("Skipped %s: links to directories are not followed", directory)
        elif _DIRECTORY_NAME.fullmatch(directory.name) is None:
            self._logger.info("Skipped %s: its name can't be part of an identifier", directory)
        else:
            yield from self._files_in(directory, f"{prefix}{directory.name}/")

    def _reject_twins(self, files: list[_TaskFile]) -> None:
        seen: dict[str, _TaskFile] = {}
        for file in files:
            if not file.is_python and not file.is_executable:
                continue
            other = seen.setdefault(file.identifier, file)
            if other is not file:
                raise ConfigurationError(
                    f"two files are named after task {file.identifier!r}: "
                    f"{other.path} and {file.path}"
                )
