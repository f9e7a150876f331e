"""Adds, runs, failures, kills and recoveries in any order, compared with a small model."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from graphile_worker_py import Job, JobSpec, Runner, WorkerUtils, run_migrations, task
from graphile_worker_py.events import JobSuccess, PoolFatalError
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.get_jobs import get_jobs
from graphile_worker_py.sql.suspects import mark_started
from graphile_worker_py.sql.task_ids import read_task_ids
from tests.support.eventually import eventually
from tests.support.rows import rows_of
from tests.support.running import Told

T = TypeVar("T")

WORKERS = 2
MOST_POOLS = 2
MAX_CRASHES = 2
PAST = datetime(2000, 1, 1, tzinfo=UTC)
ROWS = """
select jobs.id, jobs.key, queues.queue_name as queue, jobs.attempts, jobs.max_attempts,
  jobs.locked_by as pool, jobs.revision, jobs.run_at <= now() as due
from graphile_worker._private_jobs as jobs
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
"""
LOCKED_QUEUES = """
select queue_name, locked_by from graphile_worker._private_job_queues where locked_by is not null
"""
SUSPECTS = "select job_id, crashes from graphile_worker_py.suspects"
HEARTBEATS = "select pool_id, heartbeat_at from graphile_worker_py.pools where heartbeat_at > %s"
# A job that has failed waits for some seconds; here it waits until it is told.
PUT_OFF = "update graphile_worker._private_jobs set run_at = '2999-01-01' where id = any(%s)"
DIE = """
insert into graphile_worker_py.pools
  (pool_id, worker_schema, host, pid, heartbeat_at, dead_after, lock_key)
values (%s, 'graphile_worker', 'nowhere', 1, now() - interval '1 hour', 0.01, %s)
"""
CLEAR = """
delete from graphile_worker._private_jobs;
delete from graphile_worker._private_job_queues;
delete from graphile_worker_py.pools;
delete from graphile_worker_py.suspects;
"""


@dataclass(kw_only=True)
class Row:
    """A job as it should be."""

    id: int
    key: str | None
    queue: str | None
    max_attempts: int
    attempts: int = 0
    revision: int = 0
    pool: str | None = None
    due: bool = True
    fetched_as: tuple[int, str | None] | None = None

    @property
    def is_spent(self) -> bool:
        """Whether it is not tried again."""
        return self.attempts >= self.max_attempts


class Model:
    """What the database should hold, reckoned in a simple way."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.done: set[int] = set()
        self.gone: set[int] = set()
        self.runs: dict[int, int] = {}
        self.crashes: dict[int, int] = {}

    def add(self, wanted: Row, mode: str | None) -> None:
        """Add a job, whose id and revision are what the library said."""
        found = [row for row in self.rows.values() if row.key == wanted.key is not None]
        if not found:
            self._insert(wanted)
            return
        (old,) = found
        if mode == "unsafe_dedupe":
            old.revision += 1
            assert (wanted.id, wanted.revision) == (old.id, old.revision)
        elif old.pool is not None or old.is_spent:
            old.key, old.attempts = None, old.max_attempts
            self._insert(wanted)
        else:
            assert (wanted.id, wanted.revision) == (old.id, old.revision + 1)
            keeps_time = mode == "preserve_run_at" and old.attempts == 0
            self.rows[old.id] = replace(wanted, due=old.due if keeps_time else True)

    def _insert(self, row: Row) -> None:
        assert row.revision == 0
        assert row.id not in self.rows.keys() | self.done | self.gone
        self.rows[row.id] = row

    def fetch(self, row: Row, pool: str) -> None:
        """Let a pool have a job."""
        assert self.is_eligible(row), f"{row} must not be fetched"
        row.attempts += 1
        row.pool = pool
        row.fetched_as = row.attempts, row.key

    def is_eligible(self, row: Row) -> bool:
        """Whether a job may be fetched now."""
        in_queue = [each for each in self.rows.values() if each.queue == row.queue is not None]
        return (
            row.pool is None
            and row.due
            and not row.is_spent
            and not any(each.pool is not None for each in in_queue)
        )

    def held_by(self, pools: list[str]) -> list[Row]:
        """The jobs that pools have."""
        return [row for row in self.rows.values() if row.pool in pools]


class Pool:
    """A worker pool whose tasks end when they are told, and as they are told."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.running: dict[int, asyncio.Future[None]] = {}

    @property
    def id(self) -> str:
        """What its jobs are locked by."""
        return self.runner.pool_id

    async def stop(self) -> None:
        """Let it finish its jobs."""
        await self.runner.stop()
        await self.runner.__aexit__(None, None, None)

    async def kill(self) -> None:
        """Stop it at once."""
        await self.runner.kill()
        await self.runner.__aexit__(None, None, None)


class World:
    """The database, the living pools and the dead ones, in one event loop."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.model = Model()
        self.pools: list[Pool] = []
        self.ghosts: list[str] = []
        self.begun: dict[str, set[int]] = {}
        self.told = Told()
        self.ends_by_itself = False
        self.utils: WorkerUtils
        self._runs: list[int] = []
        self._known: dict[int, int] = {}
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
        cursor = self._conn.execute(text.encode(), values or None)
        return rows_of(cursor)

    async def kill_all(self) -> None:
        """Stop all pools at once; after an example that has failed there may be some."""
        while self.pools:
            await self.pools.pop().kill()

    async def begin_anew(self) -> None:
        """Forget the example before, and start a pool."""
        await self.kill_all()
        self.query(CLEAR)
        self.model = Model()
        self.told.all.clear()
        self._runs.clear()
        self._known.clear()
        self.ghosts.clear()
        self.begun.clear()
        self.ends_by_itself = False
        await self.start()

    async def start(self) -> None:
        """Start a pool."""
        running: dict[int, asyncio.Future[None]] = {}

        @task
        async def work(payload: Any, ctx: Any) -> None:
            self._runs.append(ctx.job.id)
            if not self.ends_by_itself:
                running[ctx.job.id] = asyncio.get_running_loop().create_future()
                try:
                    await running[ctx.job.id]
                finally:
                    del running[ctx.job.id]

        runner = Runner(
            self.dsn,
            tasks=[work],
            concurrent_jobs=WORKERS,
            poll_interval=0.05,
            heartbeat_interval=0.05,
            dead_after=0.5,
            max_crashes=MAX_CRASHES,
            events=self.told.events,
            no_handle_signals=True,
        )
        pool = Pool(await runner.__aenter__())
        pool.running = running
        self.pools.append(pool)

    async def settle(self) -> None:
        """Wait until nothing happens any more; then all is as it should be."""
        await eventually(self._as_it_should_be, interval=0.005)
        if self._known != self.model.crashes:
            # A suspect that failed is none any more; all have to hear of it.
            (row,) = self.query("select clock_timestamp() as now")
            await eventually(lambda: self._all_beaten_since(row["now"]))
            self._known = dict(self.model.crashes)

    def _all_beaten_since(self, moment: datetime) -> bool:
        beaten = {row["pool_id"] for row in self.query(HEARTBEATS, moment)}
        return {pool.id for pool in self.pools} <= beaten

    def _as_it_should_be(self) -> bool:
        found = {row["id"]: row for row in self.query(ROWS)}
        living = {pool.id: pool for pool in self.pools}
        model = self.model
        for row in model.rows.values():
            pool = found.get(row.id, {}).get("pool")
            if row.pool is None and pool in living and model.is_eligible(row):
                model.fetch(row, pool)
                model.runs[row.id] = model.runs.get(row.id, 0) + 1
        assert found.keys() == model.rows.keys()
        for row in model.rows.values():
            there = found[row.id]
            assert there | {"due": row.due, "fetched_as": row.fetched_as} == vars(row)
            if row.due != there["due"] and row.pool is None and not row.is_spent:
                assert not row.due
                self.query(PUT_OFF, [row.id])
        suspects = {row["job_id"]: row["crashes"] for row in self.query(SUSPECTS)}
        assert {job_id: suspects[job_id] for job_id in suspects.keys() & found.keys()} == {
            job_id: crashes for job_id, crashes in model.crashes.items() if job_id in found
        }
        busy = {name: {row.id for row in model.held_by([name])} for name in living}
        waiting: set[int] = set()
        for name, pool in living.items():
            # One more crash would condemn them, so they run one at a time.
            waiting |= busy[name] - pool.running.keys()
            assert pool.running.keys() <= busy[name]
            alone = pool.running.keys() & model.crashes.keys()
            assert len(alone) == 1 if busy[name] - pool.running.keys() else len(alone) <= 1
        assert waiting <= model.crashes.keys()
        if any(len(ids) < WORKERS for ids in busy.values()):
            assert not [row for row in model.rows.values() if model.is_eligible(row)]
        assert sorted([*self._runs, *waiting]) == sorted(
            job_id for job_id, runs in model.runs.items() for _ in range(runs)
        )
        return True

    def give_back(self, pool: Pool) -> None:
        """Say that a pool has returned its jobs.

        They get their attempt back, unless they were removed or replaced meanwhile.
        """
        for row in self.model.held_by([pool.id]):
            if row.fetched_as == (row.attempts, row.key):
                row.attempts -= 1
            row.pool = None
            if row.id not in pool.running:
                self.model.runs[row.id] -= 1

    async def end(self) -> None:
        """Let everything come to an end, and look whether it does."""
        for pool in self.pools:
            self.give_back(pool)
        await self.kill_all()
        await self.settle()
        await self.utils.force_unlock_workers(self.ghosts)
        left = [row for row in self.model.rows.values() if not row.is_spent]
        await self.utils.reschedule_jobs([row.id for row in left], run_at=PAST)
        self.ends_by_itself = True
        await self.start()
        spent = self.model.rows.keys() - {row.id for row in left}
        await eventually(lambda: {row["id"] for row in self.query(ROWS)} == spent)
        await self.pools.pop().stop()
        succeeded = [event.job.id for event in self.told.of(JobSuccess)]
        assert sorted(succeeded) == sorted(self.model.done | {row.id for row in left})
        assert self.query(LOCKED_QUEUES) == []
        assert [row for row in self.query(ROWS) if row["pool"] is not None] == []
        assert self.told.of(PoolFatalError) == []


keys = st.sampled_from([None, None, "a", "b"])
queues = st.sampled_from([None, None, "q", "r"])
modes = st.sampled_from([None, "replace", "preserve_run_at", "unsafe_dedupe"])
attempts = st.integers(1, 3)
places = st.integers(0, 20)


class LifeOfJobs(RuleBasedStateMachine):
    """What may happen."""

    world: World
    is_well = False

    @property
    def model(self) -> Model:
        """What should be."""
        return self.world.model

    @initialize()
    def begin(self) -> None:
        """Begin with nothing but a pool."""
        self.act(self.world.begin_anew())

    def act(self, what: Awaitable[T]) -> T:
        """Do something, and wait until all its consequences are there."""

        async def act_and_settle() -> T:
            result = await what
            await self.world.settle()
            return result

        self.is_well = False
        result = self.world.run(act_and_settle())
        self.is_well = True
        return result

    def chosen(self, place: int, which: Callable[[Row], bool]) -> Row | None:
        """One of the jobs of which something holds; None if there is none."""
        found = sorted(filter(which, self.model.rows.values()), key=lambda row: row.id)
        return found[place % len(found)] if found else None

    @rule(key=keys, queue=queues, max_attempts=attempts, mode=modes)
    def add(self, key: str | None, queue: str | None, max_attempts: int, mode: str | None) -> None:
        """Add a job."""

        async def add() -> None:
            job = await self.world.utils.add_job(
                "work",
                queue_name=queue,
                max_attempts=max_attempts,
                job_key=key,
                job_key_mode=None if key is None else mode,
            )
            self.note(job, key, queue, max_attempts, mode)

        self.act(add())

    def note(
        self, job: Job, key: str | None, queue: str | None, max_attempts: int, mode: str | None
    ) -> None:
        """Add it to the model, too."""
        row = Row(id=job.id, key=key, queue=queue, max_attempts=max_attempts, revision=job.revision)
        self.model.add(row, mode)

    @rule(specs=st.lists(st.tuples(queues, attempts), min_size=2, max_size=5), key=keys)
    def add_many(self, specs: list[tuple[str | None, int]], key: str | None) -> None:
        """Add several jobs at once, the first one with a key."""

        async def add() -> None:
            each_key = [key] + [None] * (len(specs) - 1)
            added = await self.world.utils.add_jobs(
                JobSpec("work", queue_name=queue, max_attempts=most, job_key=own)
                for (queue, most), own in zip(specs, each_key, strict=True)
            )
            for job, (queue, most), own in zip(added, specs, each_key, strict=True):
                self.note(job, own, queue, most, None)

        self.act(add())

    @rule(key=st.sampled_from(["a", "b"]))
    def remove(self, key: str) -> None:
        """Remove the job with a key."""

        async def remove() -> None:
            removed = await self.world.utils.remove_job(key)
            found = [row for row in self.model.rows.values() if row.key == key]
            assert [row.id for row in found] == ([] if removed is None else [removed.id])
            for row in found:
                if row.pool is None:
                    self.delete(row)
                else:
                    row.key, row.attempts = None, row.max_attempts

        self.act(remove())

    def delete(self, row: Row, *, done: bool = False) -> None:
        """Say that a row is not there any more."""
        del self.model.rows[row.id]
        (self.model.done if done else self.model.gone).add(row.id)

    def finish(self, row: Row, error: Exception | None) -> None:
        """Let a task end."""
        (pool,) = [pool for pool in self.world.pools if pool.id == row.pool]
        self.model.crashes.pop(row.id, None)
        if error is None:
            pool.running[row.id].set_result(None)
            self.delete(row, done=True)
        else:
            pool.running[row.id].set_exception(error)
            row.pool, row.due = None, False

    @rule(place=places, fails=st.booleans())
    def end_task(self, place: int, fails: bool) -> None:
        """Let one of the running jobs succeed or fail."""
        row = self.chosen(place, lambda row: row in self.running())
        if row is not None:

            async def end() -> None:
                self.finish(row, ValueError("no") if fails else None)

            self.act(end())

    def running(self) -> list[Row]:
        """The jobs that run in pools that live."""
        return [
            row
            for pool in self.world.pools
            for row in self.model.held_by([pool.id])
            if row.id in pool.running
        ]

    @precondition(lambda self: len(self.world.pools) < MOST_POOLS)
    @rule()
    def start(self) -> None:
        """Start one more pool."""
        self.act(self.world.start())

    @precondition(lambda self: self.world.pools)
    @rule(place=places)
    def kill(self, place: int) -> None:
        """Stop a pool at once: its jobs are returned."""
        pool = self.world.pools.pop(place % len(self.world.pools))

        async def kill() -> None:
            self.world.give_back(pool)
            await pool.kill()

        self.act(kill())

    @precondition(lambda self: self.world.pools)
    @rule(place=places, fails=st.booleans())
    def stop(self, place: int, fails: bool) -> None:
        """Stop a pool gracefully: its jobs come to an outcome."""
        pool = self.world.pools[place % len(self.world.pools)]
        suspects = dict(self.model.crashes)

        async def stop() -> None:
            async with asyncio.TaskGroup() as group:
                stopping = group.create_task(pool.stop())
                await asyncio.sleep(0)
                while not stopping.done():
                    # Suspects begin when the one before has ended.
                    for row in self.model.held_by([pool.id]):
                        if row.id in pool.running and not pool.running[row.id].done():
                            self.finish(row, ValueError("no") if fails else None)
                    await asyncio.sleep(0.001)
            self.world.pools.remove(pool)
            # It tells with its heartbeats who is none any more, and may have had no time for that.
            kept = {row["job_id"] for row in self.world.query(SUSPECTS)} & self.model.rows.keys()
            self.model.crashes = {
                job_id: crashes for job_id, crashes in suspects.items() if job_id in kept
            }

        self.act(stop())

    @rule(count=st.integers(1, 3), begins=st.booleans())
    def fetch_and_vanish(self, count: int, begins: bool) -> None:
        """A pool fetches jobs, may begin them, and is never heard of again."""
        self.act(self.fetch_as_ghost(count, begins=begins))

    async def fetch_as_ghost(self, count: int, *, begins: bool) -> None:
        """Be that pool."""
        ghost = f"pool-{os.urandom(9).hex()}"
        database = Database(self.world.utils.pool, schema="graphile_worker")
        task_ids = await database.run(read_task_ids(["work"]))
        fetched = await database.run(
            get_jobs(pool_id=ghost, task_ids=task_ids, count=count, forbidden_flags=None)
        )
        assert fetched is not None
        for job in fetched.jobs:
            self.model.fetch(self.model.rows[job.id], ghost)
        if fetched.jobs:
            self.world.ghosts.append(ghost)
        suspects = {job.id for job in fetched.jobs} & self.model.crashes.keys()
        self.world.begun[ghost] = suspects if begins else set()
        for job_id in self.world.begun[ghost]:
            await database.run(mark_started("graphile_worker", job_id, ghost))

    @precondition(lambda self: self.world.ghosts and self.world.pools)
    @rule()
    def recover(self) -> None:
        """It is found dead: what it had is free, and its attempt counts.

        Its jobs are suspects. Those that were suspects, and that it had begun, are given up.
        """
        self.act(self.recover_from(self.world.ghosts.pop(0)))

    @precondition(lambda self: self.world.pools)
    @rule(count=st.integers(1, 3))
    def crash(self, count: int) -> None:
        """A pool begins jobs, dies and is found dead."""

        async def crash() -> None:
            ghosts = list(self.world.ghosts)
            await self.fetch_as_ghost(count, begins=True)
            if self.world.ghosts != ghosts:
                await self.recover_from(self.world.ghosts.pop())

        self.act(crash())

    async def recover_from(self, ghost: str) -> None:
        """Let its last heartbeat be long ago."""
        held = self.model.held_by([ghost])
        self.world.query(DIE, ghost, int.from_bytes(os.urandom(7)))
        for row in held:
            row.pool = None
            self.blame(row, ghost)

    def blame(self, row: Row, ghost: str) -> None:
        """Say that a pool has died under a job."""
        crashes = self.model.crashes
        if row.id not in crashes:
            crashes[row.id] = 1
        elif row.id in self.world.begun[ghost]:
            del crashes[row.id]
            row.attempts = row.max_attempts

    @rule(place=places)
    def make_due(self, place: int) -> None:
        """Let a job that waits for its next attempt have it now."""
        row = self.chosen(place, lambda row: row.pool is None and not row.due)
        if row is not None:
            row.due = True
            self.act(self.world.utils.reschedule_jobs([row.id], run_at=PAST))

    @rule(place=places)
    def give_up(self, place: int) -> None:
        """Fail a job that waits for good."""
        row = self.chosen(place, lambda row: row.pool is None)
        if row is not None:
            row.attempts = row.max_attempts
            self.act(self.world.utils.permanently_fail_jobs([row.id], "no more"))

    @rule(place=places)
    def revive(self, place: int) -> None:
        """Give a job that was given up its attempts back."""
        row = self.chosen(place, lambda row: row.pool is None and row.is_spent)
        if row is not None:
            row.attempts, row.due = 0, True
            self.act(self.world.utils.reschedule_jobs([row.id], attempts=0, run_at=PAST))

    @rule(place=places)
    def complete(self, place: int) -> None:
        """Delete a job that waits; one that runs is left alone."""
        row = self.chosen(place, lambda row: True)
        if row is not None:
            if row.pool is None:
                self.delete(row)
            self.act(self.world.utils.complete_jobs([row.id]))

    @invariant()
    def queues_are_locked_with_their_jobs(self) -> None:
        """A queue is locked by whoever has one of its jobs, and by nobody else."""
        held = [(row.queue, row.pool) for row in self.model.rows.values() if row.pool]
        expected = sorted((queue, pool) for queue, pool in held if queue is not None)
        found = self.world.query(LOCKED_QUEUES)
        assert sorted((row["queue_name"], row["locked_by"]) for row in found) == expected

    def teardown(self) -> None:
        """Whatever has happened: in the end each job is done, or given up."""
        if self.is_well:
            self.world.run(self.world.end())


@pytest.fixture
def world(dsn: str) -> Iterator[World]:
    """A database for all examples."""
    world = World(dsn)
    yield world
    world.close()


def test_every_job_has_one_fate_whatever_happens(world: World, pytestconfig: pytest.Config) -> None:
    class Machine(LifeOfJobs):
        pass

    Machine.world = world
    if pytestconfig.getoption("--long"):
        sizes = settings(max_examples=400, stateful_step_count=60)
    else:
        # The first fault is told as it is: to look for the shortest way to it takes minutes.
        sizes = settings(max_examples=20, stateful_step_count=30, phases=[Phase.generate])
    run_state_machine_as_test(Machine, settings=sizes)
