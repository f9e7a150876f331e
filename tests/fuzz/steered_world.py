"""Pools whose tasks have limits, and what operators have paused: a world for random programs."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import psycopg
from psycopg.rows import dict_row

from graphile_worker_py import (
    ConcurrencyLimit,
    JobContext,
    LimitKind,
    Pool,
    Runner,
    Task,
    WorkerUtils,
    run_migrations,
    task,
)
from graphile_worker_py.events import PoolFatalError
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.get_jobs import get_jobs
from graphile_worker_py.sql.keyed_jobs import get_keyed_jobs
from graphile_worker_py.sql.limit_permits import take_permits
from graphile_worker_py.sql.task_ids import read_task_ids
from tests.support.eventually import eventually
from tests.support.rows import rows_of
from tests.support.running import Told

T = TypeVar("T")
Target = tuple[str, str]
"""What is paused: task, queue, pool or everything, and its name."""

LIMIT: Final = ConcurrencyLimit(2, name="stripe")
LIMITED: Final = ("charge", "refund")
EACH: Final = ConcurrencyLimit(1, name="carriers", key="carrier")
KEYED: Final = "ship"
TASKS: Final = ("mail", *LIMITED, KEYED)
CARRIERS: Final = ("x", "y")
PLACES: Final = 2
"""How many jobs each pool runs at once."""
TARGETS: Final[tuple[Target, ...]] = (
    ("task", "mail"),
    ("task", "charge"),
    ("queue", "q"),
    ("pool", "left"),
    ("everything", ""),
)
ROWS: Final = """
select jobs.id, tasks.identifier as task, queues.queue_name as queue, jobs.attempts,
  jobs.locked_by as pool, jobs.payload ->> 'carrier' as carrier
from graphile_worker._private_jobs as jobs
join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
"""
LOCKED_QUEUES: Final = """
select queue_name from graphile_worker._private_job_queues where locked_by is not null
"""
PERMITS: Final = """
select coalesce(sum(permits), 0) as permits from graphile_worker_py.limit_permits
where exists (select from graphile_worker_py.pools where pools.pool_id = limit_permits.pool_id)
"""
NAMED: Final = "select pool_id from graphile_worker_py.pools where name is not null"
REGISTER: Final = """
insert into graphile_worker_py.pools (pool_id, worker_schema, host, pid, dead_after, lock_key)
values (%s, 'graphile_worker', 'nowhere', 1, 3600, %s)
"""
DIE: Final = """
update graphile_worker_py.pools set heartbeat_at = now() - interval '1 hour', dead_after = 0.01
where pool_id = %s
"""
CLEAR: Final = """
delete from graphile_worker._private_jobs;
delete from graphile_worker._private_job_queues;
delete from graphile_worker_py.pools;
delete from graphile_worker_py.pauses;
delete from graphile_worker_py.limits;
delete from graphile_worker_py.limit_permits;
delete from graphile_worker_py.limit_leases;
"""


def as_argument(target: Target) -> dict[str, Any]:
    """The argument of `pause` and `resume`."""
    kind, name = target
    return {kind: name or True}


DECLARED: Final = {LIMIT: LIMIT.amount, EACH: EACH.amount}


@dataclass(kw_only=True)
class Model:
    """What was asked for, and what the tasks themselves have seen.

    Attributes:
        added: All jobs.
        carriers: What the jobs are told apart by.
        ended: How often the task of each job has come to its end.
        deaths: How often a pool died with each job.
        paused: What is paused.
        known: What each pool has to have known when the present step began.
        amounts: Each limit; that of the carriers is for each of them.
        most: The most that each limit allowed since the last step.
        broken: What should not have happened.
    """

    added: dict[int, str] = field(default_factory=dict)
    carriers: dict[int, str] = field(default_factory=dict)
    ended: Counter[int] = field(default_factory=Counter)
    deaths: Counter[int] = field(default_factory=Counter)
    paused: set[Target] = field(default_factory=set)
    known: set[Target] = field(default_factory=set)
    amounts: dict[ConcurrencyLimit, int] = field(default_factory=lambda: dict(DECLARED))
    most: dict[ConcurrencyLimit, int] = field(default_factory=lambda: dict(DECLARED))
    broken: list[str] = field(default_factory=list)

    def set_amount(self, limit: ConcurrencyLimit, amount: int) -> None:
        """Change a limit; until the step is over, the greater number counts."""
        self.most[limit] = max(self.most[limit], amount)
        self.amounts[limit] = amount

    def settled(self) -> None:
        """Say that all pools know everything."""
        self.most = dict(self.amounts)
        self.known = set(self.paused)


class WorkerPool:
    """A worker pool whose tasks end when they are told."""

    def __init__(self, name: str, runner: Runner) -> None:
        self.name = name
        self.runner = runner
        self.running: dict[int, asyncio.Future[None]] = {}

    @property
    def id(self) -> str:
        """What its jobs are locked by."""
        return self.runner.pool_ids[self.name]

    def knows(self, paused: set[Target]) -> bool:
        """Whether it has heard of all pauses, and of their ends."""
        troubles = " ".join(self.runner.health().troubles)
        if self.is_closed(paused):
            return "starting no jobs" in troubles
        heard = {
            target for target in TARGETS if target[1] and f"{target[0]} {target[1]!r}" in troubles
        }
        return "starting no jobs" not in troubles and heard == paused - {("pool", "left")}

    def is_closed(self, paused: set[Target]) -> bool:
        """Whether it starts nothing."""
        return ("everything", "") in paused or ("pool", self.name) in paused

    async def stop(self) -> None:
        """Let it finish its jobs."""
        await self.runner.stop()
        await self.runner.__aexit__(None, None, None)

    async def kill(self) -> None:
        """Stop it at once: it returns its jobs."""
        await self.runner.kill()
        await self.runner.__aexit__(None, None, None)


class World:
    """The database, the living pools and the dead ones, in one event loop.

    Attributes:
        idle: For how many seconds each step left a place free for which there was work.
    """

    def __init__(self, dsn: str, *, heartbeat_interval: float) -> None:
        self.dsn = dsn
        self._heartbeat_interval = heartbeat_interval
        self._idle_until = 0.0
        self.model = Model()
        self.pools: list[WorkerPool] = []
        self.ghosts: dict[str, list[int]] = {}
        self.idle: list[float] = []
        self.told = Told()
        self.ends_by_itself = False
        self.utils: WorkerUtils
        self._loop = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._conn = psycopg.connect(dsn, autocommit=True, row_factory=dict_row)
        self.run(self._open())

    async def _open(self) -> None:
        self.utils = await self._stack.enter_async_context(WorkerUtils(self.dsn))
        await run_migrations(self.dsn, side_schema=True)

    def close(self) -> None:
        """Leave nothing behind."""
        self.run(self.kill_all())
        self.run(self._stack.aclose())
        self._conn.close()
        self._loop.close()

    def run(self, work: Awaitable[T]) -> T:
        """Let something happen, and the pools work meanwhile."""

        async def wait() -> T:
            return await work

        return self._loop.run(wait())

    def query(self, text: str, *values: Any) -> list[dict[str, Any]]:
        """Ask the database."""
        return rows_of(self._conn.execute(text.encode(), values or None))

    async def kill_all(self) -> None:
        """Stop all pools at once."""
        while self.pools:
            await self.pools.pop().kill()

    async def begin_anew(self) -> None:
        """Forget the example before, and start a pool."""
        await self.kill_all()
        self.query(CLEAR)
        self.model = Model()
        self.told.all.clear()
        self.ghosts.clear()
        self.ends_by_itself = False
        await self.start("left")

    async def start(self, name: str) -> None:
        """Start a pool of a name."""
        runner = Runner(
            self.dsn,
            tasks=self._tasks(name),
            pools={name: Pool(concurrent_jobs=PLACES)},
            poll_interval=60,  # what waits has to be found without
            heartbeat_interval=self._heartbeat_interval,
            dead_after=5 * self._heartbeat_interval,
            max_crashes=0,
            events=self.told.events,
            no_handle_signals=True,
        )
        self.pools.append(WorkerPool(name, await runner.__aenter__()))

    def _tasks(self, pool_name: str) -> list[Task[Any]]:
        async def work(payload: Any, ctx: JobContext) -> None:
            (pool,) = [pool for pool in self.pools if pool.id == ctx.pool_id]
            job = ctx.job
            self.model.added.setdefault(job.id, job.task_identifier)  # before the add was answered
            self.model.carriers.setdefault(job.id, payload["carrier"])
            self._begins(pool_name, job.id, job.task_identifier, job.job_queue_id is not None)
            if not self.ends_by_itself:
                pool.running[job.id] = asyncio.get_running_loop().create_future()
                try:
                    await pool.running[job.id]
                finally:
                    del pool.running[job.id]
            self.model.ended[job.id] += 1

        limited = [task(name, limits=[LIMIT])(work) for name in LIMITED]
        return [task("mail")(work), *limited, task(KEYED, limits=[EACH])(work)]

    def _begins(self, pool_name: str, job_id: int, name: str, queued: bool) -> None:
        model = self.model
        stopped = {("task", name), ("pool", pool_name), ("everything", "")}
        stopped |= {("queue", "q")} if queued else set()
        if stopped & model.known & model.paused:
            model.broken.append(f"job {job_id} began while {stopped & model.known} was paused")
        most = model.most[LIMIT]
        if name in LIMITED and self.limited() + 1 > most:
            model.broken.append(f"job {job_id} began as number {self.limited() + 1}/{most}")
        most, running = model.most[EACH], self.carried(model.carriers[job_id])
        if name == KEYED and running + 1 > most:
            model.broken.append(f"job {job_id} of a carrier began as number {running + 1}/{most}")

    def _held(self) -> list[int]:
        """The jobs that run, or were held by a pool that died."""
        held = [job_id for pool in self.pools for job_id in pool.running]
        return held + [job_id for ids in self.ghosts.values() for job_id in ids]

    def limited(self) -> int:
        """How many of these there are for which the limit is."""
        return sum(self.model.added[job_id] in LIMITED for job_id in self._held())

    def carried(self, carrier: str) -> int:
        """How many of these a carrier has."""
        return sum(
            self.model.added[job_id] == KEYED and self.model.carriers[job_id] == carrier
            for job_id in self._held()
        )

    async def vanish(self, count: int) -> None:
        """Be a pool that takes permits, fetches jobs, and is never heard of again."""
        ghost = f"ghost-{os.urandom(9).hex()}"
        self.query(REGISTER, ghost, int.from_bytes(os.urandom(7)))
        database = Database(self.utils.pool, schema="graphile_worker")
        names = [name for name in TASKS if ("task", name) not in self.model.paused]
        ask: dict[str, Any] = {"pool_id": ghost, "tasks": LIMITED, "wanted": count, "wants": count}
        granted = await database.run(take_permits("graphile_worker", "stripe", LIMIT, **ask))
        held: list[int] = []
        for wanted, most in ((LIMITED, granted.permits), (("mail",), count)):
            ids = await database.run(read_task_ids(sorted(set(names) & set(wanted))))
            if ids.numbers and most:
                query = get_jobs(pool_id=ghost, task_ids=ids, count=most, forbidden_flags=None)
                fetched = await database.run(query)
                assert fetched is not None
                held += [job.id for job in fetched.jobs]
        held += await self._take_keyed(database, ghost, count)
        used = sum(self.model.added[job_id] in LIMITED for job_id in held)
        ask |= {"wanted": used, "wants": used}
        await database.run(take_permits("graphile_worker", "stripe", LIMIT, **ask))
        self.ghosts[ghost] = held

    async def _take_keyed(self, database: Database, ghost: str, count: int) -> list[int]:
        ask: dict[str, Any] = {"pool_id": ghost, "tasks": [KEYED], "wanted": 0, "wants": 0}
        await database.run(take_permits("graphile_worker", "carriers", EACH, **ask))
        ids = await database.run(read_task_ids([KEYED]))
        if not ids.numbers:
            return []
        limits = [("carriers", "carrier")]
        fetch: dict[str, Any] = {"task_ids": ids, "count": count, "forbidden_flags": None}
        query = get_keyed_jobs("graphile_worker", limits, 0, pool_id=ghost, **fetch)
        fetched = await database.run(query)
        assert fetched is not None
        return [job.id for job in fetched.jobs]

    def die(self, ghost: str) -> None:
        """Let its last heartbeat be long ago."""
        self.model.deaths.update(self.ghosts.pop(ghost))
        self.query(DIE, ghost)

    async def settle(self) -> None:
        """Wait until nothing happens any more; then all is as it should be."""
        began = time.monotonic()
        self._idle_until = began
        await eventually(self._as_it_should_be, interval=0.005)
        self.idle.append(self._idle_until - began)
        self.model.settled()

    def _as_it_should_be(self) -> bool:
        model, rows = self.model, {row["id"]: row for row in self.query(ROWS)}
        assert model.broken == []
        if self._is_work_left(rows):
            self._idle_until = time.monotonic()
            raise AssertionError("a place is free, and a job waits that may run")
        assert rows.keys() == {job_id for job_id in model.added if not model.ended[job_id]}
        assert set(model.ended.values()) <= {1}
        holders = {pool.id: [*pool.running] for pool in self.pools} | self.ghosts
        for holder, ids in holders.items():
            assert sorted(ids) == sorted(
                job_id for job_id, row in rows.items() if row["pool"] == holder
            )
        for job_id, row in rows.items():
            assert row["pool"] in (None, *holders)
            assert row["attempts"] == model.deaths[job_id] + (row["pool"] is not None)
        (held,) = self.query(PERMITS)
        assert self.query("select name from graphile_worker_py.limits") or not self.pools
        assert {pool.id for pool in self.pools} <= {row["pool_id"] for row in self.query(NAMED)}
        assert held["permits"] <= max(model.amounts[LIMIT], self.limited())
        assert all(pool.knows(model.paused) for pool in self.pools)
        return True

    def _is_work_left(self, rows: dict[int, dict[str, Any]]) -> bool:
        """Whether a pool has a free place for a job that waits, and may run there."""
        paused = self.model.paused
        if not any(
            len(pool.running) < PLACES and not pool.is_closed(paused) for pool in self.pools
        ):
            return False
        held = [row for row in rows.values() if row["pool"] is not None]
        limited = sum(row["task"] in LIMITED for row in held)
        carried = Counter(row["carrier"] for row in held if row["task"] == KEYED)
        amounts = self.model.amounts
        return any(
            row["pool"] is None
            and ("task", row["task"]) not in paused
            and (row["task"] not in LIMITED or limited < amounts[LIMIT])
            and (row["task"] != KEYED or carried[row["carrier"]] < amounts[EACH])
            and (row["queue"] is None or self._is_free(row["queue"], rows))
            for row in rows.values()
        )

    def _is_free(self, queue: str, rows: dict[int, dict[str, Any]]) -> bool:
        if ("queue", queue) in self.model.paused:
            return False
        return not any(row["pool"] is not None for row in rows.values() if row["queue"] == queue)

    def _all_have_ended(self) -> bool:
        left = self.query(ROWS)
        held = "select pool_id, permits, wants from graphile_worker_py.limit_permits"
        dead = "select pool_id, died_at, unlocked_at from graphile_worker_py.pools"
        assert not left, f"left: {left}; permits: {self.query(held)}; pools: {self.query(dead)}"
        return True

    async def end(self) -> None:
        """Let everything go on, and look whether each job comes to its end."""
        for target in TARGETS:
            await self.utils.resume(**as_argument(target))
        self.model.paused.clear()
        for limit in await self.utils.limits():
            await self.utils.clear_limit(limit.name, kind=LimitKind.CONCURRENCY)
        for declared in DECLARED:
            self.model.set_amount(declared, declared.amount)
        self.ends_by_itself = True
        for pool in self.pools:
            for future in pool.running.values():
                future.set_result(None)
        for ghost in [*self.ghosts]:
            self.die(ghost)
        if not self.pools:
            await self.start("right")
        await eventually(self._all_have_ended)
        while self.pools:
            await self.pools.pop().stop()
        assert self.model.broken == []
        assert self.model.ended == Counter(self.model.added.keys())
        assert self.query(LOCKED_QUEUES) == []
        assert self.told.of(PoolFatalError) == []
