"""What tests of running workers share: jobs made with plain SQL, rows to assert on, events told."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from graphile_worker_py import Events, Runner
from graphile_worker_py.events import Event
from graphile_worker_py.workers.waits import Waits
from tests.support.eventually import eventually
from tests.support.rows import rows_of

E = TypeVar("E", bound=Event)

ADD = """
select id from graphile_worker.add_job(
  %s, %s::json, queue_name := %s, run_at := %s::timestamptz, max_attempts := %s::int,
  job_key := %s, priority := %s::int, flags := %s::text[]
)
"""
ADD_MANY = """
select job.id
from generate_series(0, %s - 1) as n,
  graphile_worker.add_job(%s, json_build_object('n', n), queue_name := %s) as job
order by job.id
"""
JOBS = """
select jobs.*, tasks.identifier as task_identifier, queues.queue_name, jobs.payload::text as json
from graphile_worker._private_jobs as jobs
left join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
order by jobs.id
"""
IDS = "select id from graphile_worker._private_jobs order by id"
SNAPSHOT = "select jobs::text as job from graphile_worker._private_jobs as jobs order by id"
LOCKED = """
select 'job ' || id from graphile_worker._private_jobs
where locked_by is not null or locked_at is not null
union all
select 'queue ' || queue_name from graphile_worker._private_job_queues
where locked_by is not null or locked_at is not null
"""
MAKE_DUE = "update graphile_worker._private_jobs set run_at = now() where run_at > now()"


class Jobs:
    """The jobs in a test's database, reached without the library that is tested."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def query(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """Run a statement in a transaction of its own."""
        with psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row) as conn:
            cursor = conn.execute(sql, values or None)
            return rows_of(cursor)

    def add(
        self,
        identifier: str,
        payload: Any = None,
        *,
        queue_name: str | None = None,
        run_at: str | None = None,
        max_attempts: int | None = None,
        job_key: str | None = None,
        priority: int | None = None,
        flags: Sequence[str] | None = None,
        payload_json: str | None = None,
    ) -> int:
        """Add a job, as a trigger of somebody's would; return its id."""
        text = json.dumps(payload) if payload_json is None else payload_json
        given = None if flags is None else list(flags)
        (row,) = self.query(
            ADD, identifier, text, queue_name, run_at, max_attempts, job_key, priority, given
        )
        return int(row["id"])

    def add_many(self, count: int, identifier: str, queue_name: str | None = None) -> list[int]:
        """Add jobs with the payloads `{"n": 0}`, `{"n": 1}` and so on; return their ids."""
        return [row["id"] for row in self.query(ADD_MANY, count, identifier, queue_name)]

    def all(self) -> list[dict[str, Any]]:
        """All jobs by id, with the names of task and queue, and the payload's text as `json`."""
        return self.query(JOBS)

    def ids(self) -> list[int]:
        """Ids of all jobs."""
        return [row["id"] for row in self.query(IDS)]

    def snapshot(self) -> list[str]:
        """All columns of all jobs as text, to compare with later."""
        return [row["job"] for row in self.query(SNAPSHOT)]

    def one(self, job_id: int) -> dict[str, Any]:
        """A job that must be there."""
        (job,) = [job for job in self.all() if job["id"] == job_id]
        return job

    def change(self, job_id: int, assignments: str) -> None:
        """Change columns of a job."""
        self.query(f"update graphile_worker._private_jobs set {assignments} where id = {job_id:d}")

    def make_due(self) -> None:
        """Let jobs that wait for their time be due now."""
        self.query(MAKE_DUE)

    def locked(self) -> list[str]:
        """The jobs and queues that anybody has locked."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return [row[0] for row in conn.execute(LOCKED).fetchall()]


class Told:
    """Remembers every event; give `events` to what runs."""

    def __init__(self) -> None:
        self.events = Events()
        self.all: list[Event] = []
        self.events.subscribe(Event, self.all.append)

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind, or of the kinds below it."""
        return [event for event in self.all if isinstance(event, kind)]

    def names(self) -> list[str]:
        """The names of all events, in order."""
        return [event.name for event in self.all]

    async def seen(self, kind: type[E], *, count: int = 1, timeout: float = 10.0) -> E:
        """Wait for the `count`th event of a kind."""
        await eventually(lambda: len(self.of(kind)) >= count, timeout=timeout)
        return self.of(kind)[count - 1]


def impatient(**waits: Any) -> type[Runner]:
    """A Runner that waits less long than those of users; see `Waits` for what it waits for."""

    class ImpatientRunner(Runner):
        _waits = Waits(**waits)

    return ImpatientRunner
