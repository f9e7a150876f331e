"""What one worker pool hears of the notifications on the connection that its runner listens on."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from math import ceil
from typing import Any, TypeAlias

from psycopg import AsyncConnection

from graphile_worker_py.sql import notifications

logger = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], Awaitable[None]]
Handler: TypeAlias = Callable[[str | None], Awaitable[None] | None]
"""Called with the payload of each notification; with None if some may have been missed."""
TopicHandler: TypeAlias = Callable[[Mapping[str, Any] | None], object]


class Hearing:
    """The channels and topics that one pool wants to hear, and what it does then.

    Args:
        pool_id: Id of the pool, for logs and events.
        schema: Topics of other schemas are ignored.
        poll_interval: Seconds between fetches while nothing is heard, for the log.
        on_listen: Awaited with each new connection as soon as the first echo has proved that its
            session is ours alone. Without echoes, only if there is no pooler in between. A
            database error that it raises counts as a lost connection.

    Attributes:
        bursts: What is to be awaited because of notifications that have arrived.
        closed: Set when the pool wants to hear no more.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        schema: str,
        poll_interval: float,
        on_listen: Callable[[AsyncConnection[Any]], Awaitable[None]],
    ) -> None:
        self.pool_id = pool_id
        self.poll_interval = poll_interval
        self.on_listen = on_listen
        self.bursts: set[Work] = set()
        self.closed = asyncio.Event()
        self._schema = schema
        self._handlers: dict[str, Handler] = {}
        self._topics: dict[str, list[TopicHandler]] = {}

    @property
    def channels(self) -> Collection[str]:
        """The channels that it listens on."""
        return self._handlers.keys()

    def on_channel(self, channel: str, handler: Handler) -> None:
        """Listen on a channel, and call a function for its notifications.

        To be called before the pool listens. The function is also called with None each time that
        the listener begins to listen, because notifications may have been missed before.
        """
        self._handlers[channel] = handler

    def on_burst(self, channel: str, *, counts: Callable[[str], bool], work: Work) -> None:
        """Await a function after notifications of a channel: once for all that arrive together.

        To be called before the pool listens. The listener does not wait for the function, unless it
        begins to listen, when notifications may have been missed. After a database error of the
        function, it is awaited again.

        Args:
            channel: The channel.
            counts: Whether a notification with this payload counts.
            work: The function.
        """

        def hear(payload: str | None) -> Awaitable[None] | None:
            if payload is None:
                return work()
            if counts(payload):
                self.bursts.add(work)
            return None

        self.on_channel(channel, hear)

    def on(self, topic: str, handler: TopicHandler) -> None:
        """Call a function for the notifications of a topic on the channel `graphile_worker_py`.

        To be called before the pool listens, for example in `Plugin.parts`. Such a notification is
        a small JSON object with the schema as `s` and the topic as `t`; those of other schemas are
        ignored. The function gets the object; None each time that the listener begins to listen,
        because notifications may have been missed. A notification is a hint: it may never arrive.
        An error that the function raises is logged.
        """
        if not self._topics:
            self.on_channel(notifications.OWN, self._hear_topic)
        self._topics.setdefault(topic, []).append(handler)

    async def hear(self, channel: str, payload: str) -> None:
        """Call the function of a channel, if there is one."""
        handler = self._handlers.get(channel)
        if handler is not None:
            await _called(handler, payload)

    async def begin(self) -> None:
        """Call all functions: notifications may have been missed."""
        for handler in self._handlers.values():
            await _called(handler, None)

    def _hear_topic(self, payload: str | None) -> None:
        said = None if payload is None else read_object(payload)
        if said is None:
            handlers = [each for those in self._topics.values() for each in those]
        elif said.get("s") == self._schema:
            handlers = self._topics.get(str(said.get("t")), [])
        else:
            handlers = []
        for handler in handlers:
            try:
                handler(said)
            except Exception:
                logger.exception("Could not handle the notification %s", payload)


async def _called(handler: Handler, payload: str | None) -> None:
    answer = handler(payload)
    if answer is not None:
        await answer


def announced_jobs(payload: str | None) -> int:
    """How many jobs a notification announces; 1 if it does not say, or may have been missed."""
    said = 1 if payload is None else read_object(payload).get("count", 1)
    # A bool is an int in Python only.
    if isinstance(said, bool) or not isinstance(said, int | float):
        return 1
    try:
        return ceil(said)
    except (ValueError, OverflowError):  # NaN, infinity
        return 1


def is_breaking(payload: str) -> bool:
    """Whether a notification announces a breaking change of a schema."""
    return bool(read_object(payload).get("breaking"))


def read_object(payload: str) -> dict[str, Any]:
    """The JSON object of a payload; an empty one if it is none, because any role may notify."""
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
