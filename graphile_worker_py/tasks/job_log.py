"""What a job logs."""

import logging
from collections.abc import MutableMapping
from typing import Any, Final

import psycopg

from graphile_worker_py.errors import one_line
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.outages import delay_after

_OF_RECORDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _JobLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the fields of a job to those that a task gives its records.

    The fields of the job win, and so do those that every record has.
    """

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        given = kwargs.get("extra") or {}
        own = {name: value for name, value in given.items() if name not in _OF_RECORDS}
        kwargs["extra"] = {**own, **(self.extra or {})}
        return msg, kwargs


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
    return _JobLogger(logger, about)


def delay_to_log(
    error: psycopg.Error, *, failures: int, log: logging.LoggerAdapter[logging.Logger]
) -> float | None:
    """Seconds until `with_retries` tries again, which are logged; None if it should not."""
    delay = delay_after(error, failures=failures)
    if delay is not None:
        log.warning("Database failed (%s); retrying in %.1f s", one_line(error), delay)
    return delay
