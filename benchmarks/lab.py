"""What every measurement needs: a server, databases, worker processes and their figures."""

import json
import os
import platform
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from benchmarks.sides import (
    Floor,
    NodeWorker,
    ObanSide,
    Ours,
    PgQueuerSide,
    ProcrastinateSide,
    Side,
    add_backlog,
    environment,
)
from graphile_worker_py.dev.postgres import EmbeddedPostgres
from tests.support.node import Node
from tests.support.processes import Processes

PATIENCE = 300.0
WARM = 100
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Drained:
    """Figures of a backlog that was worked off.

    `transactions` are those that wrote something: they have to be made durable.
    """

    jobs: int
    seconds: float
    cpu_seconds: float
    peak_memory: int
    wal_bytes: int
    transactions: int

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds


class Worker:
    """A worker process under measurement."""

    def __init__(self, command: Sequence[str], cwd: Path | None) -> None:
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, bufsize=0, cwd=cwd, env=environment()
        )
        self._pending = b""
        self._expect("ready")

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def progress(self) -> tuple[int, float]:
        """What it says next of its progress: jobs done, and when the last one of them was."""
        while True:
            word, *values = self._line().split()
            if word == "count":
                return int(values[0]), float(values[1])

    @property
    def output(self) -> IO[bytes]:
        """What it prints."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def has_line(self) -> bool:
        """Whether a line was read that nobody has looked at."""
        return b"\n" in self._pending

    def memory(self) -> int:
        """Resident bytes."""
        return self._status("VmRSS")

    def peak_memory(self) -> int:
        """Most resident bytes so far."""
        return self._status("VmHWM")

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def stop(self) -> dict[str, Any]:
        """End it; what it says of its run."""
        self._process.send_signal(signal.SIGTERM)
        while True:
            line = self._line()
            if line.startswith("{"):
                break
        self._process.wait(30)
        found: dict[str, Any] = json.loads(line)
        return found

    def kill(self) -> None:
        """End it for sure."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(30)
        self.output.close()

    def _expect(self, word: str) -> None:
        line = self._line()
        if line.strip() != word:
            raise RuntimeError(f"expected {word!r}, got {line!r}")

    def _line(self) -> str:
        # Not readline(): what it reads ahead, a selector does not see.
        while not self.has_line:
            read = os.read(self.output.fileno(), 65536)
            if not read:
                raise RuntimeError(f"worker ended with {self._process.wait(30)}")
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"no {name}")


class Lab:
    """A server of its own, with a database for each measurement.

    Args:
        server: Connection string of the server, as its superuser.
        node: Node with graphile-worker, which makes the schema of both sides that work on it.
        scale: What numbers of jobs are multiplied with.
        held: Seconds that are measured beside an open transaction.
    """

    def __init__(self, server: str, node: Node, *, scale: float = 1.0, held: float = 10.0) -> None:
        self._server = server
        self.scale = scale
        self.held = held
        self.ours = Ours(node)
        self.node = NodeWorker(node)
        sides: list[Side] = [self.ours, self.node]
        sides += [PgQueuerSide(), ProcrastinateSide(), ObanSide(), Floor(node)]
        self.sides = {side.name: side for side in sides}
        self._made = 0
        self._templates: dict[str, str] = {}

    def jobs(self, count: int) -> int:
        """How many jobs to take where it should be so many."""
        return max(round(count * self.scale), WARM)

    def create_database(self, template: str | None = None) -> str:
        """An empty database, or a copy of one; its connection string."""
        self._made += 1
        name = f"bench_{self._made}"
        source = "template1" if template is None else urlsplit(template).path[1:]
        with psycopg.connect(self._server, autocommit=True) as conn:
            conn.execute(
                sql.SQL("create database {} template {}").format(
                    sql.Identifier(name), sql.Identifier(source)
                )
            )
        # A URI, because that is all that Node's driver understands.
        return urlsplit(self._server)._replace(path=f"/{name}").geturl()

    @contextmanager
    def database(self, side: Side) -> Iterator[str]:
        """A fresh database with the tables of a side, dropped afterwards."""
        if side.schema not in self._templates:
            template = self.create_database()
            side.install(template)
            self._templates[side.schema] = template
        dsn = self.create_database(self._templates[side.schema])
        try:
            yield dsn
        finally:
            self._drop_database(dsn)

    def close(self) -> None:
        """Drop what databases are copied from."""
        while self._templates:
            self._drop_database(self._templates.popitem()[1])

    @contextmanager
    def workers(
        self, side: Side, dsn: str, settings: Mapping[str, Any], count: int = 1
    ) -> Iterator[list[Worker]]:
        """Worker processes of a side."""
        started: list[Worker] = []
        try:
            while len(started) < count:
                started.append(Worker(*side.command(dsn, settings)))
            yield started
        finally:
            for worker in started:
                worker.kill()

    def _drop_database(self, dsn: str) -> None:
        name = urlsplit(dsn).path[1:]
        with psycopg.connect(self._server, autocommit=True) as conn:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def machine(self) -> dict[str, Any]:
        """What the figures were measured on."""
        with psycopg.connect(self._server) as conn:
            postgres = conn.info.parameter_status("server_version")
        return {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "system": f"{platform.system()} {platform.machine()}",
            "postgresql": postgres,
            "load_before": round(os.getloadavg()[0], 2),
        }


@contextmanager
def opened_lab(*, scale: float = 1.0, held: float = 10.0) -> Iterator[Lab]:
    """Start the server, install what is compared."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is needed, to install graphile-worker")
    with (
        EmbeddedPostgres(settings={"max_connections": "100"}) as server,
        closing(Lab(server.dsn, Node(npm, Processes()), scale=scale, held=held)) as lab,
    ):
        yield lab


def drain(
    lab: Lab,
    side: Side,
    dsn: str,
    jobs: int,
    settings: Mapping[str, Any],
    count: int = 1,
    *,
    queues: int = 0,
    left_behind: int = 0,
) -> Drained:
    """Let workers that wait already work off a backlog, from its commit to its last job."""
    with (
        lab.workers(side, dsn, settings, count) as workers,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        side.fill(dsn, WARM)  # connections, plans, compiled code
        wait_for_all(workers, WARM)
        cpu = sum(worker.cpu_seconds() for worker in workers)
        began = add_backlog(dsn, jobs, queues=queues) if queues else side.fill(dsn, jobs)
        before = _server_figures(conn)
        ended = wait_for_all(workers, jobs + WARM)
        cpu = sum(worker.cpu_seconds() for worker in workers) - cpu
        peak = max(worker.peak_memory() for worker in workers)
        for worker in workers:
            worker.stop()
        after = _server_figures(conn)
        left = side.left(dsn)
        if left != left_behind:
            raise RuntimeError(f"{side.title} left {left} jobs behind")
    return Drained(
        jobs=jobs,
        seconds=ended - began,
        cpu_seconds=cpu,
        peak_memory=peak,
        wal_bytes=after[0] - before[0],
        transactions=after[1] - before[1],
    )


def wait_for_all(workers: Sequence[Worker], jobs: int) -> float:
    """Wait until all together have done so many jobs; the time at which the last one was done."""
    done, last = watch(workers, jobs, seconds=PATIENCE)
    if done < jobs:
        raise RuntimeError(f"only {done} of {jobs} jobs were done")
    return last


def watch(workers: Sequence[Worker], jobs: int, *, seconds: float) -> tuple[int, float]:
    """Wait until all together have done so many jobs, or the time is over.

    Returns:
        How many they have done, and the time at which the last one was done.
    """
    done = dict.fromkeys(workers, 0)
    last = 0.0
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.output, selectors.EVENT_READ, worker)
        deadline = time.monotonic() + seconds
        while sum(done.values()) < jobs and time.monotonic() < deadline:
            for key, _ in selector.select(timeout=1):
                ready: Worker = key.data
                done[ready], moment = ready.progress()
                while ready.has_line:
                    done[ready], moment = ready.progress()
                last = max(last, moment)
    return sum(done.values()), last


def _server_figures(conn: psycopg.Connection[Any]) -> tuple[int, int]:
    """WAL written so far, in bytes, and the transactions that wrote something.

    Those are counted by the ids that they get, which is exact at once: the server's statistics of
    commits are up to ten seconds late.
    """
    row = conn.execute(
        "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn,"
        " pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
