"""What a task is given besides its payload."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py.adding.adder import JobAdder
from graphile_worker_py.aio import wait_for
from graphile_worker_py.clock import utc_now
from graphile_worker_py.errors import GraphileWorkerError, one_line
from graphile_worker_py.forks import Unsendable
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.postgres.given import AsyncGiven, taken
from graphile_worker_py.sql.job_state import NOTHING_LEFT, Progress
from graphile_worker_py.tasks.abort import Abort, AbortReason
from graphile_worker_py.tasks.completing import (
    Completion,
    check_held,
    check_open,
    complete,
    completing,
)
from graphile_worker_py.tasks.job_log import Capture, delay_to_log, job_logger
from graphile_worker_py.tasks.pool_context import PoolContext
from graphile_worker_py.tasks.progress import (
    MISSING,
    NO_CHECKPOINTS,
    checked_progress,
    checkpoint_of,
)
from graphile_worker_py.tasks.task import Task

T = TypeVar("T")


def cannot_leave(error: BaseException) -> None:
    """For jobs without a worker."""
    raise error


class RunningJob:
    """A job from the moment its task is called until its outcome is known.

    A worker makes one for each job and passes it to the call of the task (see `Executors`). The
    pool can ask a single job to end by `running.abort.set("shutdown")`. To ask all of them, it
    also sets `PoolContext.abort_reason`, which covers the jobs that begin afterwards.

    Attributes:
        pool: What it shares with the other jobs of its pool.
        job: The job, as it was fetched.
        worker_id: Id of the worker that runs it.
        started: When it began, by `time.perf_counter`.
        leave: Lets the worker go on without the job, which has failed with the given error.
        deadline: When its time limit ends, by the clock of the event loop; None means never.
        completion: Whether the task has completed the job itself.
        result: What the task set as its result.
        cancel_reason: Why the job was cancelled, if `abort.reason` says that it was.
        left: What earlier attempts have left: a cursor, snoozes.
        progress: What the task has reported last; None if it has reported nothing.
        reported: Whether that is written.
        capture: Keeps what the task logs; None keeps nothing.
        show: Asks where the task is; None if it runs in this process.
    """

    __slots__ = (
        "_abort",
        "_context",
        "cancel_reason",
        "capture",
        "completion",
        "deadline",
        "job",
        "leave",
        "left",
        "pool",
        "progress",
        "reported",
        "result",
        "show",
        "started",
        "worker_id",
    )

    def __init__(
        self,
        pool: PoolContext,
        job: Job,
        worker_id: str,
        leave: Callable[[BaseException], None] = cannot_leave,
    ) -> None:
        self.pool = pool
        self.leave = leave
        self.job = job
        self.worker_id = worker_id
        self.started = perf_counter()
        self.deadline: float | None = None
        self.completion = Completion.OPEN
        self.result: Any = None
        self.cancel_reason: str | None = None
        self.left = NOTHING_LEFT
        self.progress: Progress | None = None
        self.reported = True
        self.capture: Capture | None = None
        self.show: Callable[[], Awaitable[str]] | None = None
        self._abort: Abort | None = None
        self._context: JobContext | None = None

    @property
    def task(self) -> Task[Any]:
        """Its task."""
        return self.pool.tasks[self.job.task_identifier]

    @property
    def started_at(self) -> datetime:
        """When it began."""
        return utc_now() - timedelta(seconds=perf_counter() - self.started)

    @property
    def abort(self) -> Abort:
        """Its abort signal."""
        if self._abort is None:
            self._abort = Abort()
            if self.pool.abort_reason is not None:
                self._abort.set(self.pool.abort_reason)
        return self._abort

    @property
    def is_cancelled(self) -> bool:
        """Whether the job was cancelled while it ran."""
        return self._abort is not None and self._abort.reason == "cancelled"

    @property
    def context(self) -> "JobContext":
        """What its task is given besides the payload."""
        if self._context is None:
            self._context = JobContext(self)
        return self._context

    def end(self) -> None:
        """Let go of the context, which refers to this: a cycle would be garbage for each job."""
        self._context = None


class JobContext(Unsendable, JobAdder):
    """What an async task knows of its job, and what it can do with its pool's database.

    Attributes:
        job: The job, as it was fetched.
        worker_id: Id of the worker that runs it.
        pool_id: Id of the worker's pool, which has locked the job under this name.
    """

    _send_instead = "ctx.job.id or the payload"

    def __init__(self, running: RunningJob) -> None:
        super().__init__(running.pool.database, running.pool.adding)
        self.job = running.job
        self.worker_id = running.worker_id
        self.pool_id = running.pool.pool_id
        self._running = running
        # Within the block of `transaction`, its connection.
        self._in_transaction: AsyncConnection[Any] | None = None

    @property
    def abort_event(self) -> asyncio.Event:
        """Set when the job should end, because its process wants to.

        That is some seconds into a graceful stop (`graceful_shutdown_abort_timeout`), or at the
        beginning of a forced one.
        """
        return self._running.abort.event

    @property
    def abort_reason(self) -> AbortReason | None:
        """Why `abort_event` is set; None if it is not.

        `"shutdown"`: the worker pool shuts down. `"cancelled"`: the job was cancelled. `"lost"`:
        another pool took this one for dead and freed its jobs, so that another worker may run this
        one at the same time.
        """
        return self._running.abort.reason

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled, and should end. `abort_event` is set then, too."""
        return self.abort_reason == "cancelled"

    async def raise_if_cancelled(self) -> None:
        """End the task here if the job was cancelled.

        Raises:
            asyncio.CancelledError: It was.
        """
        await asyncio.sleep(0)  # the event loop may not have had a turn for long
        if self.cancelled:
            raise asyncio.CancelledError("the job was cancelled")

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the job's id, task, attempt, worker and pool."""
        running = self._running
        about = (running.pool.logger, self.job, self.worker_id, self.pool_id)
        return job_logger(*about, running.capture)

    @property
    def log_capture(self) -> Capture | None:
        """What keeps the logs of this attempt, for its run in the history; None keeps none."""
        return self._running.capture

    @log_capture.setter
    def log_capture(self, capture: Capture | None) -> None:
        self._running.capture = capture

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Borrow a connection of the pool: `async with ctx.connection() as conn`.

        It is in autocommit mode, unless the pool is the program's own; open a transaction with
        `async with conn.transaction()`.
        """
        return self._database.task_sessions.borrow()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Complete the job together with its effects: both are committed, or neither.

        `async with ctx.transaction() as conn:` opens a transaction on a borrowed connection. When
        the block ends, the job is completed in that transaction, which is then committed. Within
        the block, `add_job` and `add_jobs` use its connection. An error that leaves the block rolls
        everything back, and the job fails as usual. After the block the job is done: a later error
        is logged, not recorded.

        Each block takes one of the connections that `max_pool_size` leaves to tasks. One of them
        stays free, and further blocks wait for their turn. A cancelled block is rolled back.

        Raises:
            JobLostError: Another worker has the job; nothing was committed.
            GraphileWorkerError: The job was completed before, or another such block is open.
            psycopg.Error: A statement or the commit failed; nothing was committed.
        """
        check_open(self._running)  # before it waits for the turn that the other block has
        async with (
            self._running.pool.completing,
            self.connection() as conn,
            completing(self._running, conn),
        ):
            self._in_transaction = conn
            try:
                yield conn
            finally:
                self._in_transaction = None

    async def complete_with(self, conn: AsyncGiven) -> None:
        """Complete the job on the task's own connection, as the last statement before its commit.

        Effects and completion then commit together, or not at all. If the task's transaction is
        rolled back, the job goes on as if this had not been called.

        Raises:
            JobLostError: Another worker has the job; roll back.
            GraphileWorkerError: The job was completed before, or a `transaction` block is open.
            psycopg.Error: The statement failed.
        """
        check_open(self._running)
        await complete(self._running, await taken(conn))
        self._running.completion = Completion.ASKED

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Report how far the job is; `handle.state()` reads it, in any process.

        It is kept in memory and written with the next heartbeat, so it may be called as often as
        the task likes.

        Args:
            done: How much is done, of `total`; or a share, a float from 0 to 1.
            total: How much there is; None means that `done` is a share.
            message: What the task is doing.

        Raises:
            ConfigurationError: A value is not allowed; the message names it.
        """
        self._running.progress = checked_progress(done, total, message)
        self._running.reported = False

    @property
    def cursor(self) -> Any:
        """What `checkpoint` has left, in this attempt or an earlier one; None if nothing."""
        return self._running.left.cursor

    async def checkpoint(self, cursor: Any) -> None:
        """Keep a JSON value from which the next attempt of the job can go on; durable on return.

        Within the block of `transaction` it is part of that transaction.

        Raises:
            JobLostError: Another worker has the job.
            ConfigurationError: The value can't be written as JSON.
            GraphileWorkerError: The tables of history are missing.
            psycopg.Error: The database could not keep it.
        """
        query = checkpoint_of(self._running, cursor)
        try:
            ids = await self._database.run(query, conn=self._in_transaction)
        except MISSING as error:
            raise GraphileWorkerError(f"{NO_CHECKPOINTS} ({one_line(error)})") from error
        check_held(self._running, ids)
        self._running.left = replace(self._running.left, cursor=cursor)

    def set_result(self, result: Any) -> None:
        """Set the job's result, which is kept if results of its task are; return nothing then."""
        self._running.result = result

    async def _add(
        self,
        specs: Sequence[JobSpec],
        conn: AsyncGiven | None,
        *,
        first: int | None = None,
    ) -> list[Job]:
        conn = self._in_transaction if conn is None else conn
        return await super()._add(specs, conn, first=first)

    async def with_retries(self, callback: Callable[[AsyncConnection[Any]], Awaitable[T]], /) -> T:
        """Call a function with a borrowed connection, again after errors that may pass.

        Errors that may pass are serialization failures, deadlocks and outages. Each try gets
        another connection. There are up to 100 tries, with growing delays between them; no further
        one once `abort_event` is set.

        Args:
            callback: Awaited with a connection as `connection` gives it. It must be safe to repeat
                after a failure: let it open a transaction.

        Returns:
            What the callback returned.

        Raises:
            Exception: What the callback raised; at once if a retry can't help.
        """
        failures = 0
        while True:
            try:
                async with self.connection() as conn:
                    return await callback(conn)
            except psycopg.Error as error:
                failures += 1
                delay = delay_to_log(error, failures=failures, log=self.logger)
                if delay is None or await wait_for(self.abort_event, delay):
                    raise

    async def get_queue_name(self, queue_id: int | None = None) -> str | None:
        """Name of the job's serial queue, or of another one; None if the job has none.

        Names are read for many tasks at once (`get_queue_name_batch_delay`), and kept.

        Args:
            queue_id: Id of the queue; None means that of the job.

        Raises:
            GraphileWorkerError: There is no queue with this id.
        """
        queue_id = self.job.job_queue_id if queue_id is None else queue_id
        return None if queue_id is None else await self._running.pool.queue_names.get(queue_id)
