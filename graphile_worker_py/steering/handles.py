"""Handles: follow one job from any process, and wait for its end."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

from graphile_worker_py.errors import JobCancelledError, JobFailedError, JobGoneError
from graphile_worker_py.forks import Unsendable
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.job_ends import EndStatus, JobOutcome, JobProgress
from graphile_worker_py.steering.steps import read_state
from graphile_worker_py.steering.waiter import Waiter

WATCH_INTERVAL: Final = 0.5
"""Seconds between two looks of `JobHandle.watch`; pools report progress every two seconds."""
GONE: Final = (
    "job {job_id} has ended, and no record says how: a Node worker ran it, it was deleted, or no "
    "record was asked for; add it with awaited=True, give its task keep_result=True, or run "
    'workers with history="all"'
)


class JobHandle(Unsendable):
    """One job, made by `utils.handle(job)` or `utils.handle(job_id)`; costs nothing by itself.

    Attributes:
        job_id: Id of the job.
    """

    _send_instead = "its job_id, and call utils.handle(job_id) there"

    def __init__(
        self, job_id: int, *, created_at: datetime | None, database: Database, waiter: Waiter
    ) -> None:
        self.job_id = job_id
        self._created_at = created_at
        self._database = database
        self._waiter = waiter

    @property
    def key(self) -> tuple[int, datetime | None]:
        """The id, and when the job was added, if that is known."""
        return self.job_id, self._created_at

    async def wait(self, timeout: float | None = None) -> JobOutcome:
        """Wait for the end of the job.

        That is reliable where its end leaves a record: it was added with `awaited=True`, its task
        has `keep_result=True`, or its workers have `history="all"`. Waiting itself has a record
        kept from then on. For a job that has ended without a record the status is `gone`.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            TimeoutError: It has not ended in time.
            MissingTablesError: The tables of history are missing.
            psycopg.Error: The database could not answer.
        """
        return (await self._waiter.outcomes([self.key], timeout))[self.job_id]

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the end of the job, and return what its task returned.

        Raises:
            JobFailedError: It has failed, or was discarded.
            JobCancelledError: It was cancelled.
            JobGoneError: It has ended, and no record was kept.
            TimeoutError: It has not ended in time.
        """
        return result_of(self.job_id, await self.wait(timeout))

    async def state(self) -> JobProgress | None:
        """How far the job is; None if it is not there: it has ended, or never existed.

        Raises:
            MissingTablesError: The tables of history are missing.
            psycopg.Error: The database could not answer.
        """
        return await self._database.drive(read_state(self._database.schema, self.job_id))

    async def watch(self) -> AsyncIterator[JobProgress | JobOutcome]:
        """Yield how far the job is, each time that it has changed, and at last its outcome."""
        last: JobProgress | None = None
        while True:
            try:
                outcome = await self.wait(WATCH_INTERVAL)
            except TimeoutError:
                state = await self.state()
                if state is not None and state != last:
                    last = state
                    yield state
                continue
            yield outcome
            return

    def __repr__(self) -> str:
        return f"JobHandle({self.job_id})"


def result_of(job_id: int, outcome: JobOutcome) -> Any:
    """The result of an outcome.

    Raises:
        JobFailedError: It has failed, or was discarded.
        JobCancelledError: It was cancelled.
        JobGoneError: It has ended, and no record was kept.
    """
    match outcome.status:
        case EndStatus.COMPLETED:
            return outcome.result
        case EndStatus.FAILED:
            raise JobFailedError(f"job {job_id} has failed: {outcome.error}")
        case EndStatus.CANCELLED:
            why = "" if outcome.error is None else f": {outcome.error}"
            raise JobCancelledError(f"job {job_id} was cancelled{why}")
        case EndStatus.GONE:
            raise JobGoneError(GONE.format(job_id=job_id))
