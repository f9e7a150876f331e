"""How much memory a process and those that it has started hold: their resident set size."""

import asyncio
import functools
import importlib
import importlib.util
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from graphile_worker_py.errors import ConfigurationError

_GROUP: Final = 2
_PAGES: Final = 21
"""Fields of /proc/PID/stat, counted from the one behind the name of the program."""


def check_supported() -> None:
    """Look whether memory can be measured here.

    Raises:
        ConfigurationError: It can't.
    """
    if sys.platform != "linux" and importlib.util.find_spec("psutil") is None:
        raise ConfigurationError(
            "the memory of a task can't be limited here without the package psutil: "
            "pip install 'graphile-worker-py[process]'"
        )


def resident(pid: int) -> int:
    """Bytes that a process holds in memory; 0 if it has ended or can't be read now."""
    if sys.platform != "linux":
        return resident_by_psutil(pid)
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123  # in a tenth of the time
            return int(file.read().split()[1]) * _page()
    except OSError:  # the process is gone, or this one may open no more files
        return 0


class Resident:
    """Measures one process again and again. Where there is /proc, its file stays open.

    Args:
        pid: The process; it runs, so that its number is its own.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._file = -1
        if sys.platform == "linux":
            with suppress(OSError):  # this process may open no more files
                self._file = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        """Bytes that it holds in memory; 0 if it has ended or can't be read now."""
        if self._file < 0:
            return resident(self._pid)
        try:
            return int(os.pread(self._file, 100, 0).split()[1]) * _page()
        except OSError:  # the process is gone
            return 0

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


@functools.cache
def _page() -> int:
    return os.sysconf("SC_PAGE_SIZE")


class Groups:
    """The memory of process groups.

    To measure it, each process of the machine is read, which takes some milliseconds for hundreds
    of them. So that is done in a thread, and one measurement serves all groups.

    Args:
        age: Seconds for which a measurement is used again.
        measure: Measures the bytes that the processes of each group hold; None reads those of all
            processes of the machine.
    """

    def __init__(self, age: float, measure: Callable[[], dict[int, int]] | None = None) -> None:
        self._age = age
        self._measure = resident_of_groups if measure is None else measure
        self._found: dict[int, int] = {}
        self._looked_at = -age
        self._looking = asyncio.Lock()

    async def resident(self, leader: int) -> int:
        """Bytes that all processes of a group hold; shared memory counts for each of them."""
        clock = asyncio.get_running_loop().time
        async with self._looking:
            if clock() - self._looked_at >= self._age:
                # If no more files or threads are allowed, the last measurement has to do.
                with suppress(OSError, RuntimeError):
                    self._found = await asyncio.to_thread(self._measure)
                self._looked_at = clock()
        return self._found.get(leader, 0)


def resident_of_groups() -> dict[int, int]:
    """Bytes that the processes of each group hold."""
    found: dict[int, int] = defaultdict(int)
    for group, size in _processes() if sys.platform == "linux" else processes_by_psutil():
        found[group] += size
    return found


def _processes() -> Iterator[tuple[int, int]]:
    """Group and resident bytes of each process."""
    page = _page()
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit():
            continue
        with (
            suppress(FileNotFoundError, ProcessLookupError, PermissionError),
            open(f"/proc/{name}/stat", "rb") as file,  # noqa: PTH123
        ):
            # The name of the program stands in parentheses, and may have any in itself.
            fields = file.read().rpartition(b")")[2].split()
            yield int(fields[_GROUP]), int(fields[_PAGES]) * page


def resident_by_psutil(pid: int) -> int:
    """As `resident`, where there is no /proc."""
    psutil = importlib.import_module("psutil")
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def processes_by_psutil() -> Iterator[tuple[int, int]]:
    """Group and resident bytes of each process, where there is no /proc."""
    psutil = importlib.import_module("psutil")
    for process in psutil.process_iter():
        # Those of other users can't be read, and belong to no task.
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            yield os.getpgid(process.pid), int(process.memory_info().rss)
