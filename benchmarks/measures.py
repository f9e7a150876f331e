"""What is measured, one function each: a lab and a side in, a figure out."""

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.lab import Lab, add_backlog, drain
from tests.support.node import LATEST

DEFAULT: Final = {"concurrent_jobs": 24}
BATCHED: Final = {"concurrent_jobs": 24, "local_queue_size": 500}


@dataclass(frozen=True)
class Measure:
    """Something to be measured on several sides.

    Attributes:
        name: What it is called in tables.
        unit: Of the figure.
        run: Takes lab and side, returns the figure.
        more_is_better: Which way is good.
    """

    name: str
    unit: str
    run: Callable[[Lab, str], float]
    more_is_better: bool


def _rate(settings: Mapping[str, Any], jobs: Mapping[str, int], count: int = 1) -> Any:
    def measure(lab: Lab, side: str) -> float:
        with lab.database() as dsn:
            return drain(lab, side, dsn, jobs[side], settings, count).rate

    return measure


def _peak_memory(lab: Lab, side: str) -> float:
    with lab.database() as dsn:
        return drain(lab, side, dsn, 50_000, BATCHED).peak_memory / 2**20


def _idle_memory(lab: Lab, side: str) -> float:
    with lab.database() as dsn, lab.workers(side, dsn, DEFAULT) as (worker,):
        time.sleep(1)  # what starting left behind is gone by then, on either side
        return worker.memory() / 2**20


def _cpu(lab: Lab, side: str) -> float:
    with lab.database() as dsn:
        drained = drain(lab, side, dsn, 50_000, BATCHED)
        return drained.cpu_seconds / drained.jobs * 1e6


def _latency(percentile: int) -> Any:
    """Time from before `add_job`, in this process, to the task, in the worker's; milliseconds."""

    def measure(lab: Lab, side: str) -> float:
        with (
            lab.database() as dsn,
            lab.workers(side, dsn, DEFAULT) as (worker,),
            psycopg.connect(dsn, autocommit=True) as conn,
        ):
            for _ in range(500):
                payload = json.dumps({"sent": time.time()})
                conn.execute("select graphile_worker.add_job('timed', %s::json)", (payload,))
                time.sleep(random.uniform(0.002, 0.008))
            time.sleep(0.5)
            latencies = sorted(worker.stop()["latencies"])
            if len(latencies) != 500:
                raise RuntimeError(f"{side} ran {len(latencies)} of 500 jobs")
            return statistics.quantiles(latencies, n=100)[percentile - 1] * 1000

    return measure


def _bulk_add(lab: Lab, side: str) -> float:
    with lab.database() as dsn:
        command, folder = lab.script(side, "add", dsn)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return float(done.stdout)


def _start_and_stop(lab: Lab, side: str) -> float:
    """Wall seconds of the command line with `--once` and nothing to do."""
    with lab.database() as dsn:
        if side == "ours":
            folder = Path(__file__).parent / "workers"
            command = [sys.executable, "-m", "graphile_worker_py", "--once", "-c", dsn]
            command += ["--tasks", "one_task", "--log-level", "warning"]
        else:
            folder = lab.node.package(LATEST)
            (folder / "tasks").mkdir(exist_ok=True)
            (folder / "tasks" / "noop.js").write_text("module.exports = async () => {};\n")
            program = folder / "node_modules" / "graphile-worker" / "dist" / "cli.js"
            command = [lab.node.binary, str(program), "--once", "-c", dsn]
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        return time.perf_counter() - began


def _stuck(lab: Lab, side: str) -> float:
    """Jobs a second beside 100,000 jobs of two locked queues, which are first in order."""
    with lab.database() as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            add_backlog(dsn, 100_000, queues=2)
            conn.execute("update graphile_worker._private_jobs set priority = -1")
            conn.execute(
                "update graphile_worker._private_job_queues"
                " set locked_by = 'pool-elsewhere', locked_at = now()"
            )
            conn.execute("vacuum analyze graphile_worker._private_jobs")
        return drain(lab, side, dsn, 5_000, BATCHED, left_behind=100_000).rate


def _queues(lab: Lab, side: str) -> float:
    with lab.database() as dsn:
        return drain(lab, side, dsn, 20_000, BATCHED, queues=10_000).rate


MEASURES: Final = (
    Measure(
        "default options, 24 at a time",
        "jobs/s",
        _rate(DEFAULT, {"ours": 30_000, "node": 10_000}),
        more_is_better=True,
    ),
    Measure(
        "batched by 500",
        "jobs/s",
        _rate(BATCHED, {"ours": 100_000, "node": 100_000}),
        more_is_better=True,
    ),
    Measure(
        "batched by 500, two processes",
        "jobs/s",
        _rate(BATCHED, {"ours": 100_000, "node": 100_000}, 2),
        more_is_better=True,
    ),
    Measure("beside 100,000 stuck jobs", "jobs/s", _stuck, more_is_better=True),
    Measure("10,000 queues", "jobs/s", _queues, more_is_better=True),
    Measure("add 100,000 jobs", "jobs/s", _bulk_add, more_is_better=True),
    Measure("latency, median", "ms", _latency(50), more_is_better=False),
    Measure("latency, 99 %", "ms", _latency(99), more_is_better=False),
    Measure("start, find nothing, stop", "s", _start_and_stop, more_is_better=False),
    Measure("memory, idle", "MiB", _idle_memory, more_is_better=False),
    Measure("memory, most under load", "MiB", _peak_memory, more_is_better=False),
    Measure("processor time a job, batched", "µs", _cpu, more_is_better=False),
)
