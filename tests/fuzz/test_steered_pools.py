"""Adds, pauses, limits, kills and recoveries in any order, compared with a small model."""

import asyncio
from collections.abc import Awaitable, Iterator
from typing import TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from graphile_worker_py import ConcurrencyLimit, JobSpec
from tests.fuzz.steered_world import (
    CARRIERS,
    EACH,
    LIMIT,
    TARGETS,
    TASKS,
    Model,
    Target,
    World,
    as_argument,
)

T = TypeVar("T")

MOST_POOLS = 2
MOST_IDLE = 0.1
"""Seconds for which a place is free although there is work, on a quiet machine."""
MOST_IDLE_EVER = 1.5
"""A permit that another pool keeps for its slice of time, and does not use."""
places = st.integers(0, 20)
limits = st.sampled_from([LIMIT, EACH])
specs = st.lists(
    st.tuples(
        st.sampled_from(TASKS), st.sampled_from([None, None, "q"]), st.sampled_from(CARRIERS)
    ),
    min_size=1,
    max_size=6,
)


class SteeredPools(RuleBasedStateMachine):
    """What may happen. After each step all pools know it, and no place is free in vain."""

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
        self.world.idle.pop()

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

    @rule(wanted=specs)
    def add(self, wanted: list[tuple[str, str | None, str]]) -> None:
        """Add jobs, which may begin before their ids are known."""

        async def add() -> None:
            jobs = await self.world.utils.add_jobs(
                [
                    JobSpec(task, {"carrier": carrier}, queue_name=queue)
                    for task, queue, carrier in wanted
                ]
            )
            self.model.added |= {job.id: job.task_identifier for job in jobs}
            self.model.carriers |= {job.id: job.payload["carrier"] for job in jobs}

        self.act(add())

    @rule(place=places)
    def end_task(self, place: int) -> None:
        """Let one of the running jobs end."""
        running = sorted(
            (job_id, future) for pool in self.world.pools for job_id, future in pool.running.items()
        )
        if running:

            async def end() -> None:
                running[place % len(running)][1].set_result(None)
                await asyncio.sleep(0)

            self.act(end())

    @rule(what=st.sampled_from(TARGETS))
    def pause(self, what: Target) -> None:
        """Pause something; the jobs that run go on."""
        if what == ("pool", "left") and "left" not in {pool.name for pool in self.world.pools}:
            return  # it would be refused
        self.model.paused.add(what)
        self.act(self.world.utils.pause(**as_argument(what)))

    @precondition(lambda self: self.model.paused)
    @rule(place=places)
    def resume(self, place: int) -> None:
        """Resume what is paused."""
        target = sorted(self.model.paused)[place % len(self.model.paused)]
        self.model.paused.remove(target)
        self.act(self.world.utils.resume(**as_argument(target)))

    @rule(limit=limits, amount=st.integers(0, 3))
    def set_limit(self, limit: ConcurrencyLimit, amount: int) -> None:
        """Let an operator set a limit."""
        assert limit.name is not None
        self.model.set_amount(limit, amount)
        self.act(self.world.utils.set_limit(limit.name, amount))

    @rule(limit=limits)
    def clear_limit(self, limit: ConcurrencyLimit) -> None:
        """Let the number of the code count again."""
        assert limit.name is not None
        self.model.set_amount(limit, limit.amount)
        self.act(self.world.utils.clear_limit(limit.name))

    @precondition(lambda self: len(self.world.pools) < MOST_POOLS)
    @rule()
    def start(self) -> None:
        """Start the pool that does not run."""
        running = {pool.name for pool in self.world.pools}
        (name, *_) = {"left", "right"} - running
        self.act(self.world.start(name))
        self.world.idle.pop()  # it takes a while to start

    @precondition(lambda self: self.world.pools)
    @rule(place=places)
    def kill(self, place: int) -> None:
        """Stop a pool at once: its jobs are returned."""
        self.act(self.world.pools.pop(place % len(self.world.pools)).kill())

    @precondition(lambda self: self.world.pools)
    @rule(place=places)
    def stop(self, place: int) -> None:
        """Stop a pool gracefully: its jobs end."""
        pool = self.world.pools[place % len(self.world.pools)]

        async def stop() -> None:
            async with asyncio.TaskGroup() as group:
                stopping = group.create_task(pool.stop())
                while not stopping.done():
                    for future in pool.running.values():
                        if not future.done():
                            future.set_result(None)
                    await asyncio.sleep(0.001)
            self.world.pools.remove(pool)

        self.act(stop())

    @precondition(lambda self: ("everything", "") not in self.model.paused)
    @rule(count=st.integers(1, 3))
    def vanish(self, count: int) -> None:
        """A pool dies with jobs and permits."""
        self.act(self.world.vanish(count))

    @precondition(lambda self: self.world.ghosts and self.world.pools)
    @rule()
    def recover(self) -> None:
        """It is found dead: its jobs and its permits are free."""

        async def recover() -> None:
            self.world.die(next(iter(self.world.ghosts)))

        self.act(recover())
        self.world.idle.pop()  # it is found with a heartbeat

    def teardown(self) -> None:
        """Whatever has happened: in the end each job has ended once."""
        if self.is_well:
            self.world.run(self.world.end())


@pytest.fixture
def world(dsn: str, pytestconfig: pytest.Config) -> Iterator[World]:
    """A database for all examples."""
    # Pools look with each heartbeat, too, which would hide that nothing else has woken them.
    seldom = pytestconfig.getoption("--long")
    world = World(dsn, heartbeat_interval=0.5 if seldom else 0.1)
    yield world
    world.close()


def test_pauses_and_limits_hold_no_job_is_lost_and_no_place_is_left_free(
    world: World, pytestconfig: pytest.Config
) -> None:
    class Machine(SteeredPools):
        pass

    Machine.world = world
    is_long = pytestconfig.getoption("--long")
    sizes = settings(
        max_examples=60 if is_long else 5,
        stateful_step_count=50 if is_long else 25,
        # The first fault is told as it is: to look for the shortest way to it takes minutes.
        phases=[Phase.generate],
    )
    run_state_machine_as_test(Machine, settings=sizes)
    if is_long:
        late = [seconds for seconds in world.idle if seconds > MOST_IDLE]
        assert len(late) <= len(world.idle) / 100
        assert max(late, default=0) < MOST_IDLE_EVER
