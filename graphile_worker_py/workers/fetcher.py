"""Lock the next jobs for a pool, and lose none whose fetch was not answered."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import errors

from graphile_worker_py.checks import check_texts
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.options import ForbiddenFlags
from graphile_worker_py.plugins import FetchRequest, Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.outages import is_outage
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql.get_jobs import Fetched, Place, get_jobs
from graphile_worker_py.sql.return_jobs import return_unknown_jobs
from graphile_worker_py.sql.task_ids import read_task_ids, register_tasks
from graphile_worker_py.workers.waits import Waits

SLOW: Final = (0.002, 10e-6)
"""A look at all jobs that took longer than so many seconds, and so many for each job, was slow."""
GO_ON_FACTOR: Final = 10
"""So many times as long as it took, fetches then go on where the last one ended."""
GO_ON_LONGEST: Final = 2.0
"""But not for more seconds than this."""
AFTERWARDS: Final = 0.1
"""Seconds that plugins get to hand on that a fetch was cut off."""
UNDONE: Final = (errors.QueryCanceled, errors.LockNotAvailable, errors.ReadOnlySqlTransaction)
"""Outages of which the server tells, in a session that goes on."""


class Fetcher:
    """Fetches jobs for one pool.

    A look at all jobs is slow where the index is full of those that are gone. Then, while there are
    plenty and none of queues are in sight, fetches go on where the last one ended. What has come in
    before that place since, a job of higher priority or one that was returned, is found by the next
    look at all jobs: after a while, when a queue was freed, or when there is nothing else.

    Args:
        pool_id: Id of the pool, which the jobs are locked by.
        database: Where the jobs are.
        line: The connection for fetches.
        names: Identifiers of the tasks whose jobs are wanted.
        forbidden_flags: Jobs with one of these flags are left for others.
        hooks: Plugins that wrap fetches.
        known_ids: The jobs that the pool knows to have locked.
        waits: How long it waits.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        line: OwnConnection,
        names: Iterable[str],
        forbidden_flags: ForbiddenFlags | None,
        hooks: Hooks,
        known_ids: Callable[[], AbstractSet[int]],
        waits: Waits,
    ) -> None:
        self._pool_id = pool_id
        self._database = database
        self._line = line
        self._names = list(names)
        self._flags = forbidden_flags
        self._known_ids = known_ids
        self._waits = waits
        self._get_jobs = hooks.get_jobs(self._lock_jobs)
        self._has_plugins = self._get_jobs != self._lock_jobs
        self._task_ids: dict[int, str] = {}
        self._unanswered = False
        # Jobs that were locked, and not handed on by plugins yet.
        self._locked: set[int] = set()
        # Jobs that were locked while the pool had them already.
        self._locked_anew: set[int] = set()
        self._limit: asyncio.Timeout | None = None
        self._fetching: asyncio.Task[Any] | None = None
        self._after: Place | None = None
        self._may_go_on = False
        self._look_at_all_at = 0.0

    @property
    def in_doubt(self) -> bool:
        """Whether jobs may be locked for the pool of which it does not know."""
        if self._unanswered or self._locked:
            return True
        return bool(self._locked_anew) and not self._locked_anew.issubset(self._known_ids())

    async def register_tasks(self, run: Callable[[Query[Any]], Awaitable[Any]]) -> None:
        """Make the tasks known to the database, and learn their numbers; `run` sends queries."""
        self._task_ids = await run(read_task_ids(self._names))
        if len(self._task_ids) < len(self._names):
            await run(register_tasks(self._names))
            self._task_ids = await run(read_task_ids(self._names))

    async def fetch(self, count: int) -> Fetched:
        """Lock up to `count` jobs; raises what database, plugins and flags function raise."""
        async with asyncio.timeout(None) as limit:
            self._limit, self._fetching = limit, asyncio.current_task()
            try:
                return await self._fetch(count)
            except asyncio.CancelledError as error:
                if self._fetching is None or self._fetching.cancelling() > 0:
                    raise
                # Not the fetch was cancelled, but what a plugin or the flags function waits for.
                raise GraphileWorkerError("a fetch waited for what was cancelled") from error
            finally:
                self._limit = None

    async def cut_off(self) -> None:
        """End the fetch that is under way, if there is one, with an error."""
        if self._limit is None:
            return
        await self._line.end_statement(self._fetching)
        if self._limit is not None:
            # What it waits for is no statement of its own; or a plugin has begun anew.
            self._limit.reschedule(asyncio.get_running_loop().time() + AFTERWARDS)

    async def resolve_doubt_in_time(self) -> None:
        """Return what is locked without the pool's knowing, if that can be done soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._waits.stop):
                await self._resolve_doubt(
                    partial(self._line.run_retrying, what="look for lost jobs")
                )

    async def _fetch(self, count: int) -> Fetched:
        flags = await self._forbidden_flags()
        await self._resolve_doubt(self._line.run)
        request = FetchRequest(
            pool_id=self._pool_id,
            count=count,
            forbidden_flags=flags,
            tasks=frozenset(self._names),
        )
        fetched = await self._get_jobs(request)
        if not isinstance(fetched, Fetched):
            raise GraphileWorkerError(
                f"get_jobs of a plugin must return what `proceed` does, or another Fetched, "
                f"not {fetched!r}"
            )
        passed_on = [job.id for job in fetched.jobs]
        if self._has_plugins:
            self._locked.difference_update(passed_on)
            if self._locked:
                # What one keeps back is returned before the next fetch. That is in no hurry.
                fetched = replace(fetched, more=False)
        known_ids = self._known_ids()
        if not known_ids.isdisjoint(passed_on):
            # Somebody has unlocked them. If their outcome came before this lock, it is left behind.
            self._locked_anew.update(known_ids & set(passed_on))
        return fetched

    async def _resolve_doubt(self, run: Callable[[Query[Any]], Awaitable[Any]]) -> None:
        if self.in_doubt:
            known_ids = frozenset(self._known_ids())
            await run(return_unknown_jobs(known_ids, pool_id=self._pool_id))
            self._unanswered = False
            self._locked.clear()
            self._locked_anew.intersection_update(known_ids)

    def look_at_all(self) -> None:
        """Let the next fetch look at all jobs: one of a queue may have become free."""
        self._after = None
        self._may_go_on = False

    async def _lock_jobs(self, request: FetchRequest) -> Fetched:
        time = asyncio.get_running_loop().time
        began = time()
        after = self._after if began < self._look_at_all_at else None
        self._after, self._may_go_on = None, True
        query = get_jobs(
            pool_id=self._pool_id,
            task_ids=self._task_ids,
            count=request.count,
            forbidden_flags=request.forbidden_flags,
            now=self._database.now(),
            after=after,
        )
        fetched = await self._lock(query)
        if after is None:
            took = time() - began
            patience = min(GO_ON_FACTOR * took, GO_ON_LONGEST) if _is_slow(took, fetched) else 0
            self._look_at_all_at = time() + patience
        # A plugin may have asked for none.
        if fetched.jobs and len(fetched.jobs) >= request.count and self._may_go_on:
            last = fetched.jobs[-1]
            self._after = last.priority, last.run_at
        return fetched

    async def _lock(self, query: Query[Fetched]) -> Fetched:
        # Should the answer be lost on its way, jobs may be locked for us all the same.
        before, self._unanswered = self._unanswered, True
        try:
            fetched = await self._line.run(query)
        except psycopg.Error as error:
            # An error that the server itself tells undid the statement. One with which it ends
            # the session may come after that was committed.
            if not is_outage(error) or isinstance(error, UNDONE):
                self._unanswered = before
            raise
        self._unanswered = before
        if self._has_plugins:
            self._locked.update(job.id for job in fetched.jobs)
        return fetched

    async def _forbidden_flags(self) -> Sequence[str] | None:
        flags = self._flags
        if not callable(flags):
            return flags
        asked = flags()
        if inspect.isawaitable(asked):
            asked = await asked
        return None if asked is None else check_texts("forbidden_flags", asked)


def _is_slow(took: float, fetched: Fetched) -> bool:
    """Whether a look at all jobs took so long that it is better not made each time."""
    at_once, a_job = SLOW
    return took > at_once + a_job * len(fetched.jobs) and not fetched.queued
