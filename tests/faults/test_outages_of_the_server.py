"""The server is killed, restarted, full, or replaced by its standby: the pools ride through."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from tests.faults.conftest import StartTrial
from tests.faults.trial import CONCURRENT_JOBS, Trial
from tests.support.eventually import eventually
from tests.support.own_server import OwnServer, Slots, at_both
from tests.support.proxy import Proxy
from tests.support.running import Jobs

USE_DISK = "alter table graphile_worker._private_jobs set tablespace small_disk"
MAKE_BALLAST = """
create table if not exists public.ballast (it text) tablespace small_disk;
alter table public.ballast alter column it set storage plain;
"""
FILL = "insert into public.ballast select repeat('x', 4000) from generate_series(1, 100)"
FREE = "drop table public.ballast"


@pytest.fixture
def small_disk(own_server: OwnServer) -> Iterator[None]:
    """The tablespace `small_disk`."""
    with ExitStack() as stack:
        try:
            stack.enter_context(own_server.small_disk("small_disk", "4m"))
        except PermissionError as error:
            pytest.skip(f"a small disk can't be mounted: {error}")
        yield


def fill(jobs: Jobs) -> None:
    """Take all the space on the small disk."""
    jobs.query(MAKE_BALLAST)
    with pytest.raises(psycopg.errors.DiskFull):
        while True:
            jobs.query(FILL)


async def away(trial: Trial, server: OwnServer, begin: Callable[[], None]) -> None:
    """Let the server be away for a while."""
    await asyncio.to_thread(begin)
    await asyncio.sleep(trial.scale.outage)
    await asyncio.to_thread(server.start)


async def test_a_killed_server_that_is_started_again_has_every_outcome(
    own_dsn: str, own_server: OwnServer, trial: StartTrial
) -> None:
    async with trial(own_dsn, "server killed (`kill -9`), started again") as at_work:
        for _ in at_work.rounds():
            await away(at_work, own_server, own_server.kill)
            await at_work.resumed(since=time.monotonic())


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_costs_nothing_but_time(
    own_dsn: str, own_server: OwnServer, trial: StartTrial, mode: str
) -> None:
    restart = own_server.restart_fast if mode == "fast" else own_server.restart_immediately
    async with trial(own_dsn, f"server restarted ({mode})") as at_work:
        for _ in at_work.rounds():
            await asyncio.to_thread(restart)
            await at_work.resumed(since=time.monotonic())


async def test_when_others_have_all_connections_work_goes_on_once_they_let_go(
    own_dsn: str, trial: StartTrial
) -> None:
    slots = Slots(own_dsn)
    fault = "no connection slot free"
    async with (
        Proxy(own_dsn).running() as proxy,
        trial(own_dsn, fault, at=[proxy.dsn, proxy.dsn]) as at_work,
    ):
        for _ in at_work.rounds():
            # Its connections are lost, and when it asks for new ones they are taken.
            proxy.refuse()
            await asyncio.to_thread(slots.take_all)
            asked = proxy.connections
            proxy.accept()
            await asyncio.sleep(at_work.scale.outage)
            await asked_again(proxy, asked)
            assert await asyncio.to_thread(slots.take) == 0
            slots.let_go()
            await at_work.resumed(since=time.monotonic())


async def asked_again(proxy: Proxy, asked: int) -> None:
    """Wait until workers have asked for one connection more."""
    await eventually(lambda: proxy.connections > asked)


async def test_when_the_disk_is_really_full_work_goes_on_once_there_is_space(
    small_disk: None, own_dsn: str, trial: StartTrial
) -> None:
    """Jobs may still run, in the space that others leave behind; none can be added."""
    Jobs(own_dsn).query(USE_DISK)
    async with trial(own_dsn, "disk full") as at_work:
        for _ in at_work.rounds():
            at_work.load.errors.clear()

            async def is_full() -> bool:
                # Again and again: what was deleted meanwhile makes room.
                await asyncio.to_thread(fill, at_work.jobs)
                return at_work.load.errors["DiskFull"] > 0

            await eventually(is_full)
            await asyncio.sleep(at_work.scale.outage)
            at_work.jobs.query(FREE)
            await at_work.resumed(since=time.monotonic())


async def test_a_standby_that_is_promoted_is_found_by_a_connection_string_with_both(
    own_dsn: str, own_server: OwnServer, trial: StartTrial
) -> None:
    with own_server.standby(synchronous=True) as standby:
        at_standby = at(standby, own_dsn)
        both = at_both(own_dsn, at_standby)
        fault = "server killed, its standby promoted"
        async with trial(at_standby, fault, at=[both, both], load_at=both) as at_work:
            await asyncio.to_thread(own_server.kill)
            await asyncio.sleep(at_work.scale.outage)
            await asyncio.to_thread(standby.promote)
            await at_work.resumed(since=time.monotonic())


async def test_of_what_a_standby_did_not_hear_of_nothing_stays_locked(
    own_dsn: str, own_server: OwnServer, trial: StartTrial
) -> None:
    """It may have missed adds, fetches and outcomes: jobs may run twice then, or not at all."""
    with own_server.standby(synchronous=False) as standby:
        at_standby = at(standby, own_dsn)
        both = at_both(own_dsn, at_standby)
        fault = "server killed, a standby promoted that had fallen behind"
        async with trial(
            at_standby, fault, at=[both, both], load_at=both, may_lose=True
        ) as at_work:
            async with at_work.all_busy():
                await asyncio.to_thread(standby.fall_behind)
            await asyncio.sleep(at_work.scale.outage)
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(standby.promote)
            await at_work.resumed(since=time.monotonic())
        # It knew that they were begun, and not that they were done.
        assert len(at_work.doubled()) >= 2 * CONCURRENT_JOBS


def at(server: OwnServer, dsn: str) -> str:
    """The database of that name on another server."""
    return f"{server.postgres.dsn.rpartition('/')[0]}/{dsn.rpartition('/')[2]}"
