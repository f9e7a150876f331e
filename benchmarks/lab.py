"""What every measurement needs: a server, databases, worker processes and their figures."""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from graphile_worker_py.dev.postgres import EmbeddedPostgres
from tests.support.node import LATEST, Node
from tests.support.processes import Processes

WORKERS = Path(__file__).parent / "workers"
PATIENCE = 300.0
WARM = 100
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Drained:
    """Figures of a backlog that was worked off."""

    jobs: int
    seconds: float
    cpu_seconds: float
    peak_memory: int
    wal_bytes: int
    commits: int

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds


class Worker:
    """A worker process under measurement."""

    def __init__(self, command: Sequence[str], cwd: Path | None) -> None:
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=cwd, env=_environment()
        )
        self._expect("ready")

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_for_count(self, jobs: int) -> float:
        """Wait until it has done so many jobs; the time at which it said so."""
        while True:
            done, moment = self.progress()
            if done >= jobs:
                return moment

    def progress(self) -> tuple[int, float]:
        """What it says next of its progress: jobs done, and when."""
        while True:
            word, *values = self._line().split()
            if word == "count":
                return int(values[0]), float(values[1])

    @property
    def output(self) -> TextIO:
        """What it prints."""
        assert self._process.stdout is not None
        return self._process.stdout

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
        line = self.output.readline()
        if not line:
            raise RuntimeError(f"worker ended with {self._process.wait(30)}")
        return line

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"no {name}")


class Lab:
    """A server of its own, with databases in which graphile-worker 0.18.0 made the schema."""

    def __init__(self, server: EmbeddedPostgres, node: Node) -> None:
        self.server = server
        self.node = node
        self._made = 0
        self._template = self.create_database()
        node.cli(LATEST, "--schema-only", "-c", self._template)

    def create_database(self, template: str | None = None) -> str:
        """An empty database, or a copy of one; its connection string."""
        self._made += 1
        name = f"bench_{self._made}"
        source = "template1" if template is None else urlsplit(template).path[1:]
        with psycopg.connect(self.server.dsn, autocommit=True) as conn:
            conn.execute(
                sql.SQL("create database {} template {}").format(
                    sql.Identifier(name), sql.Identifier(source)
                )
            )
        # A URI, because that is all that Node's driver understands.
        return urlsplit(self.server.dsn)._replace(path=f"/{name}").geturl()

    @contextmanager
    def database(self) -> Iterator[str]:
        """A fresh database with the schema, dropped afterwards."""
        dsn = self.create_database(self._template)
        try:
            yield dsn
        finally:
            name = urlsplit(dsn).path[1:]
            with psycopg.connect(self.server.dsn, autocommit=True) as conn:
                conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    @contextmanager
    def workers(
        self, side: str, dsn: str, settings: Mapping[str, Any], count: int = 1
    ) -> Iterator[list[Worker]]:
        """Worker processes of a side."""
        started: list[Worker] = []
        try:
            while len(started) < count:
                started.append(Worker(*self.command(side, dsn, settings)))
            yield started
        finally:
            for worker in started:
                worker.kill()

    def about(self) -> str:
        """Versions and size of the machine, in words."""
        with psycopg.connect(self.server.dsn) as conn:
            version = conn.info.parameter_status("server_version")
        told = subprocess.run([self.node.binary, "--version"], capture_output=True, check=True)
        return f"Node {told.stdout.decode().strip()}, PostgreSQL {version}, {os.cpu_count()} cores"

    def script(self, side: str, name: str, *arguments: str) -> tuple[list[str], Path | None]:
        """How a script of a side is run, and where."""
        if side == "ours":
            return [sys.executable, str(WORKERS / f"{name}_ours.py"), *arguments], None
        folder = self.node.package(LATEST)
        # Where it stands decides which packages a module can import.
        script = folder / f"benchmark-{name}.mjs"
        shutil.copyfile(WORKERS / f"{name}_node.mjs", script)
        return [self.node.binary, str(script), *arguments], folder

    def command(
        self, side: str, dsn: str, settings: Mapping[str, Any]
    ) -> tuple[list[str], Path | None]:
        """How a worker of a side is started, and where."""
        return self.script(side, "work", dsn, json.dumps(settings))


@contextmanager
def opened_lab() -> Iterator[Lab]:
    """Start the server, install what is compared."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm is needed, to install graphile-worker")
    with EmbeddedPostgres(settings={"max_connections": "100"}) as server:
        yield Lab(server, Node(npm, Processes()))


def add_backlog(dsn: str, jobs: int, *, task: str = "noop", queues: int = 0) -> float:
    """Add jobs in one transaction, through the SQL function; the time at which it committed."""
    with psycopg.connect(dsn) as conn:
        conn.execute(
            """
            select count(*) from graphile_worker.add_jobs(array(
              select row(%(task)s, json_build_object('n', n),
                case when %(queues)s > 0 then 'queue-' || (n %% greatest(%(queues)s, 1)) end,
                null, null, null, null, null)::graphile_worker.job_spec
              from generate_series(1, %(jobs)s) as n))
            """,
            {"task": task, "jobs": jobs, "queues": queues},
        )
        conn.commit()
        return time.time()


def drain(
    lab: Lab,
    side: str,
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
        add_backlog(dsn, WARM)  # connections, plans, compiled code
        wait_for_all(workers, WARM)
        cpu = sum(worker.cpu_seconds() for worker in workers)
        began = add_backlog(dsn, jobs, queues=queues)
        before = _server_figures(conn)
        ended = wait_for_all(workers, jobs + WARM)
        cpu = sum(worker.cpu_seconds() for worker in workers) - cpu
        peak = max(worker.peak_memory() for worker in workers)
        for worker in workers:
            worker.stop()
        after = _server_figures(conn)
        left = conn.execute("select count(*) from graphile_worker._private_jobs").fetchone()
        if left != (left_behind,):
            raise RuntimeError(f"{side} left {left} jobs behind")
    return Drained(
        jobs=jobs,
        seconds=ended - began,
        cpu_seconds=cpu,
        peak_memory=peak,
        wal_bytes=after[0] - before[0],
        commits=after[1] - before[1],
    )


def wait_for_all(workers: Sequence[Worker], jobs: int) -> float:
    """Wait until all together have done so many jobs; the time at which the last one was done."""
    if len(workers) == 1:
        return workers[0].wait_for_count(jobs)
    done = dict.fromkeys(workers, 0)
    last = 0.0
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.output, selectors.EVENT_READ, worker)
        deadline = time.monotonic() + PATIENCE
        while sum(done.values()) < jobs:
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {sum(done.values())} of {jobs} jobs were done")
            for key, _ in selector.select(timeout=1):
                done[key.data], moment = key.data.progress()
                last = max(last, moment)
    return last


def _server_figures(conn: psycopg.Connection[Any]) -> tuple[int, int]:
    """WAL written so far, in bytes, and transactions committed in this database."""
    row = conn.execute(
        "select pg_current_wal_lsn() - '0/0'::pg_lsn,"
        " (select xact_commit from pg_stat_database where datname = current_database())"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "DATABASE_URL"))
    }
