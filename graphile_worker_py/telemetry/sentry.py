"""Sentry: errors of jobs, and what its page about queues needs. Needs the extra `sentry`."""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Final

import sentry_sdk
from sentry_sdk.crons import MonitorStatus, capture_checkin
from sentry_sdk.tracing import Span

from graphile_worker_py import events
from graphile_worker_py.clock import utc_now
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.outcomes import Discard, RetryIn, Snooze
from graphile_worker_py.plugins import Plugin
from graphile_worker_py.tasks.context import JobContext
from graphile_worker_py.telemetry.trace_flags import traceparent_of, with_traceparent

ORIGIN: Final = "auto.queue.graphile_worker"
LONGEST_SLUG: Final = 50
_NOT_IN_SLUGS: Final = re.compile(r"[^a-z0-9_-]+")


class Sentry(Plugin):
    """Reports to the client that `sentry_sdk.init` has set up.

    Args:
        each_attempt: Whether to report the error of each failed attempt. By default, an error is
            reported once the job is given up. `RetryIn` is reported only then, `Snooze` and
            `Discard` never.
        check_ins: Whether jobs of crontab items check in with the monitor that is named after their
            task. Sentry ignores check-ins for which there is no monitor.
    """

    def __init__(self, *, each_attempt: bool = False, check_ins: bool = True) -> None:
        self._each_attempt = each_attempt
        self._check_ins = check_ins

    def setup(self, events_of_runner: Events) -> None:
        """Hear of jobs that failed."""
        # By its name, because a subscriber of the class would hear a final failure twice.
        events_of_runner.subscribe(events.JobError.name, self._on_error)

    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        proceed: Callable[[Sequence[JobSpec]], Awaitable[Sequence[Job]]],
    ) -> Sequence[Job]:
        """Add jobs within a span `queue.publish`, if there is a transaction."""
        if not specs or sentry_sdk.get_current_span() is None:
            return await proceed(specs)
        first = specs[0].identifier
        with sentry_sdk.start_span(op="queue.publish", name=first, origin=ORIGIN) as span:
            parent = f"00-{span.trace_id}-{span.span_id}-{'01' if span.sampled else '00'}"
            jobs = await proceed([with_traceparent(spec, parent) for spec in specs])
            span.set_data("messaging.destination.name", first)
            if jobs:
                span.set_data("messaging.message.id", str(jobs[0].id))
                span.set_data("messaging.message.body.size", len(jobs[0].payload_json))
            return jobs

    async def run_job(
        self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
    ) -> Any:
        """Call a task within a transaction that has a span `queue.process`."""
        with _checking_in(ctx.job, wanted=self._check_ins), _processing(ctx.job) as span:
            try:
                return await proceed(ctx)
            except (Snooze, Discard, RetryIn):
                span.set_status("aborted")
                raise
            except Exception:
                span.set_status("internal_error")
                raise

    def _on_error(self, event: events.JobError) -> None:
        is_final = event.retry_at is None
        if not is_final and (not self._each_attempt or isinstance(event.error, RetryIn)):
            return
        with sentry_sdk.new_scope() as scope:
            scope.set_transaction_name(event.job.task_identifier, source="task")
            scope.set_tag("graphile_worker.task", event.job.task_identifier)
            scope.set_context("job", _about(event.job))
            scope.capture_exception(event.error)


@contextmanager
def _checking_in(job: Job, *, wanted: bool) -> Iterator[None]:
    """Report the run of a crontab item to its monitor; backfilled runs are late by intention."""
    if not wanted or b'"_cron"' not in job.payload_json or not _is_due_run(job.payload):
        yield
        return
    slug = monitor_of(job.task_identifier)
    began = perf_counter()
    check_in = capture_checkin(monitor_slug=slug, status=MonitorStatus.IN_PROGRESS)
    status = MonitorStatus.ERROR
    try:
        yield
        status = MonitorStatus.OK
    except (Snooze, Discard):
        status = MonitorStatus.OK
        raise
    finally:
        capture_checkin(
            monitor_slug=slug,
            check_in_id=check_in,
            status=status,
            duration=perf_counter() - began,
        )


def _is_due_run(payload: Any) -> bool:
    cron = payload.get("_cron") if isinstance(payload, dict) else None
    return isinstance(cron, dict) and not cron.get("backfilled")


def monitor_of(task: str) -> str:
    """The slug of the monitor of a task: what Sentry allows of its name."""
    return _NOT_IN_SLUGS.sub("-", task.lower()).strip("-")[:LONGEST_SLUG]


@contextmanager
def _processing(job: Job) -> Iterator[Span]:
    task = job.task_identifier
    with sentry_sdk.isolation_scope() as scope:
        scope.clear_breadcrumbs()
        scope.set_context("job", _about(job))
        transaction = sentry_sdk.continue_trace(
            _headers(job), op="queue.task.graphile_worker", name=task, source="task", origin=ORIGIN
        )
        with (
            sentry_sdk.start_transaction(transaction),
            sentry_sdk.start_span(op="queue.process", name=task, origin=ORIGIN) as span,
        ):
            waited = (utc_now() - job.run_at).total_seconds() * 1000
            span.set_data("messaging.message.id", str(job.id))
            span.set_data("messaging.destination.name", task)
            span.set_data("messaging.message.body.size", len(job.payload_json))
            span.set_data("messaging.message.receive.latency", max(0.0, waited))
            span.set_data("messaging.message.retry.count", job.attempts - 1)
            yield span


def _headers(job: Job) -> dict[str, str]:
    traceparent = traceparent_of(job)
    if traceparent is None:
        return {}
    _, trace_id, span_id, flags = traceparent.split("-")
    return {"sentry-trace": f"{trace_id}-{span_id}-{int(flags, 16) & 1}"}


def _about(job: Job) -> dict[str, object]:
    # Without the payload, which may contain secrets.
    return {
        "id": job.id,
        "task": job.task_identifier,
        "attempt": job.attempts,
        "max_attempts": job.max_attempts,
        "key": job.key,
    }
