"""Jobs at once: the permits that one pool holds of one limit.

A pool that has permits runs as many jobs with no further statement. It asks for more when it could
run more, and gives back those that were idle for a while. While other pools wait, it gives up what
is above its fair share as its jobs end. A job needs its permit from the fetch until its outcome is
recorded, so jobs that were fetched ahead hold permits, too.

What the pool believes to have is never more than what the database says: it lets go before it gives
back, and counts what it takes after the answer.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any, Final

from psycopg import AsyncConnection

from graphile_worker_py.job import Job
from graphile_worker_py.options.limits import ConcurrencyLimit
from graphile_worker_py.records import Record
from graphile_worker_py.sql.limit_permits import Permits, take_permits

logger = logging.getLogger(__name__)


class Pauses(Record):
    """Seconds that a pool waits. They are no options: only tests need other values.

    Attributes:
        idle: For how long a permit is idle before it is given back.
        idle_while_others_wait: The same while other pools wait for one.
        ask: Until the pool asks again after it did not get all, unless it hears of a change.
        slice: For how long a pool keeps permits if there are more pools than permits.
        after_slice: Until it asks again then.
    """

    idle: float = 1.0
    idle_while_others_wait: float = 0.05
    ask: float = 0.25
    slice: float = 1.0
    after_slice: float = 0.1


PAUSES: Final = Pauses()


class PoolPermits:
    """The permits of one pool for one limit.

    Args:
        name: Name of the limit.
        limit: The limit as the code has it.
        tasks: The pool's tasks that have it.
        pool: The `WorkerPool`.

    Attributes:
        backlog: Whether more jobs may wait than there are permits for.
    """

    def __init__(
        self, name: str, limit: ConcurrencyLimit, *, tasks: Sequence[str], pool: Any
    ) -> None:
        self.name = name
        self.limit = limit
        self.tasks = tasks
        self.backlog = False
        self._pool = pool
        self._turn = asyncio.Lock()
        self._ids: set[int] = set()
        self._in_fetch = 0
        self._permits = 0
        self._answer: Permits | None = None
        self._eager = False  # whether the last fetch brought as many jobs as it might
        self._ask_from = 0.0
        self._busy_since = 0.0
        self._idle_since: float | None = None
        self._least_idle = 0
        self._full_since: float | None = None  # the pool has no place for more jobs
        self._claimed = 0  # how many permits the database was told it could use
        self._heard = False
        self._warned: tuple[int, int] | None = None

    @property
    def locked(self) -> int:
        """How many permits are in use: jobs that are locked, or about to be."""
        return len(self._ids) + self._in_fetch

    @property
    def is_paused(self) -> bool:
        """Whether the limit is 0."""
        return self._answer is not None and self._answer.amount == 0

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _cap(self) -> int:
        """How many jobs may be locked by now: fewer than permits while others wait for theirs."""
        answer = self._answer
        if answer is None:
            return 0
        cap = min(self._permits, answer.amount)
        if answer.in_use > answer.amount:  # the limit was lowered: what is idle must not start
            cap = min(cap, max(0, answer.amount - (answer.in_use - answer.permits)))
        if answer.waiting and answer.amount:
            if answer.claimants > answer.amount and self._slice_is_over():
                return 0
            cap = min(cap, -(-answer.amount // max(1, answer.claimants)))
        return cap

    def _slice_is_over(self) -> bool:
        return self._now() >= self._busy_since + PAUSES.slice

    # Fetching.

    async def allow(self, count: int) -> int:
        """How many jobs may be fetched now, at most `count`; `fetched` has to follow."""
        self._forget_lost()
        more = count if self._eager else 1
        if self._cap() - self.locked < more and self._now() >= self._ask_from:
            await self._sync(self.locked + more, wants=self.locked + more)
            if self._permits < self.locked + more:
                self._ask_from = self._now() + PAUSES.ask
        self._in_fetch = max(0, min(self._cap() - self.locked, count))
        return self._in_fetch

    def fetched(self, jobs: Collection[Job], *, room: int) -> bool:
        """Note the jobs that were fetched where `room` could run; returns whether to go on."""
        allowed, self._in_fetch = self._in_fetch, 0
        self._ids.update(job.id for job in jobs)
        self._eager = len(jobs) >= allowed > 0 or (self._eager and not allowed)
        self.backlog = len(jobs) >= allowed and allowed < room
        self._note_idle()
        return self.backlog and self._now() >= self._ask_from

    def filled(self, *, is_full: bool) -> None:
        """Note whether jobs, of whichever tasks, have taken all places that the pool had."""
        if not is_full:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = self._now()

    def next_ask(self) -> float | None:
        """When to try again to fetch more; None if jobs don't wait, or never may."""
        return self._ask_from if self.backlog and not self.is_paused else None

    def ended(self, job_id: int) -> bool:
        """Note that the outcome of a job is recorded; returns whether it held a permit."""
        if job_id not in self._ids:
            return False
        self._ids.remove(job_id)
        self._note_idle()
        return True

    def _forget_lost(self) -> None:
        """Let go of jobs that were returned, or that another plugin withheld."""
        held = self._pool.parts.holdings.ids
        self._ids = {job_id for job_id in self._ids if job_id in held}

    # Giving back.

    def _note_idle(self) -> None:
        idle = self._permits - self.locked
        if idle <= 0:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since, self._least_idle = self._now(), idle
        else:
            self._least_idle = min(self._least_idle, idle)

    def next_look(self) -> float | None:
        """When `look` has something to do; None if not before something changes."""
        if self._heard or self._permits > max(self.locked, self._cap()):
            return 0.0
        times = [at for at in (self._idle_until(), self._claims_until()) if at is not None]
        return min(times, default=None)

    def _idle_until(self) -> float | None:
        if self._idle_since is None:
            return None
        waits = self._answer is not None and self._answer.waiting
        return self._idle_since + (PAUSES.idle_while_others_wait if waits else PAUSES.idle)

    def _claims_until(self) -> float | None:
        """Until when other pools leave a permit to this one, although it has no place for a job."""
        if self._full_since is None or self._claimed <= self._permits:
            return None
        return self._full_since + PAUSES.idle_while_others_wait

    def hear(self) -> None:
        """Note that something has changed in the database."""
        self._heard = True
        self._ask_from = 0.0

    async def look(self) -> None:
        """Give back what is idle, or above the fair share, and claim no more than can be used."""
        due = self.next_look()
        if due is None or due > self._now():
            return
        self._heard = False
        keep = max(self.locked, self._cap())
        idle_until = self._idle_until()
        if idle_until is not None and due and idle_until <= self._now():
            keep = max(self.locked, min(keep, self._permits - self._least_idle))
            self._idle_since = None
        if keep == 0 and self._permits and self._answer and self._answer.waiting:
            self._ask_from = self._now() + PAUSES.after_slice
        await self._sync(keep, wants=self._wants())
        self._note_idle()

    async def refresh(self, conn: AsyncConnection[Any] | None = None) -> None:
        """Read what has changed, and report that the pool has the limit."""
        await self._sync(self._permits, wants=self._wants(), conn=conn)

    async def give_back_all(self) -> None:
        """Give back what no job needs; the pool stops."""
        self._forget_lost()
        if self._permits or self._answer is not None:
            await self._sync(self.locked, wants=0)

    def _wants(self) -> int:
        return self.locked + (1 if self.backlog and self._full_since is None else 0)

    async def _sync(
        self, wanted: int, *, wants: int, conn: AsyncConnection[Any] | None = None
    ) -> None:
        async with self._turn:
            wanted = max(wanted, self.locked)
            self._permits = min(self._permits, wanted)
            query = take_permits(
                self._pool.database.schema,
                self.name,
                self.limit,
                pool_id=self._pool.pool_id,
                tasks=self.tasks,
                wanted=wanted,
                wants=max(wants, 0),
            )
            if conn is None:
                answer = await self._pool.parts.fetching.run(query)
            else:
                answer = await self._pool.database.run(query, conn=conn)
            self._claimed = wants
            self._learn(answer)

    def _learn(self, answer: Permits) -> None:
        if not self._permits and answer.permits:
            self._busy_since = self._now()
        self._permits, self._answer = answer.permits, answer
        self._warned = warn_if_versions_differ(self.name, answer, self._warned, pool=self._pool)


def warn_if_versions_differ(
    name: str, answer: Permits, warned: tuple[int, int] | None, *, pool: Any
) -> tuple[int, int]:
    """Warn once of each two numbers that versions of the code have; returns the numbers."""
    numbers = (answer.least_declared, answer.most_declared)
    if numbers[0] != numbers[1] and numbers != warned and not answer.is_set:
        logger.warning(
            "Limit %r is %d in one version of the code and %d in another one that runs; the "
            "smaller one counts",
            name,
            *numbers,
            extra={"pool_id": pool.pool_id},
        )
    return numbers
