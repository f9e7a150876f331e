"""The lab: a server, databases, worker processes and their figures."""

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
    Keeping,
    Keyed,
    Limited,
    NodeWorker,
    ObanSide,
    Ours,
    PgQueuerSide,
    ProcrastinateSide,
    Side,
    Watched,
    add_backlog,
    environment,
)
from graphile_worker_py.dev.postgres import EmbeddedPostgres
from tests.support.node import Node
from tests.support.processes import Processes

END_SESSIONS = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
PATIENCE = 300.0
WARM = 100
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Drained:
    """The figures of a backlog after all its jobs have run.

    `transactions` counts transactions that wrote something, which have to be made durable.
    """

    jobs: int
    seconds: float
    cpu_seconds: float
    peak_memory: int
    wal_bytes: int
    transactions: int

    @property
    def rate(self) -> float:
        """Jobs per second."""
        return self.jobs / self.seconds


class Worker:
    """A worker process that is measured."""

    def __init__(self, command: Sequence[str], cwd: Path | None) -> None:
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, bufsize=0, cwd=cwd, env=environment()
        )
        self._pending = b""
        self._expect("ready")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def progress(self) -> tuple[int, float]:
        """Its next report: the number of jobs done, and the time of the last one."""
        while True:
            word, *values = self._line().split()
            if word == "count":
                return int(values[0]), float(values[1])

    @property
    def output(self) -> IO[bytes]:
        """Its standard output."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def has_line(self) -> bool:
        """Whether a complete line is waiting to be parsed."""
        return b"\n" in self._pending

    def memory(self) -> int:
        """Resident bytes."""
        return self._status("VmRSS")

    def peak_memory(self) -> int:
        """Peak of the resident bytes so far."""
        return self._status("VmHWM")

    def cpu_seconds(self) -> float:
        """Processor time so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def stop(self) -> dict[str, Any]:
        """Stop it gracefully, and return its final report."""
        self._process.send_signal(signal.SIGTERM)
        while True:
            line = self._line()
            if line.startswith("{"):
                break
        self._process.wait(30)
        found: dict[str, Any] = json.loads(line)
        return found

    def kill(self) -> None:
        """Kill it if it still runs, and close its output."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(30)
        self.output.close()

    def _expect(self, word: str) -> None:
        line = self._line()
        if line.strip() != word:
            raise RuntimeError(f"expected {word!r}, got {line!r}")

    def _line(self) -> str:
        # Not readline(): a selector does not see what it has read ahead.
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
    """A server with a database for each measurement.

    Args:
        server: Connection string of the server, as its superuser.
        node: Node with graphile-worker, which installs the schema that both sides share.
        scale: Factor for all numbers of jobs.
        held: Seconds to measure with an open transaction.
    """

    def __init__(self, server: str, node: Node, *, scale: float = 1.0, held: float = 10.0) -> None:
        self._server = server
        self.scale = scale
        self.held = held
        self.ours = Ours(node)
        self.node = NodeWorker(node)
        sides: list[Side] = [self.ours, self.node]
        sides += [PgQueuerSide(), ProcrastinateSide(), ObanSide(), Floor(node)]
        sides += [Keeping(node, "none"), Keeping(node, "all")]
        sides += [Limited(node, limited=False), Limited(node, limited=True)]
        sides += [Keyed(node), Watched(node, "metrics", "metrics")]
        sides += [Watched(node, "otel", "exporting:Traces")]
        self.sides = {side.name: side for side in sides}
        self._made = 0
        self._templates: dict[str, str] = {}

    def jobs(self, count: int) -> int:
        """This number of jobs, scaled."""
        return max(round(count * self.scale), WARM)

    def create_database(self, template: str | None = None) -> str:
        """Create an empty database, or a copy of one, and return its connection string."""
        self._made += 1
        name = f"bench_{self._made}"
        source = "template1" if template is None else urlsplit(template).path[1:]
        with psycopg.connect(self._server, autocommit=True) as conn:
            conn.execute(
                sql.SQL("create database {} template {}").format(
                    sql.Identifier(name), sql.Identifier(source)
                )
            )
        # A URI, the only form that Node's driver accepts.
        return urlsplit(self._server)._replace(path=f"/{name}").geturl()

    @contextmanager
    def database(self, side: Side) -> Iterator[str]:
        """Yield a new database with the tables of a side, and drop it afterwards."""
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
        """Drop the databases that serve as templates."""
        while self._templates:
            self._drop_database(self._templates.popitem()[1])

    @contextmanager
    def workers(
        self, side: Side, dsn: str, settings: Mapping[str, Any], count: int = 1
    ) -> Iterator[list[Worker]]:
        """Yield worker processes of a side, and kill them afterwards."""
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
            # Not `with (force)`, which PostgreSQL 12 does not have.
            while conn.execute(END_SESSIONS, [name]).rowcount > 0:
                time.sleep(0.01)
            conn.execute(sql.SQL("drop database {}").format(sql.Identifier(name)))

    def machine(self) -> dict[str, Any]:
        """The machine, the server and the load."""
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
    """Yield a lab on a server that is started for it."""
    if shutil.which("npm") is None:
        raise SystemExit("npm is needed, to install graphile-worker")
    with (
        EmbeddedPostgres(settings={"max_connections": "100"}) as server,
        closing(Lab(server.dsn, Node(Processes()), scale=scale, held=held)) as lab,
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
    """Time how waiting workers run a backlog, from its commit to its last job."""
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
    """Wait until the workers together have done these jobs; return the time of the last one."""
    done, last = watch(workers, jobs, seconds=PATIENCE)
    if done < jobs:
        raise RuntimeError(f"only {done} of {jobs} jobs were done")
    return last


def watch(workers: Sequence[Worker], jobs: int, *, seconds: float) -> tuple[int, float]:
    """Wait until the workers together have done these jobs, or the time is over.

    Returns:
        The number of jobs done, and the time of the last one.
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
    """WAL written so far, in bytes, and the number of writing transactions.

    Transactions are counted by their ids, which is exact at once; the server's statistics of
    commits are up to ten seconds late.
    """
    row = conn.execute(
        "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn,"
        " txid_snapshot_xmax(txid_current_snapshot())"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
