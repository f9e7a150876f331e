"""The pools of a runner listen on one connection, and send their heartbeats on one."""

import asyncio
from typing import Any, Final

import psycopg
import pytest

from graphile_worker_py import Plugin, Pool, Runner
from graphile_worker_py.events import PoolListenError, PoolListenRelease, PoolListenSuccess
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.kept_connection import KeptConnection
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

THREE: Final = {"a": Pool(tasks=["a"]), "b": Pool(tasks=["b"]), "rest": Pool()}
OPTIONS: Final[dict[str, Any]] = {"pools": THREE, "poll_interval": 3600, "max_pool_size": 12}
LOCKS: Final = """
select pid from pg_locks
where locktype = 'advisory' and objsubid = 1
  and database = (select oid from pg_database where datname = current_database())
  and (classid::int8 << 32) | objid::int8 in (select lock_key from graphile_worker_py.pools)
"""
KEYS: Final = "select lock_pid from graphile_worker_py.pools where lock_key <> 0"
BEATING: Final = """
select pid from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
  and query like '%%graphile_worker_py.%%'
"""
SESSIONS: Final = """
select count(*)::int from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""
DECLARE_DEAD: Final = """
update graphile_worker_py.pools set died_at = now(), unlocked_at = now() where name = 'a'
"""


class Ran:
    """Tasks that note that they ran."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @property
    def tasks(self) -> dict[str, Any]:
        def named(name: str) -> Any:
            async def run(_payload: object) -> None:
                self.names.append(name)

            return run

        return {name: named(name) for name in ("a", "b", "c")}


class Weather(Plugin):
    """Notes which pools hear the topic `weather`."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def parts(self, pool: Any) -> tuple[()]:
        def hear(said: object) -> None:
            if said is not None:
                self.heard.append(pool.name)

        pool.listener.on("weather", hear)
        return ()


async def add_to_all(jobs: Jobs) -> None:
    for name in ("a", "b", "c"):
        await asyncio.to_thread(jobs.add, name)


async def test_all_pools_hear_of_jobs_and_topics_on_one_connection(dsn: str) -> None:
    jobs, told, ran, weather = Jobs(dsn), Told(), Ran(), Weather()
    options: dict[str, Any] = {**OPTIONS, "hooks": [weather], "heartbeat_interval": 0.2}
    async with Runner(dsn, tasks=ran.tasks, events=told.events, **options) as runner:
        await told.seen(PoolListenSuccess, count=3)
        await eventually(lambda: len(jobs.query(KEYS)) == 3)
        # Each pool has its lock in the one session that listens, and all of them are of use.
        listening = {row["lock_pid"] for row in jobs.query(KEYS)}
        assert len(listening) == 1
        assert [row["pid"] for row in jobs.query(LOCKS)] == [*listening] * 3
        await add_to_all(jobs)
        await eventually(lambda: sorted(ran.names) == ["a", "b", "c"])
        jobs.query(
            "select pg_notify('graphile_worker_py', %s)",
            '{"s":"graphile_worker","t":"weather"}',
        )
        await eventually(lambda: sorted(weather.heard) == ["a", "b", "rest"])
        assert all(each.listening for each in runner.healths().values())
    assert {each.pool_id for each in told.of(PoolListenSuccess)} == {
        each.pool_id for each in told.of(PoolListenRelease)
    }
    assert len(told.of(PoolListenRelease)) == 3


async def test_after_the_connection_was_lost_every_pool_catches_up(dsn: str) -> None:
    jobs, told, ran = Jobs(dsn), Told(), Ran()
    async with Runner(dsn, tasks=ran.tasks, events=told.events, **OPTIONS):
        await told.seen(PoolListenSuccess, count=3)
        await eventually(lambda: len(jobs.query(KEYS)) == 3)
        jobs.query("select pg_terminate_backend(%s)", jobs.query(KEYS)[0]["lock_pid"])
        await told.seen(PoolListenError, count=3)
        await add_to_all(jobs)
        await told.seen(PoolListenSuccess, count=6)
        await eventually(lambda: {"a", "b", "c"} <= set(ran.names))
        await eventually(lambda: len(jobs.query(LOCKS)) == 3)


async def test_a_pool_that_takes_the_place_of_another_hears_on_the_connection_of_all(
    dsn: str,
) -> None:
    jobs, told, ran = Jobs(dsn), Told(), Ran()
    options: dict[str, Any] = {**OPTIONS, "heartbeat_interval": 0.2}
    async with Runner(dsn, tasks=ran.tasks, events=told.events, **options) as runner:
        await eventually(lambda: len(jobs.query(KEYS)) == 3)
        before = dict(runner.pool_ids)
        listening = {row["lock_pid"] for row in jobs.query(KEYS)}
        jobs.query(DECLARE_DEAD)
        await eventually(lambda: runner.pool_ids["a"] != before["a"])
        await told.seen(PoolListenSuccess, count=4)
        await add_to_all(jobs)
        await eventually(lambda: sorted(ran.names) == ["a", "b", "c"])
        mine = f"{KEYS} and pool_id = '{runner.pool_ids['a']}'"
        await eventually(lambda: {row["lock_pid"] for row in jobs.query(mine)} == listening)
        assert {name: runner.pool_ids[name] for name in ("b", "rest")} == {
            name: before[name] for name in ("b", "rest")
        }
        assert told.of(PoolListenError) == []


async def test_heartbeats_of_all_pools_go_over_one_connection(dsn: str) -> None:
    jobs = Jobs(dsn)
    options: dict[str, Any] = {**OPTIONS, "heartbeat_interval": 0.1}
    async with Runner(dsn, tasks=Ran().tasks, **options):
        await eventually(lambda: len(jobs.query(KEYS)) == 3)
        await eventually(lambda: len(jobs.query(BEATING)) == 1)
        said = "select sum(connections)::int as most from graphile_worker_py.pools"
        assert jobs.query(SESSIONS)[0]["count"] <= jobs.query(said)[0]["most"] == 13


@pytest.mark.parametrize("is_hung", [False, True], ids=["used", "hung"])
async def test_a_use_of_a_kept_connection_waits_for_another_one_but_not_for_long(
    dsn: str, is_hung: bool
) -> None:
    async with (
        opened_pool(dsn, max_size=1) as pool,
        KeptConnection(Database(pool, schema="graphile_worker")) as kept,
    ):
        pids: list[int] = []
        done = asyncio.Event()

        async def use() -> None:
            async with kept.borrowed() as conn:
                pids.append(conn.info.backend_pid)
                if is_hung and len(pids) == 1:
                    await done.wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(use())
            await eventually(lambda: len(pids) == 1)
            group.create_task(use())
            await eventually(lambda: len(pids) == 2)
            done.set()
        await use()
        assert len(set(pids[:2])) == (2 if is_hung else 1)
        assert pids[2] in pids[:2]
        with psycopg.connect(dsn) as conn:
            sessions = (await asyncio.to_thread(conn.execute, SESSIONS)).fetchone()
        # One of the pool, one that is kept.
        assert sessions is not None
        assert sessions[0] <= 2
