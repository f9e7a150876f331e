"""The plugin `otel`: a span where jobs are added, and one for each attempt, in one trace."""

import threading
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from graphile_worker_py import JobSpec, Snooze, SyncWorkerUtils, WorkerUtils, run_once, task
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.telemetry.otel import OpenTelemetry

pytestmark = pytest.mark.any_server

HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@task
async def succeed(_payload: Any) -> None:
    """Succeed."""


@task
def in_thread(_payload: Any) -> None:
    """Begin a span in the thread of the task."""
    trace.get_current_span().set_attribute("seen", "in the thread")


@task
async def fail(_payload: Any) -> None:
    """Fail."""
    raise ValueError("no answer")


@task
async def snooze(_payload: Any) -> None:
    """Put the job off."""
    raise Snooze(60)


TASKS = [succeed, in_thread, fail, snooze]


class Traced:
    """The plugin, and what it exports."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.plugin = OpenTelemetry(
            tracer_provider=self.provider,
            meter_provider=MeterProvider(metric_readers=[self.reader]),
        )

    def spans(self) -> dict[str, ReadableSpan]:
        """The spans that have ended since the last call, by name."""
        found = {span.name: span for span in self.exporter.get_finished_spans()}
        self.exporter.clear()
        return found


@pytest.fixture
def traced() -> Traced:
    """The plugin, and what it exports."""
    return Traced()


def ids(span: ReadableSpan) -> tuple[int, int]:
    """The ids of the trace and of the span."""
    return span.context.trace_id, span.context.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    """The ids of the parent."""
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


async def test_the_first_attempt_is_in_the_trace_of_the_request(dsn: str, traced: Traced) -> None:
    async with WorkerUtils(dsn, hooks=[traced.plugin]) as utils:
        with traced.provider.get_tracer("web").start_as_current_span("request"):
            job = await utils.add_job(succeed, {})
    await run_once(dsn, tasks=TASKS, hooks=[traced.plugin])
    spans = traced.spans()
    request, send, process = (
        spans[name] for name in ("request", "send succeed", "process succeed")
    )
    assert (parent_of(send), parent_of(process)) == (ids(request), ids(send))
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(send.attributes or {}) == {
        "messaging.system": "graphile_worker",
        "messaging.operation.type": "send",
        "messaging.operation.name": "send",
        "messaging.destination.name": "succeed",
        "messaging.message.id": str(job.id),
    }
    assert dict(process.attributes or {}) == {
        "messaging.system": "graphile_worker",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "succeed",
        "messaging.message.id": str(job.id),
        "graphile_worker.job.attempt": 1,
        "graphile_worker.job.max_attempts": 25,
    }


async def test_a_job_that_sql_has_added_is_in_the_trace_of_its_flag(
    dsn: str, traced: Traced
) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        statement = "select graphile_worker.add_job('succeed', flags := array[%s, 'big'])"
        conn.execute(statement, (f"traceparent:{HEADER}",))
        conn.execute("select graphile_worker.add_job('in_thread', flags := '{traceparent:no}')")
    await run_once(dsn, tasks=TASKS, hooks=[traced.plugin])
    spans = traced.spans()
    _, trace_id, span_id, _ = HEADER.split("-")
    assert parent_of(spans["process succeed"]) == (int(trace_id, 16), int(span_id, 16))
    assert parent_of(spans["process in_thread"]) is None
    assert (spans["process in_thread"].attributes or {})["seen"] == "in the thread"


async def test_later_attempts_begin_traces_with_a_link(dsn: str, traced: Traced) -> None:
    async with WorkerUtils(dsn, hooks=[traced.plugin]) as utils:
        job = await utils.add_job(fail, {})
        await run_once(dsn, tasks=TASKS, hooks=[traced.plugin])
        first = traced.spans()
        await utils.reschedule_jobs([job.id], run_at=job.created_at)
    with traced.provider.get_tracer("worker").start_as_current_span("start of the worker"):
        await run_once(dsn, tasks=TASKS, hooks=[traced.plugin])
    second = traced.spans()["process fail"]
    send = first["send fail"]
    assert second.parent is None
    assert [(each.context.trace_id, each.context.span_id) for each in second.links] == [ids(send)]
    assert (second.attributes or {})["graphile_worker.job.attempt"] == 2


async def test_errors_are_recorded_and_decisions_are_not(dsn: str, traced: Traced) -> None:
    async with WorkerUtils(dsn) as utils:
        await utils.add_jobs([JobSpec(fail, {}), JobSpec(snooze, {})])
    await run_once(dsn, tasks=TASKS, hooks=[traced.plugin])
    spans = traced.spans()
    failed = spans["process fail"]
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "ValueError"
    assert [event.name for event in failed.events] == ["exception"]
    assert spans["process snooze"].status.status_code is StatusCode.UNSET
    assert spans["process snooze"].events == ()


async def test_many_jobs_are_sent_in_a_span_for_each_task(dsn: str, traced: Traced) -> None:
    async with WorkerUtils(dsn, hooks=[traced.plugin]) as utils:
        specs = [JobSpec(succeed, {}, flags=["big"]) for _ in range(3)]
        jobs = await utils.add_jobs([*specs, JobSpec(fail, {})])
    spans = traced.spans()
    assert spans.keys() == {"send succeed", "send fail"}
    assert (spans["send succeed"].attributes or {})["messaging.batch.message_count"] == 3
    carried = [sorted(job.flags or ()) for job in jobs[:3]]
    assert [flags[0] for flags in carried] == ["big"] * 3
    assert len({flags[1] for flags in carried}) == 1


def test_jobs_of_plain_programs_carry_their_trace(dsn: str, traced: Traced) -> None:
    with SyncWorkerUtils(dsn, hooks=[traced.plugin]) as utils:
        job = utils.add_job(succeed, {})
    (flag,) = list(job.flags or ())
    send = traced.spans()["send succeed"]
    flags = int(send.context.trace_flags)
    assert flag == f"traceparent:00-{ids(send)[0]:032x}-{ids(send)[1]:016x}-{flags:02x}"


async def test_the_duration_of_attempts_is_measured(dsn: str, traced: Traced) -> None:
    async with WorkerUtils(dsn) as utils:
        await utils.add_job(succeed, {})
    await run_once(dsn, tasks=TASKS, hooks=[traced.plugin])
    data = traced.reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("messaging.process.duration", "s")


async def test_without_an_sdk_jobs_carry_no_flag(dsn: str) -> None:
    (plugin,) = Hooks(["otel"]).plugins
    assert isinstance(plugin, OpenTelemetry)
    async with WorkerUtils(dsn, hooks=[plugin]) as utils:
        assert (await utils.add_job(succeed, {})).flags is None
    result = await run_once(dsn, tasks=TASKS, hooks=[plugin])
    assert result.completed == 1


class Hanging(SpanExporter):
    """Its peer never answers until it is let go."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.began.set()
        self.go.wait(15)
        return SpanExportResult.SUCCESS


async def test_an_exporter_that_hangs_holds_no_job(dsn: str) -> None:
    exporter, provider = Hanging(), TracerProvider()
    # Far fewer spans than there are jobs fit into the queue of the SDK.
    few: dict[str, Any] = {
        "max_queue_size": 4,
        "max_export_batch_size": 2,
        "schedule_delay_millis": 1,
    }
    provider.add_span_processor(BatchSpanProcessor(exporter, **few))
    async with WorkerUtils(dsn) as utils:
        await utils.add_jobs([JobSpec("succeed") for _ in range(50)])
    try:
        done = await run_once(dsn, tasks=TASKS, hooks=[OpenTelemetry(tracer_provider=provider)])
        assert exporter.began.is_set()
        assert not exporter.go.is_set()
        assert done.completed == 50
    finally:
        exporter.go.set()
        provider.shutdown()
