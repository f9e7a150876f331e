"""The way to the server breaks, in every way that a way can: the pools find it again."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from graphile_worker_py import JobContext, LocalQueueOptions, Runner
from graphile_worker_py.events import PoolRecovered, PoolTakenForDead, WorkerGetJobError
from graphile_worker_py.postgres import deadlines
from tests.faults.conftest import StartTrial
from tests.faults.ledger import FAST
from tests.faults.trial import CONCURRENT_JOBS
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.running import Jobs, Told, impatient

BETWEEN_CUTS = 0.1
DELAY = 0.03
STORE = 20


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """The network of the test."""
    async with Proxy(dsn).running() as proxy:
        yield proxy


@pytest.fixture
def gives_up_soon(monkeypatch: pytest.MonkeyPatch) -> type[Runner]:
    """A Runner that gives up soon what is not answered, instead of after a minute."""
    monkeypatch.setattr(deadlines, "STATEMENT_DEADLINE", 0.4)
    return impatient(begin_listening=0.4, echo=0.3, late_echo=0.1)


async def test_connections_that_are_cut_again_and_again_cost_nothing_but_time(
    dsn: str, proxy: Proxy, trial: StartTrial
) -> None:
    async with trial(dsn, "connections cut, ten times a second", at=[proxy.dsn] * 2) as at_work:
        for _ in at_work.rounds():
            until = time.monotonic() + at_work.scale.outage
            while time.monotonic() < until:
                proxy.cut()
                await asyncio.sleep(BETWEEN_CUTS)
            await at_work.resumed(since=time.monotonic())


async def test_connections_that_are_closed_from_one_side_are_made_anew(
    dsn: str, proxy: Proxy, trial: StartTrial
) -> None:
    async with trial(dsn, "connections half closed", at=[proxy.dsn] * 2) as at_work:
        for _ in at_work.rounds():
            made = proxy.connections
            until = time.monotonic() + at_work.scale.outage
            while time.monotonic() < until:
                proxy.half_close()
                await asyncio.sleep(BETWEEN_CUTS)
            assert proxy.connections > made
            await at_work.resumed(since=time.monotonic())


async def test_a_slow_network_makes_nothing_run_twice(
    dsn: str, proxy: Proxy, trial: StartTrial
) -> None:
    async with trial(dsn, "answers late", at=[proxy.dsn] * 2) as at_work:
        for _ in at_work.rounds():
            proxy.delay = DELAY
            slow = time.monotonic()
            await asyncio.sleep(at_work.scale.outage)
            await at_work.both_work(since=slow)
            proxy.delay = 0
            await at_work.resumed(since=time.monotonic())


async def test_what_is_swallowed_for_longer_than_is_waited_for_is_no_loss(
    dsn: str, proxy: Proxy, trial: StartTrial, gives_up_soon: type[Runner]
) -> None:
    """What was sent arrives in the end, when it was given up long ago."""
    fault = "nothing arrives, for longer than a statement may take"
    async with trial(
        dsn, fault, at=[proxy.dsn] * 2, listen_echo_interval=0.2, runner=gives_up_soon
    ) as at_work:
        for _ in at_work.rounds():
            with proxy.black_hole():
                await asyncio.sleep(at_work.scale.outage)
            await at_work.resumed(since=time.monotonic())


async def test_a_fetch_that_arrives_late_leaves_nothing_locked(
    dsn: str, proxy: Proxy, trial: StartTrial, gives_up_soon: type[Runner]
) -> None:
    """The worker gave it up, and asked on a new connection what it had locked: nothing yet."""
    fault = "what was sent arrives late, after what was sent later"
    async with trial(dsn, fault, at=[proxy.dsn, dsn], runner=gives_up_soon) as at_work:
        for _ in at_work.rounds():
            with proxy.stranded():
                await at_work.both_work(since=time.monotonic())
            await at_work.resumed(since=time.monotonic())


async def test_while_one_pool_is_cut_off_the_other_goes_on(
    dsn: str, proxy: Proxy, trial: StartTrial
) -> None:
    async with trial(
        dsn, "one pool cut off, not for long enough to be dead", at=[proxy.dsn, dsn], dead_after=60
    ) as at_work:
        for _ in at_work.rounds():
            proxy.refuse()
            refused = time.monotonic()
            await asyncio.sleep(at_work.scale.outage)

            def begun(number: int, since: float = refused) -> int:
                pool_id = at_work.runners[number].pool_id
                return sum(run.pool == pool_id and run.began > since for run in at_work.runs)

            await eventually(lambda: begun(1) > CONCURRENT_JOBS)
            # The one that is cut off can have begun only what it had in hand.
            assert begun(0) <= CONCURRENT_JOBS
            proxy.accept()
            await at_work.resumed(since=time.monotonic())


async def test_a_pool_that_is_cut_off_for_long_is_replaced_and_comes_back(
    dsn: str, proxy: Proxy, trial: StartTrial
) -> None:
    """Its jobs have run, but nobody can know: they run again."""
    fast = {name: value for name, value in FAST.items() if name != "poll_interval"}
    async with trial(
        dsn, "one pool cut off, and found dead", at=[proxy.dsn, dsn], once=False, **fast
    ) as at_work:
        cut_off, other = at_work.told
        for n in at_work.rounds():
            proxy.refuse()
            await other.seen(PoolRecovered, count=n + 1)
            await asyncio.sleep(at_work.scale.outage)
            proxy.accept()
            since = time.monotonic()
            await cut_off.seen(PoolTakenForDead, count=n + 1, timeout=at_work.scale.patience)
            await at_work.resumed(since=since)
    assert other.of(PoolTakenForDead) == []


async def test_what_waits_for_the_database_to_come_back_is_bounded(dsn: str, proxy: Proxy) -> None:
    """Without it no more jobs run than a pool has in hand, and their outcomes wait."""
    jobs, told = Jobs(dsn), Told()
    ran: list[int] = []
    go_on = asyncio.Event()

    async def work(payload: Any, ctx: JobContext) -> None:
        ran.append(ctx.job.id)
        await go_on.wait()

    added = jobs.add_many(10 * STORE, "work")
    async with Runner(
        proxy.dsn,
        tasks={"work": work},
        concurrent_jobs=CONCURRENT_JOBS,
        local_queue=LocalQueueOptions(size=STORE),
        poll_interval=0.1,
        events=told.events,
    ) as runner:
        await eventually(lambda: len(ran) == CONCURRENT_JOBS)
        proxy.refuse()
        go_on.set()
        # It asks for more, and again, and gets none.
        await told.seen(WorkerGetJobError, count=3)
        assert len(ran) == runner.health().locked_jobs == STORE
        assert len(jobs.ids()) == len(added)
        proxy.accept()
        await eventually(lambda: not jobs.ids(), timeout=15)
    assert sorted(ran) == added
    assert jobs.locked() == []
