"""Outlive a worker that is killed, and end the processes of its tasks. Run as a program.

It reads lines `+PID` and `-PID`, the leaders of process groups that have begun and ended. When its
input ends, because the worker has ended, it kills the groups that are left. The process of a task
could not do that itself while it holds the interpreter, for example in a regular expression.

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
