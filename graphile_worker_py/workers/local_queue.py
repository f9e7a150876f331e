"""Hand the jobs of a pool to its workers, fetched as many at a time as makes sense.

A local queue without prefetching (`size` -1, the default) holds no jobs: workers that are idle at
the same moment are served by one fetch of exactly as many jobs. With prefetching it fetches `size`
jobs whenever it has run dry. While the database has plenty, a store of some size (`AHEAD_FROM`) is
filled up when it is half empty, so that workers and database do not wait for each other.

Its modes, which are Graphile Worker's:

- `STARTING`: not running yet.
- `POLLING`: no jobs are held. It fetches, or waits for the next reason to: a nudge (jobs were
  announced), a serial queue that was freed, the end of the poll interval.
- `WAITING`: jobs are held, no worker waits. Nothing is fetched, except ahead. When the last job
  is taken, it goes back to `POLLING`; when the jobs have been held for `ttl` seconds, to
  `TTL_EXPIRED`.
- `TTL_EXPIRED`: the jobs were returned to the database, because nobody took them in time. The
  first worker that asks leads back to `POLLING`.
- `RELEASED`: shut down. Waiting workers get nothing, held jobs are returned.
"""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Final, Protocol

from graphile_worker_py import aio, events
from graphile_worker_py.backoff import Backoff
from graphile_worker_py.errors import one_line
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.options import LocalQueueOptions, RefetchDelay
from graphile_worker_py.postgres.outages import backoff_for
from graphile_worker_py.sql.get_jobs import Fetched

logger = logging.getLogger(__name__)

SECOND_LOOK: Final = (0.03, 0.09)
"""Seconds, from and to, after which jobs that were announced, or hidden, are looked for once more.

It doubles each time that some are still hidden: somebody's transaction may take long.
"""
MOST_DOUBLINGS: Final = 16
"""The poll interval is reached long before."""
AHEAD_FROM: Final = 100
"""Least size of a store that is filled up before it is empty: a small one is cheap to wait for."""
PATIENT: Final = Backoff(shortest=1.0, longest=60.0)
"""After a fetch that failed for no passing reason: a missing right, a fault in a callback."""


class Mode(StrEnum):
    """What a local queue is doing; see the top of the module."""

    STARTING = "STARTING"
    POLLING = "POLLING"
    WAITING = "WAITING"
    TTL_EXPIRED = "TTL_EXPIRED"
    RELEASED = "RELEASED"


class Fetch(Protocol):
    """Lock up to `count` jobs in the database."""

    async def __call__(self, count: int) -> Fetched:
        """Fetch; may raise, which is tried again later."""


class LocalQueue:
    """Serves the workers of one pool with jobs.

    Args:
        pool_id: Id of the pool, for events.
        fetch: Locks jobs in the database.
        give_back: Returns jobs to the database; does its own retries.
        options: Size, ttl, refetch delay.
        poll_interval: Seconds between two fetches that nothing else gives a reason for.
        drain: Whether to end once no job is due and none is running, instead of polling.
        events: Where to tell what happens.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        fetch: Fetch,
        give_back: Callable[[Sequence[Job]], Awaitable[None]],
        options: LocalQueueOptions,
        poll_interval: float,
        drain: bool,
        events: Events,
    ) -> None:
        self._pool_id = pool_id
        self._fetch = fetch
        self._give_back = give_back
        self._options = options
        self._prefetches = options.size > 0
        self._half = _half(options)
        self._poll_interval = poll_interval
        self._drain = drain
        self._events = events
        self._mode = Mode.STARTING
        self._held: deque[Job] = deque()
        self._held_since = 0.0
        self._waiting: deque[asyncio.Future[Job | None]] = deque()
        # Ids of what is locked for the pool, held or handed out, and has no recorded outcome yet.
        self._unsettled: set[int] = set()
        # Whether there is a reason to fetch, and how many jobs were announced since the last one.
        self._due = True
        self._announced = 0
        # Whether the last fetch brought as many jobs as it asked for.
        self._plenty = False
        self._next_poll = 0.0
        self._failures = 0
        # In how many fetches in a row somebody had locked a queue with jobs that are due.
        self._hidden = 0
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._closed = asyncio.Event()

    @property
    def mode(self) -> Mode:
        """What the local queue is doing."""
        return self._mode

    @property
    def known_ids(self) -> AbstractSet[int]:
        """Ids of all jobs that the pool has locked, as far as the queue knows."""
        return self._unsettled

    def take(self) -> Job | None:
        """A job in store; None if there is none. `get` waits for one, which costs more."""
        if not self._held or self._stopped.is_set():
            return None
        job = self._held.popleft()
        left = len(self._held)
        if left == 0 and self._mode is Mode.WAITING:
            self._set_mode(Mode.POLLING)
            self._due = True
            self._changed.set()
        elif left == self._half and self._plenty:
            self._changed.set()
        return job

    async def get(self) -> Job | None:
        """The next job for a worker; None tells it to stop."""
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
            # The job and the cancellation may have come in the same turn of the loop.
            if waiting.done() and not waiting.cancelled():
                job = waiting.result()
                if job is not None:
                    self._held.appendleft(job)
            elif waiting in self._waiting:
                self._waiting.remove(waiting)  # else jobs would be fetched for it
            raise

    def nudge(self, count: int) -> None:
        """Say that jobs were announced."""
        if count > 0:
            self._announced += count
            self._due = True
            self._changed.set()

    def settled(self, jobs: Iterable[Job]) -> None:
        """Say that the outcome of these jobs is recorded."""
        for job in jobs:
            self._unsettled.discard(job.id)
            if self._drain or job.job_queue_id is not None:
                # The next job of a serial queue is free now, and nobody announces it.
                self._due = True
                self._changed.set()

    def stop(self) -> None:
        """Fetch no more; workers that wait or ask get None, held jobs are returned."""
        self._stopped.set()
        self._changed.set()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)

    def close(self) -> None:
        """Let `run` end. To be called after `stop`, when no worker is left."""
        self._closed.set()

    async def run(self) -> None:
        """Serve until stopped, or drained; then wait to be closed."""
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
        # A worker that was cancelled at the moment it was given a job has put it back.
        await self._return_held()

    async def _serve(self) -> None:
        while not self._stopped.is_set():
            self._changed.clear()
            if self._mode is Mode.WAITING:
                if self._plenty and len(self._held) <= self._half:
                    await self._fetch_jobs()
                else:
                    await self._hold()
            elif self._wants_jobs():
                await self._poll()
            else:
                await self._changed.wait()

    async def _release(self) -> None:
        self._set_mode(Mode.RELEASED)
        await self._return_held()

    def _wants_jobs(self) -> bool:
        return bool(self._waiting) or (self._prefetches and self._mode is Mode.POLLING)

    async def _poll(self) -> None:
        """Fetch if there is a reason, else wait for one."""
        now = asyncio.get_running_loop().time()
        if self._due or now >= self._next_poll:
            await self._fetch_jobs()
        elif self._drain and not self._unsettled:
            self.stop()
        else:
            await aio.wait_for(self._changed, self._next_poll - now)

    async def _fetch_jobs(self) -> None:
        count = self._wanted()
        self._due = False
        announced, self._announced = self._announced, 0
        try:
            fetched = await self._fetch(count)
        except Exception as error:
            if self._drain and backoff_for(error) is None:
                raise
            await self._recover(error)
            return
        self._failures = 0
        self._due = self._due or fetched.more
        jobs = fetched.jobs
        self._plenty = self._half > 0 and len(jobs) >= count
        pause = self._poll_interval
        if fetched.hidden or len(jobs) < announced:
            # Others may have taken them; or only hidden them, for the moment in which their own
            # fetch had the rows locked.
            pause = min(pause, random.uniform(*SECOND_LOOK) * 2**self._hidden)  # noqa: S311
        self._hidden = min(self._hidden + 1, MOST_DOUBLINGS) if fetched.hidden else 0
        self._next_poll = asyncio.get_running_loop().time() + pause
        if self._events.wants(events.LocalQueueGetJobsComplete):
            self._events.emit(
                events.LocalQueueGetJobsComplete(pool_id=self._pool_id, jobs=tuple(jobs))
            )
        if not jobs and self._events.wants(events.WorkerGetJobEmpty):
            self._events.emit(events.WorkerGetJobEmpty(pool_id=self._pool_id))
        self._hand_out(jobs)
        if not self._prefetches:
            # Workers that are soon done with these jobs are served together with those who wait.
            await asyncio.sleep(0)
        rest = self._options.refetch_delay
        if rest is not None and not fetched.more and len(jobs) <= rest.threshold:
            await self._rest(rest, len(jobs))

    def _wanted(self) -> int:
        if not self._prefetches:
            return len(self._waiting)
        return self._half if self._plenty else self._options.size

    def _hand_out(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if job.id in self._unsettled:
                # It was unlocked while it was here (a job of hours, an operator), and is locked
                # anew. It runs on; nobody runs it beside itself.
                continue
            self._unsettled.add(job.id)
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()
            if self._waiting:
                self._waiting.popleft().set_result(job)
            else:
                self._held.append(job)
        if self._held:
            self._held_since = asyncio.get_running_loop().time()
            self._set_mode(Mode.WAITING)

    async def _hold(self) -> None:
        """Wait until the held jobs are taken, or have been held for too long."""
        now = asyncio.get_running_loop().time()
        if await aio.wait_for(self._changed, self._held_since + self._options.ttl - now):
            return
        self._set_mode(Mode.TTL_EXPIRED)
        await self._return_held()

    async def _return_held(self) -> None:
        if not self._held:
            return
        jobs = list(self._held)
        self._held.clear()
        if self._events.wants(events.LocalQueueReturnJobs):
            self._events.emit(events.LocalQueueReturnJobs(pool_id=self._pool_id, jobs=tuple(jobs)))
        await self._give_back(jobs)

    async def _rest(self, rest: RefetchDelay, job_count: int) -> None:
        """Wait a while after a fetch that brought few jobs, so that more can gather."""
        loop = asyncio.get_running_loop()
        delay = rest.duration * (0.5 + random.random())  # noqa: S311
        most = rest.max_abort_threshold
        ceiling = 5 * max(self._options.size, 1) if most is None else most
        threshold = math.inf if ceiling == 0 else random.random() * ceiling  # noqa: S311
        self._events.emit(
            events.LocalQueueRefetchDelayStart(
                pool_id=self._pool_id,
                job_count=job_count,
                threshold=rest.threshold,
                delay=delay,
                abort_threshold=threshold,
            )
        )
        deadline = loop.time() + delay
        while self._announced < threshold:
            self._changed.clear()
            if self._stopped.is_set():
                return
            if not await aio.wait_for(self._changed, deadline - loop.time()):
                self._events.emit(events.LocalQueueRefetchDelayExpired(pool_id=self._pool_id))
                return
        self._events.emit(
            events.LocalQueueRefetchDelayAbort(
                pool_id=self._pool_id, count=self._announced, abort_threshold=threshold
            )
        )

    async def _recover(self, error: Exception) -> None:
        """Wait after a fetch that failed; it is tried again for as long as the pool runs."""
        self._failures += 1
        self._due = True
        delay = (backoff_for(error) or PATIENT).delay(self._failures)
        logger.error(
            "Could not fetch jobs (%s); again in %.1f s",
            one_line(error),
            delay,
            extra={"pool_id": self._pool_id},
        )
        self._events.emit(events.WorkerGetJobError(pool_id=self._pool_id, error=error))
        await aio.wait_for(self._stopped, delay)

    def _set_mode(self, mode: Mode) -> None:
        if mode is self._mode:
            return
        old, self._mode = self._mode, mode
        if self._events.wants(events.LocalQueueSetMode):
            self._events.emit(
                events.LocalQueueSetMode(pool_id=self._pool_id, old_mode=old, new_mode=mode)
            )


def _half(options: LocalQueueOptions) -> int:
    """How many jobs are fetched ahead; 0 if none are."""
    half = options.size // 2 if options.size >= AHEAD_FROM else 0
    rest = options.refetch_delay
    # Half a fetch must not look like one that brought few jobs.
    return half if rest is None or rest.threshold < half else 0
