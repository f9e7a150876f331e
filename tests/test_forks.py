"""Utils that were opened before a fork never share a connection between processes."""

import json
import sys
import threading
from typing import Any

import pytest

from graphile_worker_py import SyncWorkerUtils
from tests.forking import CHILDREN, JOBS
from tests.support.jobs import Jobs
from tests.support.processes import Processes

pytestmark = pytest.mark.any_server


def lines(processes: Processes, module: str, *args: str) -> list[str]:
    """What a program of these tests has printed, in no order."""
    process = processes.start([sys.executable, "-W", "error", "-m", module, *args])
    assert process.wait() == 0, process.stderr
    assert process.stderr == ""
    return sorted(process.stdout.split("\n"))


@pytest.mark.parametrize(
    ("program", "users"),
    [("sync", CHILDREN + 1), ("grandchildren", 2 * CHILDREN + 1), ("processes", CHILDREN + 1)],
)
def test_each_process_has_connections_of_its_own(
    processes: Processes, dsn: str, program: str, users: int
) -> None:
    said = lines(processes, "tests.forking", program, dsn)
    assert said.count("ok") == users
    if program == "sync":
        assert "the same session" in said
    payloads = [tuple(job["payload"]) for job in Jobs(dsn).all()]
    assert len(set(payloads)) == users * JOBS
    assert len(payloads) == 2 * users * JOBS


def test_a_pool_of_the_callers_is_refused_in_a_child(processes: Processes, dsn: str) -> None:
    said = [line for line in lines(processes, "tests.forking", "pool", dsn) if line]
    refused = [line for line in said if line.startswith("GraphileWorkerError: this SyncWorkerUtil")]
    assert len(refused) == CHILDREN
    assert all("before a fork" in line and "`post_fork`" in line for line in refused)
    assert said.count("ok") == 1


def test_utils_with_an_event_loop_are_refused_in_a_child(processes: Processes, dsn: str) -> None:
    said = lines(processes, "tests.forking", "loop", dsn)
    refused = [
        line for line in said if line.startswith("GraphileWorkerError: this WorkerUtils was")
    ]
    assert len(refused) == CHILDREN
    assert len(Jobs(dsn).ids()) == 1


def test_greenlets_that_enter_at_once_install_the_schema_without_an_event_loop(
    processes: Processes, empty_dsn: str
) -> None:
    pytest.importorskip("gevent")
    for _ in range(2):
        said = lines(processes, "tests.gevented", empty_dsn)
        assert said.count("True") == 6


def test_threads_that_enter_at_once_install_the_schema(empty_dsn: str) -> None:
    said: list[Any] = []

    def enter(number: int) -> None:
        with SyncWorkerUtils(empty_dsn) as utils:
            said.append(utils.add_job("work", number).payload)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == list(range(6))


def test_the_fork_of_a_task_ends_without_a_word_and_the_worker_goes_on(
    processes: Processes, dsn: str
) -> None:
    Jobs(dsn).query("create table done (n int)")
    process = processes.start(
        [sys.executable, "-W", "ignore", "-m", "tests.forking_tasks", dsn],
    )
    assert process.wait(timeout=60) == 0, process.stderr
    assert process.stderr == ""
    said = [json.loads(line) for line in process.stdout.splitlines()]
    statuses = {"return": 0, "raise": 1, "exit": 7, "exit text": 1}
    ends = {
        f"{name} {way}": status
        for name in ("thread", "inline", "loop", "connected", "completes", "thread completes")
        for way, status in statuses.items()
    }
    ends |= dict.fromkeys(("nothing given", "waits", "adds", "thread adds"), 1)
    ends |= dict.fromkeys(("commits", "thread commits"), 1)
    expected: list[Any] = [[name, status] for name, status in ends.items()]
    expected += 2 * [["GraphileWorkerError"]] + [["connected", [1]], ["final"]]
    assert sorted(said, key=str) == sorted(expected, key=str)
    assert len(Jobs(dsn).query("select n from done")) == 3 * len(statuses) + 2
    assert Jobs(dsn).ids() == []
