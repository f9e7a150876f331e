"""`JobHandle` for programs without an event loop."""

from collections.abc import Sequence
from datetime import datetime
from time import monotonic, sleep
from typing import Any

from graphile_worker_py.checks import check_seconds
from graphile_worker_py.forks import Unsendable
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.sql.job_ends import (
    EndStatus,
    JobOutcome,
    JobProgress,
    read_ends,
)
from graphile_worker_py.steering.handles import result_of
from graphile_worker_py.steering.steps import begin_to_wait, read_state
from graphile_worker_py.steering.waiter import GONE_AFTER, LOOKS, Key


class SyncJobHandle(Unsendable):
    """One job, made by `utils.handle(job)` of a `SyncWorkerUtils`. See `JobHandle`.

    Attributes:
        job_id: Id of the job.
    """

    _send_instead = "its job_id, and call utils.handle(job_id) there"

    def __init__(self, job_id: int, *, created_at: datetime | None, database: SyncDatabase) -> None:
        self.job_id = job_id
        self._created_at = created_at
        self._database = database

    @property
    def key(self) -> Key:
        """The id, and when the job was added, if that is known."""
        return self.job_id, self._created_at

    def wait(self, timeout: float | None = None) -> JobOutcome:
        """Wait for the end of the job. See `JobHandle.wait`."""
        return wait_for([self.key], self._database, timeout)[self.job_id]

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end of the job, and return its result. See `JobHandle.result`."""
        return result_of(self.job_id, self.wait(timeout))

    def state(self) -> JobProgress | None:
        """How far the job is; None if it is not there. See `JobHandle.state`."""
        schema = self._database.statements.schema
        return self._database.drive(read_state(schema, self.job_id))

    def __repr__(self) -> str:
        return f"SyncJobHandle({self.job_id})"


def wait_for(
    keys: Sequence[Key], database: SyncDatabase, timeout: float | None
) -> dict[int, JobOutcome]:
    """Wait for the end of jobs, by looks that become ever rarer.

    Raises:
        TimeoutError: One has not ended in time.
        ConfigurationError: The timeout makes no sense.
        MissingTablesError: The tables of history are missing.
        psycopg.Error: The database could not answer.
    """
    if timeout is not None:
        check_seconds("timeout", timeout)
    schema = database.statements.schema
    database.drive(begin_to_wait(schema, [key[0] for key in keys]))
    deadline = None if timeout is None else monotonic() + timeout
    left = dict(keys)
    missing_since: dict[int, float] = {}
    outcomes: dict[int, JobOutcome] = {}
    looks = 0
    while True:
        for job_id, look in database.run(read_ends(schema, list(left.items()))).items():
            if look.outcome is not None:
                outcomes[job_id] = look.outcome
            elif look.exists:
                missing_since.pop(job_id, None)
            elif monotonic() >= missing_since.setdefault(job_id, monotonic()) + GONE_AFTER:
                outcomes[job_id] = JobOutcome(status=EndStatus.GONE)
        left = {job_id: added for job_id, added in left.items() if job_id not in outcomes}
        if not left:
            return outcomes
        pause = GONE_AFTER if missing_since else LOOKS[min(looks, len(LOOKS) - 1)]
        looks += 1
        if deadline is not None:
            if monotonic() >= deadline:
                raise TimeoutError
            pause = min(pause, max(0.01, deadline - monotonic()))
        sleep(pause)
