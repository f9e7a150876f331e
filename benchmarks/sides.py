"""The measured sides: this package, Graphile Worker for Node, and other queues for Python.

Each has the best settings that its documentation recommends or allows for many small jobs in one
process; a few were tried. docs/performance.md lists them.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from time import sleep, time
from typing import Any, ClassVar, Final

import psycopg

from benchmarks.environments import Environment
from tests.support.node import LATEST, Node

WORKERS = Path(__file__).parent / "workers"
Command = tuple[list[str], Path | None]

DEFAULT: Final = {"concurrent_jobs": 24}
BATCHED: Final = {"concurrent_jobs": 24, "local_queue_size": 500}


class Side(ABC):
    """A package that is measured.

    Attributes:
        name: Its name in files.
        title: Its name in tables.
        best: Its best settings for many small jobs.
        schema: The name of its tables; sides with the same name share a template database.
    """

    name: str
    title: str
    best: ClassVar[Mapping[str, Any]]
    schema: str

    @abstractmethod
    def about(self) -> str:
        """Version, language and driver, for tables."""

    @abstractmethod
    def install(self, dsn: str) -> None:
        """Create the tables in an empty database."""

    @abstractmethod
    def command(self, dsn: str, settings: Mapping[str, Any]) -> Command:
        """The command that starts a worker, and its working directory."""

    @abstractmethod
    def fill(self, dsn: str, jobs: int) -> float:
        """Add jobs in one transaction, and return the time of its commit."""

    @abstractmethod
    def feed(self, dsn: str, jobs: int) -> None:
        """Add timed jobs one by one, with short pauses."""

    @abstractmethod
    def left(self, dsn: str) -> int:
        """The number of jobs that are not done."""


class Graphile(Side):
    """A side that works on the schema `graphile_worker`."""

    schema = "graphile_worker"
    best: ClassVar[Mapping[str, Any]] = BATCHED

    def __init__(self, node: Node) -> None:
        self.node = node

    def install(self, dsn: str) -> None:
        self.node.cli(LATEST, "--schema-only", "-c", dsn)

    def command(self, dsn: str, settings: Mapping[str, Any]) -> Command:
        return self.script("work", dsn, json.dumps(settings))

    @abstractmethod
    def script(self, name: str, *arguments: str) -> Command:
        """The command that runs a script of this side, and its working directory."""

    def fill(self, dsn: str, jobs: int) -> float:
        return add_backlog(dsn, jobs)

    def feed(self, dsn: str, jobs: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            for number in range(jobs):
                payload = json.dumps({"sent": time()})
                conn.execute("select graphile_worker.add_job('timed', %s::json)", (payload,))
                sleep(0.002 + number % 7 / 1000)

    def left(self, dsn: str) -> int:
        with psycopg.connect(dsn) as conn:
            row = conn.execute("select count(*) from graphile_worker._private_jobs").fetchone()
        assert row is not None
        return int(row[0])


class Ours(Graphile):
    """This package, as installed here."""

    name = "ours"
    title = "graphile_worker_py"

    def about(self) -> str:
        return f"{version('graphile-worker-py')}, Python {platform.python_version()}, psycopg"

    def script(self, name: str, *arguments: str) -> Command:
        return [sys.executable, str(WORKERS / f"{name}_ours.py"), *arguments], None


class Keeping(Ours):
    """This package with another option `history` than the default."""

    def __init__(self, node: Node, history: str) -> None:
        super().__init__(node)
        self.history = history
        self.name = f"history {history}"
        self.title = f"graphile_worker_py, history={history}"

    def command(self, dsn: str, settings: Mapping[str, Any]) -> Command:
        return super().command(dsn, {**settings, "history": self.history})


class Watched(Ours):
    """This package with a plugin that reports each job.

    Args:
        node: The Node that installs the schema.
        name: What it is called in tables.
        plugin: The plugin.
    """

    def __init__(self, node: Node, name: str, plugin: str) -> None:
        super().__init__(node)
        self.plugin = plugin
        self.name = f"with {name}"
        self.title = f"graphile_worker_py, {self.name}"

    def command(self, dsn: str, settings: Mapping[str, Any]) -> Command:
        return super().command(dsn, {**settings, "hooks": [self.plugin]})


class Limited(Ours):
    """This package with a limit of the jobs of its task that run at once.

    Args:
        node: The Node that installs the schema.
        limited: Whether there is one; without, each of the workers runs its share of the limit.
    """

    limit = 48

    def __init__(self, node: Node, *, limited: bool) -> None:
        super().__init__(node)
        self.limited = limited
        self.name = "limited" if limited else "unlimited"
        self.title = f"graphile_worker_py, {self.name}"


class Keyed(Ours):
    """This package with a limit for each number in the payload, which lets every job start.

    Args:
        node: The Node that installs the schema.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.name = "keyed"
        self.title = "graphile_worker_py, keyed"

    def command(self, dsn: str, settings: Mapping[str, Any]) -> Command:
        return super().command(dsn, {**settings, "limit": 2, "key": "n"})


class Floor(Graphile):
    """Not a worker: a loop that locks a job as soon as it is notified, with psycopg."""

    name = "floor"
    title = "the statements alone"
    best: ClassVar[Mapping[str, Any]] = {}

    def about(self) -> str:
        return f"psycopg {version('psycopg')}, without asyncio"

    def script(self, name: str, *arguments: str) -> Command:
        return [sys.executable, str(WORKERS / f"{name}_floor.py"), *arguments], None


class NodeWorker(Graphile):
    """The package for Node."""

    name = "node"
    title = "graphile-worker for Node"

    def about(self) -> str:
        told = subprocess.run(
            [self.node.binary, "--version"], capture_output=True, text=True, check=True
        )
        return f"{LATEST}, Node {told.stdout.strip().removeprefix('v')}, pg"

    def script(self, name: str, *arguments: str) -> Command:
        folder = self.node.package(LATEST)
        # Its folder decides which packages a module can import.
        script = folder / f"benchmark-{name}.mjs"
        shutil.copyfile(WORKERS / f"{name}_node.mjs", script)
        return [self.node.binary, str(script), *arguments], folder


class Peer(Side):
    """Another queue for Python, in a separate environment."""

    packages: tuple[str, ...]
    minimum: tuple[int, int] = (3, 11)

    @property
    def schema(self) -> str:  # type: ignore[override]
        return self.name

    @cached_property
    def python(self) -> str:
        """Its interpreter.

        Raises:
            UnavailableError: Its environment can't be created.
        """
        return Environment(requirements=self.packages, minimum=self.minimum).python()

    def about(self) -> str:
        script = "import platform; print(platform.python_version())"
        python = self._run(self.python, "-c", script).strip()
        return f"{self.packages[0].partition('==')[2]}, Python {python}, {self.driver}"

    @property
    @abstractmethod
    def driver(self) -> str:
        """The name of its database driver."""

    def install(self, dsn: str) -> None:
        self._call("install", dsn)

    def command(self, dsn: str, settings: Mapping[str, Any]) -> Command:
        return [self.python, str(self._script), "work", dsn, json.dumps(settings)], None

    def fill(self, dsn: str, jobs: int) -> float:
        return float(self._call("fill", dsn, str(jobs)))

    def feed(self, dsn: str, jobs: int) -> None:
        self._call("feed", dsn, str(jobs))

    def left(self, dsn: str) -> int:
        return int(self._call("left", dsn))

    @property
    def _script(self) -> Path:
        return WORKERS / f"{self.name}_side.py"

    def _call(self, *arguments: str) -> str:
        return self._run(self.python, str(self._script), *arguments)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment()
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command} exited with {done.returncode}\n{done.stderr}")
        return done.stdout


class PgQueuerSide(Peer):
    """PgQueuer, with asyncpg, its fastest driver, and large batches, as its guide recommends.

    Its own benchmark has five consumers with batches of 10.
    """

    name = "pgqueuer"
    title = "PgQueuer"
    packages = ("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0")
    driver = "asyncpg"
    best: ClassVar[Mapping[str, Any]] = {"consumers": 1, "batch_size": 1000}


class ProcrastinateSide(Peer):
    """Procrastinate, with concurrency, because it fetches and records jobs one by one.

    Completed jobs are deleted, as its guide for production recommends, and as on our side.
    """

    name = "procrastinate"
    title = "Procrastinate"
    packages = ("procrastinate==3.10.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0")
    driver = "psycopg"
    best: ClassVar[Mapping[str, Any]] = {
        "concurrency": 24,
        "connections": 10,
        "delete_jobs": "successful",
    }


class ObanSide(Peer):
    """Oban for Python, with a high limit, because it fetches as many jobs as its limit allows.

    Limits above 1,000 gained nothing.
    """

    name = "oban"
    title = "Oban for Python"
    packages = ("oban==0.7.0", "psycopg[binary]==3.3.9", "uvloop==0.23.0")
    minimum = (3, 12)
    driver = "psycopg"
    best: ClassVar[Mapping[str, Any]] = {"limit": 1000}


def add_backlog(dsn: str, jobs: int, *, task: str = "noop", queues: int = 0) -> float:
    """Add jobs in one transaction by the SQL function, and return the time of its commit.

    Their times increase, as if they had been added one after the other.
    """
    step = 100_000  # an array of a million would need a gigabyte
    with psycopg.connect(dsn) as conn:
        for first in range(0, jobs, step):
            conn.execute(
                """
                select count(*) from graphile_worker.add_jobs(array(
                  select row(%(task)s, json_build_object('n', n),
                    case when %(queues)s > 0 then 'queue-' || (n %% greatest(%(queues)s, 1)) end,
                    now() - (%(jobs)s - n) * interval '1 microsecond',
                    null, null, null, null)::graphile_worker.job_spec
                  from generate_series(%(first)s::int, %(last)s::int) as n))
                """,
                {
                    "task": task,
                    "jobs": jobs,
                    "first": first + 1,
                    "last": min(first + step, jobs),
                    "queues": queues,
                },
            )
        conn.commit()
        return time()


def environment() -> dict[str, str]:
    """This process's environment, without variables that would mislead or slow down a child.

    Python must be able to use compiled modules, as pip installs them.
    """
    unwanted = (
        "PYTHONDONTWRITEBYTECODE",
        "PG",
        "DATABASE_URL",
        "GRAPHILE_",
        "OBAN_",
        "PROCRASTINATE_",
        "NODE_OPTIONS",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
