"""What a task is given besides its payload."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Final, TypeVar, Unpack

import psycopg
from psycopg import (
    AsyncClientCursor,
    AsyncConnection,
    AsyncCursor,
    AsyncRawCursor,
    ClientCursor,
    Connection,
    Cursor,
    RawCursor,
)

from graphile_worker_py.adding.adder import NOTHING_AROUND, Around, JobAdder
from graphile_worker_py.aio import wait_for
from graphile_worker_py.errors import GraphileWorkerError, one_line
from graphile_worker_py.job import Job, JobSpec, PayloadT, SpecOptions, TaskName
from graphile_worker_py.postgres.connecting import connection_target
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.outages import delay_after
from graphile_worker_py.tasks.queue_names import QueueNames

T = TypeVar("T")

RETRIED: Final = "Database failed (%s); tries again in %.1f s"


class Abort:
    """The abort signal of a pool, as tasks on the loop and tasks in threads can see it."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.thread_event = threading.Event()

    def set(self) -> None:
        """Tell running jobs that they should end."""
        self.event.set()
        self.thread_event.set()


class JobContext(JobAdder):
    """What an async task knows of its job and may do beside it.

    Attributes:
        job: The job, as it was fetched.
        worker_id: Id of the worker that runs it.
        pool_id: Id of the worker's pool, which is what the job is locked by.
        abort_event: Set when the process wants to end and the job should, too: some seconds into
            a graceful stop (`graceful_shutdown_abort_timeout`), or at a forced one.
    """

    def __init__(
        self,
        job: Job,
        *,
        database: Database,
        abort: Abort,
        logger: logging.Logger,
        worker_id: str,
        pool_id: str,
        queue_names: QueueNames,
        adding: Around = NOTHING_AROUND,
    ) -> None:
        super().__init__(database, adding)
        self.job = job
        self.worker_id = worker_id
        self.pool_id = pool_id
        self.abort_event = abort.event
        self._logger = logger
        self._queue_names = queue_names

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the job's id, task, attempt, worker and pool."""
        return job_logger(self._logger, self.job, self.worker_id, self.pool_id)

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Borrow a connection of the pool: `async with ctx.connection() as conn`.

        It is in autocommit mode, unless the pool is a caller's own; open a transaction with
        `async with conn.transaction()`.
        """
        return self._database.connection()

    async def with_retries(self, callback: Callable[[AsyncConnection[Any]], Awaitable[T]], /) -> T:
        """Do something with a borrowed connection, again if it lost a race or was cut off.

        The callback is called anew, with another connection, after errors of the database that
        may pass: serialization failures, deadlocks, outages. There are up to 100 tries, with
        growing delays between them; none after `abort_event` is set.

        Args:
            callback: Awaited with a connection as `connection` gives it. What it did before it
                failed must not matter: let it open a transaction.

        Returns:
            What the callback returned.

        Raises:
            Exception: What the callback raised, at once if it is not of that kind.
        """
        failures = 0
        while True:
            try:
                async with self.connection() as conn:
                    return await callback(conn)
            except psycopg.Error as error:
                failures += 1
                delay = delay_after(error, failures=failures)
                if delay is None:
                    raise
                self.logger.warning(RETRIED, one_line(error), delay)
                if await wait_for(self.abort_event, delay):
                    raise

    async def get_queue_name(self, queue_id: int | None = None) -> str | None:
        """Name of the job's serial queue, or of another one; None if the job has none.

        Names are looked up for many tasks at once (`get_queue_name_batch_delay`), and kept.

        Args:
            queue_id: Id of the queue; None means that of the job.

        Raises:
            GraphileWorkerError: There is no queue with this id.
        """
        queue_id = self.job.job_queue_id if queue_id is None else queue_id
        return None if queue_id is None else await self._queue_names.get(queue_id)


class SyncJobContext:
    """What a task in a thread knows of its job and may do beside it; see `JobContext`.

    The methods block the thread, not the event loop.
    """

    def __init__(
        self,
        job: Job,
        *,
        database: Database,
        abort: Abort,
        logger: logging.Logger,
        worker_id: str,
        pool_id: str,
        queue_names: QueueNames,
        adding: Around = NOTHING_AROUND,
    ) -> None:
        self.job = job
        self.worker_id = worker_id
        self.pool_id = pool_id
        self.abort_event = abort.thread_event
        self._logger = logger
        self._queue_names = queue_names
        self._database = database
        self._adder = JobAdder(database, adding)
        self._loop = asyncio.get_running_loop()

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the job's id, task, attempt, worker and pool."""
        return job_logger(self._logger, self.job, self.worker_id, self.pool_id)

    def add_job(
        self,
        identifier: str | TaskName[PayloadT],
        payload: PayloadT | None = None,
        **options: Unpack[SpecOptions],
    ) -> Job:
        """Add a job. See `WorkerUtils.add_job`; with a transaction, use `SyncWorkerUtils`."""
        return self._wait(self._adder.add_job(identifier, payload, **options))

    def add_jobs(self, specs: Iterable[JobSpec]) -> list[Job]:
        """Add many jobs, all or none. See `WorkerUtils.add_jobs`."""
        return self._wait(self._adder.add_jobs(specs))

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """A connection to the same database, made for this task: `with ctx.connection() as conn`.

        It is in autocommit mode; open a transaction with `with conn.transaction()`.
        """
        dsn, kwargs = self._wait(connection_target(self._database.pool))
        if "cursor_factory" in kwargs:
            kwargs["cursor_factory"] = _blocking(kwargs["cursor_factory"])
        with Connection.connect(dsn, **{**kwargs, "autocommit": True}) as conn:
            yield conn

    def with_retries(self, callback: Callable[[Connection[Any]], T], /) -> T:
        """Do something with a connection, again if it lost a race or was cut off.

        See `JobContext.with_retries`.
        """
        failures = 0
        while True:
            try:
                with self.connection() as conn:
                    return callback(conn)
            except psycopg.Error as error:
                failures += 1
                delay = delay_after(error, failures=failures)
                if delay is None:
                    raise
                self.logger.warning(RETRIED, one_line(error), delay)
                if self.abort_event.wait(delay):
                    raise

    def get_queue_name(self, queue_id: int | None = None) -> str | None:
        """Name of the job's serial queue, or of another one. See `JobContext.get_queue_name`."""
        queue_id = self.job.job_queue_id if queue_id is None else queue_id
        return None if queue_id is None else self._wait(self._queue_names.get(queue_id))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            done = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:  # the loop is closed
            work.close()
            raise GraphileWorkerError(
                f"the worker that job {self.job.id} was begun by has ended"
            ) from error
        return done.result()


def _blocking(cursor_factory: type[AsyncCursor[Any]]) -> type[Cursor[Any]]:
    """The class of cursors that do the same as those of a caller's pool, without an event loop."""
    twins = {AsyncRawCursor: RawCursor, AsyncClientCursor: ClientCursor}
    return next((twins[kind] for kind in twins if issubclass(cursor_factory, kind)), Cursor)


def job_logger(
    logger: logging.Logger, job: Job, worker_id: str, pool_id: str
) -> logging.LoggerAdapter[logging.Logger]:
    """A logger whose records say which job they are about."""
    about = {
        "job_id": job.id,
        "task_identifier": job.task_identifier,
        "attempt": job.attempts,
        "worker_id": worker_id,
        "pool_id": pool_id,
    }
    return logging.LoggerAdapter(logger, about)
