"""`WorkerUtils` without an event loop."""

import asyncio
import os
from collections.abc import Awaitable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import psycopg
import psycopg_pool
from psycopg import Connection

from graphile_worker_py import config
from graphile_worker_py.adding import statements
from graphile_worker_py.adding.statements import Addition
from graphile_worker_py.adding.sync_gathering import SyncGathering
from graphile_worker_py.adding.together import can_share
from graphile_worker_py.checks import check_flag, check_is, check_whole
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec, PayloadT, SpecOptions, TaskName
from graphile_worker_py.looking.back import SyncLooksBack
from graphile_worker_py.looking.now import SyncLooksNow
from graphile_worker_py.plugins import Plugins
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres import idle
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.postgres.connecting import opened_pool, opened_sync_pool, target_of
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.given import SyncGiven, taken_blocking
from graphile_worker_py.postgres.query import Query, Steps, can_copy
from graphile_worker_py.records import Record
from graphile_worker_py.schema import migrate, rights
from graphile_worker_py.sql import admin
from graphile_worker_py.sql import cleanup as cleaning
from graphile_worker_py.sql.admin import Unlocked
from graphile_worker_py.sql.cleanup import CleanupPreview, CleanupTask
from graphile_worker_py.sql.granted import read_rights
from graphile_worker_py.steering.limiting import SyncLimitSteering
from graphile_worker_py.steering.sync_steering import SyncSteering

T = TypeVar("T")


class _Opening(Record, kw_only=False):
    """What a process has opened.

    Args:
        database: The database.
        stack: Closes its connections.
    """

    database: SyncDatabase
    stack: ExitStack


class SyncWorkerUtils(SyncSteering, SyncLimitSteering, SyncLooksNow, SyncLooksBack):
    """`WorkerUtils` without an event loop, for Django, Flask and scripts; a context manager.

    Args:
        source: A connection string, a `psycopg_pool.ConnectionPool` of the caller's, or None for
            `DATABASE_URL` or libpq's variables.
        schema: As for `WorkerUtils`.
        max_pool_size: Most connections to hold.
        prepared_statements: Whether statements are prepared on the server. None: unless there is
            a pooler before it.
        use_node_time: As for `WorkerUtils`.
        nan_as_null: As for `WorkerUtils`.
        migrate: As for `WorkerUtils`.
        hooks: As for `WorkerUtils`; their `add_jobs` can await nothing but `proceed`.
        events: As for `WorkerUtils`.

    Raises:
        ConfigurationError: A value is not allowed; the message names it.
    """

    def __init__(
        self,
        source: str | psycopg_pool.ConnectionPool[Any] | None = None,
        *,
        schema: str | None = None,
        max_pool_size: int = 10,
        prepared_statements: bool | None = None,
        use_node_time: bool = False,
        nan_as_null: bool = False,
        migrate: bool = True,
        hooks: Plugins = (),
        events: Events | None = None,
    ) -> None:
        self._source = config.source(source, psycopg_pool.ConnectionPool)
        check_whole("max_pool_size", max_pool_size, smallest=1)
        if prepared_statements is not None:
            check_flag("prepared_statements", prepared_statements)
        check_flag("use_node_time", use_node_time)
        check_flag("nan_as_null", nan_as_null)
        check_flag("migrate", migrate)
        self._schema = config.schema_name(schema)
        self._max_pool_size = max_pool_size
        self._prepared_statements = prepared_statements
        self._use_node_time = use_node_time
        self._migrates = migrate
        self._hooks = Hooks(hooks)
        if events is not None:
            check_is("events", events, Events, how="an object made by Events()")
        self.events = Events() if events is None else events
        """Where to subscribe to what happens."""
        self._hooks.setup(self.events)
        self._around = self._hooks.around_adding(self.events, nan_as_null=nan_as_null)
        # By process, because a forked process has this object, too.
        self._openings: dict[int, _Opening] = {}
        self._locks: dict[int, Lock] = {}

    def __enter__(self) -> Self:
        opening = self._openings[os.getpid()] = self._open()
        try:
            if self._migrates:
                self.migrate()
                found = opening.database.run(read_rights(self._schema, rights.LOOKING))
                rights.check_rights(found, self._schema)
            else:
                opening.database.drive(migrate.check_installed(self._schema))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What the parent of a forked process has opened is the parent's to close.
        opening = self._openings.pop(os.getpid(), None)
        if opening is not None:
            opening.stack.close()

    def _open(self) -> _Opening:
        stack = ExitStack()
        pool = stack.enter_context(
            opened_sync_pool(
                self._source,
                max_size=self._max_pool_size,
                prepared_statements=self._prepared_statements,
            )
        )
        database = SyncDatabase(
            pool,
            schema=self._schema,
            prepared_statements=self._prepared_statements is not False,
            use_node_time=self._use_node_time,
        )
        return _Opening(database, stack)

    @property
    def _database(self) -> SyncDatabase:
        opening = self._openings.get(os.getpid())
        if opening is not None:
            return opening.database
        if not self._openings:
            raise GraphileWorkerError("this SyncWorkerUtils was not entered: use `with`")
        return self._open_after_fork()

    def _open_after_fork(self) -> SyncDatabase:
        """Connections of this process, in place of those that belong to its parent."""
        if not isinstance(self._source, str):
            raise GraphileWorkerError(
                f"this SyncWorkerUtils was opened by process {min(self._openings)}, before a fork, "
                f"with a pool of yours whose connections belong to that process: open another "
                f"pool and SyncWorkerUtils in each process, in gunicorn from `post_fork`"
            )
        with self._locks.setdefault(os.getpid(), Lock()):
            if os.getpid() not in self._openings:
                self._openings[os.getpid()] = self._open()
        return self._openings[os.getpid()].database

    @property
    def pool(self) -> psycopg_pool.ConnectionPool[Any]:
        """The connection pool, for transactions that add jobs with other data."""
        return self._database.pool

    def migrate(self) -> None:
        """Install or upgrade the schema. See `WorkerUtils.migrate`."""
        if self._hooks.wraps("bootstrap", "migrate"):
            self._migrate_within_plugins()
        else:
            migrate.migrate_blocking(self._database)

    def _migrate_within_plugins(self) -> None:
        # Plugins are asynchronous. They get an event loop of their own, in a thread, because the
        # caller's thread may have one that is running.
        dsn = target_of(self._database.pool)
        _check_migrates_alike(self._database.pool)

        async def run() -> None:
            async with opened_pool(dsn, max_size=2) as pool:
                await migrate.migrate(Database(pool, schema=self._schema), self._hooks)

        with ThreadPoolExecutor(1, "graphile-worker-py-migrate") as executor:
            executor.submit(lambda: asyncio.run(run())).result()

    def add_job(
        self,
        identifier: str | TaskName[PayloadT],
        payload: PayloadT | None = None,
        *,
        conn: SyncGiven | None = None,
        **options: Unpack[SpecOptions],
    ) -> Job:
        """Add a job. See `WorkerUtils.add_job`."""
        return self._add([JobSpec(identifier, payload, **options)], conn)[0]  # pyright: ignore[reportArgumentType]

    def add_jobs(self, specs: Iterable[JobSpec], *, conn: SyncGiven | None = None) -> list[Job]:
        """Add many jobs, all or none. See `WorkerUtils.add_jobs`."""
        statements.check_iterable(specs)
        return self._add(list(specs), conn, first=0)

    def add_jobs_from(
        self,
        specs: Iterable[JobSpec],
        *,
        chunk_size: int = statements.STREAM_CHUNK,
        conn: SyncGiven | None = None,
    ) -> int:
        """Add any number of jobs in bounded memory. See `WorkerUtils.add_jobs_from`."""
        statements.check_chunk_size(chunk_size)
        added = 0
        try:
            for chunk in statements.chunks(specs, chunk_size):
                self._add(chunk, conn, first=added)
                added += len(chunk)
        except Exception as error:
            statements.note_added(error, added)
            raise
        return added

    def complete_jobs(
        self, ids: Iterable[int | str], *, conn: SyncGiven | None = None
    ) -> list[Job]:
        """Delete jobs as if they had succeeded. See `WorkerUtils.complete_jobs`."""
        return self._run(admin.complete_jobs(ids), conn)

    def permanently_fail_jobs(
        self,
        ids: Iterable[int | str],
        reason: str | None = None,
        *,
        conn: SyncGiven | None = None,
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
        conn: SyncGiven | None = None,
    ) -> list[Job]:
        """Change when and how often jobs run. See `WorkerUtils.reschedule_jobs`."""
        query = admin.reschedule_jobs(
            ids, run_at=run_at, priority=priority, attempts=attempts, max_attempts=max_attempts
        )
        return self._run(query, conn)

    def remove_job(self, job_key: str, *, conn: SyncGiven | None = None) -> Job | None:
        """Delete the job with a key. See `WorkerUtils.remove_job`."""
        return self._run(admin.remove_job(job_key), conn)

    def force_unlock_workers(
        self,
        pool_ids: Iterable[str],
        *,
        force: bool = False,
        conn: SyncGiven | None = None,
    ) -> Unlocked:
        """Release the locks of dead worker pools. See `WorkerUtils.force_unlock_workers`."""
        if force:
            return self._run(admin.force_unlock_workers(pool_ids), conn)
        return self._run_steps(admin.unlock_dead_workers(pool_ids, self._schema), conn)

    def cleanup(
        self,
        tasks: Iterable[CleanupTask | str] | None = None,
        *,
        task_identifiers_to_keep: Iterable[str] | None = None,
        older_than: timedelta | str | None = None,
        conn: SyncGiven | None = None,
    ) -> dict[CleanupTask, int]:
        """Delete what is no longer needed. See `WorkerUtils.cleanup`."""
        queries = cleaning.cleanup(tasks, task_identifiers_to_keep, older_than)
        return {task: self._run(query, conn) for task, query in queries.items()}

    def preview_cleanup(
        self,
        tasks: Iterable[CleanupTask | str] | None = None,
        *,
        task_identifiers_to_keep: Iterable[str] | None = None,
        older_than: timedelta | str | None = None,
        conn: SyncGiven | None = None,
    ) -> dict[CleanupTask, CleanupPreview]:
        """Count the rows that `cleanup` would delete. See `WorkerUtils.preview_cleanup`."""
        queries = cleaning.preview(tasks, task_identifiers_to_keep, older_than)
        return {task: self._run(query, conn) for task, query in queries.items()}

    def _run(self, query: Query[T], conn: SyncGiven | None) -> T:
        own = None if conn is None else taken_blocking(conn)
        return self._database.run(query, conn=own)

    def _run_steps(self, steps: Steps[T], conn: SyncGiven | None) -> T:
        own = None if conn is None else taken_blocking(conn)
        return self._database.drive(steps, conn=own)

    def _add(
        self, specs: Sequence[JobSpec], conn: SyncGiven | None, *, first: int | None = None
    ) -> list[Job]:
        own = None if conn is None else taken_blocking(conn)
        if self._around.wrap is None:
            jobs = self._add_to_database(specs, own, first)
            self._around.emit(jobs)
            return jobs

        async def add(specs: Sequence[JobSpec]) -> list[Job]:
            return self._add_to_database(specs, own, first)

        statements.check_specs(specs, first=first)
        return self._around.added(specs, _finished(self._around.wrap(add)(specs)))

    def _add_to_database(
        self, specs: Sequence[JobSpec], conn: Connection[Any] | None, first: int | None
    ) -> list[Job]:
        wanted = statements.checked_specs(specs, now=self._database.now(), first=first)
        nan_as_null = self._around.nan_as_null
        if conn is None and first is None and can_share(wanted[0]):
            payload = statements.payload_of(wanted[0], nan_as_null=nan_as_null)
            return [self._database.shared(SyncGathering).add(wanted[0], payload)]
        schema = self._database.statements.schema
        addition = Addition(wanted, schema=schema, first=first, nan_as_null=nan_as_null)
        if not addition.needs_transaction:
            return self._database.drive(addition.steps(), conn=conn)

        def attempt() -> list[Job]:
            with self._database.transaction(conn) as own:
                steps = addition.steps(
                    copy_to=self._schema if can_copy(own) else None, own_transaction=conn is None
                )
                return self._database.drive(steps, conn=own)

        return attempt() if conn is not None else self._database.until_won(attempt)


def _finished(work: Awaitable[T]) -> T:
    """The result of plugins that await nothing but each other and what does not wait."""
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    steps.close()
    raise GraphileWorkerError(
        "add_jobs of a plugin awaited something other than `proceed`: SyncWorkerUtils has no "
        "event loop"
    )


def _check_migrates_alike(pool: psycopg_pool.ConnectionPool[Any]) -> None:
    """Refuse what connections of an asynchronous pool can't have from a pool of the caller's."""
    changes = {
        "configure": pool._configure is not None,
        "connection_class": not (
            isinstance(pool, idle.Pool) or pool.connection_class is psycopg.Connection
        ),
    }
    for name, changed in changes.items():
        if changed:
            raise ConfigurationError(
                f"the pool has `{name}=`, which asynchronous plugins that wrap migrations can't "
                f"use: migrate with WorkerUtils, then use SyncWorkerUtils(pool, migrate=False)"
            )
