"""Call both forms of WorkerUtils alike, and read and change what is in the tables."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.rows import dict_row

from graphile_worker_py import SyncWorkerUtils, WorkerUtils
from tests.support.eventually import eventually
from tests.support.rows import rows_of

JOBS = """
select jobs.*, tasks.identifier as task_identifier, queues.queue_name
from graphile_worker._private_jobs as jobs
left join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
order by jobs.id
"""
LOCK = """
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
WAITING = """
select count(*) from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'
"""


class _Awaited:
    """SyncWorkerUtils with methods that can be awaited, so that one test does for both."""

    def __init__(self, utils: SyncWorkerUtils) -> None:
        self._utils = utils

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._utils, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call


class Api:
    """One of the two forms of WorkerUtils: `async` or `sync`."""

    def __init__(self, form: str) -> None:
        self.form = form

    @asynccontextmanager
    async def opened(self, source: Any, **options: Any) -> AsyncIterator[WorkerUtils]:
        """Open it; what comes back is awaited in both forms."""
        if self.form == "async":
            async with WorkerUtils(source, **options) as utils:
                yield utils
        else:
            with SyncWorkerUtils(source, **options) as sync:
                yield cast("WorkerUtils", _Awaited(sync))

    @asynccontextmanager
    async def connection(self, dsn: str) -> AsyncIterator[Any]:
        """A connection of the caller's that suits this form."""
        if self.form == "async":
            async with await AsyncConnection.connect(dsn) as conn:
                yield conn
        else:
            with Connection.connect(dsn) as sync:
                yield sync

    async def on(self, conn: Any, method: str, *args: Any) -> None:
        """Call a method of such a connection."""
        result = getattr(conn, method)(*args)
        if self.form == "async":
            await result


class Tables:
    """The tables of a test's database."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def query(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        """Run a statement of the test's."""
        with psycopg.connect(self._dsn, autocommit=True, row_factory=dict_row) as conn:
            cursor = conn.execute(sql, args or None)
            return rows_of(cursor)

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs by id, with the names of task and queue."""
        return self.query(JOBS)

    def job(self, job_id: int) -> dict[str, Any]:
        """One job."""
        (job,) = [row for row in self.jobs() if row["id"] == job_id]
        return job

    def lock(self, *ids: int, pool_id: str = "pool-1", ago: str = "1 minute") -> None:
        """Lock jobs and their queues as a fetch does."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            conn.execute(LOCK, {"pool_id": pool_id, "ago": ago, "ids": list(ids)})

    def exhaust(self, *ids: int) -> None:
        """Use up the attempts of jobs."""
        self.query(
            "update graphile_worker._private_jobs set attempts = max_attempts, last_error = 'no'"
            " where id = any(%s)",
            list(ids),
        )

    @contextmanager
    def fetching(self, key: str, pool_id: str = "pool-1") -> Iterator[Connection[Any]]:
        """A worker that is fetching the job with a key: its transaction is open."""
        with psycopg.connect(self._dsn) as conn:
            conn.execute(
                "update graphile_worker._private_jobs"
                " set locked_by = %s, locked_at = now(), attempts = attempts + 1 where key = %s",
                (pool_id, key),
            )
            yield conn

    async def somebody_waits(self) -> None:
        """Wait until a statement waits for a lock."""
        await eventually(lambda: self.query(WAITING)[0]["count"] == 1)
