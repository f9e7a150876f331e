"""Load tasks again whenever one of their files has changed."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.tasks.task import Task, check_tasks

Snapshot: TypeAlias = dict[Path, tuple[int, int, int, int]]


class Load(Protocol):
    """Loads tasks; raises ConfigurationError if a file can't be loaded and `strict` is true."""

    def __call__(self, *, strict: bool) -> dict[str, Task[Any]]: ...


async def reloaded(
    load: Load,
    places: Callable[[], Iterable[Path]],
    *,
    forget: Callable[[], None],
    source: str,
    log: logging.Logger,
    interval: float,
) -> AsyncGenerator[dict[str, Task[Any]], None]:
    """Load tasks now, and again whenever one of their files has changed.

    Errors of a reload are logged; nothing is yielded until the tasks load.

    Args:
        load: Loads the tasks.
        places: Returns the files and directories to watch.
        forget: Called before each reload, so that modules are imported again.
        source: Names the tasks in the log.
        log: The logger.
        interval: Seconds between two looks at the files.

    Raises:
        ConfigurationError: The tasks can't be loaded at the start.
    """
    # Taken before the load, so that a change during the load is seen as one.
    seen = _snapshot(places())
    yield load(strict=False)
    while True:
        await asyncio.sleep(interval)
        now = _snapshot(places())
        if now == seen:
            continue
        seen = now
        forget()
        try:
            tasks = load(strict=True)
            # A worker refuses to start with such tasks, and the old one would have ended.
            check_tasks(tasks.values())
        except ConfigurationError as error:
            log.error("Tasks are not reloaded: %s", error)  # noqa: TRY400
            continue
        log.info("Reloaded %d task(s) from %s", len(tasks), source)
        yield tasks


def _snapshot(places: Iterable[Path]) -> Snapshot:
    """The state of each file, which differs after a change."""
    found: Snapshot = {}
    for file in _files_in(places):
        with suppress(OSError):  # it is gone meanwhile, or a link to nowhere
            known = file.stat()
            found[file] = (known.st_mtime_ns, known.st_size, known.st_mode, known.st_ino)
    return found


def _files_in(places: Iterable[Path]) -> Iterable[Path]:
    for place in places:
        if not place.is_dir():
            yield place
        for directory, below, names in os.walk(place):
            below[:] = [each for each in below if each != "__pycache__" and each[0] != "."]
            yield from (Path(directory, name) for name in names if not name.startswith("."))
