"""`WorkerUtils` without an event loop."""

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import psycopg_pool
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from graphile_worker_py import adding, config, migrate
from graphile_worker_py.adding import Steps
from graphile_worker_py.db import Database, Query, SyncDatabase, opened_pool, opened_sync_pool
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import Job, JobKeyMode, JobSpec, PayloadT, TaskName
from graphile_worker_py.sql import admin, inspect
from graphile_worker_py.sql import cleanup as cleaning
from graphile_worker_py.sql.admin import Unlocked
from graphile_worker_py.sql.cleanup import CleanupTask
from graphile_worker_py.sql.inspect import JobCounts, JobQueue, JobState, ListedJob, LockHolder
from graphile_worker_py.worker_utils import checked_specs

T = TypeVar("T")

# What psycopg's connect takes beside the words of a connection string.
_CLIENT_OPTIONS: Final = (
    "autocommit",
    "context",
    "cursor_factory",
    "prepare_threshold",
    "row_factory",
)


class SyncWorkerUtils:
    """`WorkerUtils` without an event loop, for Django, Flask and scripts; a context manager.

    Args:
        source: A connection string, a `psycopg_pool.ConnectionPool` of the caller's, or None for
            `DATABASE_URL` or libpq's variables.
        schema: As for `WorkerUtils`.
        max_pool_size: Most connections to hold.
        prepared_statements: Off behind poolers that can't do them.
    """

    def __init__(
        self,
        source: str | psycopg_pool.ConnectionPool[Any] | None = None,
        *,
        schema: str | None = None,
        max_pool_size: int = 10,
        prepared_statements: bool = True,
    ) -> None:
        self._source = config.conninfo(source) if source is None else source
        self._schema = config.schema_name(schema)
        self._max_pool_size = max_pool_size
        self._prepared_statements = prepared_statements
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        pool = self._stack.enter_context(
            opened_sync_pool(self._source, max_size=self._max_pool_size)
        )
        self._database = SyncDatabase(
            pool, schema=self._schema, prepared_statements=self._prepared_statements
        )
        try:
            self.migrate()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def pool(self) -> psycopg_pool.ConnectionPool[Any]:
        """The connection pool, for transactions that add jobs with other data."""
        return self._database.pool

    def migrate(self) -> None:
        """Install or upgrade the schema. See `WorkerUtils.migrate`."""
        # The migrator is written once, as async code; it gets a loop of its own, in a thread
        # because the caller's may have one that is running.
        dsn = _target(self._database.pool)

        async def run() -> None:
            async with opened_pool(dsn, max_size=2) as pool:
                await migrate.migrate(Database(pool, schema=self._schema))

        with ThreadPoolExecutor(1, "graphile-worker-py-migrate") as executor:
            executor.submit(asyncio.run, run()).result()

    def add_job(
        self,
        identifier: str | TaskName[PayloadT],
        payload: PayloadT | None = None,
        *,
        queue_name: str | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        job_key: str | None = None,
        job_key_mode: JobKeyMode | str | None = None,
        flags: Iterable[str] | None = None,
        conn: Connection[Any] | None = None,
    ) -> Job:
        """Add a job. See `WorkerUtils.add_job`."""
        spec = JobSpec(
            identifier,
            payload,
            queue_name=queue_name,
            run_at=run_at,
            priority=priority,
            max_attempts=max_attempts,
            job_key=job_key,
            job_key_mode=job_key_mode,
            flags=flags,
        )
        return self._drive(adding.add_one(spec), conn)

    def add_jobs(
        self, specs: Iterable[JobSpec], *, conn: Connection[Any] | None = None
    ) -> list[Job]:
        """Add many jobs, all or none. See `WorkerUtils.add_jobs`."""
        wanted = checked_specs(specs)
        steps = adding.add_many(wanted)
        if not adding.needs_transaction(wanted):
            return self._drive(steps, conn)
        if conn is not None:
            _check_sync(conn)
            with conn.transaction():
                return self._drive(steps, conn)
        with self._database.pool.connection() as own, own.transaction():
            return self._drive(steps, own)

    def complete_jobs(
        self, ids: Iterable[int | str], *, conn: Connection[Any] | None = None
    ) -> list[Job]:
        """Delete jobs as if they had succeeded. See `WorkerUtils.complete_jobs`."""
        return self._run(admin.complete_jobs(ids), conn)

    def permanently_fail_jobs(
        self,
        ids: Iterable[int | str],
        reason: str | None = None,
        *,
        conn: Connection[Any] | None = None,
    ) -> list[Job]:
        """Give jobs up. See `WorkerUtils.permanently_fail_jobs`."""
        return self._run(admin.permanently_fail_jobs(ids, reason), conn)

    def reschedule_jobs(
        self,
        ids: Iterable[int | str],
        *,
        run_at: datetime | None = None,
        priority: int | None = None,
        attempts: int | None = None,
        max_attempts: int | None = None,
        conn: Connection[Any] | None = None,
    ) -> list[Job]:
        """Change when and how often jobs run. See `WorkerUtils.reschedule_jobs`."""
        query = admin.reschedule_jobs(
            ids, run_at=run_at, priority=priority, attempts=attempts, max_attempts=max_attempts
        )
        return self._run(query, conn)

    def remove_job(self, job_key: str, *, conn: Connection[Any] | None = None) -> Job | None:
        """Delete the job with a key. See `WorkerUtils.remove_job`."""
        return self._run(admin.remove_job(job_key), conn)

    def force_unlock_workers(
        self, pool_ids: Iterable[str], *, conn: Connection[Any] | None = None
    ) -> Unlocked:
        """Free what dead worker pools have locked. See `WorkerUtils.force_unlock_workers`."""
        return self._run(admin.force_unlock_workers(pool_ids), conn)

    def cleanup(
        self,
        tasks: Iterable[CleanupTask | str] | None = None,
        *,
        task_identifiers_to_keep: Iterable[str] | None = None,
        conn: Connection[Any] | None = None,
    ) -> dict[CleanupTask, int]:
        """Delete what nobody needs any more. See `WorkerUtils.cleanup`."""
        queries = cleaning.cleanup(tasks, task_identifiers_to_keep)
        return {task: self._run(query, conn) for task, query in queries.items()}

    def get_job(
        self, job_id: int | str, *, conn: Connection[Any] | None = None
    ) -> ListedJob | None:
        """Read one job. See `WorkerUtils.get_job`."""
        return self._run(inspect.get_job(job_id), conn)

    def list_jobs(
        self,
        *,
        state: JobState | str | None = None,
        task: str | None = None,
        queue: str | None = None,
        key: str | None = None,
        text: str | None = None,
        locked_by: str | None = None,
        limit: int | None = inspect.DEFAULT_LIMIT,
        after: int | str | None = None,
        conn: Connection[Any] | None = None,
    ) -> list[ListedJob]:
        """Read jobs, the newest first. See `WorkerUtils.list_jobs`."""
        query = inspect.list_jobs(
            state=state,
            task=task,
            queue=queue,
            key=key,
            text=text,
            locked_by=locked_by,
            limit=limit,
            after=after,
        )
        return self._run(query, conn)

    def counts(self, *, conn: Connection[Any] | None = None) -> JobCounts:
        """Count the jobs. See `WorkerUtils.counts`."""
        return self._run(inspect.count_jobs(), conn)

    def queues(self, *, conn: Connection[Any] | None = None) -> list[JobQueue]:
        """Read all queues. See `WorkerUtils.queues`."""
        return self._run(inspect.list_queues(), conn)

    def workers(self, *, conn: Connection[Any] | None = None) -> list[LockHolder]:
        """Read which worker pools have something locked. See `WorkerUtils.workers`."""
        return self._run(inspect.list_lock_holders(), conn)

    def _run(self, query: Query[T], conn: Connection[Any] | None) -> T:
        if conn is not None:
            _check_sync(conn)
        return self._database.run(query, conn=conn)

    def _drive(self, steps: Steps[T], conn: Connection[Any] | None) -> T:
        if conn is not None:
            _check_sync(conn)
        try:
            query = next(steps)
            while True:
                query = steps.send(self._database.run(query, conn=conn))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _check_sync(conn: object) -> None:
    if not isinstance(conn, Connection):
        raise ConfigurationError(
            f"conn must be a psycopg.Connection here, not {conn!r}; "
            f"WorkerUtils takes a psycopg.AsyncConnection"
        )


def _target(pool: psycopg_pool.ConnectionPool[Any]) -> str:
    """Where a pool's connections go, in one connection string."""
    dsn = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
    kwargs = (pool.kwargs() if callable(pool.kwargs) else pool.kwargs) or {}
    return make_conninfo(dsn, **{k: v for k, v in kwargs.items() if k not in _CLIENT_OPTIONS})
