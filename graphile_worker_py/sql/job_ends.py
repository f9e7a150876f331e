"""How jobs have ended, and how far running ones are, as any process can read it."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql import fragments


class EndStatus(StrEnum):
    """How a job has ended."""

    COMPLETED = "completed"
    """It has succeeded."""
    FAILED = "failed"
    """It is not tried again: its last attempt failed or killed its worker, or it was discarded."""
    CANCELLED = "cancelled"
    """It was cancelled."""
    GONE = "gone"
    """It has ended, and no record of how was kept."""


class JobOutcome(Record):
    """How a job has ended.

    Attributes:
        status: How.
        result: What the task returned, if it was kept.
        error: Why it failed, or was cancelled.
        attempts: How many attempts it has had; None if that is not known.
        started_at: When the last attempt began; None if that is not known.
        finished_at: When it ended; None if that is not known.
        duration: Seconds that the last attempt took; None if that is not known.
        pool_id: Id of the worker pool that ran it; None if that is not known.
    """

    status: EndStatus
    result: Any = None
    error: str | None = None
    attempts: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration: float | None = None
    pool_id: str | None = None


class JobProgress(Record):
    """How far a job is.

    Attributes:
        state: `ready`, `scheduled` (for a retry, too), `running` or `failed`.
        progress: What its task has reported, a share of `total`, or from 0 to 1 without one.
        total: What `progress` is a part of; None if there is none.
        message: What its task has reported.
        cursor: What its last checkpoint has left.
        pool_id: Id of the worker pool that runs it; None if none does.
        started_at: When that pool locked it; None if none did.
        cancel_requested: Whether it was cancelled, and has not ended yet.
    """

    state: str
    progress: float | None = None
    total: float | None = None
    message: str | None = None
    cursor: Any = None
    pool_id: str | None = None
    started_at: datetime | None = None
    cancel_requested: bool = False


_ENDED: Final = """
select
  wanted.id,
  job.id is not null,
  job.locked_at is null and job.attempts >= job.max_attempts,
  job.attempts,
  job.last_error,
  run.outcome,
  run.result,
  run.error,
  run.attempt,
  run.started_at,
  run.finished_at,
  run.duration,
  run.pool_id
from rows from (
  pg_catalog.unnest($2::pg_catalog.int8[]),
  pg_catalog.unnest($3::pg_catalog.timestamptz[])
) as wanted (id, created_at)
left join :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  on job.id = wanted.id
  and (wanted.created_at is null or job.created_at = wanted.created_at)
left join lateral (
  select
    runs.outcome, runs.result, runs.error, runs.attempt, runs.started_at, runs.finished_at,
    runs.duration, runs.pool_id
  from graphile_worker_py.runs as runs
  where runs.worker_schema = $1::pg_catalog.text
    and runs.job_id = wanted.id
    and (
      coalesce(wanted.created_at, job.created_at) is null
      or runs.job_created_at = coalesce(wanted.created_at, job.created_at)
    )
  order by runs.finished_at desc
  limit 1
) as run on true
"""


class Look(Record, kw_only=False):
    """What a look at a job has found.

    Attributes:
        exists: Whether the job has a row.
        outcome: How it has ended; None if it has not, or if no record says so.
    """

    exists: bool
    outcome: JobOutcome | None


def read_ends(
    worker_schema: str, jobs: Sequence[tuple[int, datetime | None]]
) -> Query[dict[int, Look]]:
    """Look whether jobs have ended.

    Args:
        worker_schema: Schema of the job tables.
        jobs: Ids, each with the time at which the job was added, if it is known: ids come back if
            the schema is made anew.
    """
    values = (worker_schema, [job for job, _ in jobs], [added for _, added in jobs])
    return Query(_ENDED, values, lambda rows: {row[0]: _look(row) for row in rows}, prepare=False)


def _look(row: tuple[Any, ...]) -> Look:
    _, exists, is_failed, attempts, last_error, outcome, *run = row
    result, error, attempt, started_at, finished_at, duration, pool_id = run
    status = _STATUS.get(outcome)
    if exists and not is_failed:
        return Look(exists, None)
    if status is None or (exists and status is EndStatus.COMPLETED):
        if not is_failed:
            return Look(exists, None)
        failed = JobOutcome(status=EndStatus.FAILED, error=last_error, attempts=attempts)
        return Look(exists, failed)
    return Look(
        exists,
        JobOutcome(
            status=status,
            result=None if result is None else json_codec.loads(bytes(result)),
            error=error if error is not None else last_error,
            attempts=attempt,
            started_at=None if started_at is None else from_timestamp(started_at),
            finished_at=from_timestamp(finished_at),
            duration=duration,
            pool_id=pool_id,
        ),
    )


_STATUS: Final = {
    "completed": EndStatus.COMPLETED,
    "failed": EndStatus.FAILED,
    "discarded": EndStatus.FAILED,
    "killed": EndStatus.FAILED,
    "cancelled": EndStatus.CANCELLED,
}

_STATE: Final = (
    """
select
"""  # all parts are constants
    + fragments.STATE
    + """,
  state.progress,
  state.total,
  state.message,
  state.cursor,
  job.locked_by,
  job.locked_at,
  state.cancel_at is not null
from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
left join graphile_worker_py.job_state as state
  on state.worker_schema = $1::pg_catalog.text
  and state.job_id = job.id
  and state.job_created_at = job.created_at
where job.id = $2::pg_catalog.int8
"""
)


def read_progress(worker_schema: str, job_id: int) -> Query[JobProgress | None]:
    """How far a job is; None if it has no row."""

    def read(rows: list[tuple[Any, ...]]) -> JobProgress | None:
        if not rows:
            return None
        state, progress, total, message, cursor, pool_id, locked_at, cancelled = rows[0]
        return JobProgress(
            state=state,
            progress=progress,
            total=total,
            message=message,
            cursor=None if cursor is None else json_codec.loads(bytes(cursor)),
            pool_id=pool_id,
            started_at=None if locked_at is None else from_timestamp(locked_at),
            cancel_requested=cancelled,
        )

    return Query(_STATE, (worker_schema, job_id), read, prepare=False)
