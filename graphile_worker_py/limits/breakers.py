"""The circuit breakers of one pool, and the plugin that keeps those of a runner."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py import aio
from graphile_worker_py.errors import CutOffError, one_line
from graphile_worker_py.limits.breaker import PoolBreaker
from graphile_worker_py.outcomes import Discard, RetryIn, Snooze
from graphile_worker_py.plugins import FetchRequest, Part, Plugin
from graphile_worker_py.plugins.per_pool import PerPool
from graphile_worker_py.schema.own import register_migrations
from graphile_worker_py.sql import breakers as statements
from graphile_worker_py.sql import limit_tables
from graphile_worker_py.sql.breakers import TOPIC, Breaker
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.tasks.context import JobContext
from graphile_worker_py.tasks.task import Task

register_migrations(limit_tables.LEAF, limit_tables.MIGRATIONS)

ASK_AGAIN: Final = 1.0
"""Seconds until a pool tries again to let a job through, where another one does."""
DECISIONS: Final = (Discard, RetryIn, Snooze)
"""What tasks raise or return, and is no failure."""

Proceed: TypeAlias = Callable[[FetchRequest], Awaitable[Fetched]]


class PoolBreakers:
    """The breakers of one pool.

    Args:
        pool: The `WorkerPool`.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._schema: str = pool.database.schema
        self._breakers = _made(pool.tasks)
        self._by_task = {task: each for each in self._breakers for task in each.tasks}
        self._changed = asyncio.Event()
        self._heard = False
        self._known = False  # whether the side schema knows the breakers
        self._turn = asyncio.Lock()
        self._seen = 0.0

    def trouble(self) -> str | None:
        """Which breakers are open; None if none is."""
        return "; ".join(each.state for each in self._breakers if each.is_open) or None

    # Fetching.

    async def fetch(self, request: FetchRequest, proceed: Proceed) -> Fetched:
        """Leave out tasks whose breakers are open, but for one job when the time is over."""
        opened = [each for each in self._breakers if each.is_open]
        if not opened:
            fetched = await proceed(request)
        else:
            tasks = request.tasks.difference(*(each.tasks for each in opened))
            fetched = Fetched([], more=False)
            if tasks:
                fetched = await proceed(replace(request, tasks=tasks))
            for breaker in opened:
                self._forget_lost(breaker)
                if breaker.is_due() and len(fetched.jobs) < request.count:
                    found = await self._fetch_probe(breaker, request, proceed)
                    fetched = replace(fetched, jobs=[*fetched.jobs, *found])
        # A breaker may have opened meanwhile.
        return replace(fetched, jobs=[job for job in fetched.jobs if self._lets(job)])

    async def _fetch_probe(
        self, breaker: PoolBreaker, request: FetchRequest, proceed: Proceed
    ) -> list[Any]:
        breaker.next_try = asyncio.get_running_loop().time() + ASK_AGAIN
        about = (self._schema, breaker.name, self._pool.pool_id)
        run = self._pool.parts.fetching.run
        if self._known and not await run(statements.take_probe(*about)):
            return []
        tasks = breaker.tasks & request.tasks
        fetched = await proceed(replace(request, tasks=tasks, count=1))
        if fetched.jobs:
            breaker.probe = fetched.jobs[0].id
        else:
            breaker.next_try = 0.0  # the next job that comes
            if self._known:
                await run(statements.leave_probe(*about))
        return fetched.jobs

    def _forget_lost(self, breaker: PoolBreaker) -> None:
        """Let another job through if the last one was returned or taken away."""
        if breaker.probe is not None and breaker.probe not in self._pool.parts.holdings.ids:
            breaker.probe = None

    def _lets(self, job: Any) -> bool:
        breaker = self._by_task.get(job.task_identifier)
        return breaker is None or breaker.lets(job.id)

    # Running.

    async def run_job(
        self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
    ) -> Any:
        """Count failures; a job that fails while the breaker is open keeps its attempt."""
        job = ctx.job
        breaker = self._by_task.get(job.task_identifier)
        if breaker is None:
            return await proceed(ctx)
        if not breaker.lets(job.id):
            raise CutOffError(breaker.state)
        try:
            returned = await proceed(ctx)
        except (*DECISIONS, CutOffError):
            self._decided(breaker, job.id)
            raise
        except BaseException as error:  # SystemExit of a task included
            if _was_ended(ctx, error):
                self._decided(breaker, job.id)
                raise
            if not breaker.lets(job.id):
                raise CutOffError(f"{breaker.state} (and now: {one_line(error)})") from error
            if breaker.failed(job.id, error):
                self._note(breaker)
            raise
        if isinstance(returned, DECISIONS):
            self._decided(breaker, job.id)
        elif breaker.succeeded(job.id):
            self._note(breaker)
        return returned

    def _decided(self, breaker: PoolBreaker, job_id: int) -> None:
        """Let another job through if this one has neither succeeded nor failed."""
        if breaker.probe == job_id:
            breaker.probe, breaker.next_try = None, 0.0
            self._changed.set()

    def _note(self, breaker: PoolBreaker) -> None:
        self._pool.logger.log(
            logging.WARNING if breaker.is_open else logging.INFO,
            "Breaker %r is %s",
            breaker.name,
            f"open for {breaker.settings.open_for:g} s: {breaker.reason}"
            if breaker.is_open
            else "closed",
            extra={"pool_id": self._pool.pool_id},
        )
        self._changed.set()

    # What other pools know.

    def hear(self, _said: Mapping[str, Any] | None) -> None:
        """Note that breakers have changed, or that this may have been missed."""
        self._heard = True
        self._changed.set()

    async def beat(self, conn: AsyncConnection[Any]) -> None:
        """Read the breakers, and write what could not be written."""
        if not self._known:
            for each in self._breakers:
                query = statements.know_breaker(self._schema, each.name, sorted(each.tasks))
                await self._pool.database.run(query, conn=conn)
            self._known = True
        await self._agree(conn)

    async def run(self) -> None:
        """Tell other pools, hear them, and wake the pool when a breaker's time is over."""
        while True:
            await aio.wait_for(self._changed, self._delay())
            self._changed.clear()
            self._seen = asyncio.get_running_loop().time()
            if any(each.is_open for each in self._breakers):
                await self._pool.give_back(lambda job: not self._lets(job))
            if self._known and (self._heard or any(each.unwritten for each in self._breakers)):
                self._heard = False
                try:
                    await self._agree(None)
                except (psycopg.Error, OSError) as error:  # the next heartbeat does it
                    self._pool.logger.debug("Could not share breakers (%s)", one_line(error))
            self._pool.nudge(self._pool.options.concurrent_jobs)

    def _delay(self) -> float | None:
        """Seconds until a job is to be let through; None if not before something changes."""
        times = [
            each.next_try
            for each in self._breakers
            if each.is_open and each.probe is None and each.next_try > self._seen
        ]
        return max(0.0, min(times) - asyncio.get_running_loop().time()) if times else None

    async def _agree(self, conn: AsyncConnection[Any] | None) -> None:
        async with self._turn:
            run = self._pool.database.run
            for each in self._breakers:
                if each.unwritten:
                    query = self._written(each)
                    each.unwritten, failures, each.failures = False, each.failures, 0
                    try:
                        await run(query, conn=conn)
                    except BaseException:
                        each.unwritten = True
                        each.failures += failures
                        raise
            found: list[Breaker] = await run(statements.read_breakers(self._schema), conn=conn)
            states = {each.name: each for each in found}
            for each in self._breakers:
                if not each.unwritten:  # it may have changed while this was read
                    self._take(each, states.get(each.name))

    def _written(self, breaker: PoolBreaker) -> Any:
        if not breaker.is_open:
            return statements.close_breaker(self._schema, breaker.name)
        left = max(0.0, breaker.next_try - asyncio.get_running_loop().time())
        return statements.open_breaker(
            self._schema,
            breaker.name,
            seconds=left,
            reason=breaker.reason or "",
            failures=breaker.failures,
        )

    def _take(self, breaker: PoolBreaker, state: Breaker | None) -> None:
        """Take over what the database says."""
        if state is None or state.open_for is None:
            if breaker.is_open:
                breaker.close()
                self._changed.set()
        elif breaker.probe is None:
            was_open, left = breaker.is_open, breaker.next_try - asyncio.get_running_loop().time()
            if state.open_for > 0 or not was_open or left > ASK_AGAIN:
                breaker.open(state.open_for, state.reason)
                self._changed.set()


def _was_ended(ctx: JobContext, error: BaseException) -> bool:
    """Whether a job was ended from outside, which says nothing about what its task calls.

    A task can raise `CancelledError` itself: that is a failure.
    """
    if ctx.cancelled:
        return True
    return isinstance(error, asyncio.CancelledError) and ctx.abort_reason is not None


def _made(tasks: Mapping[str, Task[Any]]) -> list[PoolBreaker]:
    sharing: defaultdict[str, set[str]] = defaultdict(set)
    settings = {}
    for task in tasks.values():
        breaker = task.settings.get("breaker")
        if breaker is not None:
            settings[breaker.name] = breaker
            sharing[breaker.name].add(task.identifier)
    return [PoolBreaker(each, frozenset(sharing[name])) for name, each in settings.items()]


class Breakers(Plugin):
    """Keeps the circuit breakers of tasks in a runner's worker pools."""

    leaf = limit_tables.LEAF

    def __init__(self) -> None:
        self._breakers = PerPool(PoolBreakers)

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Jobs whose breaker is open are left out."""
        return await self._breakers.by_id(request.pool_id).fetch(request, proceed)

    async def run_job(
        self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
    ) -> Any:
        """Failures are counted."""
        return await self._breakers.by_id(ctx.pool_id).run_job(ctx, proceed)

    def parts(self, pool: Any) -> Iterable[Part]:
        """Breakers that other pools open are heard."""
        breakers = self._breakers.of(pool)
        pool.listener.on(TOPIC, breakers.hear)
        return [Part(name="share breakers", run=breakers.run)]

    async def beat(self, pool: Any, conn: AsyncConnection[Any]) -> None:
        """Breakers are read that other pools have opened, or operators have closed."""
        await self._breakers.of(pool).beat(conn)

    def trouble(self, pool: Any) -> str | None:
        """Which breakers are open."""
        return self._breakers.of(pool).trouble()
