"""Parts that plugins add to a worker pool run as long as it does, and end in order."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from graphile_worker_py import Plugin, Pool, Runner, WorkerPoolError
from graphile_worker_py.events import JobStart
from graphile_worker_py.plugins import Part, PartEnd
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

pytestmark = pytest.mark.any_server


class Parts(Plugin):
    """Adds a part, and notes when it begins and ends."""

    def __init__(self, ends: PartEnd) -> None:
        self.ends = ends
        self.pool_ids: list[str] = []
        self.running = asyncio.Event()
        self.ended = asyncio.Event()

    def parts(self, pool: Any) -> Iterable[Part]:
        """One part."""
        self.pool_ids.append(pool.pool_id)
        return [Part(name="note", run=self.run, ends=self.ends)]

    async def run(self) -> None:
        """Run until cancelled."""
        self.running.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def test_a_part_ends_with_fetching_while_jobs_still_run(dsn: str) -> None:
    plugin, told = Parts(PartEnd.WITH_FETCHING), Told()
    go_on = asyncio.Event()

    async def work(_payload: Any) -> None:
        await go_on.wait()

    job_id = Jobs(dsn).add("work")
    async with Runner(dsn, tasks={"work": work}, hooks=[plugin], events=told.events) as runner:
        await told.seen(JobStart)
        assert plugin.running.is_set()
        assert plugin.pool_ids == [runner.pool_id]
        stopping = asyncio.create_task(runner.stop())
        await asyncio.wait_for(plugin.ended.wait(), 5)
        assert Jobs(dsn).ids() == [job_id]
        go_on.set()
        await stopping
    assert Jobs(dsn).ids() == []


async def test_a_part_ends_after_all_outcomes_are_recorded(dsn: str) -> None:
    plugin, told = Parts(PartEnd.AFTER_OUTCOMES), Told()
    go_on = asyncio.Event()

    async def work(_payload: Any) -> None:
        await go_on.wait()

    Jobs(dsn).add("work")
    async with Runner(dsn, tasks={"work": work}, hooks=[plugin], events=told.events) as runner:
        await told.seen(JobStart)
        stopping = asyncio.create_task(runner.stop())
        await eventually(lambda: runner.health().state == "stopping")
        assert not plugin.ended.is_set()
        go_on.set()
        await stopping
        assert plugin.ended.is_set()


async def test_a_part_that_raises_stops_the_pool_in_order(dsn: str) -> None:
    class Broken(Plugin):
        def parts(self, pool: Any) -> Iterable[Part]:
            async def run() -> None:
                raise WorkerPoolError("the part broke")

            return [Part(name="a part of ours", run=run)]

    with pytest.raises(WorkerPoolError, match="the part broke"):
        async with Runner(dsn, tasks={"work": print}, hooks=[Broken]) as runner:
            await runner.wait()


async def exits() -> None:
    """End as a command would."""
    raise SystemExit(3)


async def cancels() -> None:
    """Let a cancellation out that was meant for something else."""
    raise asyncio.CancelledError


async def is_interrupted() -> None:
    """Raise what ends a program."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (exits, "SystemExit: 3"),
        (cancels, "CancelledError"),
        (is_interrupted, "KeyboardInterrupt"),
    ],
)
async def test_a_part_that_ends_as_a_program_does_stops_the_pools_in_order(
    dsn: str, run: Any, reason: str
) -> None:
    class Broken(Plugin):
        def parts(self, pool: Any) -> Iterable[Part]:
            return [Part(name="note", run=run)] if pool.name == "two" else ()

    pools = {"one": Pool(tasks=["a"]), "two": Pool(tasks=["b"])}
    with pytest.raises(WorkerPoolError, match=f"part 'note', .* ended with {reason}"):
        async with Runner(
            dsn, tasks={"a": print, "b": print}, pools=pools, hooks=[Broken]
        ) as runner:
            await runner.wait()
    assert Jobs(dsn).query("select pool_id from graphile_worker_py.pools") == []


async def test_a_plugin_that_can_not_make_its_parts_stops_the_pools_in_order(dsn: str) -> None:
    class Broken(Plugin):
        def parts(self, pool: Any) -> Iterable[Part]:
            if pool.name == "two":
                raise LookupError("nothing to run")
            return ()

    pools = {"one": Pool(tasks=["a"]), "two": Pool(tasks=["b"])}
    with pytest.raises(LookupError, match="nothing to run"):
        async with Runner(
            dsn, tasks={"a": print, "b": print}, pools=pools, hooks=[Broken]
        ) as runner:
            await runner.wait()
    assert Jobs(dsn).query("select pool_id from graphile_worker_py.pools") == []
