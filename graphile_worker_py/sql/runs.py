"""Runs: a row for each attempt that ended, written with its outcome, and how they are read."""

from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.checks import (
    BIGINT_MAX,
    check_aware,
    check_job_id,
    check_one_of,
    check_text,
    check_whole,
)
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import EARLIEST, LATEST, from_timestamp
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.records import Record
from graphile_worker_py.sql.side_tables import Moment, as_moment, reading

DEFAULT_LIMIT: Final = 100
FIRST_WINDOW: Final = timedelta(minutes=1)
LONGEST_WINDOW: Final = timedelta(days=1000)
"""Of a listing by time: it looks further and further back until it has found enough rows."""


class RunOutcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    """The job has succeeded."""
    RETRIED = "retried"
    """The attempt has failed, and the job waits for its next one."""
    FAILED = "failed"
    """The last attempt has failed."""
    DISCARDED = "discarded"
    """The task gave the job up, whatever attempts it had left."""
    SNOOZED = "snoozed"
    """The task put the job off; no attempt was used up."""
    CANCELLED = "cancelled"
    """A program cancelled the job."""
    KILLED = "killed"
    """The worker process died while the job was running."""


class JobRun(Record):
    """An attempt of a job that ended.

    Attributes:
        job_id: Id of the job.
        job_created_at: When the job was added. Ids come back if the schema is made anew.
        task: Identifier of its task.
        attempt: Number of the attempt, from 1.
        outcome: How it ended.
        run_at: When it was due.
        started_at: When it started; None if the job was cancelled before.
        finished_at: When it ended.
        duration: Seconds that it ran; None where that is not known.
        pool_id: Id of the worker pool; None if no pool ran it.
        queue_name: Name of the serial queue; None for a job without queue.
        key: The job key.
        error: Message of the error; None if there was none.
        error_group: Type of the exception and the place where it was raised.
        result: What the task returned, decoded; None unless results of the task are kept.
        result_omitted: Why the result is missing; None if it is not.
        logs: What the task logged; None unless its logs are captured.
        payload: The payload, decoded; None unless payloads are kept.
        trace_id: Id of the trace that the job belongs to.
    """

    job_id: int
    job_created_at: datetime
    task: str
    attempt: int
    outcome: RunOutcome
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime
    duration: float | None
    pool_id: str | None
    queue_name: str | None
    key: str | None
    error: str | None
    error_group: str | None
    result: Any
    result_omitted: str | None
    logs: str | None
    payload: Any
    trace_id: str | None

    @property
    def wait(self) -> float | None:
        """Seconds from the moment that it was due until it started."""
        if self.started_at is None:
            return None
        return max(0.0, (self.started_at - self.run_at).total_seconds())

    @property
    def cursor(self) -> str:
        """Where a listing goes on after this run."""
        return f"{self.finished_at.isoformat()}/{self.job_id}/{self.attempt}"


_FIELDS: Final = tuple(each.name for each in fields(JobRun))

# A job has the runs of its own life only: those of an older job with its id are another job's.
_LIST: Final = (
    """
select
  runs.job_id, runs.job_created_at, runs.task, runs.attempt, runs.outcome, runs.run_at,
  runs.started_at, runs.finished_at, runs.duration, runs.pool_id, runs.queue_name, runs.key,
  runs.error, runs.error_group, runs.result, runs.result_omitted, runs.logs, runs.payload,
  runs.trace_id
from graphile_worker_py.""",
    """ as runs
where runs.worker_schema = $1::pg_catalog.text
  and runs.finished_at >= $2::pg_catalog.timestamptz
  and runs.finished_at < $3::pg_catalog.timestamptz
  and ($4::pg_catalog.int8 is null or (
    runs.job_id = $4::pg_catalog.int8
    and runs.job_created_at = coalesce(
      (
        select jobs.created_at
        from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
        where jobs.id = $4::pg_catalog.int8
      ),
      (
        select pg_catalog.max(latest.job_created_at)
        from graphile_worker_py.runs as latest
        where latest.worker_schema = $1::pg_catalog.text and latest.job_id = $4::pg_catalog.int8
      )
    )
  ))
  and ($5::pg_catalog.text is null or runs.task = $5::pg_catalog.text)
  and ($6::pg_catalog.text is null or runs.outcome = $6::pg_catalog.text)
  and ($7::pg_catalog.timestamptz is null or (runs.finished_at, runs.job_id, runs.attempt)
    < ($7::pg_catalog.timestamptz, $8::pg_catalog.int8, $9::pg_catalog.int4))
order by runs.finished_at desc, runs.job_id desc, runs.attempt desc
limit $10::pg_catalog.int8
""",
)
_LIST_ALL: Final = _LIST[0] + "runs" + _LIST[1]
_LIST_COMPLETED: Final = _LIST[0] + "runs_completed" + _LIST[1]
_LIST_FAILED: Final = _LIST[0] + "runs_failed" + _LIST[1]


def list_runs(
    worker_schema: str,
    *,
    job_id: int | str | None = None,
    task: str | None = None,
    outcome: RunOutcome | str | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    limit: int | None = DEFAULT_LIMIT,
    after: str | JobRun | None = None,
) -> Steps[list[JobRun]]:
    """Read runs, the newest first; see `WorkerUtils.list_runs`."""
    job = None if job_id is None else check_job_id("job_id", job_id)
    if task is not None:
        check_text("task", task)
    if outcome is not None:
        check_one_of("outcome", outcome, allowed=RunOutcome)
    most = BIGINT_MAX
    if limit is not None:
        most = min(check_whole("limit", limit, smallest=1, or_else="(None for all)"), BIGINT_MAX)
    place = _place(after)
    now = yield from reading(worker_schema, "runs", "runs_completed", "runs_failed")
    begin = EARLIEST if since is None else as_moment("since", since, now)
    end = LATEST if until is None else as_moment("until", until, now)
    if place[0] is not None:
        end = min(end, place[0] + timedelta(microseconds=1))
    text = _LIST_ALL
    if outcome is not None:
        text = _LIST_COMPLETED if outcome == RunOutcome.COMPLETED else _LIST_FAILED
    ending = None if outcome is None else str(outcome)
    # The index by job is enough to find the runs of one; others are found by their time.
    windows = [(begin, end)] if job is not None else _windows(begin, end, now=now)
    found: list[JobRun] = []
    for first, before in windows:
        values = (worker_schema, first, before, job, task, ending)
        found += yield Query(text, (*values, *place, most - len(found)), _read, prepare=False)
        if len(found) >= most:
            break
    return found


def _windows(
    begin: datetime, end: datetime, *, now: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """Windows of time from `end` back to `begin`, each eight times as long as the one after it."""
    length = FIRST_WINDOW
    first = max(begin, min(end, now) - length)
    yield first, end
    while first > begin:
        length *= 8
        end, first = first, begin if length > LONGEST_WINDOW else max(begin, first - length)
        yield first, end


def _place(after: str | JobRun | None) -> tuple[datetime | None, int | None, int | None]:
    if after is None:
        return None, None, None
    cursor = after.cursor if isinstance(after, JobRun) else after
    try:
        finished_at, job_id, attempt = cursor.split("/")
        return check_aware("after", datetime.fromisoformat(finished_at)), int(job_id), int(attempt)
    except (AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"after must be a run of the page before, or its cursor, not {after!r}"
        ) from error


def _read(rows: list[tuple[Any, ...]]) -> list[JobRun]:
    return [_run(row) for row in rows]


def _run(row: tuple[Any, ...]) -> JobRun:
    values = dict(zip(_FIELDS, row, strict=True))
    values["outcome"] = RunOutcome(values["outcome"])
    for name in ("job_created_at", "run_at", "started_at", "finished_at"):
        values[name] = None if values[name] is None else from_timestamp(values[name])
    for name in ("result", "payload"):
        values[name] = None if values[name] is None else json_codec.loads(bytes(values[name]))
    return JobRun(**values)
