"""A listening connection on which nothing arrives is noticed, and made anew or done without."""

import asyncio
import logging
import os
import socket
import time

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from graphile_worker_py import Runner
from graphile_worker_py.backoff import Backoff
from graphile_worker_py.events import JobSuccess, PoolListenError, PoolListenSuccess
from graphile_worker_py.postgres.connecting import checked_conninfo, opened_pool
from graphile_worker_py.sql.notifications import echo_channel, listen_on
from graphile_worker_py.workers.listener import NoEchoError
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.running import Jobs, Told, impatient

TCP_OPTIONS = (
    socket.TCP_KEEPIDLE,
    socket.TCP_KEEPINTVL,
    socket.TCP_KEEPCNT,
    socket.TCP_USER_TIMEOUT,
)
SOON: dict[str, float] = {"echo": 0.3, "late_echo": 0.2}
"""Waits of a listener that gives up soon."""


async def test_a_connection_that_died_without_a_word_is_made_anew(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    async with (
        Proxy(dsn).running() as proxy,
        impatient(**SOON)(
            dsn,
            tasks={"work": print},
            poll_interval=3600,
            listen_connection_string=proxy.dsn,
            listen_echo_interval=0.1,
            no_side_schema=True,  # nothing but notifications is sent there
            events=told.events,
        ) as runner,
    ):
        await eventually(lambda: runner.health().listening)
        with proxy.answers_held():
            error = (await told.seen(PoolListenError)).error
            jobs.add("work")
        await told.seen(PoolListenSuccess, count=2)
        await told.seen(JobSuccess)
        await eventually(lambda: runner.health().listening)
    assert isinstance(error, NoEchoError)
    assert "Not listening for new jobs (NoEchoError" in caplog.text
    assert "LISTEN has no effect" not in caplog.text


async def test_a_connection_to_another_database_is_told_once(
    dsn: str,
    empty_dsn: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs, told = Jobs(dsn), Told()
    often = Backoff(shortest=0.01, longest=0.01)
    async with impatient(**SOON, deaf=often)(
        dsn,
        tasks={"work": print},
        poll_interval=0.1,
        listen_connection_string=empty_dsn,
        events=told.events,
    ) as runner:
        jobs.add("work")
        await told.seen(JobSuccess)
        await told.seen(PoolListenError, count=4)
        health = runner.health()
        assert not health.listening
        assert health.ready
    said = [r.message for r in caplog.records if "LISTEN has no effect" in r.message]
    assert len(said) == 1
    assert "listen_connection_string must lead to the same database" in said[0]
    assert caplog.records[-1].levelno < logging.ERROR


async def test_only_the_notification_that_it_has_sent_proves_that_it_listens(
    dsn: str, empty_dsn: str
) -> None:
    notify = "select pg_notify(%s, 'another one')"
    told = Told()
    async with impatient(echo=0.5, late_echo=0.1)(
        dsn, tasks={"work": print}, listen_connection_string=empty_dsn, events=told.events
    ) as runner:
        await told.seen(PoolListenSuccess)
        with psycopg.connect(empty_dsn, autocommit=True) as other:
            while not told.of(PoolListenError):
                other.execute(notify, (echo_channel(runner.pool_id),))
                await asyncio.sleep(0.02)
                assert not runner.health().listening
    assert isinstance(told.of(PoolListenError)[0].error, NoEchoError)


async def test_the_echo_is_heard_by_nobody_else_and_not_told(dsn: str) -> None:
    told = Told()
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute('listen "jobs:insert"; listen "worker:migrate"')
        async with Runner(
            dsn, tasks={"work": print}, listen_echo_interval=0.05, events=told.events
        ) as runner:
            await eventually(lambda: runner.health().listening)
            first = runner.health().last_heard_at
            assert first is not None
            # The next echo.
            await eventually(lambda: (runner.health().last_heard_at or first) > first)
        heard = list(other.notifies(timeout=0.1))
    assert heard == []
    assert "pool:listen:notification" not in told.names()


async def test_a_connection_that_is_heard_of_is_not_tested(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(
        dsn, tasks={"work": print}, listen_echo_interval=0.5, events=told.events
    ) as runner:
        await eventually(lambda: runner.health().listening)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            await other.execute(listen_on(echo_channel(runner.pool_id)))
            added = [time.monotonic()] * 2
            for n in range(1, 9):
                added.append(time.monotonic())
                jobs.add("work", n)
                await told.seen(JobSuccess, count=n)
                echoes = [each async for each in other.notifies(timeout=0.1)]
                # If this took long there was silence; an echo may have been on its way for a round.
                assert echoes == [] or time.monotonic() - added[-3] > 0.5
            # And is, once there is silence.
            assert len([each async for each in other.notifies(timeout=15, stop_after=1)]) == 1


async def test_without_echoes_the_connection_is_trusted(dsn: str, empty_dsn: str) -> None:
    told = Told()
    async with Runner(
        dsn,
        tasks={"work": print},
        listen_connection_string=empty_dsn,
        listen_echo_interval=0,
        events=told.events,
    ) as runner:
        await told.seen(PoolListenSuccess)
        await eventually(lambda: runner.health().listening)
    assert told.of(PoolListenError) == []


async def test_a_dead_peer_is_detected_within_a_minute_unless_the_string_says_otherwise(
    dsn: str,
) -> None:
    async def options_of(dsn: str) -> list[int]:
        async with opened_pool(dsn, max_size=1) as pool, pool.connection() as conn:
            with socket.socket(fileno=os.dup(conn.fileno())) as opened:
                assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                return [opened.getsockopt(socket.IPPROTO_TCP, each) for each in TCP_OPTIONS]

    idle, interval, count, user_timeout = await options_of(dsn)
    assert idle + count * interval <= 60
    assert 0 < user_timeout <= 60_000
    (idle, *others) = await options_of(make_conninfo(dsn, keepalives_idle=7))
    assert [idle, *others] == [7, interval, count, user_timeout]


def test_several_hosts_and_the_choice_among_them_stay_as_they_are() -> None:
    dsn = "postgresql://me@a:1,b:2,[::1]:3/db?target_session_attrs=read-write&load_balance_hosts=random"
    given = conninfo_to_dict(checked_conninfo(dsn))
    assert (given["host"], given["port"]) == ("a,b,::1", "1,2,3")
    assert given["target_session_attrs"] == "read-write"
    assert given["load_balance_hosts"] == "random"
