"""Fetch jobs for the workers of a pool, and hand them out.

Without prefetching (`size` -1, the default) a local queue stores no jobs: one fetch serves all
workers that are idle at the same moment, with one job for each. With prefetching it fetches `size`
jobs whenever its store is empty. While the database has plenty of jobs, a store of at least
`AHEAD_FROM` is filled up when it is half empty, so that workers and database do not wait for each
other.

Its modes are Graphile Worker's:

- `STARTING`: not running yet.
- `POLLING`: the store is empty. The queue fetches, or waits for the next reason to fetch: a nudge
  (jobs were announced), a serial queue that became free, the end of the poll interval.
- `WAITING`: the store has jobs and no worker waits. The queue fetches nothing, except ahead. When
  the last job is taken, it goes back to `POLLING`; when the jobs have been stored for `ttl`
  seconds, to `TTL_EXPIRED`.
- `TTL_EXPIRED`: the stored jobs were returned to the database, because no worker took them in
  time. The next worker that asks for a job leads back to `POLLING`.
- `RELEASED`: shut down. Waiting workers get nothing, stored jobs are returned.
"""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final, Protocol

from graphile_worker_py import aio, events
from graphile_worker_py.backoff import Backoff
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.options import LocalQueueOptions, RefetchDelay
from graphile_worker_py.postgres.availability import Availability
from graphile_worker_py.postgres.outages import backoff_for
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.workers.announcements import Announcements
from graphile_worker_py.workers.holdings import Holdings

logger = logging.getLogger(__name__)

SECOND_LOOK: Final = (0.03, 0.09)
"""Seconds, from and to, until the next fetch if announced or hidden jobs were not found.

Doubled each time that some are still hidden: the other transaction may take long.
"""
MOST_DOUBLINGS: Final = 16
"""Far beyond the poll interval."""
AHEAD_FROM: Final = 100
"""Least size of a store that is filled up before it is empty; filling a small one is quick."""
PART: Final = "fetch jobs"
PATIENT: Final = Backoff(shortest=1.0, longest=60.0)
"""After a fetch failed for a reason that will not pass: a missing right, a faulty callback."""


class Mode(StrEnum):
    """What a local queue is doing; see the module's docstring."""

    STARTING = "STARTING"
    POLLING = "POLLING"
    WAITING = "WAITING"
    TTL_EXPIRED = "TTL_EXPIRED"
    RELEASED = "RELEASED"


class Fetch(Protocol):
    """Lock up to `count` jobs in the database."""

    async def __call__(self, count: int) -> Fetched:
        """Fetch; may raise, and is then called again later."""


class LocalQueue:
    """Serves the workers of one pool with jobs.

    Args:
        pool_id: Id of the pool, for events.
        fetch: Locks jobs in the database.
        return_jobs: Returns jobs to the database; does its own retries.
        holdings: The jobs that are locked for the pool.
        availability: Logs outages, and ends the pauses between tries after one.
        options: Size, ttl, refetch delay.
        poll_interval: Seconds until the next fetch if there is no other reason to fetch.
        drain: Whether to end once no job is due and none is running, instead of polling.
        events: Where to emit events.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        fetch: Fetch,
        return_jobs: Callable[[Sequence[Job]], Awaitable[None]],
        holdings: Holdings,
        availability: Availability,
        options: LocalQueueOptions,
        poll_interval: float,
        drain: bool,
        events: Events,
    ) -> None:
        self._pool_id = pool_id
        self._fetch = fetch
        self._return_jobs = return_jobs
        self._holdings = holdings
        self._queues_freed = holdings.queues_freed
        holdings.when_recorded(self._recorded)
        self._availability = availability
        self._options = options
        self._prefetches = options.size > 0
        self._half = _half(options)
        self._poll_interval = poll_interval
        self._drain = drain
        self._events = events
        self._mode = Mode.STARTING
        self._stored: deque[Job] = deque()
        self._stored_since = self._next_poll = 0.0
        self._waiting: deque[asyncio.Future[Job | None]] = deque()
        # Whether there is a reason to fetch at once, apart from announcements.
        self._due = True
        self._announced = Announcements()
        # Whether the last fetch brought as many jobs as it asked for.
        self._plenty = False
        self._failures = 0
        # In how many fetches in a row another transaction had locked a queue with due jobs.
        self._hidden = 0
        self._changed = asyncio.Event()
        self._stopped, self._closed = asyncio.Event(), asyncio.Event()

    @property
    def mode(self) -> Mode:
        """What the local queue is doing."""
        return self._mode

    def take(self) -> Job | None:
        """A stored job; None if the store is empty. `get` waits for a job, which costs more."""
        if not self._stored or self._stopped.is_set():
            return None
        job = self._stored.popleft()
        left = len(self._stored)
        if left == 0 and self._mode is Mode.WAITING:
            self._set_mode(Mode.POLLING)
            self._due = True
            self._changed.set()
        elif left == self._half and self._plenty:
            self._changed.set()
        return job

    async def get(self) -> Job | None:
        """Wait for the next job; None means that the worker is to stop."""
        job = self.take()
        if job is not None or self._stopped.is_set():
            return job
        if self._mode is Mode.TTL_EXPIRED:
            self._set_mode(Mode.POLLING)
            self._due = True
        waiting: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._changed.set()
        try:
            return await waiting
        except asyncio.CancelledError:
            # Job and cancellation may have come in the same turn of the loop.
            if waiting.done() and not waiting.cancelled():
                job = waiting.result()
                if job is not None:
                    self._stored.appendleft(job)
            elif waiting in self._waiting:
                self._waiting.remove(waiting)  # else jobs would be fetched for it
            raise

    def nudge(self, count: int) -> None:
        """Fetch soon: this many jobs were announced."""
        if count > 0:
            self._announced.count += count
            self._changed.set()

    def _recorded(self) -> None:
        queues_freed, self._queues_freed = self._queues_freed, self._holdings.queues_freed
        if self._drain or queues_freed != self._queues_freed:
            # The next job of a serial queue is free now, and no notification announces it.
            self._due = True
            self._changed.set()

    def stop(self) -> None:
        """Fetch no more; workers get None, stored jobs are returned."""
        self._stopped.set()
        self._changed.set()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)

    def close(self) -> None:
        """Let `run` end; to be called after `stop`, when all workers have ended."""
        self._closed.set()

    async def run(self) -> None:
        """Serve until stopped or drained; then wait to be closed."""
        if self._events.wants(events.LocalQueueInit):
            self._events.emit(events.LocalQueueInit(pool_id=self._pool_id))
        self._set_mode(Mode.POLLING)
        try:
            await self._serve()
        except Exception:
            self.stop()
            await self._release()
            raise
        await self._release()
        await self._closed.wait()
        # A worker that was cancelled in the moment it was given a job has put it back.
        await self._return_stored()

    async def _serve(self) -> None:
        while not self._stopped.is_set():
            self._changed.clear()
            if self._mode is Mode.WAITING:
                if self._plenty and len(self._stored) <= self._half:
                    await self._fetch_jobs()
                else:
                    await self._keep()
            elif self._wants_jobs():
                await self._poll()
            else:
                await self._changed.wait()

    async def _release(self) -> None:
        self._set_mode(Mode.RELEASED)
        await self._return_stored()

    def _wants_jobs(self) -> bool:
        return bool(self._waiting) or (self._prefetches and self._mode is Mode.POLLING)

    async def _poll(self) -> None:
        """Fetch if there is a reason to, else wait for one."""
        now = asyncio.get_running_loop().time()
        next_fetch = self._next_poll
        if self._announced.count:
            next_fetch = min(next_fetch, self._announced.heeded_from)
        if self._due or now >= next_fetch:
            await self._fetch_jobs()
        elif self._drain and not self._holdings.ids:
            self.stop()
        else:
            await aio.wait_for(self._changed, next_fetch - now)

    async def _fetch_jobs(self) -> None:
        count = self._wanted()
        self._due = False
        announced = self._announced.take()
        try:
            fetched = await self._fetch(count)
        except Exception as error:
            if self._drain and backoff_for(error) is None:
                raise
            await self._recover(error)
            return
        self._failures = 0
        jobs = self._holdings.passed_on(fetched.jobs)
        # The next fetch returns what plugins have withheld; that is not urgent.
        more = fetched.more and not self._holdings.has_withheld
        self._due = self._due or more
        self._plenty = self._half > 0 and len(fetched.jobs) >= count
        self._set_next_poll(fetched, missing=len(jobs) < announced)
        if jobs:
            self._announced.were_true()
        elif announced:
            self._announced.were_false()
            self._next_poll = max(self._next_poll, self._announced.heeded_from)
        if self._events.wants(events.LocalQueueGetJobsComplete):
            self._events.emit(
                events.LocalQueueGetJobsComplete(pool_id=self._pool_id, jobs=tuple(jobs))
            )
        if not jobs and self._events.wants(events.WorkerGetJobEmpty):
            self._events.emit(events.WorkerGetJobEmpty(pool_id=self._pool_id))
        self._hand_out(jobs)
        if not self._prefetches:
            # Serve workers that are done with these jobs at once together with those that wait.
            await asyncio.sleep(0)
        delay = self._options.refetch_delay
        if delay is not None and not more and len(fetched.jobs) <= delay.threshold:
            await self._delay_refetch(delay, len(fetched.jobs))

    def _set_next_poll(self, fetched: Fetched, *, missing: bool) -> None:
        """Decide when to fetch next without a reason; `missing`: announced jobs were not found."""
        now = asyncio.get_running_loop().time()
        if fetched.hidden and self._hidden and now < self._next_poll:
            return  # there was another reason to fetch, which must not put the next look off
        pause = self._poll_interval
        if fetched.hidden or missing:
            # Another pool may have taken them, or hidden them while its own fetch had the rows
            # locked.
            pause = min(pause, random.uniform(*SECOND_LOOK) * 2**self._hidden)  # noqa: S311
        self._hidden = min(self._hidden + 1, MOST_DOUBLINGS) if fetched.hidden else 0
        self._next_poll = now + pause

    def _wanted(self) -> int:
        if not self._prefetches:
            return len(self._waiting)
        return self._half if self._plenty else self._options.size

    def _hand_out(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()
            if self._waiting:
                self._waiting.popleft().set_result(job)
            else:
                self._stored.append(job)
        if self._stored:
            self._stored_since = asyncio.get_running_loop().time()
            self._set_mode(Mode.WAITING)

    async def _keep(self) -> None:
        """Wait until the stored jobs are taken, or return them after `ttl` seconds."""
        now = asyncio.get_running_loop().time()
        if await aio.wait_for(self._changed, self._stored_since + self._options.ttl - now):
            return
        self._set_mode(Mode.TTL_EXPIRED)
        await self._return_stored()

    async def return_some(self, unwanted: Callable[[Job], bool]) -> None:
        """Return those of the stored jobs that are not wanted now."""
        jobs = [job for job in self._stored if unwanted(job)]
        self._stored = deque(job for job in self._stored if not unwanted(job))
        if not self._stored and self._mode is Mode.WAITING:
            self._set_mode(Mode.POLLING)
            self._changed.set()
        await self._return(jobs)

    async def _return_stored(self) -> None:
        jobs = list(self._stored)
        self._stored.clear()
        await self._return(jobs)

    async def _return(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        if self._events.wants(events.LocalQueueReturnJobs):
            self._events.emit(events.LocalQueueReturnJobs(pool_id=self._pool_id, jobs=tuple(jobs)))
        await self._return_jobs(jobs)

    async def _delay_refetch(self, options: RefetchDelay, job_count: int) -> None:
        """Wait after a fetch that brought few jobs, so that the next one brings more."""
        loop = asyncio.get_running_loop()
        delay = options.duration * (0.5 + random.random())  # noqa: S311
        most = options.max_abort_threshold
        ceiling = 5 * max(self._options.size, 1) if most is None else most
        threshold = math.inf if ceiling == 0 else random.random() * ceiling  # noqa: S311
        self._events.emit(
            events.LocalQueueRefetchDelayStart(
                pool_id=self._pool_id,
                job_count=job_count,
                threshold=options.threshold,
                delay=delay,
                abort_threshold=threshold,
            )
        )
        deadline = loop.time() + delay
        while self._announced.count < threshold:
            self._changed.clear()
            if self._stopped.is_set():
                return
            if not await aio.wait_for(self._changed, deadline - loop.time()):
                self._events.emit(events.LocalQueueRefetchDelayExpired(pool_id=self._pool_id))
                return
        self._events.emit(
            events.LocalQueueRefetchDelayAbort(
                pool_id=self._pool_id, count=self._announced.count, abort_threshold=threshold
            )
        )

    async def _recover(self, error: Exception) -> None:
        """Wait after a failed fetch; it is retried for as long as the pool runs."""
        self._failures += 1
        self._due = True
        delay = (backoff_for(error) or PATIENT).delay(self._failures)
        about = {"pool_id": self._pool_id}
        self._availability.failed(PART, error, delay=delay, log=logger, extra=about)
        self._events.emit(events.WorkerGetJobError(pool_id=self._pool_id, error=error))
        await self._availability.wait(delay, stop=self._stopped)

    def _set_mode(self, mode: Mode) -> None:
        if mode is self._mode:
            return
        old, self._mode = self._mode, mode
        if self._events.wants(events.LocalQueueSetMode):
            self._events.emit(
                events.LocalQueueSetMode(pool_id=self._pool_id, old_mode=old, new_mode=mode)
            )


def _half(options: LocalQueueOptions) -> int:
    """How many jobs are fetched ahead; 0 means none."""
    half = options.size // 2 if options.size >= AHEAD_FROM else 0
    delay = options.refetch_delay
    # A fetch ahead must not look like one that brought few jobs.
    return half if delay is None or delay.threshold < half else 0
