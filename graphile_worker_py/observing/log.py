"""The log lines of a worker pool: an observer of its events like any other."""

import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Final

from graphile_worker_py import config, events
from graphile_worker_py.errors import message_of, one_line
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job

_PACKAGE: Final = str(Path(__file__).parent.parent)


def _users_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the first frame on that is the user's."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frames = frames.tb_next
    return frames


def _described(event: events.Event) -> str:
    return " ".join(f"{field.name}={_shown(getattr(event, field.name))}" for field in fields(event))


def _shown(value: object) -> str:
    """A field of an event: of a job its id, because its payload is nobody's business."""
    match value:
        case Job():
            return str(value.id)
        case BaseException():
            return one_line(value)
        case list() | tuple():
            return ",".join(map(_shown, value))
    return str(value)


def log_events(observed: Events, logger: logging.Logger) -> Callable[[], None]:
    """Write what happens to a logger; a function that ends it.

    Debug: every event. Info: pools and finished jobs, these unless `NO_LOG_SUCCESS` is set. Error:
    failed jobs. Payloads are never logged. What the logger would drop is not subscribed to, so that
    nothing is made for nobody.
    """

    def about(event: events.JobEvent) -> dict[str, object]:
        return {
            "job_id": event.job.id,
            "task_identifier": event.job.task_identifier,
            "attempt": event.job.attempts,
            "worker_id": event.worker_id,
            "pool_id": event.pool_id,
        }

    def job_success(event: events.JobSuccess) -> None:
        job = event.job
        attempt = f", attempt {job.attempts} of {job.max_attempts}" if job.attempts > 1 else ""
        logger.info(
            "Completed job %d (%s, %.2f ms%s)",
            job.id,
            job.task_identifier,
            event.duration * 1000,
            attempt,
            extra={**about(event), "duration": event.duration},
        )

    def job_error(event: events.JobError) -> None:
        job = event.job
        final = job.attempts >= job.max_attempts
        logger.error(
            "Failed job %d (%s, %.2f ms, attempt %d of %d%s): %s",
            job.id,
            job.task_identifier,
            event.duration * 1000,
            job.attempts,
            job.max_attempts,
            ", giving up" if final else "",
            message_of(event.error),
            exc_info=(type(event.error), event.error, _users_frames(event.error)),
            extra={**about(event), "duration": event.duration},
        )

    def job_returned(event: events.JobReturned) -> None:
        logger.warning(
            "Returned job %d (%s): %s",
            event.job.id,
            event.job.task_identifier,
            event.reason,
            extra=about(event),
        )

    def job_lost(event: events.JobLost) -> None:
        logger.warning(
            "The outcome of %d job(s) changed nothing, they were no longer locked by this pool: %s",
            len(event.job_ids),
            ", ".join(map(str, event.job_ids[:10])),
            extra={"pool_id": event.pool_id},
        )

    def thread_stuck(event: events.ThreadStuck) -> None:
        full = event.stuck >= event.most_stuck
        logger.log(
            logging.ERROR if full else logging.WARNING,
            "Job %d (%s) was cut off, but its function runs on in its thread; %d thread(s) do%s",
            event.job.id,
            event.job.task_identifier,
            event.stuck,
            ": no more are made until one returns" if full else "",
            extra=about(event),
        )

    def graceful(event: events.PoolGracefulShutdown) -> None:
        logger.info("Stopping: %s", event.message, extra={"pool_id": event.pool_id})

    def forceful(event: events.PoolForcefulShutdown) -> None:
        logger.warning("Stopping at once: %s", event.message, extra={"pool_id": event.pool_id})

    def released(event: events.PoolRelease) -> None:
        logger.info("Stopped", extra={"pool_id": event.pool_id})

    def fatal(event: events.PoolFatalError) -> None:
        logger.error(
            "Could not %s, stopping: %s",
            event.action,
            event.error,
            extra={"pool_id": event.pool_id},
        )

    def any_event(event: events.Event) -> None:
        logger.debug("%s %s", event.name, _described(event))

    wanted: list[tuple[int, type[events.Event], Callable[..., None]]] = [
        (logging.DEBUG, events.Event, any_event),
        (logging.INFO, events.JobSuccess, job_success),
        (logging.ERROR, events.JobError, job_error),
        (logging.WARNING, events.JobReturned, job_returned),
        (logging.WARNING, events.JobLost, job_lost),
        (logging.WARNING, events.ThreadStuck, thread_stuck),
        (logging.INFO, events.PoolGracefulShutdown, graceful),
        (logging.WARNING, events.PoolForcefulShutdown, forceful),
        (logging.INFO, events.PoolRelease, released),
        (logging.ERROR, events.PoolFatalError, fatal),
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
