"""The plugin `sentry` reports errors of jobs, and what Sentry's page about queues needs."""

from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from graphile_worker_py import Discard, RetryIn, WorkerUtils, run_once, task
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.telemetry.sentry import Sentry

pytestmark = pytest.mark.any_server


@task
async def succeed(_payload: Any) -> None:
    """Succeed."""


@task(max_attempts=2)
async def fail(_payload: Any) -> None:
    """Fail."""
    raise ValueError("no answer")


@task
async def decide(payload: str) -> None:
    """Discard the job, or try it later."""
    raise Discard("unwanted") if payload == "discard" else RetryIn(60)


TASKS = [succeed, fail, decide]


class FakeTransport(Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        """Keep the events and transactions of an envelope."""
        self.sent += [item.payload.json for item in envelope.items]

    def transactions(self) -> list[Any]:
        """The transactions."""
        return [each for each in self.sent if each.get("type") == "transaction"]

    def errors(self) -> list[Any]:
        """The errors."""
        return [each for each in self.sent if "exception" in each]


@pytest.fixture
def transport() -> Iterator[FakeTransport]:
    """What a client of the test sends."""
    transport = FakeTransport()
    client = sentry_sdk.Client(
        dsn="http://key@127.0.0.1:9/1",
        transport=transport,
        traces_sample_rate=1.0,
        default_integrations=False,
        auto_enabling_integrations=False,
        # These have threads that end seconds after the client.
        enable_backpressure_handling=False,
        auto_session_tracking=False,
    )
    before = sentry_sdk.get_global_scope().client
    sentry_sdk.get_global_scope().set_client(client)
    yield transport
    sentry_sdk.get_global_scope().set_client(before)
    client.close()


async def test_the_page_about_queues_gets_what_it_needs(dsn: str, transport: FakeTransport) -> None:
    async with WorkerUtils(dsn, hooks=["sentry"]) as utils:
        with sentry_sdk.start_transaction(name="request"):
            job = await utils.add_job(succeed, {"n": 1})
    await run_once(dsn, tasks=TASKS, hooks=["sentry"])
    request, process = transport.transactions()
    (publish,) = request["spans"]
    (processed,) = process["spans"]
    assert (publish["op"], processed["op"]) == ("queue.publish", "queue.process")
    assert publish["data"]["messaging.message.id"] == str(job.id)
    assert publish["data"]["messaging.destination.name"] == "succeed"
    assert publish["data"]["messaging.message.body.size"] == len(job.payload_json)
    about = processed["data"]
    assert about["messaging.message.id"] == str(job.id)
    assert about["messaging.destination.name"] == "succeed"
    assert about["messaging.message.body.size"] == len(job.payload_json)
    assert about["messaging.message.retry.count"] == 0
    assert 0 <= about["messaging.message.receive.latency"] < 15_000
    assert process["transaction"] == "succeed"
    assert process["contexts"]["trace"]["trace_id"] == request["contexts"]["trace"]["trace_id"]
    assert process["contexts"]["trace"]["parent_span_id"] == publish["span_id"]
    assert transport.errors() == []


async def test_an_error_is_reported_once_the_job_is_given_up(
    dsn: str, transport: FakeTransport
) -> None:
    async with WorkerUtils(dsn) as utils:
        job = await utils.add_job(fail, {"password": "secret"})
        await run_once(dsn, tasks=TASKS, hooks=[Sentry()])
        assert transport.errors() == []
        await utils.reschedule_jobs([job.id], run_at=job.created_at)
        await run_once(dsn, tasks=TASKS, hooks=[Sentry()])
    (error,) = transport.errors()
    (raised,) = error["exception"]["values"]
    assert (raised["type"], raised["value"]) == ("ValueError", "no answer")
    assert error["transaction"] == "fail"
    assert error["tags"]["graphile_worker.task"] == "fail"
    assert error["contexts"]["job"]["attempt"] == 2
    retries = [
        each["spans"][0]["data"]["messaging.message.retry.count"]
        for each in transport.transactions()
    ]
    assert retries == [0, 1]
    assert transport.transactions()[0]["spans"][0]["status"] == "internal_error"
    assert "secret" not in str(error["contexts"])


async def test_errors_of_each_attempt_are_reported_if_wanted_but_no_decisions(
    dsn: str, transport: FakeTransport
) -> None:
    async with WorkerUtils(dsn) as utils:
        await utils.add_job(fail, {})
        await utils.add_job(decide, "discard")
        await utils.add_job(decide, "later")
    await run_once(dsn, tasks=TASKS, hooks=[Sentry(each_attempt=True)])
    assert [error["transaction"] for error in transport.errors()] == ["fail"]


async def test_without_a_client_nothing_changes(dsn: str) -> None:
    (plugin,) = Hooks(["sentry"]).plugins
    async with WorkerUtils(dsn, hooks=[plugin]) as utils:
        assert (await utils.add_job(succeed, {})).flags is None
    assert (await run_once(dsn, tasks=TASKS, hooks=[plugin])).completed == 1


async def test_jobs_of_crontab_items_check_in_with_their_monitor(
    dsn: str, transport: FakeTransport
) -> None:
    due = {"_cron": {"ts": "2026-01-31T04:00:00.000Z", "backfilled": False}}
    late = {"_cron": {"ts": "2026-01-31T03:00:00.000Z", "backfilled": True}}
    tasks = {"Reports.daily": succeed, "fail": fail}
    async with WorkerUtils(dsn) as utils:
        for name, payload in (
            ("Reports.daily", due), ("fail", due), ("Reports.daily", late), ("Reports.daily", {}),
        ):  # fmt: skip
            await utils.add_job(name, payload)
    await run_once(dsn, tasks=tasks, hooks=[Sentry()])
    sentry_sdk.flush()
    check_ins = [each for each in transport.sent if "monitor_slug" in each]
    by_monitor: dict[str, list[Any]] = {}
    for each in check_ins:
        by_monitor.setdefault(each["monitor_slug"], []).append(each)
    assert {slug: [each["status"] for each in found] for slug, found in by_monitor.items()} == {
        "reports-daily": ["in_progress", "ok"],
        "fail": ["in_progress", "error"],
    }
    for began, ended in by_monitor.values():
        assert began["check_in_id"] == ended["check_in_id"]
        assert 0 <= ended["duration"] < 15
    transport.sent.clear()
    async with WorkerUtils(dsn) as utils:
        await utils.add_job("Reports.daily", due)
    await run_once(dsn, tasks=tasks, hooks=[Sentry(check_ins=False)])
    assert not any("monitor_slug" in each for each in transport.sent)
