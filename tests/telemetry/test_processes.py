"""With several processes, the page of each one shows the metrics of all."""

import os
import re
import signal
import sys
from asyncio import to_thread as in_thread
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from graphile_worker_py.telemetry.siblings import joined
from tests.support.eventually import eventually
from tests.support.own_server import quiet_port
from tests.support.processes import Processes
from tests.support.running import Jobs
from tests.telemetry.test_prometheus import get

pytestmark = pytest.mark.any_server

TASKS = """
from graphile_worker_py import task

@task
async def hello(payload):
    pass
"""


def by_process(text: str, name: str, **labels: str) -> dict[str, float]:
    """The values of a metric by process."""
    return {
        sample.labels["process"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


async def test_one_page_shows_all_processes_and_which_of_them_are_silent(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "app_tasks.py").write_text(TASKS, encoding="utf-8")
    port = quiet_port()
    process = processes.start(
        [sys.executable, "-m", "graphile_worker_py", "--tasks", "app_tasks", "--processes", "2"],
        cwd=tmp_path,
        env={
            "DATABASE_URL": dsn,
            "GRAPHILE_WORKER_HOOKS": "metrics",
            "GRAPHILE_WORKER_HEALTH_PORT": str(port),
        },
    )
    jobs = Jobs(dsn)
    for _ in range(20):
        jobs.add("hello", {})

    async def page(of: int, path: str = "/metrics") -> str:
        status, _, text = await in_thread(get, f"http://127.0.0.1:{port + of}{path}")
        assert status == 200
        return text

    async def all_is_counted() -> bool:
        if process.stderr.count("Working as") < 2:
            return False
        seen = [
            by_process(await page(of), "graphile_worker_jobs_total", outcome="completed")
            for of in range(2)
        ]
        return seen[0] == seen[1] and sum(seen[0].values()) == 20

    await eventually(all_is_counted, timeout=15)
    assert by_process(await page(1), "graphile_worker_process_up") == {"1": 1, "2": 1}
    assert "process=" not in await page(1, "/metrics/process")
    second = re.search(r"Process 2 started, pid (\d+)", process.stderr)
    assert second is not None
    os.kill(int(second[1]), signal.SIGSTOP)
    try:
        assert by_process(await page(0), "graphile_worker_process_up") == {"1": 1, "2": 0}
    finally:
        os.kill(int(second[1]), signal.SIGCONT)
    process.terminate()
    assert process.wait() == 0, process.stderr


def test_lines_of_one_metric_stand_together() -> None:
    page = b'# HELP a What.\n# TYPE a gauge\na 1\n# TYPE b gauge\nb{x="{ }"} 2\nb{} 3\n'
    pages: Mapping[int, bytes | None] = {2: page, 1: page, 3: None}
    assert joined(pages).decode().splitlines()[:9] == [
        "# HELP a What.",
        "# TYPE a gauge",
        'a{process="1"} 1',
        'a{process="2"} 1',
        "# TYPE b gauge",
        'b{process="1",x="{ }"} 2',
        'b{process="1"} 3',
        'b{process="2",x="{ }"} 2',
        'b{process="2"} 3',
    ]
