"""Complete a job in a transaction of its task: effects and completion commit together, or neither.

The task's own statements and the one that completes the job are one transaction. After its block:

- It was committed: the job is done, whatever its task does afterwards.
- It was rolled back: the job goes on as if there had been no block.
- The connection was lost during COMMIT: the row decides. Reading it with a lock waits for a commit
  that is still under way; the row is gone if the transaction was committed.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import AsyncConnection, Connection

from graphile_worker_py.errors import GraphileWorkerError, JobLostError
from graphile_worker_py.forks import ending_forks
from graphile_worker_py.outcomes import Completed, Settled
from graphile_worker_py.postgres.blocking import run_blocking
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql.held_jobs import is_held
from graphile_worker_py.sql.time_limits import wait_shortly

if TYPE_CHECKING:
    from graphile_worker_py.tasks.context import RunningJob

WAIT_SHORTLY: Final = wait_shortly(0.5)
"""A completion does not wait long for tables of plugins that are locked."""


class Completion(StrEnum):
    """Whether a job was completed by its task."""

    OPEN = "open"
    """It was not."""
    UNDERWAY = "underway"
    """A block is open at whose end it is."""
    ASKED = "asked"
    """In a transaction that the task commits by itself; the row tells, when the task has ended."""
    DONE = "done"
    """It was."""


class CompletingStatement(Record, kw_only=False):
    """The statement that completes a job; it returns the ids of jobs that were still the pool's.

    Args:
        plain: The statement.
        ridden: The same with what plugins add to it; None if they add nothing.
        riders_failed: Called with the error if what they add has failed.
    """

    plain: Query[set[int]]
    ridden: Query[set[int]] | None
    riders_failed: Callable[[Exception], None]


def completion(running: "RunningJob") -> CompletingStatement:
    """The statement that completes a job."""
    complete = running.pool.complete
    if complete is None:
        raise GraphileWorkerError("a job can only be completed by the worker that runs it")
    now = perf_counter()
    settled: Settled = (running.job, Completed(running.result), now, now - running.started)
    return complete([settled])


def check_open(running: "RunningJob") -> None:
    """Check that the task has not completed its job already.

    Raises:
        GraphileWorkerError: It has, or is about to.
    """
    if running.completion is Completion.UNDERWAY:
        raise GraphileWorkerError(
            f"job {running.job.id} has an open transaction() block, which completes it: use its "
            f"connection"
        )
    if running.completion is not Completion.OPEN:
        raise GraphileWorkerError(f"job {running.job.id} was completed by its task already")


def check_held(running: "RunningJob", ids: set[int]) -> None:
    """Check that the completion has changed the job's row.

    Raises:
        JobLostError: Another worker has the job, or it is gone.
    """
    if running.job.id not in ids:
        raise JobLostError(
            f"job {running.job.id} is no longer locked by this pool: nothing was committed"
        )


async def complete(running: "RunningJob", conn: AsyncConnection[Any]) -> None:
    """Complete a job within a transaction of its task.

    What plugins add has a savepoint, so that it can't fail the transaction.

    Raises:
        JobLostError: Another worker has the job, or it is gone.
    """
    statement, run = completion(running), partial(running.pool.database.run, conn=conn)
    if statement.ridden is not None:
        try:
            async with conn.transaction():
                await run(WAIT_SHORTLY)
                ids = await run(statement.ridden)
        except psycopg.Error as error:
            if conn.closed:
                raise
            statement.riders_failed(error)
        else:
            check_held(running, ids)
            return
    check_held(running, await run(statement.plain))


def complete_in_thread(running: "RunningJob", conn: Connection[Any]) -> None:
    """`complete` for tasks in threads."""
    statements = running.pool.database.statements
    statement, run = completion(running), partial(run_blocking, statements, conn=conn)
    if statement.ridden is not None:
        try:
            with conn.transaction():
                run(WAIT_SHORTLY)
                ids = run(statement.ridden)
        except psycopg.Error as error:
            if conn.closed:
                raise
            statement.riders_failed(error)
        else:
            check_held(running, ids)
            return
    check_held(running, run(statement.plain))


@contextmanager
def _underway(running: "RunningJob") -> Iterator[None]:
    """Let no other block complete the job meanwhile: one of both would be rolled back."""
    check_open(running)
    running.completion = Completion.UNDERWAY
    try:
        yield
    except BaseException:
        running.completion = Completion.OPEN
        raise
    running.completion = Completion.DONE


@asynccontextmanager
async def completing(running: "RunningJob", conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """Run the block in a transaction on `conn` that ends with the completion of the job."""
    is_complete = False
    with _underway(running):
        try:
            async with conn.transaction():
                with ending_forks():
                    yield
                await complete(running, conn)
                is_complete = True
        except (psycopg.OperationalError, OSError):
            if not is_complete or await still_held(running):
                raise


async def still_held(running: "RunningJob") -> bool:
    """Whether the row of a job is still locked by its pool; asked for as long as it takes."""
    query = is_held(running.job.id, pool_id=running.pool.pool_id)
    return await running.pool.database.run_retrying(query, what="read whether a job was completed")


@contextmanager
def completing_in_thread(
    running: "RunningJob", conn: Connection[Any], ask: Callable[["RunningJob"], bool]
) -> Iterator[None]:
    """`completing` for tasks in threads; `ask` tells whether the row is still locked."""
    is_complete = False
    with _underway(running):
        try:
            with conn.transaction():
                with ending_forks():
                    yield
                complete_in_thread(running, conn)
                is_complete = True
        except (psycopg.OperationalError, OSError):
            if not is_complete or ask(running):
                raise
