"""Where the code of a task is: its calls as lines of a traceback, without those of this package."""

import itertools
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Final

_PACKAGE: Final = str(Path(__file__).parent.parent)
_START: Final = "<string>"
"""What the process of a task is started with."""


def written(calls: Iterable[tuple[FrameType, int]]) -> str:
    """Calls with their lines, the innermost last; empty if the task has made none."""
    summary = traceback.StackSummary.extract(iter(calls))
    own = itertools.dropwhile(_is_of_the_worker, summary)
    return "".join(traceback.format_list(list(own)))


def of_thread(thread: int) -> list[tuple[FrameType, int]]:
    """The calls that a thread makes at this moment; none if it has ended."""
    frame = sys._current_frames().get(thread)
    return [] if frame is None else [*reversed(list(traceback.walk_stack(frame)))]


def _is_of_the_worker(call: traceback.FrameSummary) -> bool:
    name = call.filename
    return name.startswith(_PACKAGE) or name in {threading.__file__, _START}
