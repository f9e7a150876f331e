"""What one pool knows of pauses, and what it leaves out because of them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py.errors import one_line
from graphile_worker_py.job import Job
from graphile_worker_py.plugins import FetchRequest
from graphile_worker_py.sql import pauses as statements
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.pauses import Pause, PauseTarget

REST: Final = 0.2
"""Seconds between two looks at the pauses, however many notifications there are."""
LOOK_FACTOR: Final = 10
"""After a look whether a queue can be freed, none for this many times as long as it took."""


class Gate:
    """The pauses of one pool.

    It reads them when a notification or the number in a heartbeat's answer says that they have
    changed; without pauses it sends no statement at all.

    Args:
        pool: The `WorkerPool`.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._schema: str = pool.database.schema
        self._known = 0
        """The number of changes up to which the pauses are known."""
        self._ready = self._is_quiet = False
        self._asked = asyncio.Event()
        self._turn = asyncio.Lock()
        self._next_look = 0.0
        self._pauses: Sequence[Pause] = ()
        self._closed: Pause | None = None
        self._tasks: frozenset[str] = frozenset()
        self._queues: frozenset[int] = frozenset()

    @property
    def trouble(self) -> str | None:
        """What is paused that concerns this pool, in words; None if nothing is."""
        if self._pool.quiet:
            return "fetching no jobs: it was told to be quiet"
        if self._closed is not None:
            return f"starting no jobs: {self._closed.what} is paused {self._closed.why}"
        paused = [
            f"{pause.what} {pause.why}"
            for pause in self._pauses
            if pause.target is PauseTarget.QUEUE or pause.name in self._pool.tasks
            if pause.target is not PauseTarget.POOL and not pause.ending
        ]
        return f"paused: {'; '.join(paused)}" if paused else None

    async def fetch(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Fetch what is not paused."""
        if self._pool.quiet:
            return Fetched([], more=False)
        if not self._pauses:
            fetched = await proceed(request)
        elif self._closed is not None:
            return Fetched([], more=False)
        else:
            paused = request.tasks & self._tasks
            wanted = request.tasks - paused if paused else request.tasks
            fetched = await proceed(replace(request, tasks=wanted))
        if not self._pauses:
            return fetched
        # A pause may have come meanwhile.
        return replace(fetched, jobs=[job for job in fetched.jobs if not self._is_paused(job)])

    def hear(self, said: Mapping[str, Any] | None) -> None:
        """Look soon, because of a notification; what was missed before, the heartbeats find."""
        if said is not None and self._ready:
            self._asked.set()

    async def follow(self) -> None:
        """Read the pauses each time that a notification says that they have changed."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._read(None)
            except (psycopg.Error, OSError) as error:
                # The next heartbeat looks, too.
                self._pool.logger.debug("Could not read the pauses (%s)", one_line(error))
            await asyncio.sleep(REST)

    async def beat(self, conn: AsyncConnection[Any]) -> None:
        """Read the pauses if they have changed, and keep them if this pool leads."""
        self._ready = True
        if self._pool.quiet and not self._is_quiet:
            self._is_quiet = True
            await self._pool.give_back(lambda _job: True)
        changes: int = self._pool.changes
        if changes != self._known:
            await self._read(conn)
            self._known = changes
        if self._pool.leads and self._pauses:
            await self._keep(conn)

    async def _read(self, conn: AsyncConnection[Any] | None) -> None:
        async with self._turn:
            query = statements.read_pauses(self._schema)
            pauses: Sequence[Pause] = await self._pool.database.run(query, conn=conn)
            was_paused = self._pauses
            self._set(pauses)
        if pauses:
            await self._pool.give_back(self._is_paused)
        if {(each.target, each.name) for each in was_paused} - {
            (each.target, each.name) for each in pauses
        }:
            self._pool.nudge(self._pool.options.concurrent_jobs)

    def _set(self, pauses: Sequence[Pause]) -> None:
        closing = (
            pause
            for pause in pauses
            if pause.target is PauseTarget.EVERYTHING
            or (pause.target is PauseTarget.POOL and pause.name == self._pool.name)
        )
        self._pauses = pauses
        self._closed = next(closing, None)
        self._tasks = frozenset(pause.name for pause in pauses if pause.target is PauseTarget.TASK)
        self._queues = frozenset(
            pause.queue_id for pause in pauses if pause.queue_id is not None and not pause.ending
        )

    def _is_paused(self, job: Job) -> bool:
        return (
            self._closed is not None
            or job.task_identifier in self._tasks
            or job.job_queue_id in self._queues
        )

    async def _keep(self, conn: AsyncConnection[Any]) -> None:
        """End pauses whose time has come, free queues that were resumed, and hold paused ones."""
        run = self._pool.database.run
        if any(pause.until is not None and not pause.ending for pause in self._pauses):
            await run(statements.end_overdue(self._schema), conn=conn)
        queues = [pause for pause in self._pauses if pause.target is PauseTarget.QUEUE]
        if any(not pause.ending for pause in queues):
            await run(statements.hold_queues(self._schema), conn=conn)
        if any(pause.ending for pause in queues):
            await self._free(conn)

    async def _free(self, conn: AsyncConnection[Any]) -> None:
        """Free queues, which may read the whole table of jobs."""
        now = asyncio.get_running_loop().time
        began = now()
        if began < self._next_look:
            return
        await self._pool.database.run(statements.free_queues(self._schema), conn=conn)
        self._next_look = now() + LOOK_FACTOR * (now() - began)
