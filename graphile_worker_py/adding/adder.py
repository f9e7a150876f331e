"""Add jobs from a program with an event loop."""

import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias, Unpack

from psycopg import AsyncConnection

from graphile_worker_py.adding import statements
from graphile_worker_py.adding.gathering import Gathering
from graphile_worker_py.adding.statements import Addition
from graphile_worker_py.adding.together import can_share
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.events import Events, JobsAdded
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec, PayloadT, SpecOptions, TaskName
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.given import AsyncGiven, OtherConnection, taken_to_add
from graphile_worker_py.postgres.query import can_copy
from graphile_worker_py.records import Record

AddJobs: TypeAlias = Callable[[Sequence[JobSpec]], Awaitable[Sequence[Job]]]


class Around(Record):
    """What happens around adding jobs.

    Args:
        wrap: Puts plugins around it; None means that there are none.
        events: Where to emit events; None means that nothing subscribes.
        nan_as_null: Whether NaN and infinities in payloads become null, instead of being refused.
    """

    wrap: Callable[[AddJobs], AddJobs] | None = None
    events: Events | None = None
    nan_as_null: bool = False

    def added(self, specs: Sequence[JobSpec], jobs: Sequence[Job]) -> list[Job]:
        """Check what plugins return for the specs, and emit the event."""
        if len(jobs) != len(specs):
            raise GraphileWorkerError(
                f"add_jobs of a plugin must return one job for each spec: it returned "
                f"{len(jobs)} for {len(specs)}"
            )
        self.emit(jobs)
        return list(jobs)

    def emit(self, jobs: Sequence[Job]) -> None:
        """Emit the event about jobs that were added."""
        if jobs and self.events is not None and self.events.wants(JobsAdded):
            self.events.emit(JobsAdded(jobs=tuple(jobs)))


NOTHING_AROUND = Around()


class JobAdder:
    """Adds jobs to a database; base of `WorkerUtils`, `Runner` and `JobContext`."""

    _opened: Database | None = None
    _around: Around = NOTHING_AROUND

    def __init__(self, database: Database, around: Around = NOTHING_AROUND) -> None:
        self._opened = database
        self._around = around

    @property
    def _database(self) -> Database:
        if self._opened is None:
            raise GraphileWorkerError(
                f"this {type(self).__name__} was not entered: use `async with`"
            )
        if self._opened.process_id != os.getpid():
            raise GraphileWorkerError(
                f"this {type(self).__name__} was opened by process {self._opened.process_id}, "
                f"before a fork, and its connections belong to that process: open another one in "
                f"each process, in gunicorn from `post_fork`"
            )
        return self._opened

    async def add_job(
        self,
        identifier: str | TaskName[PayloadT],
        payload: PayloadT | None = None,
        *,
        conn: AsyncGiven | None = None,
        **options: Unpack[SpecOptions],
    ) -> Job:
        """Add a job, or replace the waiting job with the same `job_key`.

        Args:
            identifier: The task that runs it, or its name.
            payload: Any JSON value, or what the task is annotated with (a dataclass, `TypedDict`,
                msgspec `Struct`, pydantic model); None means an empty object.
            conn: Connection to use; the job is then part of its transaction. It is one of psycopg
                or asyncpg, or an `AsyncSession` or `AsyncConnection` of SQLAlchemy over either.
                None means one from the pool, and the job is committed on return.
            options: `queue_name`, `run_at`, `run_in`, `priority`, `max_attempts`, `job_key`,
                `job_key_mode`, `flags` and `awaited`, explained at `JobSpec`.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
            psycopg.OperationalError: The database can't be reached, or did not answer within a
                minute. If the connection was lost, the job may have been added nevertheless. A
                connection of yours has no such limit.
            psycopg.Error: The database could not add it.
        """
        return (await self._add([JobSpec(identifier, payload, **options)], conn))[0]  # pyright: ignore[reportArgumentType]

    async def add_jobs(
        self, specs: Iterable[JobSpec], *, conn: AsyncGiven | None = None
    ) -> list[Job]:
        """Add many jobs, all or none; the result is in the order of the specs.

        Of several specs with one `job_key` the last one counts.

        Args:
            specs: The jobs; all of them are in memory at once, which `add_jobs_from` avoids.
            conn: As for `add_job`.

        Raises:
            ConfigurationError: A value is not allowed; the message names it, and its place.
            psycopg.Error: The database could not add them.
        """
        statements.check_iterable(specs)
        return await self._add(list(specs), conn, first=0)

    async def add_jobs_from(
        self,
        specs: Iterable[JobSpec] | AsyncIterable[JobSpec],
        *,
        chunk_size: int = statements.STREAM_CHUNK,
        conn: AsyncGiven | None = None,
    ) -> int:
        """Add any number of jobs from a file, a query or a generator, in bounded memory.

        Jobs are added in chunks, each all or none as by `add_jobs`. The next specs are read once
        a chunk is committed. After an error the earlier chunks stay, unless they are in a
        transaction of the caller's; a note on the exception says how many jobs they are.

        Args:
            specs: The jobs. A `job_key` may be repeated: later chunks treat the job of an earlier
                chunk like any waiting job.
            chunk_size: Jobs in a chunk; this many are in memory at once.
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
                    await self._add(chunk, conn, first=added)
                    added += len(chunk)
        except Exception as error:
            statements.note_added(error, added)
            raise
        return added

    async def _add(
        self,
        specs: Sequence[JobSpec],
        conn: AsyncGiven | None,
        *,
        first: int | None = None,
    ) -> list[Job]:
        taken = None if conn is None else await taken_to_add(conn)
        add = partial(self._add_to_database, conn=taken, first=first)
        if self._around.wrap is None:
            jobs = await add(specs)
            self._around.emit(jobs)
            return jobs
        statements.check_specs(specs, first=first)
        return self._around.added(specs, await self._around.wrap(add)(specs))

    async def _add_to_database(
        self,
        specs: Sequence[JobSpec],
        *,
        conn: AsyncConnection[Any] | OtherConnection | None,
        first: int | None,
    ) -> list[Job]:
        wanted = statements.checked_specs(specs, now=self._database.now(), first=first)
        if conn is None and first is None and can_share(wanted[0]):
            payload = statements.payload_of(wanted[0], nan_as_null=self._around.nan_as_null)
            return [await self._database.shared(Gathering).add(wanted[0], payload)]
        addition = Addition(
            wanted,
            schema=self._database.schema,
            first=first,
            nan_as_null=self._around.nan_as_null,
        )
        if isinstance(conn, OtherConnection):
            return await conn.drive(
                addition.steps(),
                self._database.statements,
                in_transaction=addition.needs_transaction,
            )
        if not addition.needs_transaction:
            return await self._database.drive(addition.steps(), conn=conn)

        async def attempt() -> list[Job]:
            async with self._database.transaction(conn) as own:
                steps = addition.steps(
                    copy_to=self._database.schema if can_copy(own) else None,
                    own_transaction=conn is None,
                )
                return await self._database.drive(steps, conn=own)

        return await (attempt() if conn is not None else self._database.until_won(attempt))


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
