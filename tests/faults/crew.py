"""Workers in processes of their own, under load, while something goes wrong; what must hold then.

A crew is two Python workers, and a Node worker where there is one. A supervisor starts again
whatever ends. As in a trial jobs are added all the time, a quarter of them in serial queues, and
write down their runs where no fault can reach. At the end each job has to have run to its end and
be recorded, no two runs of a job or of a queue may have overlapped, nothing may be locked, and only
jobs of a worker that was cut off may have run again.

What a Node worker had locked when it ended stays locked; nobody but an administrator can free it.
So a crew waits until all else is done, and does that.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, NotRequired, Self, TypedDict

import psycopg

from tests.faults.trial import (
    CONCURRENT_JOBS,
    OPTIONS,
    Load,
    Run,
    Scale,
    out_of_order,
    overlaps,
    queue_of,
)
from tests.support.eventually import eventually
from tests.support.node import LATEST, Node
from tests.support.processes import Process, Processes
from tests.support.running import Jobs

ROOT: Final = Path(__file__).parent.parent.parent
NODE_WORKER: Final = (ROOT / "compat_tests" / "faults_worker.mjs").read_text()
NODE_OPTIONS: Final = {"concurrency": CONCURRENT_JOBS, "pollInterval": 500}
FETCHING: Final[Sequence[Mapping[str, Any]]] = ({"options": {"local_queue": 10}}, {})
"""One worker fetches ahead, and one does not."""
PAUSE: Final = 0.08
"""Seconds between two adds of the load: three processes share the machine with the server."""
ENOUGH: Final = 15
"""Jobs that each worker begins before a fault, and again after it."""
LOOK: Final = 0.02
START_PATIENCE: Final = 15.0
END_PATIENCE: Final = 15.0
# What is not held by one of these pools, be it by a lock on its queue.
LEFT: Final = """
select (jobs.payload ->> 'n')::int as n, jobs.locked_by, jobs.attempts, jobs.run_at - now() as wait,
  jobs.last_error, queues.locked_by as queue_locked_by
from graphile_worker._private_jobs as jobs
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
where coalesce(jobs.locked_by, '') <> all (%s) and coalesce(queues.locked_by, '') <> all (%s)
"""
UNLOCK: Final = "select graphile_worker.force_unlock_workers(%s)"
ABOUT: Final = """
select jobs.*, queues.queue_name, queues.locked_by as queue_locked_by
from graphile_worker._private_jobs as jobs
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
where (jobs.payload ->> 'n')::int = any (%s)
"""
REGISTERED: Final = "select pool_id from graphile_worker_py.pools where died_at is null"


class Figures(TypedDict):
    """What came of it; the last two where a Node worker was there."""

    crew: str
    jobs: int
    resumed: float
    doubled: int
    node_jobs: NotRequired[int]
    node_resumed: NotRequired[float]


class Life:
    """One process of a worker, from its start to its end.

    Attributes:
        may_end: Whether its end is part of the fault.
        died_at: When it was found ended, by a monotonic clock.
        fell: Whether what it had in hand may have to run again elsewhere.
    """

    def __init__(self, process: Process, file: Path) -> None:
        self.process = process
        self.may_end = False
        self.died_at: float | None = None
        self.fell = False
        self._lived_at = time.monotonic()
        self._file = file
        self._read = 0
        self._runs: dict[int, Run] = {}

    @property
    def pools(self) -> list[str]:
        """The ids that its pool has had, in order."""
        return [line.split()[1] for line in self.process.lines("pool ")]

    def runs(self) -> list[Run]:
        """Its runs so far."""
        with self._file.open("rb") as file:
            file.seek(self._read)
            lines, newline, _ = file.read().rpartition(b"\n")
        self._read += len(lines) + len(newline)
        for line in lines.splitlines():
            self._note(json.loads(line))
        return list(self._runs.values())

    def is_busy(self) -> bool:
        """Whether it runs a job."""
        return any(run.ended is None for run in self.runs())

    def lives(self) -> bool:
        """Whether it has not ended."""
        now = time.monotonic()
        lives = self.process.returncode is None
        if lives:
            self._lived_at = now
        return lives

    def fall(self) -> None:
        """Say that what it runs is cut off now, whatever it may make of it later."""
        self._cut_off(time.monotonic())

    async def stand_still_while_busy(self) -> None:
        """Stop the process at a moment at which it runs a job."""
        while True:
            self.signal(signal.SIGSTOP)
            await eventually(self._stands_still)
            if self.is_busy():
                return
            self.signal(signal.SIGCONT)
            await asyncio.sleep(0)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.may_end = True
        self.lives()
        self.process.kill()
        self.process.wait()
        self.bury()

    def bury(self) -> None:
        """Say that it has ended."""
        if self.died_at is None:
            # Since it was seen last: others may have its jobs before its end is noticed here.
            self._cut_off(self._lived_at)
            self.died_at = time.monotonic()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def _cut_off(self, at: float) -> None:
        self.fell = True
        for run in self.runs():
            if run.ended is None:
                run.ended, run.was_cut_off = max(at, run.began), True

    def _note(self, said: Mapping[str, Any]) -> None:
        number, at = said["run"], said["at"]
        if said["what"] == "began":
            n = said["n"]
            self._runs[number] = Run(n, lane_of(n), said["pool"], said["attempt"], at)
        elif self._runs[number].ended is None:
            run = self._runs[number]
            run.ended, run.was_cut_off = at, said["what"] == "cut off"

    def _stands_still(self) -> bool:
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"


class Worker:
    """A worker that is started again whenever it ends."""

    def __init__(self, start: Callable[[], Life]) -> None:
        self._start = start
        self.lives: list[Life] = []
        self.start()

    def start(self) -> None:
        """Start it, again."""
        self.lives.append(self._start())

    @property
    def life(self) -> Life:
        """The process that it is now."""
        return self.lives[-1]

    def runs(self) -> list[Run]:
        """The runs of all its lives."""
        return [run for life in self.lives for run in life.runs()]

    def resumed_at(self, since: float) -> float:
        """When it began the first job since then, once it has begun enough."""
        began = [run.began for run in self.life.runs() if run.began > since]
        about = f"{self.life.process.pid} has begun {len(began)} job(s)"
        assert len(began) >= ENOUGH, f"{about}\n{self.life.process.stderr[-2000:]}"
        return min(began)


class Crew:
    """Two Python workers under load, and a Node worker if `node` is given.

    Args:
        dsn: The database, by a way that the fault does not touch.
        fault: Its name in the table of the documentation.
        scale: How much is tried.
        folder: Where runs are written down.
        processes: Starts them.
        at: How the Python workers reach the database; None: as everybody does.
        load_at: How jobs get there.
        node_at: How a Node worker reaches it, when it starts.
        settings: Of both Python workers, see member.py.
        each: More settings of one and the other.
        node: Node, if its worker takes part.
    """

    def __init__(
        self,
        dsn: str,
        *,
        fault: str,
        scale: Scale,
        folder: Path,
        processes: Processes,
        at: str | None = None,
        load_at: str | None = None,
        node_at: str | None = None,
        settings: Mapping[str, Any] | None = None,
        each: Sequence[Mapping[str, Any]] = FETCHING,
        node: Node | None = None,
    ) -> None:
        self.jobs = Jobs(dsn)
        self.scale = scale
        self.load = Load(load_at or dsn, pause=PAUSE)
        self.node_at = node_at or dsn
        self.round = 0
        self.pythons: list[Worker] = []
        self.node: Worker | None = None
        self.extra: set[int] = set()
        self.given_up: set[int] = set()
        self._given_up_early: set[str] = set()
        self._fault = fault
        self._at = at or dsn
        self._settings = settings or {}
        self._each = each
        self._folder = folder
        self._files = count()
        self._processes = processes
        self._with_node = node
        self._resumed: list[float] = []
        self._node_resumed: list[float] = []

    @property
    def workers(self) -> list[Worker]:
        """All that take part."""
        return [*self.pythons, *([] if self.node is None else [self.node])]

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[Self]:
        """Within the block all are at work; at its end all jobs are done and all have stopped."""
        for more in self._each:
            self.pythons.append(Worker(partial(self._start_python, more)))
        if self._with_node is not None:
            self.node = Worker(self._start_node)
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(self.load.run())
            supervising = group.create_task(self._supervise())
            try:
                await self.all_work(since=0, patience=START_PATIENCE)
                # Whoever could not register at once works nevertheless, and nobody would miss it.
                await eventually(self._all_registered, timeout=START_PATIENCE, interval=LOOK)
                # Where little patience is asked for, one that was slow to start was taken for dead.
                for worker in self.pythons:
                    self._given_up_early.update(worker.life.pools[:-1])
                yield self
            finally:
                self.load.end()
            await loading
            patience = self.scale.drain
            await eventually(self._nothing_left, timeout=patience, interval=0.05)
            if self.node is not None:
                self.jobs.query(UNLOCK, self._dead_node_pools())
                await eventually(self._nothing_at_all_left, timeout=patience, interval=0.05)
            await eventually(self._all_registered, timeout=patience, interval=0.05)
            supervising.cancel()
        await self._stop()

    async def all_work(self, *, since: float, patience: float | None = None) -> float:
        """Wait until each worker has begun jobs since then; seconds until the Python ones had."""
        timeout = self.scale.patience if patience is None else patience
        ours = await eventually(
            lambda: max(worker.resumed_at(since) for worker in self.pythons),
            timeout=timeout,
            interval=LOOK,
        )
        if self.node is not None:
            node = self.node
            at = await eventually(lambda: node.resumed_at(since), timeout=timeout, interval=LOOK)
            self._node_resumed.append(at - since)
        return ours - since

    async def resumed(self, *, since: float) -> None:
        """Wait until all work again, and on all that was cut off; note how long it took."""
        cut_off = {
            run.n
            for worker in self.pythons
            for life in worker.lives
            for run in life.runs()
            if run.was_cut_off and run.n not in self.given_up
        }
        seconds = await self.all_work(since=since)

        def begun_again() -> list[float]:
            latest = {run.n: run.began for run in self._runs_in_order() if not run.was_cut_off}
            missing = cut_off - latest.keys()
            assert not missing, self._about(missing)
            return [since, *(latest[n] for n in cut_off)]

        again = await eventually(begun_again, timeout=self.scale.patience, interval=LOOK)
        self._resumed.append(max(seconds, max(again) - since))

    async def add(self, **about: Any) -> int:
        """Add a job to which something happens, for Python workers only; its id."""
        n = -1 - 4 * len(self.extra)
        self.extra.add(n)
        return await asyncio.to_thread(self.jobs.add, "python only", {"n": n, **about})

    async def add_to_its_queue(self, **about: Any) -> None:
        """Add a job for all workers to a serial queue that has no others."""
        n = -4 - 4 * len(self.extra)
        self.extra.add(n)
        payload = {"n": n, **about}
        await asyncio.to_thread(self.jobs.add, "work", payload, queue_name="extra")

    async def runner_of(self, n: int) -> Life:
        """The process that runs a job, as soon as one does."""

        def found() -> Life | None:
            for worker in self.pythons:
                if any(run.n == n and run.ended is None for run in worker.life.runs()):
                    return worker.life
            return None

        life = await eventually(found, timeout=self.scale.patience)
        assert life is not None
        return life

    def figures(self) -> Figures:
        """What came of it."""
        figures = Figures(
            crew=self._fault,
            jobs=len(self.load.added) + len(self.extra),
            resumed=max(self._resumed),
            doubled=len(self.doubled()),
        )
        if self.node is not None:
            figures["node_jobs"] = len({run.n for run in self.node.runs()})
            figures["node_resumed"] = max(self._node_resumed[1:])
        return figures

    def doubled(self) -> set[int]:
        """Jobs that ran more than once."""
        times = Counter(run.n for run in self._runs_in_order())
        return {n for n, times in times.items() if times > 1}

    def check(self) -> None:
        """Assert what must hold after each fault."""
        runs = self._runs_in_order()
        assert self.load.added
        assert self.jobs.ids() == []
        assert self.jobs.locked() == []
        unknown = {run.n for run in runs} - self.load.added - self.load.doubtful - self.extra
        assert not unknown, f"{unknown} ran, and were not added"
        ended = {run.n for run in runs if not run.was_cut_off}
        assert (self.load.added | self.extra) - ended == self.given_up
        at_once = overlaps(runs)
        assert not at_once, f"ran at the same time: {at_once}"
        # Whose outcomes may have got lost.
        lives = [life for worker in self.workers for life in worker.lives]
        fallen = {pool for life in lives if life.fell for pool in life.pools}
        fallen |= self._given_up_early
        doubled = self.doubled()
        for n in doubled:
            each = [run for run in runs if run.n == n]
            assert {run.pool for run in each[:-1]} <= fallen, f"ran again: {each}"
        if not doubled:
            overtaken = out_of_order([run for run in runs if run.n >= 0])
            assert not overtaken, f"out of order: {overtaken}"

    def _about(self, missing: set[int]) -> str:
        """What there is to know about jobs that should have begun again."""
        runs = [run for run in self._runs_in_order() if run.n in missing]
        rows = self._ask(ABOUT, list(missing))
        pools = self._ask("select * from graphile_worker_py.pools")
        return f"{missing} were cut off, and have not begun again: {runs}\n{rows}\n{pools}"

    def _runs_in_order(self) -> list[Run]:
        runs = [run for worker in self.workers for run in worker.runs()]
        return sorted(runs, key=lambda run: run.began)

    def _start_python(self, more: Mapping[str, Any]) -> Life:
        given = {**self._settings, **more}
        given["options"] = {
            **OPTIONS,
            **self._settings.get("options", {}),
            **more.get("options", {}),
        }
        file = self._new_file()
        command = [sys.executable, "-m", "tests.faults.member", self._at, str(file)]
        return Life(self._processes.start([*command, json.dumps(given)], cwd=ROOT), file)

    def _start_node(self) -> Life:
        assert self._with_node is not None
        file = self._new_file()
        arguments = [self.node_at, str(file), json.dumps(NODE_OPTIONS)]
        return Life(self._with_node.start(LATEST, NODE_WORKER, *arguments), file)

    def _new_file(self) -> Path:
        file = self._folder / f"runs-{next(self._files)}"
        file.touch()
        return file

    async def _supervise(self) -> None:
        while True:
            for worker in self.workers:
                life = worker.life
                if not life.lives():
                    # That the outcome of its job can't be recorded ends a Node worker.
                    if worker is not self.node:
                        assert life.may_end, f"a worker ended: {life.process.stderr[-4000:]}"
                    life.bury()
                    worker.start()
            await asyncio.sleep(0.05)

    def _dead_node_pools(self) -> list[str]:
        if self.node is None:
            return []
        return [pool for life in self.node.lives[:-1] for pool in life.pools]

    def _nothing_left(self) -> bool:
        dead = self._dead_node_pools()
        left = self._ask(LEFT, dead, dead)
        assert not left, f"{len(left)} job(s) left: {left[:10]}"
        return True

    def _nothing_at_all_left(self) -> bool:
        left = self._ask(LEFT, [], [])
        assert not left, f"{len(left)} job(s) left: {left[:10]}"
        return True

    def _all_registered(self) -> bool:
        """Whether those that live are registered, and nobody else counts as alive."""
        found = {row["pool_id"] for row in self._ask(REGISTERED)}
        assert found == {worker.life.pools[-1] for worker in self.pythons}
        return True

    def _ask(self, text: str, *values: Any) -> list[dict[str, Any]]:
        try:
            return self.jobs.query(text, *values)
        except psycopg.Error as error:
            raise AssertionError(f"can't look: {error}") from error

    async def _stop(self) -> None:
        for worker in self.workers:
            worker.life.process.terminate()
        for worker in self.workers:
            code = await asyncio.to_thread(worker.life.process.wait, END_PATIENCE)
            if worker is not self.node:
                assert code == 0, worker.life.process.stderr


def lane_of(n: int) -> int | None:
    """The number of the queue in which a job is; negative ones are those of faults."""
    return queue_of(n) if n >= 0 or n % 4 != 0 else -1
