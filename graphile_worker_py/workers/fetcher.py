"""Lock the next jobs for a pool, and lose none whose fetch was not answered."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from graphile_worker_py.checks import check_texts
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.job import Job
from graphile_worker_py.options import ForbiddenFlags
from graphile_worker_py.plugins import FetchRequest
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.schema.rights import check_visible
from graphile_worker_py.sql.get_jobs import Fetched, Place, get_jobs
from graphile_worker_py.sql.return_jobs import return_unknown_jobs
from graphile_worker_py.sql.task_ids import TaskIds, read_task_ids, register_tasks
from graphile_worker_py.workers.holdings import Holdings
from graphile_worker_py.workers.waits import Waits

logger = logging.getLogger(__name__)

MOST_SCANS: Final = 100
"""Most sets of tasks for which the place in the order of jobs is kept."""

FAR_AFTER_NEAR: Final = 8
"""After a look at the first jobs only that found too few, how many fetches look at all."""


class _Scan:
    """How far the fetches of one set of tasks have come in the order of jobs.

    Scanning from the start is slow when the index is full of dead tuples. While there are plenty
    of jobs and none belongs to a queue, the next fetch resumes where the last one stopped. What
    was added or returned before that place is found by the next scan from the start: after a
    while, when a queue was freed, or when nothing else is left.

    If some tasks are left out, because they are paused or at a limit, their jobs may stand before
    all others. Then fetches start at the first job that the last scan from the start has found,
    also if jobs belong to queues. If they find few, the next scan from the start follows, but not
    within a moment after the last one.

    While each fetch finds all it wants and queues are among what it sees, the next one looks at
    the first jobs only, because looking at all queues is slow when there are many. Once that finds
    less, the next fetches look at all again.
    """

    def __init__(self) -> None:
        self.place: Place | None = None
        self.first: Place | None = None
        self.until = 0.0
        self.rests_until = 0.0
        self.queued = False
        self.queues_freed = 0
        self.near = False
        self.far_for = 0


class Fetcher:
    """Fetches jobs for one pool.

    Args:
        pool_id: Id of the pool, which locks the jobs.
        database: Where the jobs are.
        connection: The connection for fetches.
        tasks: Identifiers of the tasks whose jobs are wanted.
        forbidden_flags: Jobs with one of these flags are left to other pools.
        hooks: Plugins that wrap fetches.
        holdings: The jobs that are locked for the pool.
        waits: How long it waits, and when it resumes scans.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        database: Database,
        connection: OwnConnection,
        tasks: Iterable[str],
        forbidden_flags: ForbiddenFlags | None,
        hooks: Hooks,
        holdings: Holdings,
        waits: Waits,
    ) -> None:
        self._pool_id = pool_id
        self._database = database
        self._connection = connection
        self._tasks = frozenset(tasks)
        self._flags = forbidden_flags
        self._holdings = holdings
        self._waits = waits
        self._get_jobs = hooks.get_jobs(self._lock_jobs)
        self._has_plugins = self._get_jobs != self._lock_jobs
        self._task_ids = TaskIds({})
        self._scans: dict[frozenset[str], _Scan] = {}
        self._limit: asyncio.Timeout | None = None
        self._fetching: asyncio.Task[Any] | None = None

    @property
    def task_ids(self) -> TaskIds:
        """The ids of the pool's tasks in this database."""
        return self._task_ids

    async def register_tasks(self, run: Callable[[Query[Any]], Awaitable[Any]]) -> None:
        """Register the tasks in the database and learn their ids; `run` sends queries."""
        names = sorted(self._tasks)
        task_ids = await run(read_task_ids(names))
        if len(task_ids) < len(names):
            await run(register_tasks(names))
            task_ids = await run(read_task_ids(names))
        # Not before: with the ids that a failed registration has read, fetches would find no jobs
        # and no reason to register again.
        self._task_ids = task_ids

    async def fetch(self, count: int) -> Fetched:
        """Lock up to `count` jobs; raises what database, plugins and flags function raise."""
        async with asyncio.timeout(None) as limit:
            self._limit, self._fetching = limit, asyncio.current_task()
            try:
                return await self._fetch(count)
            except asyncio.CancelledError as error:
                if self._fetching is None or self._fetching.cancelling() > 0:
                    raise
                raise GraphileWorkerError(
                    "get_jobs of a plugin, or the function for forbidden flags, awaited something "
                    "that was cancelled"
                ) from error
            finally:
                self._limit = None

    async def cut_off(self) -> None:
        """End the running fetch with an error, if there is one."""
        if self._limit is None:
            return
        await self._connection.end_statement(self._fetching)
        if self._limit is not None:
            # The fetch waits for something other than its statement, or a plugin sent another.
            self._limit.reschedule(asyncio.get_running_loop().time() + self._waits.plugins)

    async def resolve_doubt_in_time(self) -> None:
        """Return jobs that are locked but not held, if that can be done soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._waits.stop):
                await self._resolve_doubt(
                    partial(self._connection.run_retrying, what="look for lost jobs")
                )

    async def _fetch(self, count: int) -> Fetched:
        flags = await self._forbidden_flags()
        await self._resolve_doubt(self._connection.run)
        request = FetchRequest(
            pool_id=self._pool_id, count=count, forbidden_flags=flags, tasks=self._tasks
        )
        fetched = await self._get_jobs(request)
        if not isinstance(fetched, Fetched):
            raise GraphileWorkerError(
                f"get_jobs of a plugin must return what `proceed` returns, or another Fetched, "
                f"not {fetched!r}"
            )
        return fetched

    async def _resolve_doubt(self, run: Callable[[Query[Any]], Awaitable[Any]]) -> None:
        if self._holdings.in_doubt:
            known = frozenset(self._holdings.ids)
            await check_visible(run, self._database.schema, renew=self._connection.renew)
            await run(return_unknown_jobs(known, pool_id=self._pool_id))
            self._holdings.resolved(known)

    async def _lock_jobs(self, request: FetchRequest) -> Fetched:
        tasks = frozenset(request.tasks)
        if not tasks:
            return Fetched([], more=False)
        if request.lock is not get_jobs:
            return await self._lock_known(request, tasks, {})
        scan = self._scan_of(tasks)
        now = asyncio.get_running_loop().time
        began = now()
        queues_freed = self._holdings.queues_freed
        resumes = began < scan.until and scan.queues_freed == queues_freed
        after, scan.place = scan.place if resumes else None, None
        since = scan.first if after is None and began < scan.until else None
        if scan.near and after is None and since is None:
            fetched = await self._lock_near(request, tasks, scan)
            if fetched.jobs:
                return fetched
        fetched = await self._lock_known(request, tasks, {"after": after, "since": since})
        if after is None and since is None:
            self._note_scan(scan, fetched, took=now() - began, is_part=tasks != self._tasks)
        scan.queued = scan.queued or fetched.queued
        # A plugin may have asked for no jobs.
        if fetched.jobs and len(fetched.jobs) >= request.count:
            scan.far_for -= 1
            scan.near = fetched.queued and scan.far_for <= 0
            if not scan.queued:
                scan.place, scan.queues_freed = place_of(fetched.jobs[-1]), queues_freed
        elif since is not None:
            if now() < scan.rests_until:
                return replace(fetched, hidden=True)
            scan.until = 0.0
            return replace(fetched, more=True)
        return fetched

    async def _lock_near(
        self, request: FetchRequest, tasks: frozenset[str], scan: _Scan
    ) -> Fetched:
        fetched = await self._lock_known(request, tasks, {"near": True})
        if len(fetched.jobs) < request.count:
            scan.far_for = FAR_AFTER_NEAR
        scan.near = fetched.queued and scan.far_for <= 0
        return fetched

    def _note_scan(self, scan: _Scan, fetched: Fetched, *, took: float, is_part: bool) -> None:
        """Decide where the next fetches start, after a scan from the start."""
        resume_for = self._waits.resume_for(took, jobs=len(fetched.jobs))
        scan.queued = fetched.queued
        if not is_part or resume_for == 0:
            scan.first = None
        elif fetched.jobs:
            scan.first = place_of(fetched.jobs[0])
        if fetched.queued and scan.first is None:
            resume_for = 0.0
        now = asyncio.get_running_loop().time()
        scan.until = now + resume_for
        scan.rests_until = now + (max(self._waits.rest, took) if self._waits.rest else 0.0)

    async def _lock_known(
        self, request: FetchRequest, tasks: frozenset[str], where: Mapping[str, Any]
    ) -> Fetched:
        fetched = await self._lock(request, tasks, where)
        if fetched is None:
            logger.warning(
                "Ids of tasks have changed: the schema was installed again, or rows of tasks were "
                "deleted. Registering the tasks again",
                extra={"pool_id": self._pool_id},
            )
            await self.register_tasks(self._connection.run)
            fetched = await self._lock(request, tasks, where) or Fetched([], more=False)
        if self._has_plugins:
            self._holdings.withhold(fetched.jobs)
        return fetched

    async def _lock(
        self, request: FetchRequest, tasks: frozenset[str], where: Mapping[str, Any]
    ) -> Fetched | None:
        query = request.lock(
            pool_id=self._pool_id,
            task_ids=self._ids_of(tasks),
            count=request.count,
            forbidden_flags=request.forbidden_flags,
            now=self._database.now(),
            **where,
        )
        with self._holdings.locking():
            return await self._connection.run(query)

    def _scan_of(self, tasks: frozenset[str]) -> _Scan:
        if len(self._scans) > MOST_SCANS:
            self._scans.clear()
        return self._scans.setdefault(tasks, _Scan())

    def _ids_of(self, tasks: frozenset[str]) -> TaskIds:
        if tasks is self._tasks:
            return self._task_ids
        return self._task_ids.among(tasks)

    async def _forbidden_flags(self) -> Sequence[str] | None:
        flags = self._flags
        if not callable(flags):
            return flags
        answer = flags()
        if inspect.isawaitable(answer):
            answer = await answer
        return None if answer is None else check_texts("forbidden_flags", answer)


def place_of(job: Job) -> Place:
    """Where a job stands in the order of jobs."""
    return job.priority, job.run_at
