"""The frames that arrive from the process of a task, as the worker reads them."""

import asyncio
from collections import deque
from typing import Final, cast

from graphile_worker_py.executors import wire

MOST_HELD: Final = 2**17
"""Bytes of unread messages, from which on the process has to wait before it can send more."""


class Channel(asyncio.Protocol):
    """Collects messages until they are received, one at a time.

    It has no task: whatever has arrived is cut into messages at once, and a receiver is woken by a
    future. If messages are not received, reading is paused.

    Attributes:
        held: Bytes of messages that were not received yet.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._messages: deque[bytes] = deque()
        self._part = bytearray()
        self.held = 0
        self._is_paused = False
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None

    def write(self, frame: bytes) -> None:
        """Send a message, as soon as the process reads; nothing if the connection has ended."""
        if self._transport is not None:
            self._transport.write(frame)

    async def receive(self) -> bytes | None:
        """The next message, without its length; None if there are no more.

        A cancelled call takes no message.
        """
        while not self._messages:
            if self._is_over:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._messages.popleft()
        self.held -= len(message)
        if self._is_paused and self.held <= MOST_HELD:
            self._is_paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        return message

    def hang_up(self) -> None:
        """Receive no message any longer, those included that are here."""
        self._messages.clear()
        self._end()

    def close(self) -> None:
        """Close the connection, and drop what was not sent."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        part, header = self._part, wire.HEADER.size
        part += data
        while len(part) >= header:
            (size,) = wire.HEADER.unpack_from(part)
            if size > wire.LONGEST:
                self._end()
                return
            if len(part) < header + size:
                break
            self._messages.append(bytes(part[header : header + size]))
            self.held += size
            del part[: header + size]
        if self.held > MOST_HELD and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        if self._messages:
            self._wake()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._end()

    def _end(self) -> None:
        self._is_over = True
        self._part.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
