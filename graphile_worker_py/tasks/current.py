"""Which job runs in the asyncio task, or in the thread, that asks."""

from contextvars import ContextVar
from logging import LogRecord
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # The command line reads this module, and needs no job to write its log.
    from graphile_worker_py.job import Job

CURRENT: Final[ContextVar["Job | None"]] = ContextVar("graphile_worker_py.job", default=None)


def current_job() -> "Job | None":
    """The job whose task has called this, directly or not; None outside of a job.

    It works in async tasks, in asyncio tasks that they start, and in the threads and processes in
    which a worker calls tasks. A thread that a task starts itself has no job, unless it runs in a
    copy of the context.
    """
    return CURRENT.get()


def fields_of_job() -> dict[str, Any]:
    """The fields that a log record about the current job has; empty outside of a job."""
    job = CURRENT.get()
    if job is None:
        return {}
    return {"job_id": job.id, "task_identifier": job.task_identifier, "attempt": job.attempts}


def add_job_to_record(record: LogRecord) -> bool:
    """A filter for handlers of `logging`: adds the current job to a record that names none."""
    if CURRENT.get() is not None and not hasattr(record, "job_id"):
        vars(record).update(fields_of_job())
    return True
