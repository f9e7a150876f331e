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

from graphile_worker_py import config
from graphile_worker_py.adding import statements
from graphile_worker_py.adding.statements import Addition
from graphile_worker_py.checks import check_flag, check_whole
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.job import Job, JobKeyMode, JobSpec, PayloadT, TaskName
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.postgres.connecting import opened_pool, opened_sync_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Query, Steps, can_copy
from graphile_worker_py.schema import migrate, rights
from graphile_worker_py.sql import admin, backlog, inspect, known_crontabs
from graphile_worker_py.sql import cleanup as cleaning
from graphile_worker_py.sql.add_jobs import BEGIN
from graphile_worker_py.sql.admin import Unlocked
from graphile_worker_py.sql.backlog import Backlog, RegisteredPool
from graphile_worker_py.sql.cleanup import CleanupTask
from graphile_worker_py.sql.granted import read_rights
from graphile_worker_py.sql.inspect import JobCounts, JobQueue, JobState, ListedJob, LockHolder
from graphile_worker_py.sql.known_crontabs import KnownCrontab
from graphile_worker_py.sql.migrations import read_revisions

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
        prepared_statements: Whether statements are prepared on the server. None: unless there is
            a pooler before it.
        use_node_time: As for `WorkerUtils`.
        migrate: As for `WorkerUtils`.

    Raises:
        ConfigurationError: A value is not allowed; the message names it.
    """

    _opened: SyncDatabase | None = None

    def __init__(
        self,
        source: str | psycopg_pool.ConnectionPool[Any] | None = None,
        *,
        schema: str | None = None,
        max_pool_size: int = 10,
        prepared_statements: bool | None = None,
        use_node_time: bool = False,
        migrate: bool = True,
    ) -> None:
        self._source = config.source(source, psycopg_pool.ConnectionPool)
        check_whole("max_pool_size", max_pool_size, smallest=1)
        if prepared_statements is not None:
            check_flag("prepared_statements", prepared_statements)
        check_flag("use_node_time", use_node_time)
        check_flag("migrate", migrate)
        self._schema = config.schema_name(schema)
        self._max_pool_size = max_pool_size
        self._prepared_statements = prepared_statements
        self._use_node_time = use_node_time
        self._migrates = migrate
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        pool = self._stack.enter_context(
            opened_sync_pool(
                self._source,
                max_size=self._max_pool_size,
                prepared_statements=self._prepared_statements,
            )
        )
        self._opened = SyncDatabase(
            pool,
            schema=self._schema,
            prepared_statements=self._prepared_statements is not False,
            use_node_time=self._use_node_time,
        )
        try:
            if self._migrates:
                self.migrate()
                found = self._opened.run(read_rights(self._schema, rights.LOOKING))
                rights.check_rights(found, self._schema)
            else:
                self._opened.drive(migrate.check_installed(self._schema))
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
    def _database(self) -> SyncDatabase:
        if self._opened is None:
            raise GraphileWorkerError("this SyncWorkerUtils was not entered: use `with`")
        return self._opened

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
            run_at=self._database.now() if run_at is None else run_at,
            priority=priority,
            max_attempts=max_attempts,
            job_key=job_key,
            job_key_mode=job_key_mode,
            flags=flags,
        )
        return self._drive(statements.add_one(spec), conn)

    def add_jobs(
        self, specs: Iterable[JobSpec], *, conn: Connection[Any] | None = None
    ) -> list[Job]:
        """Add many jobs, all or none. See `WorkerUtils.add_jobs`."""
        wanted = statements.checked_specs(specs, now=self._database.now())
        return self._add(Addition(wanted, own_transaction=conn is None), conn)

    def add_jobs_from(
        self,
        specs: Iterable[JobSpec],
        *,
        chunk_size: int = statements.STREAM_CHUNK,
        conn: Connection[Any] | None = None,
    ) -> int:
        """Add any number of jobs in little memory. See `WorkerUtils.add_jobs_from`."""
        statements.check_chunk_size(chunk_size)
        added = 0
        try:
            for chunk in statements.chunks(specs, chunk_size):
                wanted = statements.checked_specs(chunk, now=self._database.now(), first=added)
                addition = Addition(wanted, own_transaction=conn is None, first=added)
                self._add(addition, conn)
                added += len(chunk)
        except Exception as error:
            statements.note_added(error, added)
            raise
        return added

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
        self,
        pool_ids: Iterable[str],
        *,
        force: bool = False,
        conn: Connection[Any] | None = None,
    ) -> Unlocked:
        """Release the locks of dead worker pools. See `WorkerUtils.force_unlock_workers`."""
        if force:
            return self._run(admin.force_unlock_workers(pool_ids), conn)
        return self._drive(admin.unlock_dead_workers(pool_ids, self._schema), conn)

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

    def pools(self, *, conn: Connection[Any] | None = None) -> list[RegisteredPool] | None:
        """Read which Python worker pools run. See `WorkerUtils.pools`."""
        return self._drive(backlog.registered_pools(self._schema), conn)

    def backlog(self, *, conn: Connection[Any] | None = None) -> Backlog:
        """Count the jobs that are due, and old locks. See `WorkerUtils.backlog`."""
        return self._run(backlog.read_backlog(), conn)

    def known_crontabs(self, *, conn: Connection[Any] | None = None) -> list[KnownCrontab]:
        """Read all crontab items ever registered. See `WorkerUtils.known_crontabs`."""
        return self._run(known_crontabs.list_known(), conn)

    def revision(self, *, conn: Connection[Any] | None = None) -> int:
        """Read the number of the latest migration. See `WorkerUtils.revision`."""
        return self._run(read_revisions(), conn).latest or 0

    def _run(self, query: Query[T], conn: Connection[Any] | None) -> T:
        if conn is not None:
            _check_sync(conn)
        return self._database.run(query, conn=conn)

    def _add(self, addition: Addition, conn: Connection[Any] | None) -> list[Job]:
        if conn is not None:
            _check_sync(conn)
        if addition.is_one_statement:
            for query in addition.statements():
                self._database.run(query, conn=conn)
            return addition.jobs()
        if conn is None:
            with self._database.pool.connection() as own, own.transaction():
                return self._add_all(addition, own)
        if statements.ends_with_first_block(conn):
            conn.execute(BEGIN)
        with conn.transaction():
            return self._add_all(addition, conn)

    def _add_all(self, addition: Addition, conn: Connection[Any]) -> list[Job]:
        copying = addition.copying(self._schema) if can_copy(conn) else None
        if copying is not None and self._drive(copying.prepared(), conn):
            self._database.copy_in(copying.statement, copying.blocks(), conn=conn)
            return copying.jobs
        while not addition.is_complete:
            self._database.run_each(addition.statements(), conn=conn)
        return addition.jobs()

    def _drive(self, steps: Steps[T], conn: Connection[Any] | None) -> T:
        if conn is not None:
            _check_sync(conn)
        return self._database.drive(steps, conn=conn)


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
