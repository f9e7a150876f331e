"""The parts of the soak: what it measures, and what it lets pass."""

import os
import random
import signal
import sys
import time
from collections import Counter

import psycopg
import pytest

from compat_tests.fleet import Fleet
from compat_tests.soak import (
    END_KILLED,
    KILLED,
    NOTE_KILLED,
    TABLES,
)
from compat_tests.soak_orders import batch_fits, outcome_fits, unlike
from compat_tests.soak_probes import Probes, keep_on
from compat_tests.soak_samples import Samples, percentile, quarters
from tests.support.processes import Processes

# Takes four more megabytes at each signal. A process of its own: in one that has run tests, what
# is taken may be what they gave back.
GROWER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
kept = []
while True:
    print("size", len(kept), flush=True)
    signal.sigwait([signal.SIGUSR1])
    kept.append(b"x" * 4_000_000)
"""


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 500), (99, 990), (99.9, 999), (99.95, 1000), (100, 1000)]
)
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    values = [float(number) for number in range(1, 1001)]
    random.Random(1).shuffle(values)
    assert percentile(values, percent) == expected
    assert percentile([7.0], percent) == 7.0


@pytest.mark.parametrize("count", [0, 3, 4, 10, 101])
def test_quarters_keep_the_order_and_are_of_one_size(count: int) -> None:
    parts = quarters(range(count))
    assert [value for part in parts for value in part] == list(range(count))
    sizes = [len(part) for part in parts]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("found", "expected", "kills", "fits"),
    [
        ((1, 0), (1, 0), 0, True),
        ((0, 0), (1, 0), 0, False),
        ((2, 0), (1, 0), 0, False),
        ((2, 0), (1, 0), 1, True),
        ((3, 0), (1, 0), 1, False),
        ((0, 0), (1, 0), 1, False),
        ((1, 0), (1, 1), 0, False),
        ((1, 0), (1, 1), 1, True),
        ((1, 2), (1, 1), 1, False),
        ((0, 0), (0, 1), 1, True),
        ((1, 0), (0, 1), 1, False),
    ],
)
def test_only_a_kill_excuses_a_job_that_ran_too_often_and_nothing_one_that_is_lost(
    found: tuple[int, int], expected: tuple[int, int], kills: int, fits: bool
) -> None:
    assert outcome_fits(found, expected, kills) is fits


def test_names_that_are_missing_or_were_not_expected_are_told() -> None:
    found, expected = {"one": 2, "two": 3, "more": 1}, {"one": 2, "two": 2, "lost": 2}
    killed = Counter({"two": 1})
    assert unlike(found, expected, killed, batch_fits) == [
        ("lost", None, 2, 0),
        ("more", 1, None, 0),
    ]


async def test_probes_are_counted_and_timed_by_the_database(dsn: str, processes: Processes) -> None:
    probes = Probes(dsn, "probes", poll_interval=3600, limit=3600)
    try:
        worker = probes.launch(processes)
        await worker.seen("ready")
        await probes.add_and_wait()
        await keep_on(time.monotonic() + 0.1, probes.add, random.Random(1))
        await probes.all_begun()
        assert len(probes.latencies()) == 2
        assert all(0 < latency < 3600 for latency in probes.latencies())
        assert not any(probes.checks().values())
        worker.terminate()
        worker.wait()
        await probes.add()
        assert probes.checks()["probes: every probe ran once"] == [(2, 3)]
    finally:
        probes.close()


async def test_what_a_killed_worker_was_at_is_known_and_its_run_has_an_end(fleet: Fleet) -> None:
    fleet.query(TABLES)
    with fleet.gate():
        await fleet.add("python", payload={"name": "held", "hold": 1})
        await fleet.add("python", payload={"name": "free"})
        worker = fleet.start("python", jobs=2)
        await fleet.began("held")
        await fleet.ended("free")
        await fleet.settled("select count(*) from graphile_worker._private_jobs", [1])
        worker.kill()
        worker.wait()
        fleet.query(NOTE_KILLED, worker.pid)
        fleet.query(NOTE_KILLED, worker.pid)
    fleet.query(END_KILLED)
    assert fleet.query(KILLED) == [("held", 1)]
    ends = "select name, error, ended >= began from ledger.runs order by name"
    assert fleet.query(ends) == [("free", None, True), ("held", "killed", True)]


async def test_memory_that_grows_is_seen_and_so_are_dead_rows_that_a_vacuum_must_leave(
    fleet: Fleet, processes: Processes
) -> None:
    worker = fleet.start("python")
    await fleet.settled("select count(*) from pg_tables where tablename = 'suspects'", [1])
    worker.terminate()  # it was there to make the tables
    worker.wait()
    grower = processes.start([sys.executable, "-c", GROWER])
    grower.wait_for("size 0")
    samples = Samples(fleet.query, {"grower": grower.pid}, 0)
    for _ in range(4):
        samples.take()
    assert not any(samples.checks().values())
    for size in range(1, 9):
        os.kill(grower.pid, signal.SIGUSR1)
        grower.wait_for(f"size {size}")
        samples.take()
    with psycopg.connect(fleet.dsn) as reader:
        reader.execute("set transaction isolation level repeatable read; select 1")
        fleet.query("select graphile_worker.add_job('nobody_has_it')")
        fleet.query("delete from graphile_worker._private_jobs")
        samples.vacuum()
    wrong = samples.checks()
    assert [name for name, *_ in wrong["the memory of no worker grew"]] == ["grower"]
    assert ("_private_jobs", 1) in wrong["no dead row is out of reach for a vacuum"]
    samples.vacuum()
    assert not samples.checks()["no dead row is out of reach for a vacuum"]
