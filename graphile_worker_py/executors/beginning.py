"""When the job of a process has begun: a number in memory that worker and process share.

The worker needs it only when a process has died or a job takes long. So the process writes it to
memory, which costs nothing, and sends no message, which would wake the worker once more for each
job.
"""

import mmap
import os
import struct
import tempfile
from typing import Final

_TIME: Final = struct.Struct("=d")
_NOT_YET: Final = _TIME.pack(0.0)


class Beginning:
    """The time at which a job has begun, by `time.monotonic`, which all processes share.

    Args:
        descriptor: Of a file that `new_file` has made; it is closed.
    """

    def __init__(self, descriptor: int) -> None:
        try:
            self._memory = mmap.mmap(descriptor, _TIME.size)
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Note, in the worker, that the next job has not begun."""
        self._memory[: _TIME.size] = _NOT_YET

    def write(self, now: float) -> None:
        """Note, in the process, that the job begins."""
        self._memory[: _TIME.size] = _TIME.pack(now)

    def is_written(self) -> bool:
        """Whether the job has begun. Whatever else a task has written there means that it has."""
        return self._memory[: _TIME.size] != _NOT_YET

    def read(self) -> float:
        """When the job has begun."""
        (time,) = _TIME.unpack(self._memory[: _TIME.size])
        return float(time)


def new_file() -> int:
    """A file without a name, for memory that two processes share.

    Raises:
        OSError: This process may open no more files.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("graphile-worker-py")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _TIME.size)
    return descriptor
