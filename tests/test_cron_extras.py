"""Options beyond Graphile Worker's: jitter, overlap, a cap on backfilled runs, time zones."""

from datetime import timedelta

from graphile_worker_py.cron import CronItem, CronItemOptions, parse_cron_items, parse_crontab
from tests.cron_support import added, at, every, know, known, run_cron
from tests.support.jobs import Jobs


async def test_jitter_puts_off_the_job_and_not_its_minute(dsn: str) -> None:
    items = parse_crontab("#py: jitter=45s\n* * * * * task")

    await run_cron(dsn, items, start=at("10:00:30"), until=at("10:20:30"))

    minutes = every(1, "10:01", "10:20")
    assert [ts for _, ts, _ in added(dsn)] == minutes
    assert known(dsn)["task"][1] == at("10:20")
    run_ats = [job["run_at"] for job in Jobs(dsn).all()]
    delays = [run_at - ts for run_at, ts in zip(run_ats, minutes, strict=True)]
    assert all(timedelta(0) <= delay <= timedelta(seconds=45) for delay in delays)
    assert len(set(delays)) > 15


async def test_run_is_skipped_while_the_job_of_the_last_one_waits(dsn: str) -> None:
    items = parse_crontab("#py: overlap=skip\n* * * * * task ?jobKey=k {a:1}")

    await run_cron(dsn, items, start=at("10:00:30"), until=at("10:03:30"))

    assert [ts for _, ts, _ in added(dsn)] == [at("10:01")]
    assert known(dsn)["task"][1] == at("10:03")
    assert [job["run_at"] for job in Jobs(dsn).all()] == [at("10:01")]


async def test_run_is_skipped_while_the_job_of_the_last_one_runs(dsn: str) -> None:
    items = parse_crontab("#py: overlap=skip\n* * * * * task ?jobKey=k")

    def fetch() -> None:
        Jobs(dsn).query(
            "update graphile_worker._private_jobs set locked_at = now(), locked_by = 'pool',"
            " attempts = max_attempts",
        )

    await run_cron(
        dsn,
        items,
        start=at("10:00:30"),
        until=at("10:03:30"),
        steps=[(at("10:02"), fetch)],
    )

    assert [ts for _, ts, _ in added(dsn)] == [at("10:01")]
    assert [(job["key"], job["locked_by"]) for job in Jobs(dsn).all()] == [("k", "pool")]


async def test_run_is_added_when_the_job_of_the_last_one_is_done(dsn: str) -> None:
    items = parse_crontab("#py: overlap=skip\n* * * * * task ?jobKey=k")

    def complete() -> None:
        Jobs(dsn).query("delete from graphile_worker._private_jobs")

    await run_cron(
        dsn,
        items,
        start=at("10:00:30"),
        until=at("10:04:30"),
        steps=[(at("10:03"), complete)],
    )

    assert [ts for _, ts, _ in added(dsn)] == [at("10:03")]


async def test_run_is_added_when_the_last_one_failed_for_good(dsn: str) -> None:
    items = parse_crontab("#py: overlap=skip\n* * * * * task ?jobKey=k&max=3")

    def fail() -> None:
        Jobs(dsn).query("update graphile_worker._private_jobs set attempts = max_attempts")

    await run_cron(
        dsn,
        items,
        start=at("10:00:30"),
        until=at("10:03:30"),
        steps=[(at("10:02"), fail)],
    )

    # Otherwise a job that nobody will ever run again would end the item for good.
    assert [ts for _, ts, _ in added(dsn)] == [at("10:01"), at("10:02")]
    assert [(job["key"], job["attempts"]) for job in Jobs(dsn).all()] == [(None, 3), ("k", 0)]


async def test_only_the_latest_of_the_missed_runs_are_backfilled_under_a_cap(dsn: str) -> None:
    for identifier in ("capped", "none", "all"):
        know(dsn, identifier, at("00:00"))
    items = parse_crontab(
        "#py: maxBackfill=2\n0 * * * * capped ?fill=1d\n"
        "#py: maxBackfill=0\n0 * * * * none ?fill=1d\n"
        "0 * * * * all ?fill=6h"
    )

    await run_cron(dsn, items, start=at("10:00:30"), until=at("11:00:30"))

    found = added(dsn)
    assert [(ts, late) for task, ts, late in found if task == "capped"] == [
        (at("09:00"), True),
        (at("10:00"), True),
        (at("11:00"), False),
    ]
    assert [ts for task, ts, _ in found if task == "none"] == [at("11:00")]
    assert [ts for task, ts, _ in found if task == "all"] == every(60, "05:00", "11:00")


async def test_cap_holds_for_minutes_that_the_clock_leapt_over(dsn: str) -> None:
    items = parse_crontab("#py: maxBackfill=1\n* * * * * capped\n*/10 * * * * all")

    await run_cron(
        dsn,
        items,
        start=at("10:00:30"),
        until=at("11:00:30"),
        steps=[(at("10:02"), lambda: at("11:00:10"))],
    )

    found = added(dsn)
    assert [ts for task, ts, _ in found if task == "capped"] == [
        at("10:01"),
        at("10:59"),
        at("11:00"),
    ]
    assert [ts for task, ts, _ in found if task == "all"] == every(10, "10:10", "11:00")


async def test_item_of_a_time_zone_runs_at_its_local_time_and_records_utc(dsn: str) -> None:
    items = parse_cron_items(
        [CronItem("task", "0 9 * * *", options=CronItemOptions(timezone="America/New_York"))]
    )

    await run_cron(dsn, items, start=at("2026-03-07 12:00"), until=at("2026-03-09 14:00"))

    # The clocks of New York were put forward on 8 March.
    expected = [at("2026-03-07 14:00"), at("2026-03-08 13:00"), at("2026-03-09 13:00")]
    assert [ts for _, ts, _ in added(dsn)] == expected
    assert known(dsn)["task"][1] == expected[-1]


async def test_missed_runs_of_a_time_zone_are_backfilled_over_a_skipped_hour(dsn: str) -> None:
    know(dsn, "task", at("2026-03-27 00:00"))
    items = parse_crontab("#py: timezone=Europe/Berlin\n#py: 30 2 * * * task ?fill=1w")

    await run_cron(dsn, items, start=at("2026-03-30 12:00"), until=at("2026-03-30 12:01:30"))

    assert [ts for _, ts, _ in added(dsn)] == [
        at("2026-03-27 01:30"),
        at("2026-03-28 01:30"),
        at("2026-03-29 01:00"),  # 03:00, in place of 02:30
        at("2026-03-30 00:30"),
    ]
