"""Two databases, one installed by Node and one from our files, put through the same steps.

All steps of one scenario run in one transaction. There `now()` stands still, so a time can be
compared exactly, as its distance from now; `age` lets time pass. What tells the two apart is left
out: the random number in a notification, and which of several jobs, tasks or queues added by one
statement got which number, for that depends on the plan of a join.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from tests.support.node import Node
from tests.support.server import Server

FILES = Path(__file__).parent.parent / "sql"

JOB_COLUMNS = """
  job.id,
  job.job_queue_id,
  job.task_id,
  job.payload::text as payload,
  job.priority,
  case when isfinite(job.run_at) then (job.run_at - now())::text else job.run_at::text end
    as run_at,
  job.attempts,
  job.max_attempts,
  job.last_error,
  (job.created_at - now())::text as created_at,
  (job.updated_at - now())::text as updated_at,
  job.key,
  (job.locked_at - now())::text as locked_at,
  job.locked_by,
  job.revision,
  job.flags::text as flags,
  job.is_available
"""
JOBS = f"select {JOB_COLUMNS} from graphile_worker._private_jobs as job"
QUEUES = """
  select id, queue_name, (locked_at - now())::text as locked_at, locked_by, is_available
  from graphile_worker._private_job_queues
"""
TASKS = "select id, identifier from graphile_worker._private_tasks"
SEQUENCES = """
  select
    (select array[last_value, is_called::int] from graphile_worker.jobs_id_seq1) as jobs,
    (select array[last_value, is_called::int] from graphile_worker.job_queues_id_seq) as queues,
    (select array[last_value, is_called::int] from graphile_worker.tasks_id_seq) as tasks
"""
# In this order, and at once.
TABLES = f"{TASKS}; {QUEUES}; {SEQUENCES}; {JOBS}"
CLEAR = """
  with jobs as (delete from graphile_worker._private_jobs),
    queues as (delete from graphile_worker._private_job_queues),
    tasks as (delete from graphile_worker._private_tasks)
  select
    setval('graphile_worker.jobs_id_seq1', 1, false),
    setval('graphile_worker.job_queues_id_seq', 1, false),
    setval('graphile_worker.tasks_id_seq', 1, false)
"""
# A parameter's type in SQL, where it is not text.
TYPES = {
    "payload": "json",
    "run_at": "interval",  # from now
    "max_attempts": "integer",
    "priority": "integer",
    "attempts": "integer",
    "flags": "text[]",
    "worker_ids": "text[]",
    "job_ids": "bigint[]",
}
SPEC = (
    "row(%s::text, %s::json, %s::text, now() + %s::interval, %s::integer, %s::text, %s::integer,"
    " %s::text[])::graphile_worker.job_spec"
)
SPEC_NAMES = (
    "identifier",
    "payload",
    "queue_name",
    "run_at",
    "max_attempts",
    "job_key",
    "priority",
    "flags",
)
# Mistakes of these tests, on which both sides would agree: syntax, unknown names, wrong types.
OURS = ("42601", "42703", "42883", "42P01", "42P18", "42804", "42846", "42725", "22P02")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One statement of a scenario."""

    text: str
    parameters: Sequence[Any] = ()
    returns_jobs: bool = False
    # Adds several rows at once, so that nobody can say which gets which number.
    shuffles: bool = False
    # Prepares the ground: may not fail, and what it did needs no comparison of its own.
    prepares: bool = False
    # Run as this role.
    role: LiteralString | None = None


def call(function: str, **arguments: Any) -> Step:
    """A call of a function that returns jobs, with its arguments by name; `run_at` is from now."""
    named = [
        f"{name} => now() + %s::interval" if name == "run_at" else f"{name} => %s::{type_of(name)}"
        for name in arguments
    ]
    text = f"select {JOB_COLUMNS} from graphile_worker.{function}({', '.join(named)}) as job"
    return Step(text=text, parameters=tuple(arguments.values()), returns_jobs=True)


def type_of(parameter: str) -> str:
    """The SQL type of a parameter."""
    return TYPES.get(parameter, "text")


def add_jobs(specs: Sequence[dict[str, Any]], **options: bool | None) -> Step:
    """A call of `add_jobs`, each spec given by the attributes it sets."""
    rows = ", ".join([SPEC] * len(specs))
    named = "".join(f", {name} => %s::boolean" for name in options)
    text = (
        f"select {JOB_COLUMNS} "
        f"from graphile_worker.add_jobs(array[{rows}]::graphile_worker.job_spec[]{named}) as job"
    )
    values = [spec.get(name) for spec in specs for name in SPEC_NAMES]
    return Step(
        text=text,
        parameters=(*values, *options.values()),
        returns_jobs=True,
        shuffles=len(specs) > 1,
    )


def on_jobs(function: str, condition: str, **arguments: Any) -> Step:
    """A call of an administrative function for the ids of all jobs with the condition."""
    step = call(function, **arguments)
    chosen = f"array(select id from graphile_worker._private_jobs where {condition})"
    separator = ", " if arguments else ""
    text = step.text.replace(f"{function}(", f"{function}(job_ids => {chosen}{separator}")
    return Step(text=text, parameters=step.parameters, returns_jobs=True)


def ask(text: str, *parameters: Any) -> Step:
    """Any query whose rows can be compared as they are."""
    return Step(text=text, parameters=parameters)


def given(text: str, *parameters: Any) -> Step:
    """A statement that prepares the ground."""
    return Step(text=text, parameters=parameters, prepares=True)


def age(interval: str) -> Step:
    """Let this much time pass, by moving everything that happened into the past."""
    return given(
        """
        with aged_queues as (
          update graphile_worker._private_job_queues
          set locked_at = locked_at - %s::interval
        )
        update graphile_worker._private_jobs
        set
          run_at = run_at - %s::interval,
          created_at = created_at - %s::interval,
          updated_at = updated_at - %s::interval,
          locked_at = locked_at - %s::interval
        """,
        *[interval] * 5,
    )


class Side:
    """One of the two databases."""

    def __init__(self, name: str, dsn: str) -> None:
        self.name = name
        self.dsn = dsn
        self._notifications: list[tuple[str, str]] = []
        self.connection: Connection[DictRow] = psycopg.connect(
            dsn, autocommit=True, row_factory=dict_row
        )
        self.connection.execute('listen "jobs:insert"; listen "worker:migrate"')
        self.connection.add_notify_handler(
            lambda notify: self._notifications.append((notify.channel, notify.payload))
        )

    def connect(self) -> Connection[DictRow]:
        """Another connection to the same database."""
        return psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row)

    def perform(self, steps: Iterable[Step]) -> list[Any]:
        """Run the steps in one transaction; what each returned, and the state after it."""
        history: list[Any] = []
        shuffled = False
        with self.connection.transaction():
            for step in steps:
                if step.prepares:
                    self.connection.execute(step.text.encode(), step.parameters)
                    continue
                shuffled = shuffled or step.shuffles
                outcome = self._perform(step)
                tables = self._tables()
                if isinstance(outcome, Jobs):
                    outcome = tables.readable(outcome.rows, shuffled=shuffled)
                state = tables.state(shuffled=shuffled)
                history.append((step.text, step.parameters, outcome, state))
        history.append(self.notifications())
        return history

    def _perform(self, step: Step) -> Any:
        # A failed step loses what it changed, as a failed statement of a caller would.
        try:
            with self.connection.transaction():
                if step.role is not None:
                    self.connection.execute("set local role " + step.role)
                cursor = self.connection.execute(step.text.encode(), step.parameters)
                if step.role is not None:
                    self.connection.execute("reset role")
        except psycopg.Error as error:
            if error.sqlstate in OURS:
                raise
            return describe_error(error)
        if cursor.description is None:
            return cursor.rowcount
        rows = cursor.fetchall()
        return Jobs(rows) if step.returns_jobs else rows

    def clear(self) -> None:
        """Empty the tables and start the ids at 1.

        To truncate them would take longer than the test: PostgreSQL makes each table and each of
        its indexes anew.
        """
        # What was notified before arrives with the answer.
        self.connection.execute(CLEAR)
        self._notifications.clear()

    def state(self) -> dict[str, Any]:
        """What the tables hold, and where the sequences stand."""
        return self._tables().state()

    def _tables(self) -> "Tables":
        cursor = self.connection.execute(TABLES.encode())
        found = [cursor.fetchall()]
        while cursor.nextset():
            found.append(cursor.fetchall())
        tasks, queues, [sequences], jobs = found
        return Tables(tasks, queues, sequences, jobs)

    def notifications(self) -> list[tuple[str, str]]:
        """What was notified since last asked, with the random numbers blotted out."""
        # Our own notifications arrive before the answer to the next statement.
        self.connection.execute("select")
        received = [
            (channel, re.sub(r'^\{"r":(0(\.\d+)?|\d(\.\d+)?e-\d+),', '{"r":RANDOM,', payload))
            for channel, payload in self._notifications
        ]
        self._notifications.clear()
        return received


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs that a step returned."""

    rows: Sequence[DictRow]


@dataclass(frozen=True, slots=True)
class Tables:
    """What was read from all tables at once."""

    tasks: Sequence[DictRow]
    queues: Sequence[DictRow]
    sequences: DictRow
    jobs: Sequence[DictRow]

    def state(self, *, shuffled: bool = False) -> dict[str, Any]:
        """It in a form to be compared."""
        return {
            "jobs": self.readable(self.jobs, shuffled=shuffled),
            "job ids": sorted(job["id"] for job in self.jobs),
            "queues": in_order(without_id(queue) for queue in self.queues),
            "queue ids": sorted(queue["id"] for queue in self.queues),
            "tasks": sorted(task["identifier"] for task in self.tasks),
            "task ids": sorted(task["id"] for task in self.tasks),
            "sequences": self.sequences,
        }

    def readable(self, jobs: Sequence[DictRow], *, shuffled: bool = False) -> list[DictRow]:
        """The jobs in a fixed order, with the names of their tasks and queues."""
        tasks = {row["id"]: row["identifier"] for row in self.tasks}
        queues = {row["id"]: row["queue_name"] for row in self.queues}
        named = [
            {
                **(without_id(job) if shuffled else job),
                "task_id": tasks.get(job["task_id"], job["task_id"]),
                "job_queue_id": queues.get(job["job_queue_id"], job["job_queue_id"]),
            }
            for job in jobs
        ]
        return in_order(named)


@dataclass(frozen=True, slots=True)
class Twins:
    """The two databases."""

    node: Side
    python: Side

    def assert_same(self, *steps: Step) -> list[Any]:
        """Perform the steps on both, from empty tables, and compare all that can be seen.

        Returns:
            The common history: text, parameters, outcome and state of each step that does not just
            prepare, and at the end the notifications.
        """
        self.clear()
        python = self.python.perform(steps)
        node = self.node.perform(steps)
        for mine, theirs in zip(python, node, strict=True):
            assert mine == theirs
        return node

    def clear(self) -> None:
        """Empty both."""
        for side in (self.python, self.node):
            side.clear()


@contextmanager
def open_twins(node_dsn: str, python_dsn: str) -> Iterator[Twins]:
    """Connect to the two databases."""
    twins = Twins(Side("node", node_dsn), Side("python", python_dsn))
    try:
        yield twins
    finally:
        twins.node.connection.close()
        twins.python.connection.close()


def install_from_files(dsn: str, *, revision: int) -> None:
    """Run our files up to a revision, as the migrator would have done when that was the latest."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            """
            create schema graphile_worker;
            create table graphile_worker.migrations (
              id integer primary key,
              ts timestamptz not null default now(),
              breaking boolean not null default false
            )
            """
        )
        for number in range(1, revision + 1):
            connection.execute(
                "insert into graphile_worker.migrations (id, breaking) values (%s, %s)",
                (number, number in {1, 3, 11, 13, 14, 16, 19}),
            )
        for file in sorted(FILES.glob("*.sql")):
            if int(file.stem) <= revision:
                text = file.read_text().replace(":GRAPHILE_WORKER_SCHEMA", '"graphile_worker"')
                connection.execute(text.encode())


@contextmanager
def twins_at_20(server: Server, template: Callable[[str], str]) -> Iterator[Twins]:
    """The databases as both installers leave them today."""
    node_dsn = server.create_database(template("node"))
    python_dsn = server.create_database(template("python"))
    with open_twins(node_dsn, python_dsn) as twins:
        yield twins
    server.drop_database(node_dsn)
    server.drop_database(python_dsn)


@contextmanager
def twins_at_18(server: Server, node: Node) -> Iterator[Twins]:
    """The databases as they are before the last two revisions, which only 0.16 leaves behind."""
    node_dsn, python_dsn = server.create_database(), server.create_database()
    node.cli("0.16.6", "--schema-only", "--connection", node_dsn)
    install_from_files(python_dsn, revision=18)
    with open_twins(node_dsn, python_dsn) as twins:
        yield twins
    server.drop_database(node_dsn)
    server.drop_database(python_dsn)


def describe_error(error: psycopg.Error) -> dict[str, str | None]:
    """What of an error is contractual: everything but its words."""
    diag = error.diag
    return {
        "sqlstate": error.sqlstate,
        "schema": diag.schema_name,
        "table": diag.table_name,
        "column": diag.column_name,
        "constraint": diag.constraint_name,
        "type": diag.datatype_name,
    }


def without_id(row: DictRow) -> DictRow:
    """The row but for its number."""
    return {name: value for name, value in row.items() if name != "id"}


def in_order(rows: Iterable[DictRow]) -> list[DictRow]:
    """The rows in an order that depends on their contents only."""
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True, default=str))
