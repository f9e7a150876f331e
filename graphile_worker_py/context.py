"""What a task is given besides its payload."""

import asyncio
import logging
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import datetime
from typing import Any, TypeVar

from psycopg import AsyncConnection, Connection

from graphile_worker_py.db import Database, connection_target
from graphile_worker_py.job import Job, JobKeyMode, JobSpec, PayloadT, TaskName
from graphile_worker_py.sql.queue_names import read_queue_names
from graphile_worker_py.worker_utils import JobAdder

T = TypeVar("T")


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
    ) -> None:
        super().__init__(database)
        self.job = job
        self.worker_id = worker_id
        self.pool_id = pool_id
        self.abort_event = abort.event
        self._logger = logger

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the job's id, task, attempt, worker and pool."""
        return job_logger(self._logger, self.job, self.worker_id, self.pool_id)

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Borrow a connection of the pool: `async with ctx.connection() as conn`.

        It is in autocommit mode, unless the pool is a caller's own; open a transaction with
        `async with conn.transaction()`.
        """
        return self._database.pool.connection()

    async def get_queue_name(self) -> str | None:
        """Name of the job's serial queue; None if it has none."""
        return await _queue_name(self._database, self.job)


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
    ) -> None:
        self.job = job
        self.worker_id = worker_id
        self.pool_id = pool_id
        self.abort_event = abort.thread_event
        self._logger = logger
        self._database = database
        self._adder = JobAdder(database)
        self._loop = asyncio.get_running_loop()

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the job's id, task, attempt, worker and pool."""
        return job_logger(self._logger, self.job, self.worker_id, self.pool_id)

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
    ) -> Job:
        """Add a job. See `WorkerUtils.add_job`; with a transaction, use `SyncWorkerUtils`."""
        return self._wait(
            self._adder.add_job(
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
        )

    def add_jobs(self, specs: Iterable[JobSpec]) -> list[Job]:
        """Add many jobs, all or none. See `WorkerUtils.add_jobs`."""
        return self._wait(self._adder.add_jobs(specs))

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """A connection to the same database, made for this task: `with ctx.connection() as conn`.

        It is in autocommit mode; open a transaction with `with conn.transaction()`.
        """
        dsn, kwargs = self._wait(connection_target(self._database.pool))
        with Connection.connect(dsn, **{**kwargs, "autocommit": True}) as conn:
            yield conn

    def get_queue_name(self) -> str | None:
        """Name of the job's serial queue; None if it has none."""
        return self._wait(_queue_name(self._database, self.job))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


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


async def _queue_name(database: Database, job: Job) -> str | None:
    if job.job_queue_id is None:
        return None
    return (await database.run(read_queue_names([job.job_queue_id]))).get(job.job_queue_id)
