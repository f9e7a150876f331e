"""End the command at signals that arrive before a worker handles them.

It imports little, because it is called before most modules of the command are imported.
"""

import os
import signal
from types import FrameType
from typing import Final

ENDING: Final = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2", "SIGBREAK")
    if hasattr(signal, name)
)
"""Graphile Worker's signals, as far as the platform has them. It also handles SIGABRT, which in a
Python process means that native code has failed; that signal keeps its default action."""


def end_at_signals() -> None:
    """Let signals end this process even if it is PID 1, for which the kernel ignores defaults."""
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end_by)


def end_by(number: int, _frame: FrameType | None = None) -> None:
    """End this process by a signal, or with the exit code that shells use for it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
