"""The limits of one pool: what its fetches leave out, and when they are tried again."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py import aio
from graphile_worker_py.errors import one_line
from graphile_worker_py.job import Job
from graphile_worker_py.limits.keys import KeyedLimit, KeyedLook
from graphile_worker_py.limits.permits import PoolPermits
from graphile_worker_py.limits.tokens import PoolTokens
from graphile_worker_py.options.limits import RateLimit, limits_of
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.plugins import FetchRequest
from graphile_worker_py.postgres.outages import is_outage
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.tasks.task import Task

SLOW_LOOK: Final = 0.005
"""Seconds: a fetch that finds nothing and takes longer has passed many jobs of other groups."""
REST: Final = 10.0
"""For how many times as long the group is left alone then."""
AFTER_ERROR: Final = 1.0
"""Seconds until limits are tried again that could not be read."""
MOST_GROUPINGS: Final = 100
MISSING: Final = (
    "jobs of tasks with limits are not run: the tables of limits in the schema graphile_worker_py "
    "are missing, or this role may not use them; `graphile-worker-py migrate --side-schema` "
    "creates them"
)

Proceed: TypeAlias = Callable[[FetchRequest], Awaitable[Fetched]]


@dataclass(slots=True, eq=False)
class Group:
    """Tasks that are fetched together, because they have the same limits.

    Attributes:
        tasks: Their identifiers.
        permits: The limits of jobs at once; none in the group of unlimited tasks.
        tokens: The rates.
        keys: The limits of jobs at once of each value.
        look: How these are fetched; None without such limits.
        look_from: The loop's time before which nothing is looked for.
    """

    tasks: frozenset[str]
    permits: Sequence[PoolPermits] = ()
    tokens: Sequence[PoolTokens] = ()
    keys: Sequence[KeyedLimit] = ()
    look: KeyedLook | None = None
    look_from: float = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether its tasks have limits."""
        return bool(self.permits or self.tokens or self.keys)


@dataclass(slots=True)
class _Limits:
    """The limits of a task."""

    permits: list[PoolPermits] = field(default_factory=list)
    tokens: list[PoolTokens] = field(default_factory=list)
    keys: list[KeyedLimit] = field(default_factory=list)

    @property
    def all(self) -> list[PoolPermits | PoolTokens | KeyedLimit]:
        """All of them."""
        return [*self.permits, *self.tokens, *self.keys]


_NO_LIMITS: Final = _Limits()


@dataclass(slots=True)
class _Found:
    """What the fetches of all groups have brought so far."""

    jobs: list[Job] = field(default_factory=list)
    more: bool = False
    queued: bool = False
    hidden: bool = False

    def add(self, fetched: Fetched, *, more: bool) -> None:
        self.jobs += fetched.jobs
        self.more = self.more or more
        self.queued = self.queued or fetched.queued
        self.hidden = self.hidden or fetched.hidden


class PoolLimits:
    """The limits of one pool.

    Args:
        pool: The `WorkerPool`.

    Attributes:
        ready: Whether the tables of limits are known to be there.
    """

    def __init__(self, pool: Any) -> None:
        self.ready = False
        self._pool = pool
        self._permits: dict[str, PoolPermits] = {}
        self._tokens: dict[str, PoolTokens] = {}
        self._keys: dict[str, KeyedLimit] = {}
        self._by_task: dict[str, _Limits] = {}
        self._make(pool.tasks)
        self._groups: dict[frozenset[str], list[Group]] = {}
        self._first = 0
        self._changed = asyncio.Event()
        self._error: str | None = None
        self._broken_until = 0.0
        self._seen = 0.0

    def _make(self, tasks: Mapping[str, Task[Any]]) -> None:
        sharing: defaultdict[tuple[type, str], list[str]] = defaultdict(list)
        named = [
            (task.identifier, name, limit)
            for task in tasks.values()
            for name, limit in limits_of(task.identifier, task.settings.get("limits", ()))
        ]
        for identifier, name, limit in named:
            sharing[type(limit), name].append(identifier)
        for identifier, name, limit in named:
            limits = self._by_task.setdefault(identifier, _Limits())
            sharers = sorted(sharing[type(limit), name])
            if isinstance(limit, RateLimit):
                if name not in self._tokens:
                    self._tokens[name] = PoolTokens(name, limit, tasks=sharers, pool=self._pool)
                limits.tokens.append(self._tokens[name])
            elif limit.key is None:
                if name not in self._permits:
                    self._permits[name] = PoolPermits(name, limit, tasks=sharers, pool=self._pool)
                limits.permits.append(self._permits[name])
            else:
                if name not in self._keys:
                    self._keys[name] = KeyedLimit(name, limit, tasks=sharers, pool=self._pool)
                limits.keys.append(self._keys[name])

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def trouble(self) -> str | None:
        """What keeps tasks with limits from running; None if nothing does."""
        if not self.ready:
            return MISSING
        return None if self._error is None else f"limits could not be read: {self._error}"

    # Fetching.

    async def fetch(self, request: FetchRequest, proceed: Proceed) -> Fetched:
        """Fetch the jobs of each group in turn, each by a statement of its own."""
        found = _Found()
        groups = self._groups_of(request.tasks)
        self._first = (self._first + 1) % max(1, len(groups))
        for group in (*groups[self._first :], *groups[: self._first]):
            left = request.count - len(found.jobs)
            if left <= 0:
                found.more = True
                break
            if self._now() >= group.look_from:
                await self._fetch_group(group, replace(request, count=left), proceed, found)
        if not found.jobs and self._pool.once:
            await self._wait_for_tokens(groups, found)
        for permits in self._permits.values():
            permits.filled(is_full=len(found.jobs) >= request.count)
        self._changed.set()
        return Fetched(found.jobs, found.more, found.queued, found.hidden)

    async def _fetch_group(
        self, group: Group, request: FetchRequest, proceed: Proceed, found: _Found
    ) -> None:
        room = request.count
        try:
            allowed = await self._allowed(group, room) if group.is_limited else room
        except (psycopg.Error, OSError) as error:
            for permits in group.permits:
                permits.fetched([], room=room)
            if is_outage(error):
                raise  # as any fetch would: the pool waits until the database is back
            self._failed(error)
            return
        if not allowed:
            await self._note(group, [], room)
            return
        began = self._now()
        try:
            allowed_request = replace(request, tasks=group.tasks, count=allowed)
            if group.look is None:
                fetched = await proceed(allowed_request)
            else:
                fetched = await group.look.fetch(allowed_request, proceed)
        except BaseException:
            for permits in group.permits:
                permits.fetched([], room=room)
            raise
        took = self._now() - began
        is_looking = group.look is not None
        if not fetched.jobs and took > SLOW_LOOK and not is_looking and not self._pool.once:
            group.look_from = self._now() + REST * took
        go_on = await self._note(group, fetched.jobs, room)
        found.add(fetched, more=go_on or (fetched.more and allowed == room))

    async def _allowed(self, group: Group, room: int) -> int:
        """How many jobs of a group may be fetched."""
        if not self.ready or self._now() < self._broken_until:
            return 0
        allowed = 0 if any(each.is_paused for each in group.keys) else room
        for tokens in group.tokens:
            tokens.is_short = False
        for permits in group.permits:
            allowed = min(allowed, await permits.allow(allowed)) if allowed else 0
        for tokens in group.tokens:
            allowed = min(allowed, await tokens.allow(allowed)) if allowed else 0
        self._error = None
        return allowed

    async def _note(self, group: Group, jobs: Sequence[Job], room: int) -> bool:
        """Let the limits know what was fetched; whether the next fetch may bring more at once."""
        for permits in group.permits:
            permits.fetched(jobs, room=room)
        for tokens in group.tokens:
            try:
                await tokens.fetched(len(jobs), room=room)
            except (psycopg.Error, OSError) as error:
                self._failed(error)
        limits: list[PoolPermits | PoolTokens] = [*group.permits, *group.tokens]
        asks = [each.next_ask() for each in limits if each.backlog]
        now = self._now()
        return bool(asks) and bool(jobs) and all(at is not None and at <= now for at in asks)

    def _failed(self, error: Exception) -> None:
        """Do without tasks with limits for a moment; others go on."""
        known, self._error = self._error, one_line(error)
        self._broken_until = self._now() + AFTER_ERROR
        self._pool.logger.log(
            logging.DEBUG if known == self._error or is_outage(error) else logging.WARNING,
            "Could not read limits, so their tasks wait (%s); trying again every second",
            self._error,
            extra=self._about,
        )

    @property
    def _looks(self) -> list[KeyedLook]:
        groups = (group for grouping in self._groups.values() for group in grouping)
        return [group.look for group in groups if group.look is not None]

    @property
    def _looking(self) -> list[PoolPermits | KeyedLimit]:
        """The limits of jobs at once, which read the database beside fetches."""
        return [*self._permits.values(), *self._keys.values()]

    @property
    def _about(self) -> dict[str, str]:
        return {"pool_id": self._pool.pool_id}

    async def _wait_for_tokens(self, groups: Iterable[Group], found: _Found) -> None:
        """Let a run that ends with the last job wait for the next token."""
        waits = [
            at
            for group in groups
            for tokens in group.tokens
            if tokens.is_short and not tokens.is_paused and (at := tokens.next_ask()) is not None
        ]
        if waits:
            found.more = True
            await asyncio.sleep(max(0.0, min(waits) - self._now()))

    def _groups_of(self, tasks: frozenset[str]) -> list[Group]:
        groups = self._groups.get(tasks)
        if groups is None:
            if len(self._groups) >= MOST_GROUPINGS:
                self._groups.clear()
            groups = self._groups[tasks] = self._grouped(tasks)
        return groups

    def _grouped(self, tasks: frozenset[str]) -> list[Group]:
        limited: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
        for task in sorted(tasks):
            limits = self._by_task.get(task, _NO_LIMITS)
            limited[tuple(sorted(map(id, limits.all)))].append(task)
        return [self._group(names) for names in limited.values()]

    def _group(self, names: Sequence[str]) -> Group:
        limits = self._by_task.get(names[0], _NO_LIMITS)
        look = KeyedLook(limits.keys, pool=self._pool) if limits.keys else None
        return Group(frozenset(names), limits.permits, limits.tokens, limits.keys, look)

    # What follows.

    def settled(self, batch: Sequence[Settled]) -> None:
        """Note that outcomes are recorded, and fetch what waits for the permits of these jobs."""
        freed = 0
        for job, *_ in batch:
            limits = self._by_task.get(job.task_identifier, _NO_LIMITS)
            freed += bool(limits.keys) and any(look.waits for look in self._looks)
            for permits in limits.permits:
                freed += permits.ended(job.id) and permits.backlog
        if freed:
            self._pool.nudge(freed)
        self._changed.set()

    def hear(self, said: Mapping[str, Any] | None) -> None:
        """Note that limits have changed; None means that this may have been missed."""
        if said is not None and said.get("p") == self._pool.pool_id:
            return
        name = None if said is None else said.get("n")
        for each in (*self._looking, *self._tokens.values()):
            if name in (None, each.name):
                each.hear()
        self._changed.set()
        self._pool.nudge(1)

    async def beat(self, conn: AsyncConnection[Any]) -> None:
        """Read what operators and other pools have changed."""
        wakes = not self.ready
        for limit in self._looking:
            await limit.refresh(conn)
        waiting = (each.backlog and not each.is_paused for each in self._permits.values())
        wakes = wakes or any(waiting)
        self.ready = True
        if wakes:
            self._pool.nudge(1)

    async def run(self) -> None:
        """Give back permits, and try again what waits, until cancelled."""
        try:
            while True:
                await aio.wait_for(self._changed, self._delay())
                self._changed.clear()
                await self._look()
        finally:
            await self._give_back_all()

    def _delay(self) -> float | None:
        """Seconds until there is something to do; None if not before something changes."""
        now = self._now()
        times = [at for at in self._retries() if at > self._seen]
        if self.ready:
            looks = (each.next_look() for each in self._looking)
            times += [max(at, self._broken_until) for at in looks if at is not None]
        return max(0.0, min(times) - now) if times else None

    def _retries(self) -> list[float]:
        """When something is to be fetched again that was left alone."""
        permits = [each.next_ask() for each in self._permits.values()]
        tokens = [each.next_ask() for each in self._tokens.values()]
        looks = [each.next_ask() for each in self._looks]
        asks = [at for at in (*permits, *tokens, *looks) if at is not None]
        rests = [group.look_from for groups in self._groups.values() for group in groups]
        return [*asks, *rests, self._broken_until]

    async def _look(self) -> None:
        now = self._now()
        is_due = any(self._seen < at <= now for at in self._retries())
        self._seen = now
        if self.ready and now >= self._broken_until:
            try:
                for limit in self._looking:
                    await limit.look()
            except (psycopg.Error, OSError) as error:
                self._failed(error)
        if is_due:
            self._pool.nudge(1)

    async def _give_back_all(self) -> None:
        for permits in self._permits.values():
            try:
                await permits.give_back_all()
            except (psycopg.Error, OSError) as error:
                self._pool.logger.debug("Could not give back permits (%s)", one_line(error))
                break
