"""Plugins take part in adding jobs, whoever adds them, and events report what was added."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from graphile_worker_py import (
    ConfigurationError,
    Events,
    GraphileWorkerError,
    Job,
    JobContext,
    JobSpec,
    Plugin,
    Runner,
    SyncJobContext,
    SyncWorkerUtils,
    WorkerUtils,
    run_once,
)
from graphile_worker_py.events import JobsAdded
from tests.support.running import Jobs, Told
from tests.worker_utils_support import Api

Add = Callable[[Sequence[JobSpec]], Awaitable[Sequence[Job]]]


class Trace(Plugin):
    """Adds a flag to each job, and notes what was added."""

    def __init__(self, name: str = "traced") -> None:
        self.name = name
        self.added: list[list[int]] = []

    async def add_jobs(self, specs: Sequence[JobSpec], proceed: Add) -> Sequence[Job]:
        traced = [replace(spec, flags=[*(spec.flags or ()), self.name]) for spec in specs]
        jobs = await proceed(traced)
        self.added.append([job.id for job in jobs])
        return jobs


def flags(dsn: str) -> list[Any]:
    """The flags of all jobs."""
    return [job["flags"] for job in Jobs(dsn).all()]


async def test_a_plugin_wraps_every_way_to_add_jobs(api: Api, dsn: str) -> None:
    trace = Trace()
    async with api.opened(dsn, hooks=[trace]) as utils:
        await utils.add_job("a")
        await utils.add_job("a", job_key="k")
        await utils.add_jobs([JobSpec("a"), JobSpec("a", job_key="l")])
        await utils.add_jobs_from((JobSpec("a") for _ in range(3)), chunk_size=2)
        await utils.add_jobs(JobSpec("a") for _ in range(300))
    assert [len(ids) for ids in trace.added] == [1, 1, 2, 2, 1, 300]
    assert sorted(job_id for ids in trace.added for job_id in ids) == Jobs(dsn).ids()
    assert flags(dsn) == [{"traced": True}] * 307


async def test_the_first_plugin_is_the_outermost(api: Api, dsn: str) -> None:
    outer, inner = Trace("outer"), Trace("inner")
    async with api.opened(dsn, hooks=[outer, inner]) as utils:
        job = await utils.add_job("a", flags=["own"])
    assert job.flags == {"own": True, "outer": True, "inner": True}
    assert outer.added == inner.added == [[job.id]]


async def test_jobs_are_added_in_the_callers_transaction(api: Api, dsn: str) -> None:
    async with api.opened(dsn, hooks=[Trace()]) as utils, api.connection(dsn) as conn:
        await utils.add_jobs([JobSpec("a"), JobSpec("b")], conn=conn)
        await api.on(conn, "rollback")
    assert Jobs(dsn).ids() == []


async def test_a_plugin_that_raises_adds_nothing(api: Api, dsn: str) -> None:
    class Closed(Plugin):
        async def add_jobs(self, specs: Sequence[JobSpec], proceed: Add) -> Sequence[Job]:
            raise PermissionError(f"no {specs[0].identifier} today")

    async with api.opened(dsn, hooks=[Closed()]) as utils:
        with pytest.raises(PermissionError, match="no a today"):
            await utils.add_job("a")
    assert Jobs(dsn).ids() == []


async def test_a_plugin_must_return_one_job_for_each_spec(api: Api, dsn: str) -> None:
    class Forgetful(Plugin):
        async def add_jobs(self, specs: Sequence[JobSpec], proceed: Add) -> Sequence[Job]:
            return (await proceed(specs))[1:]

    async with api.opened(dsn, hooks=[Forgetful()]) as utils:
        with pytest.raises(GraphileWorkerError, match="one job for each spec: it returned 1 for 2"):
            await utils.add_jobs([JobSpec("a"), JobSpec("b")])


async def test_values_are_checked_before_and_after_plugins(api: Api, dsn: str) -> None:
    class Spoil(Plugin):
        async def add_jobs(self, specs: Sequence[JobSpec], proceed: Add) -> Sequence[Job]:
            return await proceed([*specs[:-1], "b"])  # type: ignore[list-item]

    async with api.opened(dsn, hooks=[Spoil()]) as utils:
        with pytest.raises(ConfigurationError, match=r"jobs\[0\] must be a JobSpec, not 'a'"):
            await utils.add_jobs(["a"])  # type: ignore[list-item]
        with pytest.raises(ConfigurationError, match=r"jobs\[1\] must be a JobSpec, not 'b'"):
            await utils.add_jobs([JobSpec("a"), JobSpec("a")])
    assert Jobs(dsn).ids() == []


def test_without_an_event_loop_a_plugin_that_waits_is_refused(dsn: str) -> None:
    class Slow(Plugin):
        async def add_jobs(self, specs: Sequence[JobSpec], proceed: Add) -> Sequence[Job]:
            await asyncio.sleep(0)
            return await proceed(specs)

    with (
        SyncWorkerUtils(dsn, hooks=[Slow()]) as utils,
        pytest.raises(GraphileWorkerError, match="awaited something other than `proceed`"),
    ):
        utils.add_job("a")
    assert Jobs(dsn).ids() == []


async def test_plugins_wrap_what_runners_and_tasks_add(dsn: str) -> None:
    trace, told = Trace(), Told()

    async def waits(payload: Any, ctx: JobContext) -> None:
        await ctx.add_job("next")

    def blocks(payload: Any, ctx: SyncJobContext) -> None:
        ctx.add_jobs([JobSpec("next"), JobSpec("next", job_key="k")])

    async with Runner(
        dsn, tasks={"waits": waits, "blocks": blocks}, hooks=[trace], events=told.events
    ) as runner:
        await runner.add_job("waits")
        await runner.add_job("blocks")
        await told.seen(JobsAdded, count=4)
    assert sorted(map(len, trace.added)) == [1, 1, 1, 2]
    assert flags(dsn) == [{"traced": True}] * 3


async def test_an_event_reports_the_jobs_that_were_added(api: Api, dsn: str) -> None:
    events, seen = Events(), []
    events.subscribe(JobsAdded, lambda event: seen.append([job.id for job in event.jobs]))
    async with api.opened(dsn, events=events) as utils:
        job = await utils.add_job("a")
        jobs = await utils.add_jobs([JobSpec("a"), JobSpec("b")])
        await utils.add_jobs([])
    assert seen == [[job.id], [job.id for job in jobs]]


async def test_plugins_of_utils_subscribe_to_their_events(api: Api, dsn: str) -> None:
    seen = []

    class Count(Plugin):
        def setup(self, events: Events) -> None:
            events.subscribe(JobsAdded, lambda event: seen.extend(event.jobs))

    async with api.opened(dsn, hooks=[Count]) as utils:
        await utils.add_job("a")
    assert len(seen) == 1


async def test_plugins_of_utils_take_part_in_installing(api: Api, empty_dsn: str) -> None:
    steps = []

    class Watch(Plugin):
        async def bootstrap(self, step: Any, proceed: Callable[[Any], Awaitable[None]]) -> None:
            steps.append("bootstrap")
            await proceed(step)

        async def migrate(self, step: Any, proceed: Callable[[Any], Awaitable[None]]) -> None:
            steps.append("migrate")
            await proceed(step)

    for _ in range(2):
        async with api.opened(empty_dsn, hooks=[Watch()]):
            pass
    assert steps == ["bootstrap", "migrate", "migrate"]
    await run_once(empty_dsn, tasks={"work": print}, hooks=[Watch()])
    assert steps[3:] == ["migrate"]


@pytest.mark.parametrize("kind", [WorkerUtils, SyncWorkerUtils])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"hooks": "statsd"}, "hooks must be a list of plugins, not 'statsd'"),
        ({"hooks": ["statsd"]}, "no installed package offers a plugin 'statsd'"),
        ({"events": []}, r"events must be an object made by Events\(\), not \[\]"),
    ],
)
def test_wrong_hooks_and_events_are_named(kind: Any, option: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        kind("", **option)
