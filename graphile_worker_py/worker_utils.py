"""What a program may do with jobs without running them: add and administer."""

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg_pool
from psycopg import AsyncConnection, Connection

from graphile_worker_py import adding, config, migrate
from graphile_worker_py.adding import Steps
from graphile_worker_py.db import (
    AsyncPool,
    Database,
    SyncDatabase,
    opened_pool,
    opened_sync_pool,
)
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import Job, JobKeyMode, JobSpec

T = TypeVar("T")


class JobAdder:
    """Adds jobs to a database; what `WorkerUtils`, `Runner` and a task's context share."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_job(
        self,
        identifier: str,
        payload: Any = None,
        *,
        queue_name: str | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        job_key: str | None = None,
        job_key_mode: JobKeyMode | str | None = None,
        flags: Iterable[str] | None = None,
        conn: AsyncConnection[Any] | None = None,
    ) -> Job:
        """Add a job, or replace the one that waits with the same `job_key`.

        Args:
            identifier: Name of the task that is to run it.
            payload: Any JSON value; None means an empty object.
            queue_name: Serial queue: its jobs run one after the other. None means no queue.
            run_at: Not before this time, an aware datetime; None means now.
            priority: Smaller runs first; None means 0.
            max_attempts: The job is given up after so many failures; None means 25.
            job_key: A name that at most one waiting job can have; None means no key.
            job_key_mode: What happens if the key is taken; None means `replace`.
            flags: Names by which workers may refuse the job.
            conn: Connection to use; the job is then part of its transaction. None means one from
                the pool, and the job is committed on return.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
            psycopg.Error: The database could not add it.
        """
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
        return await self._drive(adding.add_one(spec), conn)

    async def add_jobs(
        self, specs: Iterable[JobSpec], *, conn: AsyncConnection[Any] | None = None
    ) -> list[Job]:
        """Add many jobs, all or none; the results stand in the order of the specs.

        Of several specs with one `job_key` the last one counts.

        Args:
            specs: The jobs.
            conn: As for `add_job`.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
            psycopg.Error: The database could not add them.
        """
        wanted = checked_specs(specs)
        steps = adding.add_many(wanted)
        if adding.statements_needed(wanted) <= 1:
            return await self._drive(steps, conn)
        if conn is not None:
            _check_async(conn)
            async with conn.transaction():
                return await self._drive(steps, conn)
        async with self._database.pool.connection() as own, own.transaction():
            return await self._drive(steps, own)

    async def _drive(self, steps: Steps[T], conn: AsyncConnection[Any] | None) -> T:
        if conn is not None:
            _check_async(conn)
        try:
            query = next(steps)
            while True:
                query = steps.send(await self._database.run(query, conn=conn))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class WorkerUtils(JobAdder):
    """Adds and administers jobs; an async context manager.

    Entering it installs or upgrades the schema where that is needed, as Graphile Worker does.

    Args:
        source: A connection string, a `psycopg_pool.AsyncConnectionPool` of the caller's, or None
            for `DATABASE_URL` or libpq's variables.
        schema: Schema of the job tables; None means `GRAPHILE_WORKER_SCHEMA`, else
            `graphile_worker`.
        max_pool_size: Most connections to hold.
        prepared_statements: Off behind poolers that can't do them.
    """

    def __init__(
        self,
        source: str | AsyncPool | None = None,
        *,
        schema: str | None = None,
        max_pool_size: int = 10,
        prepared_statements: bool = True,
    ) -> None:
        self._source = config.conninfo(source) if source is None else source
        self._schema = config.schema_name(schema)
        self._max_pool_size = max_pool_size
        self._prepared_statements = prepared_statements
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        pool = await self._stack.enter_async_context(
            opened_pool(self._source, max_size=self._max_pool_size)
        )
        database = Database(
            pool, schema=self._schema, prepared_statements=self._prepared_statements
        )
        super().__init__(database)
        try:
            await self.migrate()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @property
    def pool(self) -> AsyncPool:
        """The connection pool, for transactions that add jobs with other data."""
        return self._database.pool

    async def migrate(self) -> None:
        """Install or upgrade the schema; nothing happens if it is up to date.

        Raises:
            MigrationError: It can't be done; the message says why.
        """
        await migrate.migrate(self._database)


async def add_job_adhoc(
    source: str | AsyncPool | None,
    identifier: str,
    payload: Any = None,
    *,
    schema: str | None = None,
    **spec: Any,
) -> Job:
    """Add one job on connections made for it; for scripts. See `WorkerUtils.add_job`.

    Args:
        source: As for `WorkerUtils`.
        identifier: Name of the task.
        payload: Any JSON value.
        schema: As for `WorkerUtils`.
        spec: The keyword arguments of `WorkerUtils.add_job`.
    """
    async with WorkerUtils(source, schema=schema, max_pool_size=2) as utils:
        return await utils.add_job(identifier, payload, **spec)


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
        dsn = self._database.pool.conninfo

        async def run() -> None:
            async with opened_pool(str(dsn), max_size=2) as pool:
                await migrate.migrate(Database(pool, schema=self._schema))

        with ThreadPoolExecutor(1, "graphile-worker-py-migrate") as executor:
            executor.submit(asyncio.run, run()).result()

    def add_job(
        self,
        identifier: str,
        payload: Any = None,
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
        if adding.statements_needed(wanted) <= 1:
            return self._drive(steps, conn)
        if conn is not None:
            _check_sync(conn)
            with conn.transaction():
                return self._drive(steps, conn)
        with self._database.pool.connection() as own, own.transaction():
            return self._drive(steps, own)

    def _drive(self, steps: Steps[T], conn: Connection[Any] | None) -> T:
        if conn is not None:
            _check_sync(conn)
        try:
            query = next(steps)
            while True:
                query = steps.send(self._database.run(query, conn=conn))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def checked_specs(specs: Iterable[JobSpec]) -> list[JobSpec]:
    """Check that specs are specs."""
    if isinstance(specs, str | bytes | Mapping) or not isinstance(specs, Iterable):
        raise ConfigurationError(f"jobs must be a list of JobSpec, not {specs!r}")
    wanted = list(specs)
    for spec in wanted:
        if not isinstance(spec, JobSpec):
            raise ConfigurationError(f"jobs must be JobSpec objects, not {spec!r}")
    return wanted


def _check_async(conn: object) -> None:
    if not isinstance(conn, AsyncConnection):
        raise ConfigurationError(
            f"conn must be a psycopg.AsyncConnection here, not {conn!r}; "
            f"SyncWorkerUtils takes a psycopg.Connection"
        )


def _check_sync(conn: object) -> None:
    if not isinstance(conn, Connection):
        raise ConfigurationError(
            f"conn must be a psycopg.Connection here, not {conn!r}; "
            f"WorkerUtils takes a psycopg.AsyncConnection"
        )
