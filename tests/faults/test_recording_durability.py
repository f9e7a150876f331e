"""What a crash of the server takes back, by how durably outcomes are recorded."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from graphile_worker_py import run_once
from tests.support.jobs import Jobs
from tests.support.own_server import OwnServer

WRITER = "select pid from pg_stat_activity where backend_type = 'walwriter'"


@contextmanager
def writing_nothing_behind(dsn: str) -> Iterator[None]:
    """Let only commits that wait for it reach the disk; the server must be killed within."""
    with psycopg.connect(dsn) as conn:
        row = conn.execute(WRITER).fetchone()
        assert row is not None
    os.kill(row[0], signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(row[0], signal.SIGKILL)


@pytest.mark.parametrize(("durability", "left"), [("durable", []), ("relaxed", [1])])
async def test_a_crash_of_the_server_brings_back_only_jobs_recorded_relaxed(
    own_dsn: str, own_server: OwnServer, durability: str, left: list[int]
) -> None:
    stored = Jobs(own_dsn)
    stored.add("work")
    ran: list[object] = []
    with writing_nothing_behind(own_dsn):
        await run_once(
            own_dsn,
            tasks={"work": ran.append},
            no_side_schema=True,
            recording_durability=durability,
        )
        assert (len(ran), stored.all()) == (1, [])
        own_server.kill()
    own_server.start()
    # It is as it was while it ran: fetched durably, and locked.
    assert [job["attempts"] for job in stored.all()] == left
    assert all(job["locked_by"] is not None for job in stored.all())
