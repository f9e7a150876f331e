"""What a task in a thread is given besides its payload."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from logging import Logger, LoggerAdapter
from typing import Any, TypeVar, Unpack

import psycopg
from psycopg import (
    AsyncClientCursor,
    AsyncCursor,
    AsyncRawCursor,
    ClientCursor,
    Connection,
    Cursor,
    RawCursor,
)

from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.forks import Unsendable
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec, PayloadT, SpecOptions, TaskName
from graphile_worker_py.postgres.connecting import connection_target
from graphile_worker_py.postgres.given import SyncGiven, taken_blocking
from graphile_worker_py.postgres.lent_session import Session
from graphile_worker_py.tasks.abort import AbortReason
from graphile_worker_py.tasks.completing import (
    Completion,
    check_open,
    complete_in_thread,
    completing_in_thread,
    still_held,
)
from graphile_worker_py.tasks.context import JobContext, RunningJob
from graphile_worker_py.tasks.job_log import delay_to_log

T = TypeVar("T")


class SyncJobContext(Unsendable):
    """What a task in a thread knows of its job, and what it can do with its pool's database.

    Its methods are those of `JobContext`. They block the thread, not the event loop.

    Attributes:
        job: The job, as it was fetched.
        worker_id: Id of the worker that runs it.
        pool_id: Id of the worker's pool, which has locked the job under this name.
    """

    _send_instead = "ctx.job.id or the payload"

    def __init__(self, running: RunningJob) -> None:
        self.job = running.job
        self.worker_id = running.worker_id
        self.pool_id = running.pool.pool_id
        self._running = running
        self._context = running.context
        self._abort = running.abort  # made here, on the event loop
        self._loop = asyncio.get_running_loop()

    @property
    def abort_event(self) -> threading.Event:
        """Set when the job should end. See `JobContext.abort_event`."""
        return self._abort.thread_event

    @property
    def abort_reason(self) -> AbortReason | None:
        """Why `abort_event` is set. See `JobContext.abort_reason`."""
        return self._abort.reason

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled. See `JobContext.cancelled`."""
        return self.abort_reason == "cancelled"

    def raise_if_cancelled(self) -> None:
        """End the task here if the job was cancelled. See `JobContext.raise_if_cancelled`."""
        if self.cancelled:
            raise asyncio.CancelledError("the job was cancelled")

    @property
    def logger(self) -> LoggerAdapter[Logger]:
        """A logger whose records carry the job's id, task, attempt, worker and pool."""
        return self._context.logger

    def add_job(
        self,
        identifier: str | TaskName[PayloadT],
        payload: PayloadT | None = None,
        **options: Unpack[SpecOptions],
    ) -> Job:
        """Add a job. See `WorkerUtils.add_job`; with a transaction, use `SyncWorkerUtils`."""
        return self.wait(self._context.add_job(identifier, payload, **options))

    def add_jobs(self, specs: Iterable[JobSpec]) -> list[Job]:
        """Add many jobs, all or none. See `WorkerUtils.add_jobs`."""
        return self.wait(self._context.add_jobs(specs))

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """Borrow a connection to the same database: `with ctx.connection() as conn`.

        It is in autocommit mode; open a transaction with `with conn.transaction()`. It is not one
        of the pool's.
        """
        self._check_caller()
        sessions = self._running.pool.thread_sessions
        session = sessions.take() or self._new_session()
        with sessions.lent(session, self._loop) as conn:
            yield conn

    def _new_session(self) -> Session[Connection[Any]]:
        dsn, kwargs = self.wait(connection_target(self._running.pool.database.pool))
        if "cursor_factory" in kwargs:
            kwargs["cursor_factory"] = _blocking(kwargs["cursor_factory"])
        conn = Connection.connect(dsn, **{**kwargs, "autocommit": True})
        return Session(conn, is_kept=True)

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """Complete the job together with its effects. See `JobContext.transaction`.

        To add jobs in the transaction, use `SyncWorkerUtils.add_job(..., conn=conn)`.
        """
        check_open(self._running)  # before it waits for the turn that another block has
        completing = self._running.pool.completing
        self.wait(completing.acquire())
        try:
            with (
                self.connection() as conn,
                completing_in_thread(
                    self._running, conn, lambda running: self.wait(still_held(running))
                ),
            ):
                yield conn
        finally:
            self._loop.call_soon_threadsafe(completing.release)

    def complete_with(self, conn: SyncGiven) -> None:
        """Complete the job on the task's own connection. See `JobContext.complete_with`."""
        check_open(self._running)
        complete_in_thread(self._running, taken_blocking(conn))
        self._running.completion = Completion.ASKED

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Report how far the job is. See `JobContext.progress`."""
        self._context.progress(done, total, message)

    @property
    def cursor(self) -> Any:
        """What `checkpoint` has left. See `JobContext.cursor`."""
        return self._context.cursor

    def checkpoint(self, cursor: Any) -> None:
        """Keep a value from which the next attempt can go on. See `JobContext.checkpoint`."""
        self.wait(self._context.checkpoint(cursor))

    def set_result(self, result: Any) -> None:
        """Set the result that is kept. See `JobContext.set_result`."""
        self._running.result = result

    def with_retries(self, callback: Callable[[Connection[Any]], T], /) -> T:
        """Call a function with a connection, again after errors that may pass.

        See `JobContext.with_retries`.
        """
        failures = 0
        while True:
            try:
                with self.connection() as conn:
                    return callback(conn)
            except psycopg.Error as error:
                failures += 1
                delay = delay_to_log(error, failures=failures, log=self.logger)
                if delay is None or self.abort_event.wait(delay):
                    raise

    def get_queue_name(self, queue_id: int | None = None) -> str | None:
        """Name of the job's serial queue, or of another one. See `JobContext.get_queue_name`."""
        return self.wait(self._context.get_queue_name(queue_id))

    @property
    def async_context(self) -> JobContext:
        """The context for what the event loop does for this job."""
        return self._context

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the event loop of the worker await a coroutine, and return what it returns.

        Raises:
            GraphileWorkerError: The worker has ended, or the event loop itself calls this.
            Exception: What the coroutine raises.
        """
        try:
            self._check_caller()
        except GraphileWorkerError:
            work.close()
            raise
        try:
            done = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:  # the loop is closed
            work.close()
            raise GraphileWorkerError(
                f"the worker that began job {self.job.id} has ended"
            ) from error
        return done.result()

    def _check_caller(self) -> None:
        begun_by = self._running.pool.database.process_id
        if begun_by != os.getpid():
            raise GraphileWorkerError(
                f"job {self.job.id} was begun by process {begun_by}, whose connections and event "
                f"loop a fork can't use: use SyncWorkerUtils in the fork"
            )
        if _runs_here(self._loop):
            raise GraphileWorkerError(
                f"the context of job {self.job.id} blocks until the event loop has done its work, "
                f"which is what calls it here: await the same method of ctx.async_context"
            )


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _blocking(cursor_factory: type[AsyncCursor[Any]]) -> type[Cursor[Any]]:
    """The class of cursors that do the same as those of the pool, without an event loop."""
    twins = {AsyncRawCursor: RawCursor, AsyncClientCursor: ClientCursor}
    return next((twins[kind] for kind in twins if issubclass(cursor_factory, kind)), Cursor)
