"""Limits hold while worker processes are killed and stopped, and the limit is changed.

A look at the jobs table sees one moment: it shows how many jobs are locked in all pools together,
those of dead ones included.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from graphile_worker_py import SyncWorkerUtils
from tests.faults.conftest import ROOT
from tests.support.processes import Process, Processes
from tests.support.running import Jobs

LOOK = """
select count(*) filter (where jobs.locked_at is not null)
from graphile_worker._private_jobs as jobs
"""
ADD = """
select graphile_worker.add_job('work', json_build_object('seconds', 0.05 * random()))
from generate_series(1, %s)
"""
OPTIONS = {
    "concurrent_jobs": 4,
    "poll_interval": 0.2,
    "heartbeat_interval": 0.1,
    "dead_after": 0.5,
}
AMOUNT = 5


class Watch:
    """Looks all the time how many jobs are locked."""

    def __init__(self, dsn: str) -> None:
        self.most = 0
        self.looks = 0
        self._dsn = dsn
        self._ended = threading.Event()

    def run(self) -> None:
        """Look until ended."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            while not self._ended.is_set():
                row = conn.execute(LOOK).fetchone()
                assert row is not None
                self.most = max(self.most, row[0])
                self.looks += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look in a thread."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()


def start(processes: Processes, dsn: str, **options: object) -> Process:
    """Start a worker, and wait until it runs."""
    command = [sys.executable, "-m", "tests.faults.limited_worker", dsn, str(AMOUNT)]
    return processes.start([*command, json.dumps({**OPTIONS, **options})], cwd=ROOT)


@pytest.mark.timeout(600)
def test_no_kill_stop_or_change_lets_more_jobs_be_locked_than_the_limit_allows(
    dsn: str, processes: Processes, pytestconfig: pytest.Config
) -> None:
    rounds = 60 if pytestconfig.getoption("--long") else 4
    dice = random.Random(rounds)
    workers = [start(processes, dsn, local_queue=size) for size in (-1, -1, 10)]
    for worker in workers:
        worker.wait_for("up")
    watch = Watch(dsn)
    with watch.watching(), SyncWorkerUtils(dsn) as utils:
        for turn in range(rounds):
            Jobs(dsn).query(ADD, 120)
            time.sleep(0.3)
            victim = dice.randrange(len(workers))
            if turn % 2:
                workers[victim].kill()
                utils.set_limit("stripe", AMOUNT - 2)
                workers[victim].wait()
                workers[victim] = start(processes, dsn)
            else:
                os.kill(workers[victim].pid, signal.SIGSTOP)
                utils.set_limit("stripe", AMOUNT - 1)
                time.sleep(0.3)
                os.kill(workers[victim].pid, signal.SIGCONT)
            utils.clear_limit("stripe")
        deadline = time.monotonic() + 20 + rounds
        while Jobs(dsn).ids():
            assert time.monotonic() < deadline, utils.limits()
            time.sleep(0.05)
    assert watch.most == AMOUNT
    assert watch.looks > 100
