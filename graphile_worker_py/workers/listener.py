"""Hear of new jobs and of schema changes, on a connection of its own.

A connection on which nothing comes in may be a quiet one, or a dead or deaf one: a machine in
between forgot it, the database behind it is no longer the one that is worked on, or a pooler took
the LISTEN and gave the session to somebody else. So the listener notifies itself, when it begins
and after each while of silence, and does so on another connection: on its own it would hear
itself even through a pooler that hands on nothing else.

- No echo on a connection that has carried one: it is given up, and made anew at once.
- No echo on two new connections in a row: LISTEN has no effect here. The worker polls; that is
  said once, and tried again after minutes.
"""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from math import ceil
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, Notify
from psycopg_pool import PoolTimeout

from graphile_worker_py import aio, events
from graphile_worker_py.backoff import Backoff
from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import GraphileWorkerError, one_line
from graphile_worker_py.events import Events
from graphile_worker_py.postgres.connecting import leads_to_server
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql import notifications
from graphile_worker_py.workers.waits import Waits

logger = logging.getLogger(__name__)

RECONNECT: Final = Backoff(shortest=0.1, longest=40.0, factor=2.7)
CREW_PATIENCE: Final = 3.0
DEAF_MESSAGE: Final = (
    "LISTEN has no effect here: what is announced does not arrive, as behind a pooler in "
    "transaction mode. Polling for new jobs every %g s. %s"
)


class NoEchoError(GraphileWorkerError, TimeoutError):
    """What was notified did not arrive on the listening connection."""


class Listener:
    """Listens for as long as it runs, and connects anew when the connection is lost.

    Args:
        pool_id: Id of the pool, for logs and events.
        connect: Makes a connection in autocommit mode.
        database: Sends the notifications that test the connection, on another one.
        nudge: Called with the number of jobs that were announced; and, each time it begins to
            listen, with 1, because nobody knows what was announced before.
        schema_changed: Awaited when a breaking change of some schema in the database is
            announced, or may have been announced while the connection was away.
        echo_interval: Seconds of silence after which the connection is tried; 0 for never.
        poll_interval: Seconds between looks for jobs while it does not listen, for the log.
        hint: What to do where LISTEN has no effect, for the log.
        events: Where to tell what happens.
        on_listen: Awaited with each new connection as soon as the first echo came in, and with it
            the proof that its session is nobody else's. Without echoes, only if there is no pooler
            in between. A database error that it raises counts as a lost connection.
        waits: How long it waits.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        connect: Callable[[], Awaitable[AsyncConnection[Any]]],
        database: Database,
        nudge: Callable[[int], None],
        schema_changed: Callable[[], Awaitable[None]],
        echo_interval: float,
        poll_interval: float,
        hint: str,
        events: Events,
        on_listen: Callable[[AsyncConnection[Any]], Awaitable[None]] | None = None,
        waits: Waits,
    ) -> None:
        self._pool_id = pool_id
        self._connect = connect
        self._database = database
        self._nudge = nudge
        self._schema_changed = schema_changed
        self._echo_interval = echo_interval
        self._poll_interval = poll_interval
        self._hint = hint
        self._events = events
        self._on_listen = on_listen
        self._waits = waits
        self._closed = asyncio.Event()
        self._channel = notifications.echo_channel(pool_id)
        # The payload that is waited for; None when nothing is.
        self._nonce: str | None = None
        self._echoed = asyncio.Event()
        self._heard_at = 0.0
        self._failures = 0
        self._deaf = 0
        self._listened = False
        self._listening = False

    @property
    def listening(self) -> bool:
        """Whether it is known that announcements arrive; else the worker depends on polling."""
        return self._listening

    @property
    def heard_at(self) -> datetime | None:
        """When something, be it an echo, last came in."""
        if self._heard_at == 0:
            return None
        return utc_now() - timedelta(seconds=asyncio.get_running_loop().time() - self._heard_at)

    def close(self) -> None:
        """Let `run` end."""
        self._closed.set()

    async def run(self) -> None:
        """Listen until closed."""
        while not self._closed.is_set():
            attempts = self._failures + 1
            self._events.emit(events.PoolListenConnecting(pool_id=self._pool_id, attempts=attempts))
            try:
                async with await self._connect() as conn:
                    await self._begin(conn)
                    await self._listen(conn)
            except (psycopg.Error, OSError) as error:
                has_listened, self._listening = self._listening, False
                if self._closed.is_set():
                    break
                if isinstance(error, NoEchoError) and not has_listened:
                    self._deaf += 1
                delay = self._delay_after(error)
                self._events.emit(events.PoolListenError(pool_id=self._pool_id, error=error))
                await aio.wait_for(self._closed, delay)
        self._listening = False
        self._events.emit(events.PoolListenRelease(pool_id=self._pool_id))

    async def _begin(self, conn: AsyncConnection[Any]) -> None:
        async with asyncio.timeout(self._waits.begin_listening):
            listen_on = notifications.listen_on(self._channel)
            await self._database.run_script(listen_on, conn=conn)
            await self._database.run_script(notifications.LISTEN, conn=conn)
        self._failures = 0
        self._events.emit(events.PoolListenSuccess(pool_id=self._pool_id))
        self._nudge(1)
        if self._listened:
            # Nobody knows what was announced in between.
            await self._schema_changed()
        self._listened = True

    async def _listen(self, conn: AsyncConnection[Any]) -> None:
        """Hand on what comes in, until closed or until the connection is lost.

        Raises:
            NoEchoError: It is of no use.
            psycopg.OperationalError: It was lost.
        """
        silent = asyncio.Event()
        crew = aio.Crew()
        if self._echo_interval == 0:
            self._listening = True
        else:
            crew.start(self._test(silent), name="test the listening connection")
        try:
            async with aio.until(self._closed), aio.until(silent):
                await self._read(conn)
        finally:
            await crew.cancel(patience=CREW_PATIENCE)
        if silent.is_set() and not self._closed.is_set():
            raise NoEchoError("what was notified did not arrive on the listening connection")

    async def _read(self, conn: AsyncConnection[Any]) -> None:
        while not self._listening:
            # It ends with the last one of those that came together, so none is dropped.
            async for notification in conn.notifies(stop_after=1):
                await self._hear(notification)
        if self._on_listen is not None:
            async with asyncio.timeout(self._waits.begin_listening):
                if self._echo_interval > 0 or await leads_to_server(conn):
                    await self._on_listen(conn)
        async for notification in conn.notifies():
            await self._hear(notification)

    async def _test(self, silent: asyncio.Event) -> None:
        """Notify and wait for the echo, now and after each while of silence; set if none comes."""
        while True:
            asked_at = asyncio.get_running_loop().time()
            try:
                await self._notify_self()
            except (psycopg.Error, OSError) as error:
                logger.debug("Could not test the listening connection (%s)", one_line(error))
                took = asyncio.get_running_loop().time() - asked_at
                if self._is_silence(error, asked_at=asked_at, took=took):
                    silent.set()
                    return
                # The trouble is not here, or it is here as well and shows later.
                await asyncio.sleep(max(0.0, self._waits.echo - took))
                continue
            if not await self._hears_echo():
                silent.set()
                return
            await self._silence()

    def _is_silence(self, error: Exception, *, asked_at: float, took: float) -> bool:
        """Whether a way that leads nowhere, or takes too long, says so of this one, too.

        Not if tasks have borrowed all connections, or something was heard. And at the beginning it
        would say nothing about whether LISTEN has an effect here.
        """
        is_late = took >= self._waits.echo and not isinstance(error, PoolTimeout)
        return is_late and self._listening and self._heard_at < asked_at

    async def _notify_self(self) -> None:
        self._echoed.clear()
        self._nonce = os.urandom(8).hex()
        notify = notifications.notify(self._channel, self._nonce)
        await self._database.run(notify, within=self._waits.echo)

    async def _hears_echo(self) -> bool:
        return await aio.wait_for(self._echoed, self._waits.echo) or await aio.wait_for(
            self._echoed, self._waits.late_echo
        )

    async def _silence(self) -> None:
        """Wait until nothing has come in for a while."""
        loop = asyncio.get_running_loop()
        while True:
            left = self._heard_at + self._echo_interval - loop.time()
            if left <= 0:
                return
            await asyncio.sleep(left)

    async def _hear(self, notification: Notify) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if notification.channel == self._channel:
            if notification.payload == self._nonce:
                self._listening = True
                self._deaf = 0
                self._echoed.set()
            return
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

    def _delay_after(self, error: Exception) -> float:
        """How long to wait before it is tried again; says why."""
        self._failures += 1
        about = {"pool_id": self._pool_id}
        if isinstance(error, NoEchoError) and self._deaf > 1:
            level = logging.WARNING if self._deaf == 2 else logging.DEBUG
            logger.log(level, DEAF_MESSAGE, self._poll_interval, self._hint, extra=about)
            return self._waits.deaf.delay(self._deaf - 1)
        delay = RECONNECT.delay(self._failures)
        logger.warning(
            "Not listening for new jobs (%s); polling, connecting again in %.1f s",
            one_line(error),
            delay,
            extra=about,
        )
        return delay


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
