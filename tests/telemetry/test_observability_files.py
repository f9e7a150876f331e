"""Board, alert rules and manifests of `examples/observability` ask for what is there."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import urllib.parse
from asyncio import to_thread as in_thread
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from graphile_worker_py import Runner, WorkerUtils, run_once
from graphile_worker_py.cli.main import main as command
from graphile_worker_py.cron import read_crontab
from graphile_worker_py.telemetry.prometheus import Metrics
from graphile_worker_py.telemetry.siblings import joined
from tests.support.eventually import eventually
from tests.support.missing import missing
from tests.support.own_server import quiet_port
from tests.support.processes import Processes
from tests.support.running import Jobs
from tests.telemetry.test_prometheus import fail, get, succeed
from tests.test_deployment import StrictLoader

FOLDER = Path(__file__).parents[2] / "examples" / "observability"
VARIABLES = {"$task": ".*", "$__rate_interval": "1m"}
NAME = re.compile(r"(graphile_worker_\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r'(\w+)=~?"')
GROUPED = re.compile(r"by \(([^)]*)\)")


def read(name: str) -> list[Any]:
    """The documents of a YAML file; a key that stands twice in a mapping is refused."""
    return list(yaml.load_all((FOLDER / name).read_text(encoding="utf-8"), StrictLoader))


def board() -> Any:
    """The board of Grafana."""
    return json.loads((FOLDER / "grafana/board.json").read_text(encoding="utf-8"))


def alerts() -> list[Any]:
    """The alert rules."""
    return [rule for group in read("alerts.yml")[0]["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """All queries for Prometheus, and where they stand."""
    for panel in board()["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for variable, value in VARIABLES.items():
                query = query.replace(variable, value)
            yield panel["title"], query
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for rule in read("kubernetes/prometheus-adapter.yaml")[0]["rules"]["external"]:
        yield rule["name"]["as"], rule["metricsQuery"]
        yield rule["name"]["as"], rule["seriesQuery"]


def promtool(*arguments: str, given: str = "") -> None:
    """Check something with Prometheus' own tool."""
    check = ["promtool", "check", *arguments]
    subprocess.run(check, input=given, check=True, text=True, capture_output=True)


async def page_of_worker(dsn: str) -> str:
    """What a worker shows that has all metrics."""
    metrics = Metrics(count_interval=0.1)
    tasks = [succeed, fail]
    async with Runner(dsn, tasks=tasks, hooks=[metrics], heartbeat_interval=0.1) as runner:
        await runner.add_job("other", {})
        await runner.add_job(succeed, {})
        await runner.add_job(fail, {})
        needed = (b"oldest_ready_age_seconds{", b'"completed"', b'"failed",task="fail"')
        await eventually(lambda: all(each in metrics.text() for each in needed))
        return joined({1: metrics.text(), 2: None}).decode()


async def test_each_query_names_metrics_and_labels_that_workers_show(dsn: str) -> None:
    shown: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(await page_of_worker(dsn)):
        for sample in family.samples:
            shown.setdefault(sample.name, {"instance"}).update(sample.labels)
    asked = set()
    for place, query in queries():
        names = NAME.findall(query)
        assert names, place
        for name, labels in names:
            asked.add(name)
            assert name in shown, f"{place}: nothing is named {name}"
            grouped = {
                each.strip() for found in GROUPED.findall(query) for each in found.split(",")
            }
            unknown = {*LABEL.findall(labels), *grouped} - shown[name]
            assert not unknown, f"{place}: {name} has no labels {unknown}"
    assert len(asked) >= 12


def test_each_alert_says_what_to_do_with_commands_that_exist() -> None:
    for rule in alerts():
        action = rule["annotations"]["action"]
        assert len(action) > 40, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        for name in re.findall(r"`graphile-worker-py (\w+)", action):
            assert command.get_command(click.Context(command), name) is not None, name


def test_keda_scales_by_jobs_that_are_due_or_run(dsn: str) -> None:
    authentication, scaled = read("kubernetes/keda.yaml")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    jobs = Jobs(dsn)
    for _ in range(4):
        jobs.add("work", {})
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select graphile_worker.add_job('work', run_at := now() + interval '1 h')")
        table = "graphile_worker._private_jobs"
        conn.execute(f"update {table} set attempts = max_attempts where id <= 2")
        conn.execute(f"update {table} set locked_at = now(), locked_by = 'one' where id = 2")
        # One is given up, one runs for the last time, two are ready, one is put off.
        assert conn.execute(trigger["metadata"]["query"]).fetchone() == (3,)


def test_the_parts_of_the_stack_and_of_the_autoscaler_fit_together() -> None:
    (stack,) = read("compose.yaml")
    services = stack["services"]
    mounted = [each.split(":")[0] for one in services.values() for each in one.get("volumes", ())]
    assert len(mounted) == 7
    assert all((FOLDER / each).is_file() for each in mounted)
    (scraping,) = read("prometheus.yml")[0]["scrape_configs"]
    port = services["worker"]["environment"]["GRAPHILE_WORKER_HEALTH_PORT"]
    assert scraping["static_configs"] == [{"targets": [f"worker:{port}"]}]
    (source,) = read("grafana/datasource.yml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert read("grafana/boards.yml")[0]["providers"][0]["options"]["path"] in str(
        services["grafana"]["volumes"]
    )
    (autoscaler,) = read("kubernetes/hpa.yaml")
    (adapted,) = read("kubernetes/prometheus-adapter.yaml")[0]["rules"]["external"]
    (metric,) = autoscaler["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == adapted["name"]["as"]
    ids = [panel["id"] for panel in board()["panels"]]
    assert len(set(ids)) == len(ids)


async def test_the_sample_tasks_of_the_stack_make_load(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "tasks", raising=False)  # of another test
    tasks = importlib.import_module("tasks")
    del sys.modules["tasks"]
    (item,) = read_crontab(FOLDER / "crontab")
    async with WorkerUtils(dsn) as utils:
        await utils.add_job(item.task, {})
        report = await run_once(dsn, tasks={item.task: getattr(tasks, item.task)})
        counts = await utils.counts()
    assert report.failed == ()
    assert {task: each.total for task, each in counts.tasks.items()} == {
        "send_email": 90,
        "render_report": 10,
    }


@pytest.mark.long
@pytest.mark.timeout(90)
async def test_prometheus_answers_each_query(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        missing("Prometheus is not installed; say: apt-get install prometheus")
    text = await page_of_worker(dsn)
    await in_thread(promtool, "metrics", given=text)
    await in_thread(promtool, "rules", str(FOLDER / "alerts.yml"))
    port = quiet_port()
    async with Runner(
        dsn, tasks=[succeed, fail], hooks=[Metrics(count_interval=0.5)], health_port=0
    ) as runner:
        assert runner.health_url is not None
        target = runner.health_url.removeprefix("http://")
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(FOLDER / "alerts.yml")],
            "scrape_configs": [{"job_name": "w", "static_configs": [{"targets": [target]}]}],
        }
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        processes.start(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ]
        )
        await runner.add_job("other", {})

        async def answers(query: str) -> Any:
            asked = urllib.parse.quote(query)
            url = f"http://127.0.0.1:{port}/api/v1/query?query={asked}"
            status, _, body = await in_thread(get, url)
            assert status == 200, f"{query}: {body}"
            return json.loads(body)["data"]["result"]

        async def scraped() -> bool:
            await runner.add_job(succeed, {})
            await runner.add_job(fail, {})
            try:
                found = await answers("rate(graphile_worker_jobs_total[1m])")
            except OSError:
                return False
            return len(found) >= 2 and bool(await answers('graphile_worker_jobs{state="ready"}'))

        await eventually(scraped, timeout=40)
        panels = {panel["title"] for panel in board()["panels"]}
        for place, query in queries():
            found = await answers(query)
            assert found or place not in panels or "failed" in query, f"{place} shows nothing"
