"""Hear of new jobs and of schema changes, on a connection of its own."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, Notify

from graphile_worker_py import aio, events
from graphile_worker_py.backoff import Backoff
from graphile_worker_py.db import one_line
from graphile_worker_py.events import Events
from graphile_worker_py.sql import notifications

logger = logging.getLogger(__name__)

RECONNECT: Final = Backoff(shortest=0.1, longest=40.0, factor=2.7)


class Listener:
    """Listens for as long as it runs, and connects anew when the connection is lost.

    Args:
        pool_id: Id of the pool, for logs and events.
        connect: Makes a connection in autocommit mode.
        nudge: Called with the number of jobs that were announced; and, each time it begins to
            listen, with 1, because nobody knows what was announced before.
        schema_changed: Awaited when a breaking change of some schema in the database is
            announced, or may have been announced while the connection was away.
        events: Where to tell what happens.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        connect: Callable[[], Awaitable[AsyncConnection[Any]]],
        nudge: Callable[[int], None],
        schema_changed: Callable[[], Awaitable[None]],
        events: Events,
    ) -> None:
        self._pool_id = pool_id
        self._connect = connect
        self._nudge = nudge
        self._schema_changed = schema_changed
        self._events = events
        self._closed = asyncio.Event()
        self._conn: AsyncConnection[Any] | None = None

    def close(self) -> None:
        """Let `run` end."""
        self._closed.set()

    async def run(self) -> None:
        """Listen until closed."""
        failures = 0
        listened = False
        while not self._closed.is_set():
            self._events.emit(
                events.PoolListenConnecting(pool_id=self._pool_id, attempts=failures + 1)
            )
            try:
                conn = await self._connect()
                async with conn:
                    await conn.execute(notifications.LISTEN)
                    failures = 0
                    self._events.emit(events.PoolListenSuccess(pool_id=self._pool_id))
                    self._nudge(1)
                    if listened:
                        # Nobody knows what was announced in between.
                        await self._schema_changed()
                    listened = True
                    await self._listen(conn)
            except (psycopg.Error, OSError) as error:
                if self._closed.is_set():
                    break
                failures += 1
                delay = RECONNECT.delay(failures)
                logger.warning(
                    "Not listening for new jobs (%s); polling, connecting again in %.1f s",
                    one_line(error),
                    delay,
                    extra={"pool_id": self._pool_id},
                )
                self._events.emit(events.PoolListenError(pool_id=self._pool_id, error=error))
                await aio.wait_for(self._closed, delay)
        self._events.emit(events.PoolListenRelease(pool_id=self._pool_id))

    async def _listen(self, conn: AsyncConnection[Any]) -> None:
        """Hand on what comes in, until closed or until the connection is lost."""
        async with aio.until(self._closed):
            async for notification in conn.notifies():
                await self._hear(notification)

    async def _hear(self, notification: Notify) -> None:
        if self._events.wants(events.PoolListenNotification):
            self._events.emit(
                events.PoolListenNotification(
                    pool_id=self._pool_id,
                    channel=notification.channel,
                    payload=notification.payload,
                )
            )
        if notification.channel == notifications.JOBS_INSERT:
            self._nudge(announced_jobs(notification.payload))
        elif is_breaking(notification.payload):
            await self._schema_changed()


def announced_jobs(payload: str) -> int:
    """How many jobs a notification announces; one, where it does not say."""
    said = _object(payload).get("count", 1)
    # A bool is an int in Python, and no number for anybody else.
    if isinstance(said, bool) or not isinstance(said, int | float):
        return 1
    try:
        return ceil(said)
    except (ValueError, OverflowError):  # NaN, infinity
        return 1


def is_breaking(payload: str) -> bool:
    """Whether a notification announces a breaking change of a schema."""
    return bool(_object(payload).get("breaking"))


def _object(payload: str) -> dict[str, Any]:
    """What a payload says; nothing, if it is not a JSON object. Anybody may notify."""
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
