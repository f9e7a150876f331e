"""Outlive a worker that is killed, and end the processes of its tasks: run as a program.

It reads `+PID` and `-PID` lines, the leaders of process groups that have begun and ended. When
nobody can write any more, because the worker is gone, it kills the groups that are left. A task
that holds the interpreter for hours, in a regular expression say, could not do that itself.

It imports nothing of the package, so that it is small and starts at once.
"""

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Read to the end, then kill."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    while line := sys.stdin.buffer.readline():
        group = int(line[1:])
        if line.startswith(b"+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
