"""Signal a process and all processes that it has started: its process group."""

import os
import signal
from contextlib import suppress


def signal_group(leader: int, number: signal.Signals, *, is_reaped: bool) -> None:
    """Signal the group that a process leads; this process has started it as a group leader.

    Args:
        leader: Its process id, which is the id of the group.
        number: The signal.
        is_reaped: Whether the leader has ended and was waited for, so that only the processes
            that it started may be left.
    """
    if is_reaped and _exists(leader):
        # The whole group is gone, and another process has the number: the system does not reuse
        # it as long as a process is left in the group.
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
