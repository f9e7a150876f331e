"""Listen for notifications on a connection of its own, and detect when none arrive.

A silent connection may be idle, dropped by a middlebox, pointing at a failed-over server, or handed
to another client by a pooler. So the listener notifies itself, at the beginning and after each
period of silence. It does so on another connection: on its own it would hear itself even through a
pooler that delivers no other notifications.

- No echo on a connection that has carried one: the listener reconnects at once.
- No echo on two new connections in a row: LISTEN has no effect here. The worker polls; this is
  logged once, and tried again minutes later.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, Notify
from psycopg_pool import PoolTimeout

from graphile_worker_py import aio, events
from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import GraphileWorkerError, one_line
from graphile_worker_py.events import Events
from graphile_worker_py.postgres.connecting import leads_to_server
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql import notifications
from graphile_worker_py.workers.hearing import Hearing
from graphile_worker_py.workers.waits import Waits

logger = logging.getLogger(__name__)

PART: Final = "listen for new jobs"
CREW_PATIENCE: Final = 3.0
BURST_PAUSE: Final = 1.0
"""Seconds from the end of the work for a burst of notifications to that for the next burst."""
DEAF_MESSAGE: Final = (
    "LISTEN has no effect here: notifications do not arrive, as behind a pooler in transaction "
    "mode. Polling for new jobs every %g s. %s"
)


class NoEchoError(GraphileWorkerError, TimeoutError):
    """A notification did not arrive on the listening connection."""


class Listener:
    """Listens until closed, and reconnects when the connection is lost.

    Args:
        pool_id: Id of the first pool that wants to hear, for the log and the echoes.
        connect: Makes a connection in autocommit mode.
        database: Sends the notifications that test the connection, on another connection.
        echo_interval: Seconds of silence after which the connection is tested; 0 means never.
        hint: What to do where LISTEN has no effect, for the log.
        events: Where to emit events.
        waits: How long it waits.
    """

    def __init__(
        self,
        pool_id: str,
        *,
        connect: Callable[[], Awaitable[AsyncConnection[Any]]],
        database: Database,
        echo_interval: float,
        hint: str,
        events: Events,
        waits: Waits,
    ) -> None:
        self._pool_id = pool_id
        self._connect = connect
        self._database = database
        self._echo_interval = echo_interval
        self._hint = hint
        self._events = events
        self._waits = waits
        self._closed = asyncio.Event()
        self._channel = notifications.echo_channel(pool_id)
        self._hearings: list[Hearing] = []
        self._came = asyncio.Event()
        # Those who know that this connection listens, and those of them who know it is ours alone.
        self._begun: list[Hearing] = []
        self._greeted: list[Hearing] = []
        self._burst = asyncio.Event()
        # The payload of the expected echo; None if none is expected.
        self._nonce: str | None = None
        self._echoed = asyncio.Event()
        self._heard_at = 0.0
        self._failures = 0
        self._deaf = 0
        self._listening = False

    def add(self, hearing: Hearing) -> None:
        """Let a pool hear, also what arrives on a connection that listens already."""
        self._hearings.append(hearing)
        self._came.set()

    def remove(self, hearing: Hearing) -> None:
        """Let a pool hear no more."""
        self._hearings.remove(hearing)

    @property
    def is_needed(self) -> bool:
        """Whether a pool wants to hear."""
        return bool(self._hearings)

    @property
    def listening(self) -> bool:
        """Whether notifications are known to arrive; if not, the worker depends on polling."""
        return self._listening

    @property
    def heard_at(self) -> datetime | None:
        """When a notification, or an echo, last arrived; None if none did."""
        if self._heard_at == 0:
            return None
        return utc_now() - timedelta(seconds=asyncio.get_running_loop().time() - self._heard_at)

    def close(self) -> None:
        """Let `run` end."""
        self._closed.set()

    async def run(self) -> None:
        """Listen until closed."""
        while not self._closed.is_set():
            self._emit(self._hearings, events.PoolListenConnecting, attempts=self._failures + 1)
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
                self._emit(self._hearings, events.PoolListenError, error=error)
                await self._database.availability.wait(delay, stop=self._closed)
        self._listening = False

    async def _begin(self, conn: AsyncConnection[Any]) -> None:
        self._begun, self._greeted = [], []
        async with asyncio.timeout(self._waits.begin_listening):
            # The names of the channels are quoted.
            own = notifications.listen_on(self._channel)
            await self._database.run_script(own, conn=conn)  # pyright: ignore[reportArgumentType]
        await self._welcome(conn)

    async def _welcome(self, conn: AsyncConnection[Any]) -> None:
        """Listen for all pools that want to hear, each of which may have missed something."""
        self._came.clear()
        here = [each for each in self._hearings if not each.closed.is_set()]
        channels = dict.fromkeys(channel for each in here for channel in each.channels)
        if channels:
            async with asyncio.timeout(self._waits.begin_listening):
                topics = notifications.listen_on(*channels)
                await self._database.run_script(topics, conn=conn)  # pyright: ignore[reportArgumentType]
        self._failures = 0
        self._database.availability.works(PART)
        self._emit([each for each in here if each not in self._begun], events.PoolListenSuccess)
        self._begun = here
        for hearing in here:
            await hearing.begin()

    async def _listen(self, conn: AsyncConnection[Any]) -> None:
        """Handle notifications until closed or until the connection is lost.

        Raises:
            NoEchoError: Notifications do not arrive.
            psycopg.OperationalError: The connection was lost.
        """
        silent = asyncio.Event()
        crew = aio.Crew()
        crew.start(self._follow_bursts(), name="work on bursts of notifications")
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
            raise NoEchoError("a notification did not arrive on the listening connection")

    async def _read(self, conn: AsyncConnection[Any]) -> None:
        while not self._listening:
            # The generator ends after the last of the notifications that arrived together, so
            # none is dropped.
            async for notification in conn.notifies(stop_after=1):
                await self._hear(notification)
        while True:
            if self._came.is_set():
                await self._welcome(conn)
            await self._greet(conn)
            async with aio.until(self._came):
                async for notification in conn.notifies():
                    await self._hear(notification)

    async def _greet(self, conn: AsyncConnection[Any]) -> None:
        """Tell pools that the session is ours alone, once each."""
        new = [each for each in self._begun if each not in self._greeted]
        async with asyncio.timeout(self._waits.begin_listening):
            if self._echo_interval > 0 or await leads_to_server(conn):
                for hearing in new:
                    await hearing.on_listen(conn)
        self._greeted.extend(new)

    async def _follow_bursts(self) -> None:
        while True:
            await self._burst.wait()
            self._burst.clear()
            for hearing in self._hearings:
                due, hearing.bursts = hearing.bursts, set()
                for work in due:
                    try:
                        await work()
                    except (psycopg.Error, OSError) as error:
                        logger.debug("Could not work on notifications (%s)", one_line(error))
                        hearing.bursts.add(work)
                        self._burst.set()
            await asyncio.sleep(BURST_PAUSE)

    async def _test(self, silent: asyncio.Event) -> None:
        """Test the connection now and after each silence; set `silent` if no echo comes."""
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
                # The listening connection is not at fault, or a later test will show it.
                await asyncio.sleep(max(0.0, self._waits.echo - took))
                continue
            if not await self._hears_echo():
                silent.set()
                return
            await self._silence()

    def _is_silence(self, error: Exception, *, asked_at: float, took: float) -> bool:
        """Whether the failed test of another connection means that this one is dead, too.

        Not if tasks have borrowed all connections, or if a notification has arrived since. And at
        the beginning it would not show whether LISTEN has an effect here.
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
        """Wait for a period of silence."""
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
        channel, payload = notification.channel, notification.payload
        if self._events.wants(events.PoolListenNotification):
            about = {"channel": channel, "payload": payload}
            self._emit(self._begun, events.PoolListenNotification, **about)
        for hearing in self._begun:
            if not hearing.closed.is_set():
                await hearing.hear(channel, payload)
                if hearing.bursts:
                    self._burst.set()

    def _emit(
        self, hearings: Sequence[Hearing], kind: Callable[..., events.PoolEvent], **about: Any
    ) -> None:
        for hearing in hearings:
            self._events.emit(kind(pool_id=hearing.pool_id, **about))

    def _delay_after(self, error: Exception) -> float:
        """Seconds until the next try; logs why."""
        self._failures += 1
        about = {"pool_id": self._pool_id}
        if isinstance(error, NoEchoError) and self._deaf > 1:
            level = logging.WARNING if self._deaf == 2 else logging.DEBUG
            poll_interval = max((each.poll_interval for each in self._hearings), default=0)
            logger.log(level, DEAF_MESSAGE, poll_interval, self._hint, extra=about)
            return self._waits.deaf.delay(self._deaf - 1)
        delay = self._waits.reconnect.delay(self._failures)
        if isinstance(error, NoEchoError):
            message = "Not listening for new jobs (%s); polling, reconnecting in %.1f s"
            logger.warning(message, one_line(error), delay, extra=about)
        else:
            self._database.availability.failed(PART, error, delay=delay, log=logger, extra=about)
        return delay
