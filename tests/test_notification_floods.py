"""Any role that may connect can notify without end: workers do little more work for it."""

import asyncio
import time
from typing import Any

import psycopg

from graphile_worker_py import Events, Runner
from graphile_worker_py.events import (
    JobSuccess,
    LocalQueueGetJobsComplete,
    PoolListenError,
    PoolListenNotification,
    PoolListenSuccess,
)
from graphile_worker_py.workers.announcements import FALSE_ALARMS
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.running import Jobs, Told

FLOOD = 20_000
AT_ONCE = 10
NOTIFY = "select pg_notify(%s, %s || n || %s) from generate_series(%s::int, %s::int) as n"
BREAKING = '{"breaking": true, "n": '
ROLE = """
do $$ begin
  create role only_notifies login password 'secret';
exception when duplicate_object or unique_violation then null;
end $$
"""


def flood(dsn: str, channel: str, prefix: str, count: int) -> None:
    """Notify in many small transactions, with payloads that the server can't merge."""
    with psycopg.connect(dsn, autocommit=True, user="only_notifies", password="secret") as conn:
        for start in range(0, count, AT_ONCE):
            end = "}" if prefix else ""
            conn.execute(NOTIFY, (channel, prefix, end, start + 1, start + AT_ONCE))


def make_role(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(ROLE)


async def test_false_announcements_lead_to_few_fetches_and_jobs_start_between_them(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    make_role(dsn)
    heard: list[Any] = []
    events = Events()
    events.subscribe(PoolListenNotification, heard.append)
    for kind in (PoolListenSuccess, PoolListenError, LocalQueueGetJobsComplete, JobSuccess):
        events.subscribe(kind, told.all.append)
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=events):
        await told.seen(PoolListenSuccess)
        before, began = len(told.of(LocalQueueGetJobsComplete)), time.monotonic()
        flooding = asyncio.create_task(asyncio.to_thread(flood, dsn, "jobs:insert", "", FLOOD))
        await eventually(lambda: len(heard) >= FLOOD // 10, timeout=15)
        jobs.add("work")
        await told.seen(JobSuccess)
        await flooding
        await eventually(lambda: len(heard) >= FLOOD, timeout=15)
        fetches, took = len(told.of(LocalQueueGetJobsComplete)) - before, time.monotonic() - began
    # One that found a job lets the next false announcements be heeded at once.
    assert fetches <= (2 + took) * FALSE_ALARMS + 5
    assert told.of(PoolListenError) == []


async def test_false_schema_changes_are_looked_at_once_for_a_burst(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    make_role(dsn)
    async with Proxy(dsn).running() as proxy:
        runner = Runner(proxy.dsn, tasks={"work": print}, poll_interval=3600, events=told.events)
        async with runner:
            await told.seen(PoolListenSuccess)
            before, began = proxy.connections, time.monotonic()
            await asyncio.to_thread(flood, dsn, "worker:migrate", BREAKING, 5000)
            jobs.add("work")
            await told.seen(JobSuccess)
            took = time.monotonic() - began
            looks = proxy.connections - before
    # Besides the looks at the schema, the pool may have opened some of its own.
    assert looks <= took + 12
    assert told.of(PoolListenError) == []
