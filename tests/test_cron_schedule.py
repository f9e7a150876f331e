"""When the scheduler adds which jobs: on a clock that the test moves."""

import asyncio
import contextlib
from datetime import datetime, timedelta

import psycopg
import psycopg_pool
import pytest

from graphile_worker_py.cron import Cron, CronItem, parse_cron_items, parse_crontab
from graphile_worker_py.errors import CrontabError
from graphile_worker_py.events import (
    CronBackfill,
    CronOverdueTimer,
    CronPrematureTimer,
    CronSchedule,
    CronScheduled,
    CronStarted,
    CronStarting,
    Events,
)
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.postgres.database import Database
from tests.cron_support import (
    SCHEMA,
    SharedClock,
    TestClock,
    added,
    at,
    database,
    every,
    know,
    known,
    run_cron,
)
from tests.support.eventually import eventually
from tests.support.running import Jobs
from tests.support.server import Server


async def test_first_start_registers_an_item_and_adds_nothing_for_the_past(dsn: str) -> None:
    items = parse_crontab("*/5 * * * * task ?id=item&fill=1d")

    await run_cron(dsn, items, start=at("10:02:30.123456"), until=at("10:04"))

    assert known(dsn) == {"item": (at("10:02:30.123"), None)}
    assert added(dsn) == []


async def test_job_is_added_at_each_minute_that_matches(dsn: str) -> None:
    items = parse_crontab("*/5 * * * * five\n*/2 * * * * two")

    told = await run_cron(dsn, items, start=at("10:02:30"), until=at("10:10:30"))

    assert added(dsn) == [
        ("two", at("10:04"), False),
        ("five", at("10:05"), False),
        ("two", at("10:06"), False),
        ("two", at("10:08"), False),
        ("five", at("10:10"), False),
        ("two", at("10:10"), False),
    ]
    assert [last for _, last in known(dsn).values()] == [at("10:10"), at("10:10")]
    job = JobSpec(
        "two",
        {"_cron": {"ts": "2026-01-05T10:04:00.000Z", "backfilled": False}},
        run_at=at("10:04"),
    )
    assert told[:4] == [
        CronStarting(start=at("10:02:30")),
        CronStarted(start=at("10:02:30")),
        CronSchedule(identifiers=["two"], timestamp=at("10:04"), jobs=[job]),
        CronScheduled(identifiers=["two"], timestamp=at("10:04"), jobs=[job]),
    ]


async def test_job_has_the_options_of_its_item_and_the_minute_in_its_payload(dsn: str) -> None:
    items = parse_crontab(
        "4 10 * * * task ?max=3&queue=q&priority=-5&jobKey=k&jobKeyMode=preserve_run_at {a: 1.0}"
    )

    await run_cron(dsn, items, start=at("10:03:30"), until=at("10:05"))

    (job,) = Jobs(dsn).all()
    assert job["json"] == '{"a":1,"_cron":{"ts":"2026-01-05T10:04:00.000Z","backfilled":false}}'
    assert (job["queue_name"], job["run_at"]) == ("q", at("10:04"))
    assert (job["max_attempts"], job["priority"]) == (3, -5)
    assert (job["key"], job["flags"]) == ("k", None)


async def test_of_items_with_the_same_job_key_the_last_has_the_job(dsn: str) -> None:
    items = parse_crontab(
        "* * * * * first ?jobKey=k {a:1}\n* * * * * no_key\n* * * * * second ?jobKey=k {a:2}"
    )

    await run_cron(dsn, items, start=at("10:00:30"), until=at("10:01:30"))

    assert added(dsn) == [("no_key", at("10:01"), False), ("second", at("10:01"), False)]
    assert {last for _, last in known(dsn).values()} == {at("10:01")}


async def test_minute_on_which_the_start_falls_is_not_missed(dsn: str) -> None:
    items = parse_crontab("* * * * * task")

    await run_cron(dsn, items, start=at("10:03"), until=at("10:04:30"))

    assert [ts for _, ts, _ in added(dsn)] == [at("10:03"), at("10:04")]


@pytest.mark.parametrize(
    ("hours_later", "expected"),
    [(5, every(240, "12:00", "12:00")), (25, every(240, "12:00", "2026-01-06 08:00"))],
)
async def test_missed_runs_within_fill_are_added_at_a_start(
    dsn: str, hours_later: int, expected: list[datetime]
) -> None:
    know(dsn, "task", at("2025-12-01 00:00"), at("08:00"))
    items = parse_crontab("0 */4 * * * task ?fill=1d")
    start = at("08:30") + timedelta(hours=hours_later)

    told = await run_cron(dsn, items, start=start, until=start + timedelta(minutes=1))

    assert added(dsn) == [("task", ts, True) for ts in expected]
    assert known(dsn)["task"] == (at("2025-12-01 00:00"), expected[-1])
    backfills = [each for each in told if isinstance(each, CronBackfill)]
    assert [(each.identifiers, each.timestamp) for each in backfills] == [
        (["task"], ts) for ts in expected
    ]
    for each in backfills:
        assert each.known_since == [at("2025-12-01 00:00")]
        assert each.last_executions == [at("08:00")]
        (job,) = each.jobs
        assert (job.identifier, job.run_at) == ("task", each.timestamp)
        assert job.payload["_cron"]["backfilled"] is True


async def test_events_show_jobs_as_they_are_added(dsn: str) -> None:
    items = parse_crontab("* * * * * task ?id=one&queue=q&priority=3&max=4&jobKey=k {a: [1]}")
    told = await run_cron(dsn, items, start=at("10:00:30"), until=at("10:01:30"))
    (scheduled,) = [each for each in told if isinstance(each, CronScheduled)]
    (shown,) = scheduled.jobs
    (job,) = Jobs(dsn).all()
    assert scheduled.identifiers == ["one"]
    assert (shown.identifier, shown.payload) == (job["task_identifier"], job["payload"])
    assert (shown.queue_name, shown.priority) == (job["queue_name"], job["priority"])
    assert (shown.max_attempts, shown.job_key) == (job["max_attempts"], job["key"])
    assert shown.run_at == job["run_at"]


async def test_runs_before_the_fill_period_are_not_added(dsn: str) -> None:
    know(dsn, "task", at("00:00"), at("01:00"))
    items = parse_crontab("0 * * * * task ?fill=3h")

    await run_cron(dsn, items, start=at("10:00:30"), until=at("10:02"))

    # 07:00 is 3 hours and 30 seconds ago.
    assert [ts for _, ts, _ in added(dsn)] == every(60, "08:00", "10:00")


async def test_runs_before_the_item_was_known_are_not_added(dsn: str) -> None:
    know(dsn, "task", at("07:30"))
    items = parse_crontab("0 * * * * task ?fill=52w")

    await run_cron(dsn, items, start=at("10:00:30"), until=at("10:02"))

    assert [ts for _, ts, _ in added(dsn)] == every(60, "08:00", "10:00")


async def test_fill_of_any_length_is_understood(dsn: str) -> None:
    know(dsn, "task", at("09:30"))
    items = parse_crontab("0 * * * * task ?fill=99999999999999999999999999999w")

    await run_cron(dsn, items, start=at("10:00:30"), until=at("10:02"))

    assert [ts for _, ts, _ in added(dsn)] == [at("10:00")]


async def test_item_without_fill_misses_the_minute_in_progress_at_its_start(dsn: str) -> None:
    know(dsn, "lost", at("00:00"))
    know(dsn, "kept", at("00:00"))
    items = parse_crontab("5 10 * * * lost\n5 10 * * * kept ?fill=30s")

    await run_cron(dsn, items, start=at("10:05:20"), until=at("10:07"))

    assert added(dsn) == [("kept", at("10:05"), True)]


async def test_clock_that_goes_back_repeats_no_minute(dsn: str) -> None:
    items = parse_crontab("* * * * * task")

    told = await run_cron(
        dsn,
        items,
        start=at("10:00:30"),
        until=at("10:06:30"),
        steps=[(at("10:03:00"), lambda: at("09:45:10"))],
    )

    assert added(dsn) == [("task", ts, False) for ts in every(1, "10:01", "10:06")]
    premature = [each for each in told if isinstance(each, CronPrematureTimer)]
    assert premature == [
        CronPrematureTimer(current_timestamp=at("09:45:10"), expected_timestamp=at("10:03"))
    ]


async def test_minutes_that_the_clock_leaps_over_are_caught_up(dsn: str) -> None:
    items = parse_crontab("*/2 * * * * task")

    told = await run_cron(
        dsn,
        items,
        start=at("10:00:30"),
        until=at("10:22:30"),
        steps=[(at("10:03:00"), lambda: at("10:20:40"))],
    )

    assert added(dsn) == [("task", ts, False) for ts in every(2, "10:02", "10:22")]
    assert [each for each in told if isinstance(each, CronOverdueTimer)] == [
        CronOverdueTimer(current_timestamp=at("10:20"), expected_timestamp=at("10:03"))
    ]


async def test_a_clock_put_right_after_a_step_back_is_noticed_within_a_minute(dsn: str) -> None:
    items = parse_crontab("* * * * * task")

    await run_cron(
        dsn,
        items,
        start=at("10:00:30"),
        until=at("10:06:30"),
        steps=[
            (at("10:03:00"), lambda: at("2025-01-05 10:03:00")),
            (at("2025-01-05 10:03:10"), lambda: at("10:04:10")),
        ],
    )

    assert added(dsn) == [("task", ts, False) for ts in every(1, "10:01", "10:06")]


async def test_four_schedulers_add_each_run_once(dsn: str) -> None:
    know(dsn, "c", at("09:00"))
    items = parse_crontab("* * * * * a\n*/2 * * * * b\n*/3 * * * * c ?fill=1h")
    clock = SharedClock(at("10:00:30"), until=at("10:20:30"), sharers=4)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(4):
            opened = await stack.enter_async_context(database(dsn))
            # In another order, they may wait for each other's rows in a circle.
            own = items if number % 2 else items[::-1]
            clock.crons.append(Cron(opened, own, events=Events(), clock=clock, wait=clock.wait))
        async with asyncio.TaskGroup() as group:
            for cron in clock.crons:
                group.create_task(cron.run())

    found = added(dsn)
    assert [ts for task, ts, _ in found if task == "a"] == every(1, "10:01", "10:20")
    assert [ts for task, ts, _ in found if task == "b"] == every(2, "10:02", "10:20")
    assert [ts for task, ts, _ in found if task == "c"] == every(3, "09:03", "10:18")
    assert [late for task, ts, late in found if task == "c"] == [True] * 20 + [False] * 6


async def test_connection_that_breaks_at_the_tick_costs_no_run(dsn: str) -> None:
    items = parse_crontab("* * * * * task")

    def break_connections() -> None:
        Jobs(dsn).query(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'graphile_worker_py' and datname = current_database()",
        )

    await run_cron(
        dsn,
        items,
        start=at("10:00:30"),
        until=at("10:05:30"),
        steps=[(at("10:03:00"), break_connections)],
    )

    # The item has no fill: nothing else adds the run later.
    assert added(dsn) == [("task", ts, False) for ts in every(1, "10:01", "10:05")]


async def test_runs_missed_in_an_outage_are_backfilled_when_it_ends(
    dsn: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    maintenance = server.dsn("postgres")
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    items = parse_crontab("*/10 * * * * filled ?fill=1d\n*/10 * * * * unfilled")

    def allow_connections(allowed: str) -> None:
        with psycopg.connect(maintenance, autocommit=True) as connection:
            connection.execute(f"alter database {name} allow_connections {allowed}")
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
            )

    clock = TestClock(
        at("10:00:30"),
        at("12:00:30"),
        [
            (at("10:15"), lambda: allow_connections("false")),
            (at("11:15"), lambda: allow_connections("true")),
        ],
    )
    pool = psycopg_pool.AsyncNullConnectionPool(
        dsn, kwargs={"autocommit": True}, max_size=1, timeout=10, open=False
    )
    async with pool:
        cron = Cron(
            Database(pool, schema=SCHEMA), items, events=Events(), clock=clock, wait=clock.wait
        )
        clock.close = cron.close
        await cron.run()

    runs = added(dsn)
    filled = [ts for task, ts, _ in runs if task == "filled"]
    assert filled == every(10, "10:10", "12:00")
    unfilled = [ts for task, ts, _ in runs if task == "unfilled"]
    assert unfilled[0] == at("10:10")
    assert unfilled[-1] == at("12:00")
    assert at("10:30") not in unfilled
    assert "could not run cron (" in caplog.text


async def test_a_day_that_never_comes_is_warned_of_once_at_the_start(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = asyncio.Event()
    events = Events()
    events.subscribe(CronStarted, lambda _: started.set())
    items = [
        *parse_crontab("0 0 31 2 * a\n0 0 29 2 * b\n0 0 31 2,4,6 * c ?id=June\n0 0 31 2 1 d"),
        *parse_cron_items([CronItem("e", "* * 30,31 2 *"), CronItem("f", "* * * * *")]),
    ]
    async with database(dsn) as opened, asyncio.timeout(10), asyncio.TaskGroup() as group:
        cron = Cron(opened, items, events=events)
        group.create_task(cron.run())
        await started.wait()
        cron.close()
    reason = "never runs: no month of its pattern has such a day"
    assert [record.getMessage() for record in caplog.records] == [
        f"Line 1: cron item 'a' {reason}",
        f"Line 3: cron item 'June' {reason}",
        f"Cron item 'e' {reason}",
    ]


async def test_closing_ends_a_scheduler_that_waits(dsn: str) -> None:
    started = asyncio.Event()
    events = Events()
    events.subscribe(CronStarted, lambda _: started.set())
    async with database(dsn) as opened, asyncio.timeout(10), asyncio.TaskGroup() as group:
        cron = Cron(opened, parse_crontab("0 0 1 1 * task"), events=events)
        group.create_task(cron.run())
        await started.wait()

        cron.close()


async def test_closing_ends_a_scheduler_that_waits_for_the_database(dsn: str) -> None:
    async with (
        database(dsn) as opened,
        # The pool has no connection left to give, and waits for half a minute.
        opened.pool.connection(),
        opened.pool.connection(),
        asyncio.timeout(10),
        asyncio.TaskGroup() as group,
    ):
        cron = Cron(opened, parse_crontab("* * * * * task"), events=Events())
        running = group.create_task(cron.run())
        await eventually(lambda: opened.sent == 1)
        assert not running.done()

        cron.close()


async def test_closed_scheduler_does_not_start(dsn: str) -> None:
    async with database(dsn) as opened:
        cron = Cron(opened, parse_crontab("* * * * * task"), events=Events())
        cron.close()

        await cron.run()

        assert opened.sent == 0


async def test_tick_of_a_thousand_items_is_one_statement(dsn: str) -> None:
    hourly = "".join(f"{5 if n < 300 else 6} * * * * task ?id=item_{n}\n" for n in range(1000))
    ticks: list[int] = []
    events = Events()
    async with database(dsn) as opened:
        events.subscribe(CronSchedule, lambda _: ticks.append(opened.sent))
        events.subscribe(CronScheduled, lambda _: ticks.append(opened.sent))
        clock = TestClock(at("10:04:30"), at("10:05:30"))
        cron = Cron(opened, parse_crontab(hourly), events=events, clock=clock, wait=clock.wait)
        clock.close = cron.close

        await cron.run()

    assert ticks[1] - ticks[0] == 1
    assert len(added(dsn)) == 300


async def test_job_that_is_being_fetched_while_its_key_is_due_gets_a_successor(dsn: str) -> None:
    items = parse_crontab("* * * * * task ?jobKey=k")
    await run_cron(dsn, items, start=at("10:00:30"), until=at("10:01:30"))
    with psycopg.connect(dsn) as fetching:
        fetching.execute(
            "update graphile_worker._private_jobs set locked_at = now(), locked_by = 'pool',"
            " attempts = 1"
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(run_cron(dsn, items, start=at("10:01:40"), until=at("10:02:30")))
            await Jobs(dsn).seen_waiting()
            fetching.commit()

    assert [ts for _, ts, _ in added(dsn)] == [at("10:01"), at("10:02")]
    assert known(dsn)["task"][1] == at("10:02")


async def test_failing_matcher_keeps_nobody_else_waiting(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> bool:
        raise LookupError("no calendar")

    items = parse_cron_items([CronItem("broken", broken), CronItem("task", "* * * * *")])

    await run_cron(dsn, items, start=at("10:00:30"), until=at("10:01:30"))

    assert added(dsn) == [("task", at("10:01"), False)]
    assert "Matcher of cron item 'broken' failed" in caplog.text


async def test_matcher_function_is_asked_for_each_minute(dsn: str) -> None:
    items = parse_cron_items(
        [CronItem("task", lambda digest: digest.min % 2 == 1 and digest.dow == 1)]
    )

    await run_cron(dsn, items, start=at("10:00:30"), until=at("10:05:30"))

    assert [ts for _, ts, _ in added(dsn)] == every(2, "10:01", "10:05")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("* * * * * task ?max=0", "max_attempts 0 is out of range"),
        ("* * * * * task ?max=32768", "max_attempts 32768 is out of range"),
        ("* * * * * task ?priority=-32769", "priority -32769 is out of range"),
        ("* * * * * task ?jobKey=", "job_key must not be empty"),
        (f"* * * * * task ?queue={'q' * 129}", "queue_name has 129 characters"),
        (f"* * * * * {'t' * 129}", "task has 129 characters"),
    ],
)
async def test_item_that_the_database_could_not_store_is_refused(
    empty_dsn: str, line: str, told: str
) -> None:
    async with database(empty_dsn) as opened:
        with pytest.raises(CrontabError, match=told) as refused:
            Cron(opened, parse_crontab(f"\n{line}"), events=Events())

    assert refused.value.line == 2


async def test_items_of_the_same_identifier_are_refused(empty_dsn: str) -> None:
    items = parse_crontab("* * * * * task") + parse_crontab("0 * * * * task")
    async with database(empty_dsn) as opened:
        with pytest.raises(CrontabError, match="identifiers must be unique"):
            Cron(opened, items, events=Events())


async def test_scheduler_without_items_ends_at_once(empty_dsn: str) -> None:
    async with database(empty_dsn) as opened:
        await Cron(opened, [], events=Events()).run()

        assert opened.sent == 0
