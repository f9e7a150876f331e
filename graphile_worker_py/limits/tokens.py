"""Rates: the tokens with which one pool starts jobs."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from graphile_worker_py.options.limits import RateLimit
from graphile_worker_py.sql.limit_permits import Tokens, return_tokens, take_tokens

logger = logging.getLogger(__name__)

LONGEST_WAIT: Final = 1.0
"""Seconds until a pool asks again: another one may have given back what it took."""
SHORTEST_WAIT: Final = 0.02
"""Seconds in which tokens gather, if the burst leaves room for them."""


class PoolTokens:
    """The tokens of one pool for one rate.

    They are taken right before a fetch, for jobs that start at once, and what the fetch leaves is
    given back. So no tokens are stored, and jobs that wait are not locked.

    Args:
        name: Name of the rate.
        limit: The rate as the code has it.
        tasks: The pool's tasks that have it.
        pool: The `WorkerPool`.

    Attributes:
        backlog: Whether more jobs may wait than there are tokens for.
        is_short: Whether there were fewer tokens than asked for.
        is_paused: Whether the rate is 0.
    """

    def __init__(self, name: str, limit: RateLimit, *, tasks: Sequence[str], pool: Any) -> None:
        self.name = name
        self.limit = limit
        self.tasks = tasks
        self.backlog = False
        self.is_short = False
        self.is_paused = False
        self._pool = pool
        self._taken: Tokens | None = None
        self._ask_from = 0.0
        self._warned = False

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def allow(self, count: int) -> int:
        """How many jobs may be started now, at most `count`; `fetched` has to follow."""
        if self._now() < self._ask_from:
            self.is_short = True
            return 0
        # What is stored would start later.
        idle = self._pool.options.concurrent_jobs - len(self._pool.parts.holdings.ids)
        count = min(count, max(1, idle))
        tokens: Tokens = await self._pool.parts.fetching.run(
            take_tokens(
                self._pool.database.schema,
                self.name,
                self.limit,
                tasks=self.tasks,
                wanted=count,
            )
        )
        self.is_paused = tokens.step == 0
        self._taken = tokens
        self.is_short = tokens.granted < count
        if self.is_short:
            gathers = min(SHORTEST_WAIT, tokens.step * self.limit.most_at_once / 4)
            self._ask_from = self._now() + min(max(tokens.wait, gathers), LONGEST_WAIT)
        self._warn_if(tokens.differs)
        return tokens.granted

    async def fetched(self, count: int, *, room: int) -> bool:
        """Note how many jobs were fetched where `room` could run; returns whether to go on."""
        taken, self._taken = self._taken, None
        granted = 0 if taken is None else taken.granted
        self.backlog = count >= granted and granted < room
        if taken is not None and count < granted:
            unused = granted - count
            schema = self._pool.database.schema
            await self._pool.parts.fetching.run(
                return_tokens(schema, self.name, taken, count=unused)
            )
        return self.backlog and self._now() >= self._ask_from

    def next_ask(self) -> float | None:
        """When to try again to fetch more; None if jobs don't wait, or never may."""
        return self._ask_from if self.backlog else None

    def hear(self) -> None:
        """Note that the rate may have been changed."""
        self._ask_from = 0.0

    def _warn_if(self, differs: bool) -> None:  # noqa: FBT001  # what the database has answered
        if differs and not self._warned:
            logger.warning(
                "Rate %r is lower in another version of the code, which runs or ran a minute ago; "
                "the lower one counts",
                self.name,
                extra={"pool_id": self._pool.pool_id},
            )
        self._warned = differs
