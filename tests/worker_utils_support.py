"""Call both forms of WorkerUtils alike."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from psycopg import AsyncConnection, Connection

from graphile_worker_py import SyncWorkerUtils, WorkerUtils


class _Awaited:
    """SyncWorkerUtils with methods that can be awaited, so that one test does for both."""

    def __init__(self, utils: SyncWorkerUtils) -> None:
        self._utils = utils

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._utils, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call


class Api:
    """One of the two forms of WorkerUtils: `async` or `sync`."""

    def __init__(self, form: str) -> None:
        self.form = form

    @asynccontextmanager
    async def opened(self, source: Any, **options: Any) -> AsyncIterator[WorkerUtils]:
        """Open it; what comes back is awaited in both forms."""
        if self.form == "async":
            async with WorkerUtils(source, **options) as utils:
                yield utils
        else:
            with SyncWorkerUtils(source, **options) as sync:
                yield cast("WorkerUtils", _Awaited(sync))

    @asynccontextmanager
    async def connection(self, dsn: str) -> AsyncIterator[Any]:
        """A connection of the caller's that suits this form."""
        if self.form == "async":
            async with await AsyncConnection.connect(dsn) as conn:
                yield conn
        else:
            with Connection.connect(dsn) as sync:
                yield sync

    async def on(self, conn: Any, method: str, *args: Any) -> None:
        """Call a method of such a connection."""
        result = getattr(conn, method)(*args)
        if self.form == "async":
            await result
