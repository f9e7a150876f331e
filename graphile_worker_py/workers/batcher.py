"""Gather single items during a write, then write them together in the next one."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from graphile_worker_py import aio

T = TypeVar("T")

MOST: Final = 1000
"""Most items of one write; longer statements cost more than they save."""


class Batcher(Generic[T]):
    """Turn many single items into few batched writes.

    An item that is put while no write is running is written at once; items that are put during a
    write go together in the next one.

    Args:
        write: Awaited with one non-empty batch at a time, in order. It does its own retries and
            must not raise.
        delay: Seconds to wait for more items after the first one; 0 or less means none.
    """

    def __init__(self, write: Callable[[Sequence[T]], Awaitable[None]], *, delay: float) -> None:
        self._write = write
        self._delay = delay
        self._items: deque[T] = deque()
        self._writing = 0
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()

    @property
    def unwritten(self) -> int:
        """How many items are not written yet."""
        return len(self._items) + self._writing

    def put(self, item: T) -> None:
        """Add an item to the next batch."""
        self._items.append(item)
        self._wake.set()

    def close(self) -> None:
        """Let `run` return once everything that was put is written."""
        self._closed.set()
        self._wake.set()

    async def run(self) -> None:
        """Write batches until closed."""
        while self._items or not self._closed.is_set():
            await self._wake.wait()
            if self._delay > 0 and not self._closed.is_set():
                await aio.wait_for(self._closed, self._delay)
            self._wake.clear()
            while self._items:
                batch = [self._items.popleft() for _ in range(min(len(self._items), MOST))]
                self._writing = len(batch)
                await self._write(batch)
                self._writing = 0
