"""Announced jobs are picked up at once, and a lost connection is made anew."""

import asyncio
import json
from typing import Any

import pytest

from graphile_worker_py import IncompatibleSchemaError, Runner
from graphile_worker_py.events import (
    JobSuccess,
    LocalQueueGetJobsComplete,
    PoolListenConnecting,
    PoolListenError,
    PoolListenNotification,
    PoolListenRelease,
    PoolListenSuccess,
)
from graphile_worker_py.workers.hearing import announced_jobs, is_breaking
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

LISTENERS = """
select pid from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
  and (query ilike 'listen %%' or query like '%%pg_try_advisory_lock_shared($1%%')
"""


async def end_its_session(jobs: Jobs) -> None:
    """End the session on which a worker listens, as soon as none of before is left."""
    await eventually(lambda: len(jobs.query(LISTENERS)) == 1)
    (row,) = jobs.query(LISTENERS)
    jobs.query("select pg_terminate_backend(%s)", row["pid"])


async def test_an_announced_job_runs_long_before_the_next_poll(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events):
        await told.seen(PoolListenSuccess)
        for n in range(1, 4):
            jobs.add("work")
            await told.seen(JobSuccess, count=n)


async def test_jobs_added_while_it_connects_are_not_missed(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    # Between the first fetch and the moment from which on notifications come in.
    told.events.subscribe(PoolListenSuccess, lambda _: jobs.add("work"))
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events):
        await told.seen(JobSuccess)


async def test_a_lost_connection_is_made_anew_and_what_was_missed_is_caught_up(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    # The job is added when nobody listens.
    told.events.subscribe(PoolListenError, lambda _: jobs.add("work"))
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events):
        await told.seen(PoolListenSuccess)
        await end_its_session(jobs)
        await told.seen(PoolListenError)
        await told.seen(PoolListenSuccess, count=2)
        await told.seen(JobSuccess)
        jobs.add("work")
        await told.seen(JobSuccess, count=2)
    assert [event.attempts for event in told.of(PoolListenConnecting)] == [1, 2]
    assert len(told.of(PoolListenRelease)) == 1


async def test_the_delay_between_two_connections_grows_and_starts_anew(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events):
        for n in range(1, 4):
            await told.seen(PoolListenSuccess, count=n)
            await end_its_session(jobs)
            await told.seen(PoolListenError, count=n)
    # Each time it had listened in between.
    assert {event.attempts for event in told.of(PoolListenConnecting)} <= {1, 2}


async def test_its_connection_is_closed_at_the_end(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events):
        await told.seen(PoolListenSuccess)
        assert len(jobs.query(LISTENERS)) == 1
    # The server may need a moment to notice.
    await eventually(lambda: jobs.query(LISTENERS) == [])


ODD_PAYLOADS = [
    "",
    "no json",
    "[]",
    "null",
    "{}",
    '{"count": null}',
    '{"count": "7"}',
    '{"count": true}',
    '{"count": 1e999}',
    '{"count": NaN}',
    '{"count": -Infinity}',
    '{"count": 0}',
    '{"count": -1}',
    '{"count": 1.5}',
    '{"count": ' + "9" * 400 + "}",
    '{"count": ' + "9" * 5000 + "}",
    "[" * 7000,
    '{"r": 0.5, "count": 3}',
]


async def test_odd_notifications_harm_nobody(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events):
        await told.seen(PoolListenSuccess)
        for channel in ("jobs:insert", "worker:migrate"):
            for payload in ODD_PAYLOADS:
                jobs.query("select pg_notify(%s, %s)", channel, payload)
        await told.seen(PoolListenNotification, count=2 * len(ODD_PAYLOADS))
        jobs.add("work")
        await told.seen(JobSuccess)
    assert told.of(PoolListenError) == []


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        ('{"r":0.1,"count":5}', 5),
        ('{"count": 0}', 0),
        ('{"count": -1}', -1),
        ('{"count": 0.5}', 1),
        ("", 1),
        ("{}", 1),
        ("7", 1),
        ('{"count": "5"}', 1),
        ('{"count": false}', 1),
        ('{"count": 1e999}', 1),
        ('{"count": NaN}', 1),
        ("[" * 7000, 1),
        ('{"count": ' + "9" * 400 + "}", int("9" * 400)),
    ],
)
def test_a_notification_that_does_not_say_how_many_means_one(payload: str, count: int) -> None:
    assert announced_jobs(payload) == count


@pytest.mark.parametrize(
    ("payload", "breaking"),
    [
        ('{"migrationNumber":20,"breaking":true}', True),
        ('{"migrationNumber":20,"breaking":false}', False),
        ('{"breaking":1}', True),
        ("true", False),
        ("", False),
    ],
)
def test_a_schema_change_is_breaking_if_it_says_so(payload: str, breaking: bool) -> None:
    assert is_breaking(payload) is breaking


async def test_the_count_of_a_negative_or_empty_announcement_leads_to_no_fetch(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    begun: list[None] = []

    def flags() -> list[str]:
        begun.append(None)
        return []

    async def quiet() -> int:
        """Wait until no fetch is under way, and none has begun for a while; how many there were."""
        turns, before = 0, 0
        while turns < 20:
            await asyncio.sleep(0.02)
            turns = turns + 1 if before == len(begun) == ended() else 0
            before = len(begun)
        return before

    def ended() -> int:
        return len(told.of(LocalQueueGetJobsComplete))

    async with Runner(
        dsn,
        tasks={"work": print},
        poll_interval=3600,
        forbidden_flags=flags,
        events=told.events,
    ):
        await told.seen(PoolListenSuccess)
        # What beginning to listen brings about, a second look included.
        looks = await quiet()
        assert looks >= 2
        jobs.query("""select pg_notify('jobs:insert', '{"count": -1}')""")
        jobs.query("""select pg_notify('jobs:insert', '{"count": 0}')""")
        await told.seen(PoolListenNotification, count=2)
        assert await quiet() == looks


async def break_schema(jobs: Jobs) -> None:
    """Pretend that a newer release has migrated."""
    jobs.query("insert into graphile_worker.migrations (id, breaking) values (1000000, true)")


@pytest.mark.parametrize("crontab", [None, "0 4 * * * work"])
async def test_a_breaking_change_of_its_schema_stops_it(dsn: str, crontab: str | None) -> None:
    jobs, told = Jobs(dsn), Told()
    tasks = {"work": print}
    with pytest.raises(IncompatibleSchemaError):
        async with Runner(dsn, tasks=tasks, crontab=crontab, events=told.events) as runner:
            await told.seen(PoolListenSuccess)
            await break_schema(jobs)
            payload = json.dumps({"migrationNumber": 1000000, "breaking": True})
            jobs.query("select pg_notify('worker:migrate', %s)", payload)
            await runner.wait()


async def test_a_breaking_change_of_another_schema_does_not(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events):
        await told.seen(PoolListenSuccess)
        payload = json.dumps({"migrationNumber": 1000000, "breaking": True})
        jobs.query("select pg_notify('worker:migrate', %s)", payload)
        await told.seen(PoolListenNotification)
        jobs.add("work")
        await told.seen(JobSuccess)


async def test_a_breaking_change_that_was_missed_is_noticed_on_the_next_connection(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    with pytest.raises(IncompatibleSchemaError):
        async with Runner(dsn, tasks={"work": print}, events=told.events) as runner:
            await told.seen(PoolListenSuccess)
            # Nobody announces it, as if it had been announced while the connection was away.
            await break_schema(jobs)
            await end_its_session(jobs)
            await asyncio.wait_for(runner.wait(), 15)


async def test_other_installations_announcements_only_cost_a_look(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    seen: list[Any] = []
    async with Runner(dsn, tasks={"work": seen.append}, poll_interval=3600, events=told.events):
        await told.seen(PoolListenSuccess)
        jobs.query("""select pg_notify('jobs:insert', '{"count": 10}')""")
        await eventually(lambda: told.of(PoolListenNotification))
    assert seen == []
    assert caplog.text == ""
