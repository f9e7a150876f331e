"""The measures: each is a function that takes a lab and a side, and returns figures."""

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import psycopg

from benchmarks import backlogs, pgbench
from benchmarks.lab import WARM, Drained, Lab, drain, wait_for_all
from benchmarks.measure import Figure, Measure, Outcome
from benchmarks.sides import (
    BATCHED,
    DEFAULT,
    WORKERS,
    Graphile,
    Limited,
    add_backlog,
    environment,
)
from tests.support.node import LATEST

GRAPHILE: Final = ("ours", "node")
HISTORY: Final = ("history none", "ours", "history all")
"""The sides that differ in what history they keep; the first one keeps none."""
PLUGINS: Final = ("ours", "with metrics", "with otel")
"""The sides that differ in the plugin that reports jobs; the first one has none."""
ALL: Final = (*GRAPHILE, "pgqueuer", "procrastinate", "oban")


def _graphile(lab: Lab, name: str) -> Graphile:
    side = lab.sides[name]
    assert isinstance(side, Graphile)
    return side


def _costs(drained: Drained) -> Outcome:
    return {
        "rate": drained.rate,
        "cpu": drained.cpu_seconds / drained.jobs * 1e6,
        "wal": drained.wal_bytes / drained.jobs,
        "transactions": drained.transactions / drained.jobs,
        "memory": drained.peak_memory / 2**20,
    }


def _default(lab: Lab, name: str) -> Outcome:
    jobs = lab.jobs({"ours": 30_000, "node": 10_000, "pgbench": 30_000}[name])
    if name == "pgbench":
        return {"rate": pgbench.rate(lab, jobs, DEFAULT["concurrent_jobs"])}
    side = lab.sides[name]
    with lab.database(side) as dsn:
        return _costs(drain(lab, side, dsn, jobs, DEFAULT))


def _batched(lab: Lab, name: str) -> Outcome:
    if name == "pgbench":
        return {"rate": pgbench.rate(lab, lab.jobs(100_000), BATCHED["local_queue_size"])}
    # So that each takes a few seconds.
    slow = {"pgqueuer": 50_000, "procrastinate": 3_000, "oban": 20_000}
    side = lab.sides[name]
    with lab.database(side) as dsn:
        return _costs(drain(lab, side, dsn, lab.jobs(slow.get(name, 100_000)), side.best))


def _two_processes(lab: Lab, name: str) -> Outcome:
    side = lab.sides[name]
    with lab.database(side) as dsn:
        return {"rate": drain(lab, side, dsn, lab.jobs(100_000), BATCHED, 2).rate}


def _many_queues(lab: Lab, name: str) -> Outcome:
    """A hundred thousand queues, and how their rate compares with that of a tenth of them."""
    few = _queues(lab, name)["rate"]
    many = _queues(lab, name, count=100_000)["rate"]
    return {"rate": many, "kept": many / few}


def _stuck(lab: Lab, name: str) -> Outcome:
    """A backlog behind the jobs of two locked queues, which come first in the order."""
    side = lab.sides[name]
    stuck = lab.jobs(100_000)
    with lab.database(side) as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            add_backlog(dsn, stuck, queues=2)
            conn.execute("update graphile_worker._private_jobs set priority = -1")
            conn.execute(
                "update graphile_worker._private_job_queues"
                " set locked_by = 'pool-elsewhere', locked_at = now()"
            )
            conn.execute("vacuum analyze graphile_worker._private_jobs")
        return {"rate": drain(lab, side, dsn, lab.jobs(5_000), BATCHED, left_behind=stuck).rate}


def _queues(lab: Lab, name: str, *, count: int = 10_000) -> Outcome:
    side = lab.sides[name]
    with lab.database(side) as dsn:
        jobs, queues = lab.jobs(2 * count), lab.jobs(count)
        return {"rate": drain(lab, side, dsn, jobs, BATCHED, queues=queues).rate}


def _latency(lab: Lab, name: str) -> Outcome:
    """Milliseconds from before a job is added, in another process, to the start of its task.

    Both Graphile Workers run without prefetching, which is best here; the others as usual.
    """
    side = lab.sides[name]
    settings = DEFAULT if isinstance(side, Graphile) else side.best
    jobs = lab.jobs(500)
    with lab.database(side) as dsn, lab.workers(side, dsn, settings) as (worker,):
        side.fill(dsn, WARM)
        wait_for_all([worker], WARM)
        side.feed(dsn, jobs)
        wait_for_all([worker], WARM + jobs)
        parts = statistics.quantiles(worker.stop()["latencies"], n=100)
    return {f"p{part}": parts[part - 1] * 1000 for part in (50, 95, 99)}


def _bulk_add(lab: Lab, name: str) -> Outcome:
    side = _graphile(lab, name)
    with lab.database(side) as dsn:
        command, folder = side.script("add", dsn)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return {"rate": float(done.stdout)}


def _callers(lab: Lab, name: str, *, callers: int) -> Outcome:
    """Calls of `add_job` for three seconds, each caller one after the other."""
    side = _graphile(lab, name)
    with lab.database(side) as dsn:
        seconds = max(3 * lab.scale, 0.1)
        command, folder = side.script("callers", dsn, str(callers), str(seconds))
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    took = told["took"]
    parts = statistics.quantiles(took, n=100)
    return {
        "rate": len(took) / told["seconds"],
        "cpu": told["cpu"] / len(took) * 1e6,
        "p50": parts[49] * 1000,
        "p99": parts[98] * 1000,
    }


def _start_and_stop(lab: Lab, name: str) -> Outcome:
    """Wall seconds of the command line with `--once` and no job; the floor is the imports.

    The first start does not count: it reads files and compiles modules.
    """
    side = _graphile(lab, name)
    with lab.database(side) as dsn:
        folder = WORKERS
        if name == "floor":
            command = [sys.executable, "-c", "import asyncio, psycopg, psycopg_pool"]
        elif name == "ours":
            command = [sys.executable, "-m", "graphile_worker_py", "--once", "-c", dsn]
            command += ["--tasks", "one_task", "--log-level", "warning"]
        else:
            folder = side.node.package(LATEST)
            (folder / "tasks").mkdir(exist_ok=True)
            (folder / "tasks" / "noop.js").write_text("module.exports = async () => {};\n")
            program = Path(folder) / "node_modules" / "graphile-worker" / "dist" / "cli.js"
            command = [side.node.binary, str(program), "--once", "-c", dsn]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, env=environment())
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, capture_output=True, check=True, env=environment())
        return {"seconds": time.perf_counter() - began}


def _idle_memory(lab: Lab, name: str) -> Outcome:
    side = lab.sides[name]
    with lab.database(side) as dsn, lab.workers(side, dsn, DEFAULT) as (worker,):
        time.sleep(1)  # garbage of the start is collected by then, on either side
        return {"memory": worker.memory() / 2**20}


def _at_both_sizes(lab: Lab, side_name: str) -> Outcome:
    """What something costs at small and at large batches."""
    side = lab.sides[side_name]
    outcome: Outcome = {}
    for settings, jobs, batch in ((DEFAULT, 30_000, "24"), (BATCHED, 150_000, "500")):
        with lab.database(side) as dsn:
            drained = drain(lab, side, dsn, lab.jobs(jobs), settings)
            costs = _costs(drained)
            outcome |= {f"{name} {batch}": costs[name] for name in ("rate", "cpu", "wal")}
    return outcome


def _limits(lab: Lab, name: str) -> Outcome:
    """Four workers that together run as many jobs at once, by a limit or by their size.

    The jobs last 50 ms, as calls of a service do.
    """
    side = lab.sides[name]
    assert isinstance(side, Limited)
    most = side.limit // 2 if side.limited else side.limit // 4
    settings = {"concurrent_jobs": most, "lasts": 0.05}
    if side.limited:
        settings["limit"] = side.limit
    with lab.database(side) as dsn:
        return {"rate": drain(lab, side, dsn, lab.jobs(5_000), settings, 4).rate}


def _keyed(lab: Lab, name: str) -> Outcome:
    """What a limit with a key costs where it lets every job start."""
    side = lab.sides[name]
    with lab.database(side) as dsn:
        return {"rate": drain(lab, side, dsn, lab.jobs(20_000), DEFAULT).rate}


def _borrowing(lab: Lab, name: str, *, borrows: str, jobs: int) -> Outcome:
    """Jobs that run one statement on a borrowed connection; Node has none in threads."""
    side = _graphile(lab, name)
    with lab.database(side) as dsn:
        return _costs(drain(lab, side, dsn, lab.jobs(jobs), {**DEFAULT, "borrows": borrows}))


def _rate(title: str) -> dict[str, Figure]:
    return {"rate": Figure(title, "jobs/s", more_is_better=True)}


def _with_costs(title: str) -> dict[str, Figure]:
    return {
        **_rate(title),
        "cpu": Figure(f"{title}: processor time of the worker", "µs/job", more_is_better=False),
        "wal": Figure(f"{title}: write-ahead log", "bytes/job", more_is_better=False),
        "transactions": Figure(f"{title}: writing transactions", "per job", more_is_better=False),
    }


def _with_call_times(title: str) -> dict[str, Figure]:
    return {
        **_rate(title),
        "cpu": Figure(f"{title}: processor time of the caller", "µs/job", more_is_better=False),
        "p50": Figure(f"{title}: time of a call, median", "ms", more_is_better=False),
        "p99": Figure(f"{title}: time of a call, 99 %", "ms", more_is_better=False),
    }


MEASURES: Final = (
    Measure("default", (*GRAPHILE, "pgbench"), _default, _with_costs("default, 24 at a time")),
    Measure(
        "batched",
        (*ALL, "pgbench"),
        _batched,
        {
            **_with_costs("batched by 500"),
            "memory": Figure("memory, maximum under load", "MiB", more_is_better=False),
        },
    ),
    Measure("two processes", GRAPHILE, _two_processes, _rate("batched by 500, two processes")),
    Measure("10,000 waiting", GRAPHILE, backlogs.small, _rate("batched, 10,000 jobs waiting")),
    Measure(
        "1,000,000 waiting", GRAPHILE, backlogs.large, _rate("batched, 1,000,000 jobs waiting")
    ),
    Measure(
        "10,000,000 waiting",
        GRAPHILE,
        backlogs.huge,
        {
            **_rate("batched, 10,000,000 jobs waiting"),
            "kept": Figure("the same, divided by that with 10,000", "", more_is_better=True),
        },
        is_long=True,
    ),
    Measure(
        "100,000 queues",
        GRAPHILE,
        _many_queues,
        {
            **_rate("batched, 100,000 queues"),
            "kept": Figure("the same, divided by that with 10,000", "", more_is_better=True),
        },
        is_long=True,
    ),
    Measure(
        "open transaction",
        GRAPHILE,
        backlogs.beside_open_transaction,
        {
            **_rate("batched, with an open transaction"),
            "kept": Figure(
                "batched, with an open transaction: last to first rate", "", more_is_better=True
            ),
        },
    ),
    Measure("stuck", GRAPHILE, _stuck, _rate("batched, with 100,000 stuck jobs")),
    Measure("queues", GRAPHILE, _queues, _rate("batched, 10,000 queues")),
    Measure(
        "borrow",
        GRAPHILE,
        partial(_borrowing, borrows="async", jobs=10_000),
        _rate("a statement on a borrowed connection"),
    ),
    Measure(
        "borrow in threads",
        GRAPHILE,
        partial(_borrowing, borrows="thread", jobs=2_000),
        _rate("a statement on a borrowed connection, in threads"),
    ),
    Measure("add 100,000", GRAPHILE, _bulk_add, _rate("add 100,000 jobs")),
    Measure(
        "add_job at once",
        GRAPHILE,
        partial(_callers, callers=24),
        _with_call_times("add_job, 24 callers"),
    ),
    Measure(
        "add_job alone",
        GRAPHILE,
        partial(_callers, callers=1),
        _with_call_times("add_job, one caller"),
    ),
    Measure(
        "latency",
        (*ALL, "floor"),
        _latency,
        {
            "p50": Figure("latency, median", "ms", more_is_better=False),
            "p95": Figure("latency, 95 %", "ms", more_is_better=False),
            "p99": Figure("latency, 99 %", "ms", more_is_better=False),
        },
    ),
    Measure(
        "start",
        (*GRAPHILE, "floor"),
        _start_and_stop,
        {"seconds": Figure("start, find nothing, stop", "s", more_is_better=False)},
    ),
    Measure(
        "idle memory",
        GRAPHILE,
        _idle_memory,
        {"memory": Figure("memory, idle", "MiB", more_is_better=False)},
    ),
    Measure("history", HISTORY, _at_both_sizes, {}),
    Measure("plugins", PLUGINS, _at_both_sizes, {}),
    Measure(
        "limits",
        ("unlimited", "limited"),
        _limits,
        _rate("48 jobs of 50 ms at once in four workers, by their size or by a limit"),
    ),
    Measure(
        "keyed", ("unlimited", "keyed"), _keyed, _rate("24 at a time, under a limit with a key")
    ),
)
