"""The database or a process dies where a Node worker and two Python pools work side by side.

What a Node worker had locked when it ended stays locked. The rest is done, once.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from compat_tests.fleet import HERE
from tests.faults.ledger import FAST
from tests.faults.trial import CONCURRENT_JOBS, SHORT, Run, Trial, overlaps, queue_of
from tests.support.eventually import eventually
from tests.support.node import LATEST, Node
from tests.support.own_server import OwnServer
from tests.support.processes import Process, Processes

NODE_WORKER = (HERE / "faults_worker.mjs").read_text()
# What is neither locked by one of these pools, nor in a queue that is.
LEFT = """
select jobs.id, (jobs.payload ->> 'n')::int as n, jobs.locked_by
from graphile_worker._private_jobs as jobs
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
where (coalesce(jobs.locked_by, '') = any (%s) or coalesce(queues.locked_by, '') = any (%s)) = %s
"""


class Worker:
    """A worker in another process, which writes down its runs in a file."""

    def __init__(self, process: Process, file: Path) -> None:
        self.process = process
        self._file = file

    def runs(self) -> list[Run]:
        """Its runs so far."""
        runs: dict[tuple[int, int], Run] = {}
        whole_lines, _, _ = self._file.read_text().rpartition("\n")
        for line in whole_lines.splitlines():
            said: dict[str, Any] = json.loads(line)
            n, attempt = said["n"], said["attempt"]
            if said["what"] == "began":
                runs[n, attempt] = Run(n, queue_of(n), said["pool"], attempt, said["at"])
            else:
                runs[n, attempt].ended = said["at"]
        return list(runs.values())

    async def stop_while_busy(self) -> None:
        """Let the process stand still at a moment at which it runs a job."""
        while True:
            os.kill(self.process.pid, signal.SIGSTOP)
            await eventually(self._stands_still)
            if any(run.ended is None for run in self.runs()):
                return
            self.go_on()
            await asyncio.sleep(0)

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self.process.pid, signal.SIGCONT)

    def _stands_still(self) -> bool:
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    async def works(self, *, since: float = 0) -> None:
        """Wait until it begins jobs."""
        await eventually(lambda: sum(run.began > since for run in self.runs()) > 10, timeout=10)


class Together(Trial):
    """A trial with workers in other processes beside the pools of this one."""

    def __init__(
        self, dsn: str, folder: Path, node: Node, processes: Processes, **about: Any
    ) -> None:
        super().__init__(dsn, fault="", scale=SHORT, **about)
        self._folder = folder
        self._node = node
        self._processes = processes
        self.workers: list[Worker] = []
        self._nodes: list[Worker] = []

    def start_node(self) -> Worker:
        """Start a Node worker."""
        options = {"concurrency": CONCURRENT_JOBS, "pollInterval": 500}

        def start(file: Path) -> Process:
            arguments = [self.jobs.dsn, str(file), json.dumps(options)]
            return self._node.start(LATEST, NODE_WORKER, *arguments)

        worker = self._start(start)
        self._nodes.append(worker)
        return worker

    def start_python(self, **options: Any) -> Worker:
        """Start a Python worker."""

        def start(file: Path) -> Process:
            command = [sys.executable, "-m", "compat_tests.faults_worker", self.jobs.dsn]
            return self._processes.start(
                [*command, str(file), json.dumps(options)], cwd=HERE.parent
            )

        return self._start(start)

    def left(self, *, to_the_dead: bool) -> list[dict[str, Any]]:
        """Jobs that Node workers which have ended have locked, or all others."""
        dead = [worker for worker in self._nodes if worker.process.returncode is not None]
        pools = list({run.pool for worker in dead for run in worker.runs()})
        return self.jobs.query(LEFT, pools, pools, to_the_dead)

    def nothing_left(self) -> bool:
        """Whether all is done that can be done."""
        with suppress(psycopg.OperationalError):
            left = self.left(to_the_dead=False)
            assert not left, f"{len(left)} job(s) left: {left[:10]}"
            return True
        return False

    def all_runs(self) -> list[Run]:
        """The runs in all processes."""
        return [*self.runs, *(run for worker in self.workers for run in worker.runs())]

    def _start(self, start: Callable[[Path], Process]) -> Worker:
        file = self._folder / f"runs-{len(self.workers)}"
        file.touch()
        worker = Worker(start(file), file)
        self.workers.append(worker)
        return worker


@pytest.mark.parametrize("fault", ["restart", "kill"])
async def test_the_server_goes_down_below_workers_of_both_sides(
    own_dsn: str,
    own_server: OwnServer,
    node: Node,
    processes: Processes,
    tmp_path: Path,
    fault: str,
) -> None:
    trial = Together(own_dsn, tmp_path, node, processes)
    first = trial.start_node()
    async with trial.under_load():
        await first.works()
        if fault == "kill":
            await first.stop_while_busy()
            await asyncio.to_thread(own_server.kill)
            first.go_on()
            # That the outcome of its job can't be recorded ends it.
            assert await asyncio.to_thread(first.process.wait) == 1
            await asyncio.to_thread(own_server.start)
        else:
            await asyncio.to_thread(own_server.restart_fast)
        back = time.monotonic()
        await trial.both_work(since=back)
        second = trial.start_node()
        await second.works(since=back)

    ours = {runner.pool_id for runner in trial.runners}
    held = trial.left(to_the_dead=True)
    runs = trial.all_runs()
    assert {run.n for run in runs} | {job["n"] for job in held} >= trial.load.added
    assert overlaps([run for run in runs if run.ended is not None]) == []
    assert trial.doubled() == []
    assert {run.pool for run in runs if run.ended is None} & ours == set()
    # What is locked is what the dead one had in hand.
    locked = [job for job in held if job["locked_by"] is not None]
    assert len(locked) <= CONCURRENT_JOBS
    assert {job["locked_by"] for job in locked} & ours == set()


async def test_a_python_pool_is_killed_beside_another_one_and_a_node_worker(
    own_dsn: str, node: Node, processes: Processes, tmp_path: Path
) -> None:
    fast = {name: value for name, value in FAST.items() if name != "poll_interval"}
    trial = Together(own_dsn, tmp_path, node, processes, at=[own_dsn], **fast)
    others = trial.start_node()
    victim = trial.start_python(concurrent_jobs=CONCURRENT_JOBS, poll_interval=0.5, **fast)
    async with trial.under_load():
        await others.works()
        await victim.works()
        await victim.stop_while_busy()
        victim.process.kill()
        await asyncio.to_thread(victim.process.wait)
        killed = time.monotonic()
        await trial.both_work(since=killed)
        await others.works(since=killed)

    runs = trial.all_runs()
    assert trial.jobs.ids() == []
    assert trial.jobs.locked() == []
    assert {run.n for run in runs} >= trial.load.added
    cut_off = {run.n for run in runs if run.ended is None}
    assert {run.pool for run in runs if run.ended is None} <= {run.pool for run in victim.runs()}
    # Those ran again, to their end.
    assert cut_off
    assert cut_off <= {run.n for run in runs if run.ended is not None}
    for run in runs:
        if run.ended is None:
            run.ended = killed
    assert overlaps(runs) == []
