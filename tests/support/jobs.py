"""The jobs of a test's database, added, read and changed without the library that is tested."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from tests.support.eventually import eventually
from tests.support.kept import kept_connection
from tests.support.rows import rows_of

ADD: Final = """
select id from graphile_worker.add_job(
  %s, %s::json, queue_name := %s, run_at := %s::timestamptz, max_attempts := %s::int,
  job_key := %s, priority := %s::int, flags := %s::text[]
)
"""
ADD_MANY: Final = """
select job.id
from generate_series(0, %s - 1) as n,
  graphile_worker.add_job(%s, json_build_object('n', n), queue_name := %s) as job
order by job.id
"""
JOBS: Final = """
select jobs.*, tasks.identifier as task_identifier, queues.queue_name, jobs.payload::text as json
from graphile_worker._private_jobs as jobs
left join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
order by jobs.id
"""
IDS: Final = "select id from graphile_worker._private_jobs order by id"
SNAPSHOT: Final = """
select jobs::text as job from graphile_worker._private_jobs as jobs order by id
"""
LOCKED: Final = """
select 'job ' || id as name, locked_by from graphile_worker._private_jobs
where locked_by is not null or locked_at is not null
union all
select 'queue ' || queue_name, locked_by from graphile_worker._private_job_queues
where locked_by is not null or locked_at is not null
"""
LOCK: Final = """
with locked as (
  update graphile_worker._private_jobs
  set locked_by = %(pool_id)s, locked_at = now() - %(ago)s::interval, attempts = attempts + 1
  where id = any(%(ids)s)
  returning job_queue_id
)
update graphile_worker._private_job_queues
set locked_by = %(pool_id)s, locked_at = now() - %(ago)s::interval
where id in (select job_queue_id from locked)
"""
FETCH: Final = """
update graphile_worker._private_jobs
set locked_by = %s, locked_at = now(), attempts = attempts + 1 where key = %s
"""
EXHAUST: Final = """
update graphile_worker._private_jobs set attempts = max_attempts, last_error = 'no'
where id = any(%s)
"""
MAKE_DUE: Final = "update graphile_worker._private_jobs set run_at = now() where run_at > now()"
WAITING: Final = """
select query from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock' and query like %s
"""


class Jobs:
    """The jobs in a test's database, reached with plain SQL.

    Args:
        dsn: The database, with the schema `graphile_worker`.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def query(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """Run a statement in its own transaction, and return the rows if it returns any."""
        with kept_connection(self.dsn) as conn:
            return rows_of(conn.execute(sql, values or None))

    async def in_thread(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """`query`, in a thread: for a change of a table, which waits until no session uses it.

        A runner of the same event loop may be in the middle of a transaction.
        """
        return await asyncio.to_thread(self.query, sql, *values)

    # Add

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
        """Add a job with the SQL function, as a trigger does; return its id.

        Args:
            identifier: Identifier of its task.
            payload: Any value that JSON has.
            queue_name: As of the SQL function, like all that follow; None means not given.
            run_at: A time as PostgreSQL reads it: `2040-01-01`, `tomorrow`.
            max_attempts: See above.
            job_key: See above.
            priority: See above.
            flags: See above.
            payload_json: The payload as JSON text, instead of `payload`.
        """
        text = json.dumps(payload) if payload_json is None else payload_json
        given = None if flags is None else list(flags)
        (row,) = self.query(
            ADD, identifier, text, queue_name, run_at, max_attempts, job_key, priority, given
        )
        return int(row["id"])

    def add_many(self, count: int, identifier: str, queue_name: str | None = None) -> list[int]:
        """Add jobs with the payloads `{"n": 0}`, `{"n": 1}` and so on; return their ids."""
        return [row["id"] for row in self.query(ADD_MANY, count, identifier, queue_name)]

    # Read

    def all(self) -> list[dict[str, Any]]:
        """All jobs by id.

        Each has the columns of the table, `task_identifier`, `queue_name`, and the text of the
        payload as `json`.
        """
        return self.query(JOBS)

    def ids(self) -> list[int]:
        """The ids of all jobs."""
        return [row["id"] for row in self.query(IDS)]

    def one(self, job_id: int) -> dict[str, Any]:
        """One job, which must exist; see `all`."""
        (job,) = [job for job in self.all() if job["id"] == job_id]
        return job

    def snapshot(self) -> list[str]:
        """All columns of all jobs as text, to compare with later."""
        return [row["job"] for row in self.query(SNAPSHOT)]

    def locked(self) -> list[str]:
        """The locked jobs and queues, such as `job 1` and `queue a`."""
        return [row["name"] for row in self.query(LOCKED)]

    def holders(self) -> set[str]:
        """The ids of the pools that have locked jobs or queues."""
        return {row["locked_by"] for row in self.query(LOCKED)}

    def waiting(self, like: str = "%") -> list[str]:
        """The statements that wait for a lock, and match the pattern."""
        return [row["query"] for row in self.query(WAITING, like)]

    async def seen_waiting(self, like: str = "%") -> None:
        """Wait until a statement that matches the pattern waits for a lock."""
        await eventually(lambda: self.waiting(like))

    # Change

    def change(self, job_id: int, assignments: str) -> None:
        """Change columns of a job: `change(1, "priority = 5, attempts = 0")`."""
        self.query(f"update graphile_worker._private_jobs set {assignments} where id = {job_id:d}")

    def make_due(self) -> None:
        """Let jobs that wait for their time be due now."""
        self.query(MAKE_DUE)

    def exhaust(self, *ids: int) -> None:
        """Use up the attempts of jobs."""
        self.query(EXHAUST, list(ids))

    def lock(self, *ids: int, pool_id: str = "pool-1", ago: str = "1 minute") -> None:
        """Lock jobs and their queues as a fetch does.

        Args:
            ids: Ids of the jobs.
            pool_id: The pool that locks them.
            ago: How long they have been locked, as an interval of PostgreSQL.
        """
        with kept_connection(self.dsn) as conn:
            conn.execute(LOCK, {"pool_id": pool_id, "ago": ago, "ids": list(ids)})

    @contextmanager
    def fetching(self, key: str, pool_id: str = "pool-1") -> Iterator[psycopg.Connection[Any]]:
        """Within the block a pool fetches the job with a key: its transaction is open."""
        with psycopg.connect(self.dsn) as conn:
            conn.execute(FETCH, (pool_id, key))
            yield conn
