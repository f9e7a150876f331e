"""OpenTelemetry: a span for adding jobs, and one for each attempt. Needs the extra `otel`.

The names are those of the semantic conventions for messaging, which are still in development.
"""

from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, Final

from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
)

from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.outcomes import Discard, RetryIn, Snooze
from graphile_worker_py.plugins import Plugin
from graphile_worker_py.tasks.context import JobContext
from graphile_worker_py.telemetry.trace_flags import traceparent_of, with_traceparent

NAME: Final = "graphile_worker_py"
SYSTEM: Final = "graphile_worker"
DECISIONS: Final = (Discard, RetryIn, Snooze)
"""What tasks raise to decide; no errors."""


class OpenTelemetry(Plugin):
    """Traces jobs: `send {task}` where they are added, `process {task}` where they run.

    The first attempt of a job belongs to the trace in which it was added. Later attempts begin
    traces, with a link to that one.

    Args:
        tracer_provider: Where spans go; None means the global provider.
        meter_provider: Where the duration of attempts goes; None means the global provider.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(NAME, tracer_provider=tracer_provider)
        self._tasks: dict[str, dict[str, str]] = {}
        self._duration = metrics.get_meter(NAME, meter_provider=meter_provider).create_histogram(
            "messaging.process.duration", unit="s", description="Duration of attempts of jobs."
        )

    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        proceed: Callable[[Sequence[JobSpec]], Awaitable[Sequence[Job]]],
    ) -> Sequence[Job]:
        """Add jobs within spans, one for each task, and let the jobs carry them."""
        counts: dict[str, int] = {}
        for spec in specs:
            counts[spec.identifier] = counts.get(spec.identifier, 0) + 1
        spans = {task: self._sending(task, count) for task, count in counts.items()}
        parents = {task: _traceparent(span) for task, span in spans.items()}
        try:
            jobs = await proceed([_carrying(spec, parents[spec.identifier]) for spec in specs])
        except Exception as error:
            for span in spans.values():
                _fail(span, error)
            raise
        else:
            if len(jobs) == 1:
                for span in spans.values():
                    span.set_attribute("messaging.message.id", str(jobs[0].id))
            return jobs
        finally:
            for span in spans.values():
                span.end()

    async def run_job(
        self, ctx: JobContext, proceed: Callable[[JobContext], Awaitable[Any]]
    ) -> Any:
        """Call a task within a span."""
        began = perf_counter()
        attributes = self._about(ctx.job.task_identifier)
        span = self._process_span(ctx.job, attributes)
        token = context.attach(trace.set_span_in_context(span))
        try:
            return await proceed(ctx)
        except Exception as error:
            if not isinstance(error, DECISIONS):
                _fail(span, error)
            attributes = {**attributes, "error.type": type(error).__qualname__}
            raise
        finally:
            context.detach(token)
            span.end()
            self._duration.record(perf_counter() - began, attributes)

    def _about(self, task: str) -> dict[str, str]:
        """The attributes that all attempts of a task have."""
        found = self._tasks.get(task)
        if found is None:
            found = self._tasks[task] = {
                "messaging.system": SYSTEM,
                "messaging.operation.name": "process",
                "messaging.destination.name": task,
            }
        return found

    def _sending(self, task: str, count: int) -> Span:
        attributes: dict[str, str | int] = {
            "messaging.system": SYSTEM,
            "messaging.operation.type": "send",
            "messaging.operation.name": "send",
            "messaging.destination.name": task,
        }
        if count > 1:
            attributes["messaging.batch.message_count"] = count
        return self._tracer.start_span(
            f"send {task}", kind=SpanKind.PRODUCER, attributes=attributes
        )

    def _process_span(self, job: Job, about: dict[str, str]) -> Span:
        sender = _sender_of(job)
        # An empty context makes a root span, whatever is current where the worker was started.
        parent, links = Context(), []
        if sender is not None and job.attempts == 1:
            parent = trace.set_span_in_context(NonRecordingSpan(sender), parent)
        elif sender is not None:
            links = [Link(sender)]
        return self._tracer.start_span(
            f"process {job.task_identifier}",
            context=parent,
            kind=SpanKind.CONSUMER,
            links=links,
            attributes={
                **about,
                "messaging.operation.type": "process",
                "messaging.message.id": str(job.id),
                "graphile_worker.job.attempt": job.attempts,
                "graphile_worker.job.max_attempts": job.max_attempts,
            },
        )


def _traceparent(span: Span) -> str | None:
    own = span.get_span_context()
    if not own.is_valid:  # without an SDK there is no trace
        return None
    trace_id, span_id = format_trace_id(own.trace_id), format_span_id(own.span_id)
    return f"00-{trace_id}-{span_id}-{own.trace_flags:02x}"


def _carrying(spec: JobSpec, traceparent: str | None) -> JobSpec:
    return spec if traceparent is None else with_traceparent(spec, traceparent)


def _sender_of(job: Job) -> SpanContext | None:
    traceparent = traceparent_of(job)
    if traceparent is None:
        return None
    _, trace_id, span_id, flags = traceparent.split("-")
    sender = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )
    return sender if sender.is_valid else None


def _fail(span: Span, error: Exception) -> None:
    span.record_exception(error)
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, str(error)))
