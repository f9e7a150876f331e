"""Node and Python workers on one database, with jobs that write down when they ran and where."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import psycopg

from graphile_worker_py import WorkerUtils
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.support.node import LATEST, Node
from tests.support.processes import Process, Processes
from tests.support.rows import rows_of

HERE = Path(__file__).parent
NODE_WORKER = (HERE / "fleet_worker.mjs").read_text()
NODE_ADDER = (HERE / "fleet_adder.mjs").read_text()

Side = Literal["python", "node"]
SIDES: tuple[Side, Side] = ("python", "node")

LEDGER = """
create schema if not exists ledger;
create table ledger.runs (
  id bigint generated always as identity primary key,
  job_id bigint not null,
  side text not null,
  task text not null,
  name text,
  queue text,
  attempt int not null,
  payload json not null,
  began timestamptz not null default clock_timestamp(),
  ended timestamptz,
  error text
);
"""

RUNS = """
select job_id, side, task, name, queue, attempt, payload, began, ended
from ledger.runs order by id
"""
# Runs that began while another one of the same job, or of the same queue, went on.
OVERLAPS = """
select id from (
  select id, began, max(coalesce(ended, 'infinity')) over (
    partition by job_id order by began, id rows between unbounded preceding and 1 preceding
  ) as free
  from ledger.runs
  union all
  select id, began, max(coalesce(ended, 'infinity')) over (
    partition by queue order by began, id rows between unbounded preceding and 1 preceding
  )
  from ledger.runs where queue is not null
) as runs
where began < free
"""
LISTENING = """
select count(*) from pg_stat_activity
where datname = current_database() and query ilike 'listen%%'
"""
FETCH = """
update graphile_worker._private_jobs
set locked_at = now(), locked_by = 'pool-of-nobody', attempts = attempts + 1
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a task; `ended` is None while it runs."""

    job_id: int
    side: Side
    task: str
    name: str | None
    queue: str | None
    attempt: int
    payload: Any
    began: datetime
    ended: datetime | None


class WorkerSettings(TypedDict, total=False):
    """Settings of a worker that both languages have; durations in seconds."""

    jobs: int
    poll: float
    schema: str
    prefetch: int
    batch_delay: float
    forbidden_flags: list[str]
    reset_interval: float
    once: bool


class Gate:
    """Keeps jobs with `{"hold": number}` from going on until it is opened."""

    def __init__(self, connection: psycopg.Connection[Any], number: int) -> None:
        self._connection = connection
        self.number = number
        connection.execute("select pg_advisory_lock(%s)", (number,))

    def open(self) -> None:
        """Let them all go on, and those that come later, too."""
        self._connection.execute("select pg_advisory_unlock(%s)", (self.number,))


class Fleet:
    """Starts workers of both languages and adds jobs from both.

    Args:
        dsn: The database; the schema is installed by whoever comes first.
        node: Runs the Node package.
        processes: Starts the Python workers.

    Attributes:
        jobs: The jobs of the database.
    """

    def __init__(self, dsn: str, node: Node, processes: Processes) -> None:
        self.dsn = dsn
        self.jobs = Jobs(dsn)
        self._node = node
        self._processes = processes
        self.connection = psycopg.connect(dsn, autocommit=True)

    def query(self, text: str, *values: Any) -> list[Any]:
        """Rows of a statement; of one with one column, its values."""
        cursor = self.connection.execute(text.encode(), values or None)
        rows: list[Any] = rows_of(cursor)
        return [row[0] for row in rows] if rows and len(rows[0]) == 1 else rows

    def runs(self) -> list[Run]:
        """What the jobs wrote down, in the order in which they began."""
        return [Run(*row) for row in self.query(RUNS)]

    def names(self) -> list[str | None]:
        """The names of the jobs that began, in order."""
        return [run.name for run in self.runs()]

    async def drained(self, timeout: float = 15.0) -> None:
        """Wait until there is no job any more."""

        def none() -> bool:
            left = self.jobs.ids()
            assert left == [], f"{len(left)} job(s) left"
            return True

        await eventually(none, timeout=timeout, interval=0.02)

    async def began(self, *names: str, timeout: float = 15.0) -> None:
        """Wait until jobs of these names have begun."""
        await eventually(lambda: set(names) <= set(self.names()), timeout=timeout)

    async def began_times(self, name: str, count: int) -> None:
        """Wait until so many jobs of one name have begun."""

        def check() -> bool:
            found = self.names().count(name)
            assert found >= count, f"{found} of {count} have begun"
            return True

        await eventually(check, timeout=15)

    async def ended(self, *names: str, timeout: float = 15.0) -> None:
        """Wait until jobs of these names have ended, whatever their outcome."""

        def check() -> bool:
            return set(names) <= {run.name for run in self.runs() if run.ended is not None}

        await eventually(check, timeout=timeout)

    async def listening(self, count: int) -> None:
        """Wait until so many workers listen."""
        await eventually(lambda: self.query(LISTENING) == [count])

    async def settled(self, text: str, expected: list[Any]) -> None:
        """Wait until a statement has these rows."""

        def check() -> bool:
            found = self.query(text)
            assert found == expected
            return True

        await eventually(check, timeout=15)

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """A fetch of all jobs by a pool of nobody's, which is committed when the block ends."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute(FETCH)
            yield

    @contextmanager
    def gate(self, number: int = 1) -> Iterator[Gate]:
        """A closed gate; at the end of the block it is open."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            yield Gate(connection, number)

    def launch(
        self, side: Side, *, version: str = LATEST, **settings: Unpack[WorkerSettings]
    ) -> Process:
        """Start a worker and do not wait for it."""
        if side == "node":
            text = json.dumps(_node_settings(self.dsn, settings))
            return self._node.start(version, NODE_WORKER, text)
        text = json.dumps(_python_settings(self.dsn, settings))
        command = [sys.executable, "-W", "error", "-m", "compat_tests.fleet_worker", text]
        return self._processes.start(command, cwd=HERE.parent)

    def start(
        self, side: Side, *, version: str = LATEST, **settings: Unpack[WorkerSettings]
    ) -> Process:
        """Start a worker, which is up when this returns."""
        process = self.launch(side, version=version, **settings)
        process.wait_for("ready")
        return process

    def run_once(
        self, side: Side, *, version: str = LATEST, **settings: Unpack[WorkerSettings]
    ) -> None:
        """Run the jobs that are due."""
        settings["once"] = True
        process = self.launch(side, version=version, **settings)
        assert process.wait() == 0, process.stderr

    async def add(
        self, side: Side, identifier: str = "step", payload: Any = None, **spec: Any
    ) -> int | None:
        """Add a job from one side with `add_job`; its id, or None if Node did not get one."""
        if side == "python":
            async with WorkerUtils(self.dsn) as utils:
                return (await utils.add_job(identifier, payload, **spec)).id
        job = self.call_node([["addJob", identifier, payload, _camel_case(spec)]])[0]
        return None if job["id"] is None else int(job["id"])

    def launch_add(self, side: Side, identifier: str, payload: Any, **spec: Any) -> Process:
        """Start a process that adds a job, and do not wait for it."""
        if side == "node":
            calls = json.dumps([["addJob", identifier, payload, _camel_case(spec)]])
            return self._node.start(LATEST, NODE_ADDER, self.dsn, "graphile_worker", calls)
        program = (
            "import json, sys\n"
            "from graphile_worker_py import SyncWorkerUtils\n"
            "dsn, identifier, payload, spec = sys.argv[1:]\n"
            "with SyncWorkerUtils(dsn) as utils:\n"
            "    utils.add_job(identifier, json.loads(payload), **json.loads(spec))\n"
        )
        arguments = [self.dsn, identifier, json.dumps(payload), json.dumps(spec)]
        command = [sys.executable, "-W", "error", "-c", program, *arguments]
        return self._processes.start(command, cwd=HERE.parent)

    async def remove(self, side: Side, job_key: str) -> None:
        """Remove a job by its key."""
        if side == "python":
            async with WorkerUtils(self.dsn) as utils:
                await utils.remove_job(job_key)
        else:
            self.call_node([["removeJob", job_key]])

    def call_node(self, calls: list[list[Any]], *, version: str = LATEST) -> list[Any]:
        """Results of methods of the Node package's WorkerUtils."""
        output = self._node.run(version, NODE_ADDER, self.dsn, "graphile_worker", json.dumps(calls))
        results: list[Any] = json.loads(output)
        return results


def other(side: Side) -> Side:
    """The other one of the two sides."""
    return "node" if side == "python" else "python"


def _python_settings(dsn: str, settings: WorkerSettings) -> dict[str, Any]:
    names = {"jobs": "concurrent_jobs", "poll": "poll_interval"}
    made: dict[str, Any] = {"dsn": dsn, "poll_interval": 0.1}
    for name, value in settings.items():
        match name:
            case "prefetch":
                made["local_queue"] = {"size": value}
            case "batch_delay":
                made["complete_job_batch_delay"] = made["fail_job_batch_delay"] = value
            case "reset_interval":
                made["min_reset_locked_interval"] = made["max_reset_locked_interval"] = value
            case _:
                made[names.get(name, name)] = value
    return made


def _node_settings(dsn: str, settings: WorkerSettings) -> dict[str, Any]:
    made: dict[str, Any] = {"connectionString": dsn, "pollInterval": 100}
    preset: dict[str, Any] = {}
    for name, value in settings.items():
        match name, value:
            case "jobs", _:
                made["concurrency"] = value
            case "poll", float() | int():
                made["pollInterval"] = value * 1000
            case "forbidden_flags", _:
                made["forbiddenFlags"] = value
            case "prefetch", _:
                preset["localQueue"] = {"size": value}
            case "batch_delay", float() | int():
                preset["completeJobBatchDelay"] = preset["failJobBatchDelay"] = value * 1000
            case "reset_interval", float() | int():
                made["minResetLockedInterval"] = made["maxResetLockedInterval"] = value * 1000
            case _:
                made[name] = value
    return {**made, "preset": {"worker": preset}} if preset else made


def _camel_case(spec: dict[str, Any]) -> dict[str, Any]:
    def camel(name: str) -> str:
        first, *rest = name.split("_")
        return first + "".join(word.capitalize() for word in rest)

    def value(given: Any) -> Any:
        return given.isoformat() if isinstance(given, datetime) else given

    return {camel(name): value(given) for name, given in spec.items()}
