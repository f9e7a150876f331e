"""What a job logs."""

import logging
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from graphile_worker_py.errors import one_line

if TYPE_CHECKING:
    import psycopg

    from graphile_worker_py.job import Job

STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that each record has; `logging` raises an error for fields with these names."""


class Capture(Protocol):
    """Keeps what an attempt logs."""

    level: int
    """The lowest level that is kept."""

    def add(self, record: logging.LogRecord) -> None:
        """Keep a record; may be called from any thread, and may not raise."""


class FieldsLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds fields to the records of a logger.

    The `LoggerAdapter` of Python drops the fields of a call before version 3.13, and does so
    by default since. Here both are kept. Of two fields with one name the adapter's wins, and of
    standard attributes with the name of a field, the attribute.

    Attributes:
        capture: Keeps the records, also those of levels that are not logged; None keeps none.
    """

    capture: Capture | None = None

    def log(self, level: int, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log, and keep the record if the logs of the job are captured."""
        if self.capture is not None and level >= self.capture.level:
            error = _exc_info(kwargs.get("exc_info"))
            name = self.logger.name
            self.capture.add(logging.LogRecord(name, level, "", 0, msg, args, error))
        # The record is to name the place that called this.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        super().log(level, msg, *args, **kwargs)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the fields to those of a call."""
        given = dict(kwargs.get("extra") or {})
        fields = {name: value for name, value in given.items() if name not in STANDARD}
        kwargs["extra"] = {**fields, **(self.extra or {})}
        return msg, kwargs


def _exc_info(given: Any) -> Any:
    """What a record needs of an error, from what a call of a logger was given."""
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    return given if isinstance(given, tuple) else (sys.exc_info() if given else None)


def job_logger(
    logger: logging.Logger,
    job: "Job",
    worker_id: str,
    pool_id: str,
    capture: Capture | None = None,
) -> FieldsLogger:
    """A logger whose records say which job they are about."""
    about = {
        "job_id": job.id,
        "task_identifier": job.task_identifier,
        "attempt": job.attempts,
        "worker_id": worker_id,
        "pool_id": pool_id,
    }
    made = FieldsLogger(logger, about)
    made.capture = capture
    return made


def keeping_fields(logger: logging.Logger) -> logging.Logger:
    """The logger that a user gives; a `LoggerAdapter` of Python, which drops fields, is replaced.

    An adapter has the methods of a logger that are needed.
    """
    given: Any = logger
    if type(given) is logging.LoggerAdapter:
        given = FieldsLogger(given.logger, given.extra)
    return cast(logging.Logger, given)


def delay_to_log(
    error: "psycopg.Error", *, failures: int, log: logging.LoggerAdapter[logging.Logger]
) -> float | None:
    """Seconds until `with_retries` tries again, which are logged; None if it should not."""
    # Here, because the command line reads this module, and needs no database driver to start.
    from graphile_worker_py.postgres.outages import delay_after  # noqa: PLC0415

    delay = delay_after(error, failures=failures)
    if delay is not None:
        log.warning("Database failed (%s); retrying in %.1f s", one_line(error), delay)
    return delay
