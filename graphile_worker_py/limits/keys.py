"""Limits that count the jobs of each value of a key apart.

Which jobs run under such a limit stands in the database, and the fetch reads it there: a pool knows
nothing but the limit. See `sql.keyed_jobs` and `sql.limit_tables`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

from psycopg import AsyncConnection

from graphile_worker_py.limits.permits import warn_if_versions_differ
from graphile_worker_py.options.limits import ConcurrencyLimit
from graphile_worker_py.plugins import FetchRequest
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.keyed_jobs import MOST_PASSED, KeyedFetched, get_keyed_jobs
from graphile_worker_py.sql.limit_permits import Permits, set_key, take_permits

logger = logging.getLogger(__name__)

AGAIN: Final = 0.1
"""Seconds until jobs are looked for again whose values had all they may have, at least."""
REMEMBERED: Final = 1.0
"""Seconds for which it is remembered how many jobs stand before the others, at least."""
REST: Final = 10.0
"""For how many times as long as the look took, at least."""


class KeyedLimit:
    """A limit with a key, as one pool has it.

    Args:
        name: Name of the limit.
        limit: The limit as the code has it.
        tasks: The pool's tasks that have it.
        pool: The `WorkerPool`.

    Attributes:
        is_paused: Whether the limit is 0.
    """

    def __init__(
        self, name: str, limit: ConcurrencyLimit, *, tasks: Sequence[str], pool: Any
    ) -> None:
        self.name = name
        self.key = cast("str", limit.key)
        self.is_paused = False
        self._limit = limit
        self._tasks = tasks
        self._pool = pool
        self._heard = False
        self._is_noted = False
        self._missed: set[str] = set()
        self._warned: tuple[int, int] | None = None

    def hear(self) -> None:
        """Note that something has changed in the database."""
        self._heard = True

    def next_look(self) -> float | None:
        """When `look` has something to do; None if not before something changes."""
        return 0.0 if self._heard else None

    async def look(self) -> None:
        """Read what has changed."""
        if self._heard:
            self._heard = False
            await self.refresh()

    async def refresh(self, conn: AsyncConnection[Any] | None = None) -> None:
        """Read the number that counts, and report that the pool has the limit."""
        database = self._pool.database
        declare = take_permits(
            database.schema,
            self.name,
            self._limit,
            pool_id=self._pool.pool_id,
            tasks=self._tasks,
            wanted=0,
            wants=0,
        )
        run = self._pool.parts.fetching.run if conn is None else partial(database.run, conn=conn)
        answer: Permits = await run(declare)
        if not self._is_noted:
            await run(set_key(database.schema, self.name, self.key))
            self._is_noted = True
        self.is_paused = answer.amount == 0
        self._warned = warn_if_versions_differ(self.name, answer, self._warned, pool=self._pool)

    def warn_of_missing(self, tasks: frozenset[str]) -> None:
        """Say once for each task that jobs without a value count together."""
        for task in sorted(tasks - self._missed):
            logger.warning(
                "A job of one of the tasks %s has nothing at %r, by which limit %r tells jobs "
                "apart; such jobs count together",
                task,
                self.key,
                self.name,
                extra={"pool_id": self._pool.pool_id},
            )
        self._missed |= tasks


class KeyedLook:
    """The fetches of tasks that have the same limits with a key.

    A fetch passes at most `MOST_PASSED` jobs of values that are at their limit. Where more stand
    before the others, the next fetch goes on behind them. How far that was is remembered for a
    while, so that it need not be found again for each fetch.

    Args:
        limits: The limits.
        pool: The `WorkerPool`.

    Attributes:
        waits: Whether jobs may wait until others of their value have ended.
    """

    def __init__(self, limits: Sequence[KeyedLimit], *, pool: Any) -> None:
        self.waits = False
        self._limits = limits
        self._pool = pool
        self._passed = 0
        self._start_at = 0.0  # when to look from the start again
        self._walk_began = 0.0
        self._forget_at = 0.0

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def next_ask(self) -> float | None:
        """When to look again for jobs that wait; None if none do."""
        return self._start_at if self.waits else None

    async def fetch(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Lock jobs, of each value no more than its limits allow."""
        began = self._now()
        if began >= self._start_at and began >= self._forget_at:
            self._passed, self._walk_began = 0, began
        passed = 0 if began >= self._start_at else self._passed
        limits = [(each.name, each.key) for each in self._limits]
        lock = partial(get_keyed_jobs, self._pool.database.schema, limits, passed)
        fetched = await proceed(replace(request, lock=lock))
        if not isinstance(fetched, KeyedFetched):  # another plugin has fetched none
            return fetched
        self._warn(fetched)
        is_short = len(fetched.jobs) < request.count
        self.waits = is_short and fetched.waits
        now = self._now()
        if not passed:
            self._start_at = now + max(AGAIN, REST * (now - began))
        if not (is_short and fetched.deeper):
            return fetched
        if passed or not self._passed:  # otherwise it is known how far to go
            self._passed = passed + MOST_PASSED
            self._forget_at = now + max(REMEMBERED, REST * (now - self._walk_began))
        return replace(fetched, more=True)

    def _warn(self, fetched: KeyedFetched) -> None:
        for limit in self._limits:
            if limit.name in fetched.without:
                limit.warn_of_missing(frozenset(job.task_identifier for job in fetched.jobs))
