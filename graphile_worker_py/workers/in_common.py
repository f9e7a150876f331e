"""What the worker pools of a runner have in common: a connection to listen, one for heartbeats."""

import asyncio
from collections.abc import Awaitable
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from graphile_worker_py import aio, events
from graphile_worker_py.events import Events
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.postgres.connecting import connect_directly, connect_like
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.kept_connection import KeptConnection
from graphile_worker_py.workers.hearing import Hearing
from graphile_worker_py.workers.listener import Listener
from graphile_worker_py.workers.waits import Waits


class InCommon:
    """The listener of all pools of a runner, and the connection of their heartbeats.

    The listener runs for as long as one of the pools listens.

    Args:
        database: The database that the pools work on.
        options: `listen_connection_string`, `listen_echo_interval`.
        events: Where to emit events.
        waits: How long the listener waits; None means as long as `Waits` says.

    Attributes:
        beating: The connection for heartbeats, if the pools may keep one for them.
    """

    def __init__(
        self, database: Database, options: WorkerOptions, *, events: Events, waits: Waits | None
    ) -> None:
        self.beating = KeptConnection(database)
        self._database = database
        self._options = options
        self._events = events
        self._waits = Waits() if waits is None else waits
        self._listener: Listener | None = None
        self._running: asyncio.Task[None] | None = None
        self._crew = aio.Crew()

    @property
    def listening(self) -> bool:
        """Whether notifications are known to arrive; if not, the pools depend on polling."""
        return self._listener is not None and self._listener.listening

    @property
    def heard_at(self) -> datetime | None:
        """When a notification, or an echo, last arrived; None if none did."""
        return None if self._listener is None else self._listener.heard_at

    async def listen(self, hearing: Hearing) -> None:
        """Let a pool hear until it is closed; an unexpected error is raised for each pool."""
        if self._listener is None or self._running is None:
            self._listener = self._made(hearing.pool_id)
            self._running = self._crew.start(self._listener.run(), name="listen")
        listener, running = self._listener, self._running
        listener.add(hearing)
        try:
            async with aio.until(hearing.closed):
                await asyncio.shield(running)
        finally:
            listener.remove(hearing)
            if not listener.is_needed:
                self._listener = self._running = None
                listener.close()
                await asyncio.wait([running])
            self._events.emit(events.PoolListenRelease(pool_id=hearing.pool_id))

    def _made(self, pool_id: str) -> Listener:
        direct = self._options.listen_connection_string

        def connect() -> Awaitable[AsyncConnection[Any]]:
            pool = self._database.pool
            return connect_like(pool) if direct is None else connect_directly(direct)

        return Listener(
            pool_id,
            connect=connect,
            database=self._database,
            echo_interval=self._options.listen_echo_interval,
            hint=(
                "Give the listener a direct connection: listen_connection_string."
                if direct is None
                else "The listen_connection_string must lead to the same database, and directly."
            ),
            events=self._events,
            waits=self._waits,
        )
