"""A scheduler that dies between "due" and "added" costs no run, and doubles none."""

import signal
import sys
from pathlib import Path

import psycopg
import pytest

from graphile_worker_py.cron import parse_crontab
from tests.cron_killed import CRONTAB, STATEMENTS
from tests.cron_support import added, at, every, know, known, run_cron
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.support.processes import Process, Processes

INSTALLER = "python"

ROOT = Path(__file__).parent.parent
NEVER = 1000


def start(processes: Processes, dsn: str, fatal: int, when: str) -> Process:
    know(dsn, "task", at("08:00"), at("09:30"))
    command = [sys.executable, "-m", "tests.cron_killed", dsn, str(fatal), when]
    return processes.start(command, cwd=ROOT)


async def check_successor(dsn: str) -> None:
    """The next scheduler must leave each run there once, whatever the first one did."""
    await run_cron(dsn, parse_crontab(CRONTAB), start=at("10:35:30"), until=at("10:40:30"))

    assert [ts for _, ts, _ in added(dsn)] == every(10, "09:40", "10:40")
    assert known(dsn) == {"task": (at("08:00"), at("10:40"))}


async def test_scheduler_that_nobody_kills_sends_the_statements_of_these_tests(
    dsn: str, processes: Processes
) -> None:
    process = start(processes, dsn, NEVER, "before")

    assert await process.seen("sent") == f"sent {STATEMENTS}"
    assert [ts for _, ts, _ in added(dsn)] == every(10, "09:40", "10:30")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_death_around_any_statement_neither_loses_nor_doubles_a_run(
    dsn: str, processes: Processes, when: str
) -> None:
    jobs = Jobs(dsn)
    for fatal in range(1, STATEMENTS + 1):
        jobs.query(
            "truncate graphile_worker._private_jobs, graphile_worker._private_known_crontabs"
        )
        process = start(processes, dsn, fatal, when)
        assert process.wait() == -signal.SIGKILL
        done = fatal - 1 if when == "before" else fatal
        assert len(added(dsn)) == max(0, done - 1)  # the first statement adds none

        await check_successor(dsn)


async def test_death_during_a_statement_neither_loses_nor_doubles_a_run(
    dsn: str, processes: Processes
) -> None:
    with psycopg.connect(dsn) as other:
        know(dsn, "task", at("08:00"), at("09:30"))
        other.execute("select from graphile_worker._private_known_crontabs for update")
        process = processes.start(
            [sys.executable, "-m", "tests.cron_killed", dsn, str(NEVER), "before"], cwd=ROOT
        )
        await Jobs(dsn).seen_waiting()
        process.kill()
        process.wait()
    # The server does not notice the death before it answers, and may complete the statement.
    await eventually(lambda: not Jobs(dsn).query(OTHERS))

    await check_successor(dsn)


OTHERS = """
select pid from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
