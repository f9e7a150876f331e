"""Show on a terminal how far bulk work is: on standard error, if it takes longer than a second."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

CHUNK: Final = 500
"""Jobs of one step."""
PATIENCE: Final = 1.0
"""Seconds of work before anything is shown."""
_INTERVAL: Final = 0.2
_WIDTH: Final = 30


class Work:
    """What is known of the work.

    Args:
        label: What is done: `Deleting`.
        total: How many jobs there are; None if that is not known.
        done: How many are done.
    """

    def __init__(self, label: str, total: int | None = None) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._began = time.monotonic()

    def line(self) -> str:
        """How far it is."""
        seconds = int(time.monotonic() - self._began)
        if not self.total:
            counted = f" {self.done}" if self.done else ""
            return f"{self.label}{counted} … {seconds} s"
        filled = min(_WIDTH, self.done * _WIDTH // self.total)
        bar = "#" * filled + "-" * (_WIDTH - filled)
        return f"{self.label} [{bar}] {self.done}/{self.total} {seconds} s"

    def chunks(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Some items after the other; each part is done when the next one is asked for."""
        for start in range(0, len(items), CHUNK):
            part = items[start : start + CHUNK]
            yield part
            self.done += len(part)


@contextmanager
def showing(work: Work, *, as_json: bool) -> Iterator[Work]:
    """Show how far the work of the block is: on a terminal, and not with JSON."""
    if as_json or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield work
        return
    has_ended = threading.Event()
    thread = threading.Thread(target=_show, args=(work, has_ended), daemon=True)
    thread.start()
    try:
        yield work
    finally:
        has_ended.set()
        thread.join()


def _show(work: Work, has_ended: threading.Event) -> None:
    longest, pause = 0, PATIENCE
    while not has_ended.wait(pause):
        line, pause = work.line(), _INTERVAL
        longest = max(longest, len(line))
        sys.stderr.write(f"\r{line.ljust(longest)}")
        sys.stderr.flush()
    if longest:
        sys.stderr.write(f"\r{' ' * longest}\r")
        sys.stderr.flush()
