"""Topics of the channel `graphile_worker_py`: what plugins hear through the pool's listener."""

from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
import pytest

from graphile_worker_py import Plugin, Runner
from graphile_worker_py.events import PoolListenSuccess
from graphile_worker_py.plugins import Part
from tests.support.eventually import eventually
from tests.support.running import Told

NOTIFY = "select pg_notify('graphile_worker_py', %s)"
LISTENING_ON_OURS = """
select count(*) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
  and query like '%listen "graphile_worker_py"%'
"""


class Listening(Plugin):
    """Notes what it hears about the topic `weather`."""

    def __init__(self) -> None:
        self.heard: list[Mapping[str, Any] | None] = []

    def parts(self, pool: Any) -> Iterable[Part]:
        """No part, but a topic."""
        pool.listener.on("weather", self.hear)
        return ()

    def hear(self, said: Mapping[str, Any] | None) -> None:
        """Note it; break on what says so."""
        self.heard.append(said)
        if said is not None and said.get("break"):
            raise ValueError("broken")


async def test_a_topic_of_the_schema_is_heard_and_others_are_not(dsn: str) -> None:
    plugin, told = Listening(), Told()
    async with Runner(dsn, tasks={"work": print}, hooks=[plugin], events=told.events):
        await told.seen(PoolListenSuccess)
        with psycopg.connect(dsn, autocommit=True) as conn:
            for payload in (
                "no JSON",
                "[1]",
                '{"s":"another_schema","t":"weather"}',
                '{"s":"graphile_worker","t":"news"}',
                '{"s":"graphile_worker","t":"weather","rain":true}',
            ):
                conn.execute(NOTIFY, [payload])
        await eventually(lambda: len(plugin.heard) == 2)
    assert plugin.heard == [None, {"s": "graphile_worker", "t": "weather", "rain": True}]


async def test_a_handler_that_raises_is_logged_and_the_next_notification_is_heard(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, told = Listening(), Told()
    async with Runner(dsn, tasks={"work": print}, hooks=[plugin], events=told.events):
        await told.seen(PoolListenSuccess)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(NOTIFY, ['{"s":"graphile_worker","t":"weather","break":true}'])
            conn.execute(NOTIFY, ['{"s":"graphile_worker","t":"weather"}'])
        await eventually(lambda: len(plugin.heard) == 3)
    assert "Could not handle the notification" in caplog.text


END_LISTENING = """
select pg_terminate_backend(pid)
from pg_stat_activity
where datname = current_database() and query like 'listen %'
"""


async def test_after_a_lost_connection_a_handler_learns_that_it_may_have_missed_some(
    dsn: str,
) -> None:
    plugin, told = Listening(), Told()
    async with Runner(dsn, tasks={"work": print}, hooks=[plugin], events=told.events):
        await told.seen(PoolListenSuccess)
        with psycopg.connect(dsn, autocommit=True) as conn:
            # Right after it began to listen it sends other statements.
            await eventually(lambda: conn.execute(END_LISTENING).fetchall())
        await told.seen(PoolListenSuccess, count=2)
        await eventually(lambda: plugin.heard == [None, None])


@pytest.mark.parametrize(("hooks", "expected"), [([], 0), ([Listening], 1)])
async def test_only_with_topics_the_channel_is_listened_on(
    dsn: str, hooks: list[type[Plugin]], expected: int
) -> None:
    told = Told()
    options: Any = {"hooks": hooks, "events": told.events, "no_side_schema": True}
    async with Runner(dsn, tasks={"work": print}, **options):
        await told.seen(PoolListenSuccess)
        with psycopg.connect(dsn) as conn:
            assert conn.execute(LISTENING_ON_OURS).fetchall() == [(expected,)]
