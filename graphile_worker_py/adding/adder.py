"""Add jobs from a program with an event loop."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from datetime import datetime
from typing import Any, TypeVar

from psycopg import AsyncConnection

from graphile_worker_py.adding import statements
from graphile_worker_py.adding.statements import Addition
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.job import Job, JobKeyMode, JobSpec, PayloadT, TaskName
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Steps, can_copy
from graphile_worker_py.sql.add_jobs import BEGIN

T = TypeVar("T")


class JobAdder:
    """Adds jobs to a database; what `WorkerUtils`, `Runner` and a task's context share."""

    _opened: Database | None = None

    def __init__(self, database: Database) -> None:
        self._opened = database

    @property
    def _database(self) -> Database:
        if self._opened is None:
            raise GraphileWorkerError(
                f"this {type(self).__name__} was not entered: use `async with`"
            )
        return self._opened

    async def add_job(
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
        conn: AsyncConnection[Any] | None = None,
    ) -> Job:
        """Add a job, or replace the one that waits with the same `job_key`.

        Args:
            identifier: The task that is to run it, or its name.
            payload: Any JSON value, or what the task is annotated with (a dataclass, `TypedDict`,
                msgspec `Struct`, pydantic model); None means an empty object.
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
            psycopg.OperationalError: The database can't be reached, or did not answer within a
                minute. It may have been added all the same, if the way to the server was lost. On
                a connection of yours there is no such limit.
            psycopg.Error: The database could not add it.
        """
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
        return await self._drive(statements.add_one(spec), conn)

    async def add_jobs(
        self, specs: Iterable[JobSpec], *, conn: AsyncConnection[Any] | None = None
    ) -> list[Job]:
        """Add many jobs, all or none; the results stand in the order of the specs.

        Of several specs with one `job_key` the last one counts.

        Args:
            specs: The jobs; all of them are in memory at once, which `add_jobs_from` avoids.
            conn: As for `add_job`.

        Raises:
            ConfigurationError: A value is not allowed; the message names it, and its place.
            psycopg.Error: The database could not add them.
        """
        wanted = statements.checked_specs(specs, now=self._database.now())
        return await self._add(Addition(wanted, own_transaction=conn is None), conn)

    async def add_jobs_from(
        self,
        specs: Iterable[JobSpec] | AsyncIterable[JobSpec],
        *,
        chunk_size: int = statements.STREAM_CHUNK,
        conn: AsyncConnection[Any] | None = None,
    ) -> int:
        """Add jobs as they come from a file, a query, a generator; any number in little memory.

        They are added in chunks, each all or none as by `add_jobs`. More specs are asked for
        once a chunk is committed. If something goes wrong, the chunks before stay, unless
        they are in a transaction of the caller's; a note on the exception says how many jobs
        those are.

        Args:
            specs: The jobs. One `job_key` may come again: later chunks treat the job of an
                earlier one as any job that waits.
            chunk_size: Jobs in a chunk; so many are in memory at once.
            conn: As for `add_job`; without a transaction of the caller's, each chunk is one.

        Returns:
            How many specs there were.

        Raises:
            ConfigurationError: A value is not allowed; the message names it, and its place.
            psycopg.Error: The database could not add them.
        """
        statements.check_chunk_size(chunk_size)
        added = 0
        try:
            async with aclosing(_chunks(specs, chunk_size)) as chunks:
                async for chunk in chunks:
                    now = self._database.now()
                    wanted = statements.checked_specs(chunk, now=now, first=added)
                    addition = Addition(wanted, own_transaction=conn is None, first=added)
                    await self._add(addition, conn)
                    added += len(chunk)
        except Exception as error:
            statements.note_added(error, added)
            raise
        return added

    async def _add(self, addition: Addition, conn: AsyncConnection[Any] | None) -> list[Job]:
        if conn is not None:
            check_async(conn)
        if addition.is_one_statement:
            for query in addition.statements():
                await self._database.run(query, conn=conn)
            return addition.jobs()
        if conn is None:
            async with self._database.pool.connection() as own, own.transaction():
                return await self._add_all(addition, own)
        if statements.ends_with_first_block(conn):
            await conn.execute(BEGIN)
        async with conn.transaction():
            return await self._add_all(addition, conn)

    async def _add_all(self, addition: Addition, conn: AsyncConnection[Any]) -> list[Job]:
        copying = addition.copying(self._database.schema) if can_copy(conn) else None
        if copying is not None and await self._drive(copying.prepared(), conn):
            await self._database.copy_in(copying.statement, copying.blocks(), conn=conn)
            return copying.jobs
        while not addition.is_complete:
            await self._database.run_each(addition.statements(), conn=conn)
        return addition.jobs()

    async def _drive(self, steps: Steps[T], conn: AsyncConnection[Any] | None) -> T:
        if conn is not None:
            check_async(conn)
        return await self._database.drive(steps, conn=conn)


async def _chunks(
    specs: Iterable[JobSpec] | AsyncIterable[JobSpec], size: int
) -> AsyncGenerator[list[JobSpec], None]:
    if not isinstance(specs, AsyncIterable):
        for chunk in statements.chunks(specs, size):
            yield chunk
        return
    gathered: list[JobSpec] = []
    async for spec in specs:
        gathered.append(spec)
        if len(gathered) == size:
            yield gathered
            gathered = []
    if gathered:
        yield gathered


def check_async(conn: object) -> None:
    """Check that a caller's connection is one for programs with an event loop."""
    if not isinstance(conn, AsyncConnection):
        raise ConfigurationError(
            f"conn must be a psycopg.AsyncConnection here, not {conn!r}; "
            f"SyncWorkerUtils takes a psycopg.Connection"
        )
