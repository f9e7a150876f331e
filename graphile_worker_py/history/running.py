"""What a pool does for its running jobs: progress, what earlier attempts left, requests to end."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py.errors import one_line
from graphile_worker_py.job import Job
from graphile_worker_py.outcomes import Settled, Snoozed
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import job_state
from graphile_worker_py.sql.cancel_jobs import read_cancel_requests
from graphile_worker_py.sql.job_state import NOTHING_LEFT, Left
from graphile_worker_py.sql.outcomes import BoundRider

CANCEL: Final = "cancel"
"""Topic of notifications that running jobs are to end."""
PAUSE: Final = 0.2
"""Seconds between two looks for requests, however many notifications there are."""


class Running:
    """The running jobs of one pool.

    Args:
        pool: The `WorkerPool`.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._schema: str = pool.database.schema
        self._asked = asyncio.Event()
        # Whether jobs of their first attempt can have left anything: snoozed ones.
        self._any_left = False

    # Requests to end.

    async def cancel_when_asked(self) -> None:
        """Look for requests each time that a notification says that there may be some."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._cancel(None)
            except (psycopg.Error, OSError) as error:
                # The next heartbeat looks, too.
                self._pool.logger.debug("Could not read requests (%s)", one_line(error))
            await asyncio.sleep(PAUSE)

    def hear(self, said: Mapping[str, Any] | None) -> None:
        ids = None if said is None else said.get("ids")
        if not isinstance(ids, list) or any(
            isinstance(each, int) and each in self._pool.running for each in ids
        ):
            self._asked.set()

    async def _cancel(self, conn: AsyncConnection[Any] | None) -> None:
        if not self._pool.running:
            return
        query = read_cancel_requests(
            self._schema, list(self._pool.running), pool_id=self._pool.pool_id
        )
        for request in await self._run(query, conn):
            self._pool.cancel(request.job_id, reason=request.reason, grace=request.grace)

    # What follows each heartbeat.

    async def beat(self, conn: AsyncConnection[Any]) -> None:
        """Write how far jobs are, and look which of them are to end."""
        self._pool.shared.find_left = self.find_left
        self._any_left = await self._run(job_state.is_any_left(self._schema), conn)
        await self._cancel(conn)
        await self._report(conn)

    async def _report(self, conn: AsyncConnection[Any]) -> None:
        changed = [each for each in self._pool.running.values() if not each.reported]
        if not changed:
            return
        for each in changed:
            each.reported = True
        try:
            query = job_state.write_progress(
                self._schema, [(each.job, each.progress) for each in changed]
            )
            await self._run(query, conn)
        except BaseException:
            for each in changed:
                each.reported = False
            raise

    # What earlier attempts have left.

    async def find_left(self, job: Job) -> Left:
        """What earlier attempts of a job have left.

        A job of its first attempt is looked up only if the last heartbeat saw that any job has
        left something.
        """
        if job.attempts <= 1 and not self._any_left:
            return NOTHING_LEFT
        left: Left = await self._pool.database.run_retrying(
            job_state.read_left(self._schema, job), what="look up what earlier attempts have left"
        )
        return left

    def count_snoozes(self, batch: Sequence[Settled]) -> BoundRider | None:
        """Snoozes are counted in the statement that records them."""
        if isinstance(batch[0][1], Snoozed) and self._pool.shared.find_left is not None:
            self._any_left = True
            return job_state.counted_snoozes(self._schema)
        return None

    async def _run(self, query: Query[Any], conn: AsyncConnection[Any] | None) -> Any:
        return await self._pool.database.run(query, conn=conn)
