"""Wait for the end of jobs: all that a program waits for, by one connection and few statements.

A notification says that a job has ended; looks at the tables find what a notification did not say.
All jobs are looked at together, soon at first and then ever more rarely.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Final, TypeAlias

import psycopg

from graphile_worker_py import aio
from graphile_worker_py.checks import check_seconds
from graphile_worker_py.errors import one_line
from graphile_worker_py.postgres.connecting import connect_like
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql import notifications
from graphile_worker_py.sql.job_ends import EndStatus, JobOutcome, read_ends
from graphile_worker_py.steering.steps import begin_to_wait

logger = logging.getLogger(__name__)

Key: TypeAlias = tuple[int, datetime | None]

LOOKS: Final = (0.1, 0.5, 2.0, 5.0)
"""Seconds until the next look at a job, after its first ones."""
FALSE_ALARMS: Final = 5
"""Notifications for one job that are heeded at once; any role that may connect can send them."""
ALARM_PAUSE: Final = 0.1
"""Seconds between two looks at the job from then on."""
GONE_AFTER: Final = 1.0
"""Seconds between two looks that find neither a job nor a record of its end."""


class _Awaited:
    """A job that is waited for."""

    def __init__(self, key: Key, now: float) -> None:
        self.key = key
        self.ended: asyncio.Future[JobOutcome] = asyncio.get_running_loop().create_future()
        self.waiters = 0
        self.looks = 0
        self.looked_at = now
        self.alarms = 0
        self.next_look = now
        self.missing_since: float | None = None


class Waiter:
    """Waits for jobs on behalf of one `WorkerUtils` or `Runner`.

    Args:
        database: Where the jobs are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._jobs: dict[int, _Awaited] = {}
        self._wake = asyncio.Event()
        self._crew = aio.Crew()
        self._running = False

    async def close(self) -> None:
        """Wait for nothing more."""
        await self._crew.cancel(patience=1)

    async def outcomes(self, keys: Sequence[Key], timeout: float | None) -> dict[int, JobOutcome]:
        """Wait for the end of jobs.

        Raises:
            TimeoutError: One has not ended in time.
            ConfigurationError: The timeout makes no sense.
            MissingTablesError: The tables of history are missing.
            psycopg.Error: The database could not answer.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        ids = [job_id for job_id, _ in keys]
        await self._database.drive(begin_to_wait(self._database.schema, ids))
        waiting = [self._join(key) for key in keys]
        self._begin()
        try:
            async with asyncio.timeout(timeout):
                return {each.key[0]: await asyncio.shield(each.ended) for each in waiting}
        finally:
            for each in waiting:
                self._leave(each)

    def _join(self, key: Key) -> _Awaited:
        now = asyncio.get_running_loop().time()
        awaited = self._jobs.setdefault(key[0], _Awaited(key, now))
        awaited.waiters += 1
        return awaited

    def _leave(self, awaited: _Awaited) -> None:
        awaited.waiters -= 1
        if awaited.waiters == 0:
            self._jobs.pop(awaited.key[0], None)
            if not awaited.ended.done():
                awaited.ended.cancel()
            elif not awaited.ended.cancelled():
                awaited.ended.exception()  # it was raised, or nobody is left to raise it to

    def _begin(self) -> None:
        self._wake.set()
        if not self._running:
            self._running = True
            self._crew.start(self._run(), name="wait for jobs")

    async def _run(self) -> None:
        """Look at jobs for as long as one is waited for."""
        listening = aio.Crew()
        listening.start(self._listen(), name="listen for the ends of jobs")
        try:
            while self._jobs:
                self._wake.clear()
                await self._look()
                await aio.wait_for(self._wake, self._pause())
        finally:
            self._running = False
            await listening.cancel(patience=1)

    def _pause(self) -> float:
        now = asyncio.get_running_loop().time()
        soonest = min((each.next_look for each in self._jobs.values()), default=now)
        return max(0.0, soonest - now)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = [each for each in self._jobs.values() if each.next_look <= now]
        if not due:
            return
        try:
            found = await self._database.run(
                read_ends(self._database.schema, [each.key for each in due])
            )
        except (psycopg.Error, OSError) as error:
            logger.debug("Could not look whether jobs have ended (%s)", one_line(error))
            found = {}
        for each in due:
            each.next_look = now + LOOKS[min(each.looks, len(LOOKS) - 1)]
            each.looks += 1
            each.looked_at = now
            look = found.get(each.key[0])
            if look is None or each.ended.done():
                continue
            if look.outcome is not None:
                each.ended.set_result(look.outcome)
            elif look.exists:
                each.missing_since = None
            else:
                self._miss(each, now)

    def _miss(self, awaited: _Awaited, now: float) -> None:
        """Neither the job nor a record of its end was found; its transaction may not be over."""
        if awaited.missing_since is None:
            awaited.missing_since = now
        if now >= awaited.missing_since + GONE_AFTER:
            awaited.ended.set_result(JobOutcome(status=EndStatus.GONE))
        else:
            awaited.next_look = awaited.missing_since + GONE_AFTER

    async def _listen(self) -> None:
        try:
            async with await connect_like(self._database.pool) as conn:
                listen_on = notifications.listen_on(notifications.OWN)
                await self._database.run_script(listen_on, conn=conn)  # pyright: ignore[reportArgumentType]
                self._soon()
                async for notification in conn.notifies():
                    self._hear(notification.payload)
        except (psycopg.Error, OSError) as error:
            logger.debug("Not listening for the ends of jobs (%s)", one_line(error))

    def _hear(self, payload: str) -> None:
        try:
            said = json.loads(payload)
            job_id = said["id"] if said["t"] == "ended" else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        awaited = self._jobs.get(job_id) if isinstance(job_id, int) else None
        if awaited is not None and said.get("s") == self._database.schema:
            awaited.alarms += 1
            pause = 0.0 if awaited.alarms <= FALSE_ALARMS else ALARM_PAUSE
            awaited.next_look = min(awaited.next_look, awaited.looked_at + pause)
            self._wake.set()

    def _soon(self) -> None:
        """Look at all jobs: notifications may have been missed."""
        for each in self._jobs.values():
            each.next_look = 0.0
        self._wake.set()
