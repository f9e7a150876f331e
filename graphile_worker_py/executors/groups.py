"""Signal a process and all that it has started: its process group."""

import os
import signal
from contextlib import suppress


def signal_group(leader: int, number: signal.Signals, *, is_reaped: bool) -> None:
    """Signal the group of a process that we started as the leader of its own.

    Args:
        leader: Its process id, which is the id of the group.
        number: The signal.
        is_reaped: Whether the leader has ended and was waited for, and only others may be left.
    """
    if is_reaped and _exists(leader):
        # Gone with its whole group, and the number is another process's: as long as somebody is
        # left in the group, the system does not give it away.
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def end_of(returncode: int | None) -> str:
    """How a process ended, in words."""
    if returncode is None or returncode >= 0:
        return f"exited with code {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
