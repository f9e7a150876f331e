"""The plugin `metrics` measures jobs, and shows them on the health port."""

import asyncio
import time
import urllib.error
import urllib.request
from asyncio import to_thread as in_thread
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from graphile_worker_py import Discard, Plugin, Runner, Snooze, WorkerUtils, run_once, task
from graphile_worker_py.plugins import Page
from graphile_worker_py.telemetry.job_numbers import MOST_TASKS, OTHER
from graphile_worker_py.telemetry.prometheus import Metrics
from tests.support.eventually import eventually

pytestmark = pytest.mark.any_server


@task
async def succeed(_payload: Any) -> None:
    """Succeed."""


@task(max_attempts=2)
async def fail(_payload: Any) -> None:
    """Fail."""
    raise ValueError("no")


@task
async def decide(payload: str) -> object:
    """Discard or snooze the job."""
    return Discard() if payload == "discard" else Snooze(60)


def values(text: str) -> dict[str, float]:
    """All samples of a text, by name and labels as they stand there."""
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def get(url: str) -> tuple[int, str, str]:
    """Status, content type and text of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


async def test_each_outcome_is_counted(dsn: str) -> None:
    metrics = Metrics()
    async with WorkerUtils(dsn) as utils:
        await utils.add_job(succeed, {})
        await utils.add_job(succeed, {})
        failing = await utils.add_job(fail, {})
        await utils.add_job(decide, "discard")
        await utils.add_job(decide, "snooze")
        await run_once(dsn, tasks=[succeed, fail, decide], hooks=[metrics])
        await utils.reschedule_jobs([failing.id], run_at=failing.created_at)
        await run_once(dsn, tasks=[succeed, fail, decide], hooks=[metrics])
    seen = values(metrics.text().decode())
    name = "graphile_worker_jobs_total"
    assert {key: value for key, value in seen.items() if key.startswith(name)} == {
        f"{name} completed succeed": 2,
        f"{name} failed fail": 1,
        f"{name} given_up fail": 1,
        f"{name} discarded decide": 1,
        f"{name} snoozed decide": 1,
    }
    assert seen["graphile_worker_job_run_seconds_count succeed"] == 2
    assert seen["graphile_worker_job_wait_seconds_count fail"] == 2
    assert seen["graphile_worker_running fail"] == 0
    assert seen["graphile_worker_fetch_seconds_count"] >= 2
    assert 1 <= seen["graphile_worker_record_seconds_count"] <= 6  # outcomes of batches
    assert 0 < seen["graphile_worker_record_seconds_sum"] < 60


async def test_jobs_of_mixed_tasks_are_put_into_the_buckets_of_their_own_task(dsn: str) -> None:
    metrics = Metrics()
    async with WorkerUtils(dsn) as utils:
        for _ in range(3):
            await utils.add_job(succeed, {}, run_at=datetime.now(UTC) - timedelta(seconds=120))
            await utils.add_job(decide, "discard", run_at=datetime.now(UTC) - timedelta(hours=1))
        await run_once(dsn, tasks=[succeed, decide], hooks=[metrics])
    seen = values(metrics.text().decode())
    waits = "graphile_worker_job_wait_seconds"
    for name, over, under, seconds in (
        ("succeed", "60.0", "300.0", 120),
        ("decide", "1800.0", "7200.0", 3600),
    ):
        assert seen[f"{waits}_bucket {over} {name}"] == 0
        assert seen[f"{waits}_bucket {under} {name}"] == 3
        assert seen[f"{waits}_bucket +Inf {name}"] == 3
        assert 3 * seconds <= seen[f"{waits}_sum {name}"] < 3 * seconds + 180
        assert seen[f"graphile_worker_job_run_seconds_bucket 60.0 {name}"] == 3


async def test_jobs_that_run_are_counted_by_task(dsn: str) -> None:
    metrics, gate = Metrics(), asyncio.Event()

    @task("hold")
    async def hold(_payload: Any) -> None:
        await gate.wait()

    def running() -> float | None:
        return values(metrics.text().decode()).get("graphile_worker_running hold")

    async with Runner(dsn, tasks=[hold], hooks=[metrics], concurrent_jobs=3) as runner:
        for _ in range(2):
            await runner.add_job(hold, {})
        await eventually(lambda: running() == 2)
        gate.set()
        await eventually(lambda: running() == 0)


async def test_the_health_port_shows_metrics_of_a_plugin_by_name(dsn: str) -> None:
    async with Runner(dsn, tasks=[succeed], hooks=["metrics"], health_port=0) as runner:
        await runner.add_job(succeed, {})

        async def shown() -> dict[str, float]:
            status, kind, text = await in_thread(get, f"{runner.health_url}/metrics")
            assert status == 200
            assert kind.startswith("text/plain")
            seen = values(text)
            assert seen.get("graphile_worker_jobs_total completed succeed") == 1
            assert seen.get("graphile_worker_listening") == 1
            return seen

        seen = await eventually(shown)
        assert [value for key, value in seen.items() if "build_info" in key] == [1]
        assert (await in_thread(get, f"{runner.health_url}/livez"))[2] == "ok\n"
        assert (await in_thread(get, f"{runner.health_url}/other"))[0] == 404


async def test_a_page_that_fails_answers_with_an_error(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Plugin):
        def pages(self) -> Mapping[str, Page]:
            return {"/broken": broken, "/livez": broken}

    def broken() -> tuple[str, bytes]:
        raise ValueError("no page")

    async with Runner(dsn, tasks=[succeed], hooks=[Broken], health_port=0) as runner:
        assert (await in_thread(get, f"{runner.health_url}/broken"))[0] == 500
        assert (await in_thread(get, f"{runner.health_url}/livez"))[0] == 200
    assert "A page of a plugin failed" in caplog.text


async def test_the_leader_counts_the_jobs_in_the_table(dsn: str) -> None:
    metrics = Metrics(count_interval=0.1)
    async with Runner(dsn, tasks=[succeed], hooks=[metrics], heartbeat_interval=0.1) as runner:
        await runner.add_job(succeed, {}, run_in=3600)
        await runner.add_job("other", {})

        def counted() -> bool:
            seen = values(metrics.text().decode())
            return (
                seen.get("graphile_worker_jobs scheduled succeed") == 1
                and seen.get("graphile_worker_jobs ready other") == 1
                and 0 < seen["graphile_worker_oldest_ready_age_seconds other"] < 15
                and "graphile_worker_oldest_ready_age_seconds succeed" not in seen
            )

        await eventually(counted)


async def test_ten_thousand_names_of_tasks_stay_bounded(dsn: str) -> None:
    metrics = Metrics(count_interval=None)
    tasks: dict[str, Callable[[Any], Any]] = {f"t{n}": succeed for n in range(MOST_TASKS + 20)}
    async with WorkerUtils(dsn) as utils:
        async with utils.pool.connection() as conn:
            await conn.execute(
                "select graphile_worker.add_job('t' || n) from generate_series(0, %s - 1) as n",
                (len(tasks),),
            )
        await run_once(dsn, tasks=tasks, hooks=[metrics])
    for number in range(10_000):
        assert metrics.jobs.of(f"more {number}") is metrics.jobs.of(OTHER)
    name = "graphile_worker_jobs_total "
    counted = {key: value for key, value in values(metrics.text().decode()).items() if name in key}
    assert len(counted) == MOST_TASKS + 1
    assert counted[f"{name}completed {OTHER}"] == 20


async def test_an_event_loop_that_is_blocked_shows_its_lag(dsn: str) -> None:
    metrics = Metrics(count_interval=None)
    async with Runner(dsn, tasks=[succeed], hooks=[metrics]) as runner:
        await runner.add_job(succeed, {})
        await eventually(lambda: b"jobs_total{" in metrics.text())  # all of the pool runs

        def lags() -> bool:
            time.sleep(1.2)  # longer than an interval, so that the measurement is late
            return values(metrics.text().decode())["graphile_worker_loop_lag_seconds"] > 0.1

        await eventually(lags)


async def test_two_runners_in_one_process_have_metrics_each(dsn: str) -> None:
    first, second = Metrics(), Metrics()
    async with WorkerUtils(dsn) as utils:
        await utils.add_job(succeed, {})
    await run_once(dsn, tasks=[succeed], hooks=[first])
    await run_once(dsn, tasks=[succeed], hooks=[second])
    assert b'jobs_total{outcome="completed",task="succeed"} 1.0' in first.text()
    assert b"jobs_total{" not in second.text()
