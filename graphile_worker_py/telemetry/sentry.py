"""Sentry: errors of jobs, and what its page about queues needs. Needs the extra `sentry`."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import sentry_sdk
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


class Sentry(Plugin):
    """Reports to the client that `sentry_sdk.init` has set up.

    Args:
        each_attempt: Whether to report the error of each failed attempt. By default, an error is
            reported once the job is given up. `RetryIn` is reported only then, `Snooze` and
            `Discard` never.
    """

    def __init__(self, *, each_attempt: bool = False) -> None:
        self._each_attempt = each_attempt

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
        with _processing(ctx.job) as span:
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
