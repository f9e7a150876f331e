"""The steps of steering jobs, for programs with and without an event loop."""

from collections.abc import Iterable, Sequence
from typing import Final

from graphile_worker_py.checks import (
    check_job_ids,
    check_one_of,
    check_seconds,
    check_text,
    check_whole,
)
from graphile_worker_py.errors import ConfigurationError, MissingTablesError
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.sql import cancel_jobs as cancelling
from graphile_worker_py.sql import retry_jobs as retrying
from graphile_worker_py.sql.awaited import await_jobs
from graphile_worker_py.sql.cancel_jobs import Cancellation
from graphile_worker_py.sql.job_ends import JobProgress, read_progress
from graphile_worker_py.sql.side_tables import reading

CHUNK: Final = 500
"""Jobs that one statement cancels: a notification of at most 8,000 bytes has their ids."""
RETRIED_STATES: Final = ("failed", "retrying")


def cancel(
    worker_schema: str, job_ids: Iterable[int | str], *, reason: str | None, grace: float
) -> Steps[list[Cancellation]]:
    """Cancel jobs; what has become of each."""
    ids = check_job_ids("job_ids", job_ids)
    if reason is not None:
        check_text("reason", reason)
    check_seconds("grace", grace)
    try:
        yield from reading(worker_schema, "job_state", "runs_failed", right="insert")
    except MissingTablesError:
        has_tables = False
    else:
        has_tables = True
    done: list[Cancellation] = []
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        if has_tables:
            done += yield cancelling.cancel_jobs(
                some, worker_schema=worker_schema, reason=reason, grace=grace
            )
        else:
            done += yield cancelling.cancel_jobs_here(some)
    return done


def begin_to_wait(worker_schema: str, job_ids: Sequence[int]) -> Steps[None]:
    """Have a record kept of the end of jobs.

    Raises:
        MissingTablesError: The tables of history are missing.
    """
    yield from reading(worker_schema, "awaited", right="insert")
    yield await_jobs(worker_schema, job_ids)


def read_state(worker_schema: str, job_id: int) -> Steps[JobProgress | None]:
    """How far a job is; None if it has no row.

    Raises:
        MissingTablesError: The tables of history are missing.
    """
    yield from reading(worker_schema, "job_state")
    state: JobProgress | None = yield read_progress(worker_schema, job_id)
    return state


def retry(
    job_ids: Iterable[int | str] | None,
    *,
    state: str,
    task: str | None,
    error: str | None,
    limit: int,
) -> Steps[list[Job]]:
    """Try jobs again, given by their ids or by a filter."""
    if job_ids is not None:
        ids = check_job_ids("job_ids", job_ids)
        if task is not None or error is not None:
            raise ConfigurationError("job_ids and a filter were both given; give one of them")
    else:
        check_one_of("state", state, allowed=RETRIED_STATES)
        for name, value in (("task", task), ("error", error)):
            if value is not None:
                check_text(name, value)
        check_whole("limit", limit, smallest=1)
        ids = yield retrying.find_failed(state=state, task=task, error=error, limit=limit)
    retried: list[Job] = []
    for start in range(0, len(ids), CHUNK):
        retried += yield retrying.retry_jobs(ids[start : start + CHUNK])
    return retried
