"""A trace goes from a request in Python through a task in Node to a task in Python."""

from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from graphile_worker_py import WorkerUtils, run_once, task
from graphile_worker_py.telemetry.otel import OpenTelemetry
from tests.support.node import LATEST, Node

FORWARD = """
import { runOnce } from "graphile-worker";

await runOnce({
  connectionString: process.argv[2],
  taskList: {
    pack: async (_payload, helpers) => {
      await helpers.addJob("ship", {}, { flags: Object.keys(helpers.job.flags ?? {}) });
    },
  },
});
"""


@task
async def ship(_payload: Any) -> None:
    """Ship."""


async def test_a_trace_goes_through_a_task_of_node(dsn: str, node: Node) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    plugin = OpenTelemetry(tracer_provider=provider)
    async with WorkerUtils(dsn, hooks=[plugin]) as utils:
        with provider.get_tracer("web").start_as_current_span("request"):
            await utils.add_job("pack")
    node.run(LATEST, FORWARD, dsn)
    result = await run_once(dsn, tasks=[ship], hooks=[plugin])
    assert result.completed == 1
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"request", "send pack", "process ship"}
    assert len({span.context.trace_id for span in spans.values()}) == 1
    parent = spans["process ship"].parent
    assert parent is not None
    assert parent.span_id == spans["send pack"].context.span_id
