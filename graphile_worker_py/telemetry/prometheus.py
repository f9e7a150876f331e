"""Prometheus: counters and histograms of jobs, on the health port. Needs the extra `metrics`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from importlib import metadata
from time import perf_counter
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from psycopg import AsyncConnection

from graphile_worker_py import events
from graphile_worker_py.events import Events
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.plugins import Chore, FetchRequest, Page, Part, Plugin, Shown
from graphile_worker_py.processes.siblings import siblings_of_process
from graphile_worker_py.sql.census import CHUNK, Group, count_chunk
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.telemetry.job_numbers import JobNumbers
from graphile_worker_py.telemetry.siblings import ask_all, joined

COUNT_INTERVAL: Final = 15.0
"""Seconds between two counts of all jobs."""
LAG_INTERVAL: Final = 1.0
OWN_PAGE: Final = "/metrics/process"
"""Shows the metrics of this process alone, if there are several."""


class Metrics(Plugin):
    """Measures jobs and pools. `/metrics` on the health port has the values.

    No label has ids, and the number of different tasks is limited.

    Args:
        registry: Where to register the metrics; None makes one. Give
            `prometheus_client.REGISTRY` to show those of the program, too.
        count_interval: Seconds between two counts of the jobs in the table. One pool, the
            leader, does it for all pools, and it reads the whole table. None leaves it out.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry | None = None,
        count_interval: float | None = COUNT_INTERVAL,
    ) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._count_interval = count_interval
        self.jobs = JobNumbers(lasts=3 * (count_interval or 0))
        self.registry.register(self.jobs)
        named: dict[str, Any] = {"namespace": "graphile_worker", "registry": self.registry}
        self._loop_lag = Gauge(
            "loop_lag_seconds", "How late the event loop was, in the last second.", **named
        )
        self._listening = Gauge("listening", "Whether notifications arrive.", **named)
        self._recovered = Counter(
            "pool_recovered_total", "Dead pools whose jobs this pool has released.", **named
        )
        Gauge("build_info", "The release.", ("version",), **named).labels(
            metadata.version("graphile-worker-py")
        ).set(1)

    def setup(self, events_of_runner: Events) -> None:
        """Subscribe to what is counted."""
        subscribe = events_of_runner.subscribe
        subscribe(events.PoolListenSuccess, lambda _event: self._listening.set(1))
        subscribe(events.PoolListenError, lambda _event: self._listening.set(0))
        subscribe(events.PoolListenRelease, lambda _event: self._listening.set(0))
        subscribe(events.PoolRecovered, lambda event: self._recovered.inc(len(event.dead_pool_ids)))

    def pages(self) -> Mapping[str, Page]:
        """The page `/metrics`, with the metrics of all processes of a supervisor."""

        def own() -> Shown:
            return CONTENT_TYPE_LATEST, self.text()

        siblings = siblings_of_process()
        if siblings is None:
            return {"/metrics": own}

        async def of_all() -> Shown:
            found = await ask_all(siblings, OWN_PAGE)
            return CONTENT_TYPE_LATEST, await asyncio.to_thread(joined, found)

        return {"/metrics": of_all, OWN_PAGE: own}

    def settled(self, pool: Any, batch: Sequence[Settled]) -> None:  # noqa: ARG002  # of any pool
        """Count outcomes, and how long it took to record them."""
        self.jobs.count(batch)

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Measure a fetch."""
        began = perf_counter()
        try:
            return await proceed(request)
        finally:
            self.jobs.fetches.add(perf_counter() - began)

    def parts(self, pool: Any) -> Iterable[Part]:
        """Measure the event loop, and look at the jobs that run."""
        self.jobs.watch(pool)

        async def measure() -> None:
            while True:
                began = perf_counter()
                await asyncio.sleep(LAG_INTERVAL)
                self._loop_lag.set(max(0.0, perf_counter() - began - LAG_INTERVAL))

        return [Part(name="measure the event loop", run=measure)]

    def chores(self, pool: Any) -> Iterable[Chore]:
        """Count the jobs in the table, in chunks."""
        if self._count_interval is None:
            return ()

        async def count(conn: AsyncConnection[Any]) -> None:
            groups: list[Group] = []
            last_id: int | None = -(2**63)
            while last_id is not None:
                query = count_chunk(last_id, by_queue=False)
                chunk = await pool.database.run(query, conn=conn)
                groups += chunk.groups
                last_id = chunk.last_id if chunk.rows == CHUNK else None
            self.jobs.store(groups)

        return [Chore(name="count jobs", interval=self._count_interval, run=count)]

    def text(self) -> bytes:
        """All values in Prometheus' text format."""
        return generate_latest(self.registry)
