"""The abort signal of a job, as tasks on the event loop and tasks in threads see it."""

import asyncio
import threading
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

AbortReason: TypeAlias = Literal["shutdown", "cancelled", "lost"]
"""Why a job should end: its pool shuts down, it was cancelled, or another pool has freed it."""

_MAKING: Final = threading.Lock()


class Abort:
    """The abort signal of one job. Its events are made when a task first reads them.

    Attributes:
        reason: Why the job should end; None while it may go on.
        on_set: Called when it is set, for a job that runs in another process.
    """

    __slots__ = ("_event", "_thread_event", "on_set", "reason")

    def __init__(self) -> None:
        self.reason: AbortReason | None = None
        self.on_set: Callable[[AbortReason], object] | None = None
        self._event: asyncio.Event | None = None
        self._thread_event: threading.Event | None = None

    @property
    def event(self) -> asyncio.Event:
        """The signal for tasks on the event loop."""
        if self._event is None:
            self._event = asyncio.Event()
            if self.reason is not None:
                self._event.set()
        return self._event

    @property
    def thread_event(self) -> threading.Event:
        """The signal for tasks in threads."""
        with _MAKING:
            if self._thread_event is None:
                self._thread_event = threading.Event()
        # Only now: `set` writes the reason first and reads the event afterwards.
        if self.reason is not None:
            self._thread_event.set()
        return self._thread_event

    def set(self, reason: AbortReason) -> None:
        """Ask the job to end. Called on the event loop; the last reason stays."""
        self.reason = reason
        if self.on_set is not None:
            self.on_set(reason)
        if self._event is not None:
            self._event.set()
        if self._thread_event is not None:
            self._thread_event.set()
