"""Measures of backlogs: small and large ones, and beside a transaction that stays open."""

import statistics
import time

import psycopg

from benchmarks.lab import WARM, Lab, Worker, wait_for_all, watch
from benchmarks.measure import Outcome
from benchmarks.sides import BATCHED, Side


def small(lab: Lab, name: str) -> Outcome:
    """The median of five backlogs, because a single one takes only a moment."""
    side = lab.sides[name]
    jobs = lab.jobs(10_000)
    with lab.database(side) as dsn, lab.workers(side, dsn, BATCHED) as (worker,):
        side.fill(dsn, WARM)
        wait_for_all([worker], WARM)
        rates = [_refill(side, dsn, worker, jobs, WARM + turn * jobs) for turn in range(5)]
        return {"rate": statistics.median(rates)}


def huge(lab: Lab, name: str) -> Outcome:
    """A minute of a backlog of ten million, and how its rate compares with that of a small one."""
    few = small(lab, name)["rate"]
    many = large(lab, name, count=10_000_000)
    return {**many, "kept": many["rate"] / few}


def large(lab: Lab, name: str, *, count: int = 1_000_000) -> Outcome:
    """A large backlog, or the first minute of it if it takes longer."""
    side = lab.sides[name]
    jobs = lab.jobs(count)
    with lab.database(side) as dsn, lab.workers(side, dsn, BATCHED) as (worker,):
        side.fill(dsn, WARM)
        wait_for_all([worker], WARM)
        began = side.fill(dsn, jobs)
        done, last = watch([worker], WARM + jobs, seconds=60)
        ran, left = worker.stop()["count"], side.left(dsn)
        if ran + left != WARM + jobs:
            raise RuntimeError(f"{side.title} ran {ran} of {jobs} jobs and left {left}")
        return {"rate": (done - WARM) / (last - began), "done": done - WARM}


def _refill(side: Side, dsn: str, worker: Worker, jobs: int, before: int) -> float:
    """Jobs per second of one more backlog, for a worker that has run some before."""
    began = side.fill(dsn, jobs)
    return jobs / (wait_for_all([worker], before + jobs) - began)


def beside_open_transaction(lab: Lab, name: str) -> Outcome:
    """Several backlogs while an open transaction keeps deleted rows from being removed.

    The dead entries are at the front of the index, where a fetch begins.
    """
    side = lab.sides[name]
    jobs = lab.jobs(10_000)
    series: list[tuple[float, float]] = []
    with (
        lab.database(side) as dsn,
        lab.workers(side, dsn, BATCHED) as (worker,),
        psycopg.connect(dsn) as conn,
    ):
        side.fill(dsn, WARM)
        wait_for_all([worker], WARM)
        conn.execute("set transaction isolation level repeatable read")
        conn.execute("select from graphile_worker._private_jobs limit 1")
        began = time.monotonic()
        while not series or time.monotonic() - began < lab.held:
            rate = _refill(side, dsn, worker, jobs, WARM + len(series) * jobs)
            series.append((time.monotonic() - began, rate))
    few = max(len(series) // 10, 1)
    first = statistics.median(rate for _, rate in series[:few])
    last = statistics.median(rate for _, rate in series[-few:])
    return {"rate": last, "kept": last / first, "dead": len(series) * jobs, "series": series}
