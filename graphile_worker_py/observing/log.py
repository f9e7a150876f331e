"""The log lines of worker pools, written by a subscriber of their events."""

import logging
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from graphile_worker_py import clock, config, events
from graphile_worker_py.errors import (
    LONGEST_LOGGED,
    message_of,
    one_line,
    traceback_of,
    users_frames,
)
from graphile_worker_py.events import Event, Events
from graphile_worker_py.job import Job


def log_events(observed: Events, logger: logging.Logger) -> Callable[[], None]:
    """Log the events of worker pools. Payloads are never logged.

    - debug: every event
    - info: a pool stops; a job has completed, unless `NO_LOG_SUCCESS` is set
    - warning: a failed attempt that is retried, and what else the pool recovers from by itself
    - error: a job that has failed for good, and what else a person must act upon

    Events below the logger's level are not subscribed to, so that they need not be created.

    Returns:
        A function that ends the logging.
    """
    log = _EventLog(logger)
    wanted: list[tuple[int, type[Event] | str, Callable[[Any], None]]] = [
        (logging.DEBUG, Event, log.any_event),
        (logging.INFO, events.JobSuccess, log.job_success),
        # By its name, because a subscriber of the class would hear a final failure twice.
        (logging.ERROR, events.JobError.name, log.job_error),
        (logging.INFO, events.JobSnoozed, log.job_snoozed),
        (logging.INFO, events.JobCancelled, log.job_cancelled),
        (logging.WARNING, events.JobDiscarded, log.job_discarded),
        (logging.WARNING, events.JobReturned, log.job_returned),
        (logging.WARNING, events.JobLost, log.job_lost),
        (logging.WARNING, events.ThreadStuck, log.thread_stuck),
        (logging.WARNING, events.TaskStuck, log.task_stuck),
        (logging.INFO, events.PoolGracefulShutdown, log.graceful_shutdown),
        (logging.WARNING, events.PoolForcefulShutdown, log.forceful_shutdown),
        (logging.INFO, events.PoolRelease, log.released),
        (logging.ERROR, events.PoolFatalError, log.fatal_error),
    ]
    ends = [
        observed.subscribe(kind, subscriber)
        for level, kind, subscriber in wanted
        if logger.isEnabledFor(level) and (kind is not events.JobSuccess or config.logs_success())
    ]

    def end() -> None:
        for each in ends:
            each()

    return end


class _EventLog:
    """A log line for each kind of event."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def any_event(self, event: Event) -> None:
        self._logger.debug("%s %s", event.name, _described(event))

    def job_success(self, event: events.JobSuccess) -> None:
        job = event.job
        attempt = f", attempt {job.attempts} of {job.max_attempts}" if job.attempts > 1 else ""
        self._logger.info(
            "Completed job %d (%s, %s%s)",
            job.id,
            job.task_identifier,
            clock.shortened(event.duration),
            attempt,
            extra=_ended(event, "completed", event.duration),
        )

    def job_error(self, event: events.JobError) -> None:
        job, retry_at = event.job, event.retry_at
        if retry_at is None:
            level, then = logging.ERROR, "giving up"
        else:
            delay = (retry_at - clock.utc_now()).total_seconds()
            level, then = logging.WARNING, f"retry in {clock.shortened(delay)}"
        values = (
            job.id,
            job.task_identifier,
            clock.shortened(event.duration),
            job.attempts,
            job.max_attempts,
            then,
            message_of(event.error, most=LONGEST_LOGGED),
        )
        self._log_error(
            level,
            "Failed job %d (%s, %s, attempt %d of %d, %s): %s",
            values,
            event.error,
            {
                **_ended(event, "given_up" if retry_at is None else "failed", event.duration),
                "retry_at": retry_at,
            },
        )

    def _log_error(
        self,
        level: int,
        message: str,
        values: tuple[object, ...],
        error: BaseException,
        extra: dict[str, object],
    ) -> None:
        """Log an error of a task, whose traceback the formatter of a handler may fail to make."""
        logger: Any = self._logger
        if not logger.isEnabledFor(level):
            return
        while isinstance(logger, logging.LoggerAdapter):
            message, given = logger.process(message, {"extra": extra})
            extra = {**extra, **(given.get("extra") or {})}
            logger = logger.logger
        exc_info = (type(error), error, users_frames(error))
        file, line, function, _ = logger.findCaller()
        record = logger.makeRecord(
            logger.name, level, file, line, message, values, exc_info, function, extra
        )
        record.exc_text = traceback_of(error)
        logger.handle(record)

    def job_snoozed(self, event: events.JobSnoozed) -> None:
        self._logger.info(
            "Snoozed job %d (%s), due in %s",
            event.job.id,
            event.job.task_identifier,
            clock.shortened((event.due_at - clock.utc_now()).total_seconds()),
            extra={**_ended(event, "snoozed", event.duration), "due_at": event.due_at},
        )

    def job_cancelled(self, event: events.JobCancelled) -> None:
        self._logger.info(
            "Cancelled job %d (%s)%s",
            event.job.id,
            event.job.task_identifier,
            "" if event.reason is None else f": {event.reason}",
            extra=_ended(event, "cancelled", event.duration),
        )

    def job_discarded(self, event: events.JobDiscarded) -> None:
        self._logger.warning(
            "Discarded job %d (%s): %s",
            event.job.id,
            event.job.task_identifier,
            message_of(event.error, most=LONGEST_LOGGED),
            extra=_ended(event, "discarded", event.duration),
        )

    def job_returned(self, event: events.JobReturned) -> None:
        self._logger.warning(
            "Returned job %d (%s): %s",
            event.job.id,
            event.job.task_identifier,
            event.reason,
            extra={**_about(event), "outcome": "returned"},
        )

    def job_lost(self, event: events.JobLost) -> None:
        self._logger.warning(
            "The outcome of %d job(s) changed nothing, they were no longer locked by this pool: %s",
            len(event.job_ids),
            ", ".join(map(str, event.job_ids[:10])),
            extra={"pool_id": event.pool_id},
        )

    def thread_stuck(self, event: events.ThreadStuck) -> None:
        full = event.stuck >= event.most_stuck
        self._logger.log(
            logging.ERROR if full else logging.WARNING,
            "Job %d (%s) was cut off, but its function keeps running in its thread; such threads: "
            "%d%s",
            event.job.id,
            event.job.task_identifier,
            event.stuck,
            "; new functions wait until one of them returns" if full else "",
            extra=_about(event),
        )

    def task_stuck(self, event: events.TaskStuck) -> None:
        self._logger.warning(
            "Job %d (%s) was cut off, but its task runs on; %d task(s) do. It waits in:\n%s",
            event.job.id,
            event.job.task_identifier,
            event.stuck,
            event.stack,
            extra=_about(event),
        )

    def graceful_shutdown(self, event: events.PoolGracefulShutdown) -> None:
        self._logger.info("Stopping: %s", event.message, extra={"pool_id": event.pool_id})

    def forceful_shutdown(self, event: events.PoolForcefulShutdown) -> None:
        self._logger.warning(
            "Stopping at once: %s", event.message, extra={"pool_id": event.pool_id}
        )

    def released(self, event: events.PoolRelease) -> None:
        self._logger.info("Stopped", extra={"pool_id": event.pool_id})

    def fatal_error(self, event: events.PoolFatalError) -> None:
        self._logger.error(
            "Could not %s, stopping: %s",
            event.action,
            message_of(event.error, most=LONGEST_LOGGED),
            extra={"pool_id": event.pool_id},
        )


def _about(event: events.JobEvent) -> dict[str, object]:
    """The fields of a record about a job."""
    return {
        "job_id": event.job.id,
        "task_identifier": event.job.task_identifier,
        "attempt": event.job.attempts,
        "worker_id": event.worker_id,
        "pool_id": event.pool_id,
    }


def _ended(event: events.JobEvent, outcome: str, duration: float) -> dict[str, object]:
    """The fields of a record about an attempt that has ended."""
    wait = clock.utc_now().timestamp() - duration - event.job.run_at_seconds
    return {**_about(event), "outcome": outcome, "wait": max(0.0, wait), "duration": duration}


def _described(event: Event) -> str:
    return " ".join(f"{field.name}={_shown(getattr(event, field.name))}" for field in fields(event))


def _shown(value: object) -> str:
    """A field of an event; of a job only its id, because its payload may be confidential."""
    match value:
        case Job():
            return str(value.id)
        case BaseException():
            return one_line(value)
        case list() | tuple():
            return ",".join(map(_shown, value))
    return str(value)
