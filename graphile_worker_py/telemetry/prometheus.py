"""Prometheus: counters and histograms of jobs, on the health port. Needs the extra `metrics`."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib import metadata
from time import monotonic, perf_counter
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg import AsyncConnection

from graphile_worker_py import events
from graphile_worker_py.clock import utc_now
from graphile_worker_py.events import Events
from graphile_worker_py.plugins import Chore, FetchRequest, Page, Plugin
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.inspect import JobCounts, JobState, count_jobs

MOST_TASKS: Final = 200
"""Tasks that have a label; further ones share the label `other`."""
OTHER: Final = "other"
COUNT_INTERVAL: Final = 15.0
"""Seconds between two counts of all jobs."""
_RUN_BUCKETS: Final = (0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)
_WAIT_BUCKETS: Final = (0.01, 0.05, 0.2, 1, 5, 15, 60, 300, 1800, 7200, 86400)


class Metrics(Plugin):
    """Measures jobs and pools. `/metrics` on the health port has the values.

    No label has ids, and there are at most 201 different tasks.

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
        self._stored = _StoredJobs(lasts=3 * (count_interval or 0))
        self._tasks: set[str] = set()
        self._starts: dict[str, tuple[Callable[[], None], Callable[[float], None]]] = {}
        self._ends: dict[tuple[str, str], Callable[[float | None], None]] = {}
        self._register(self.registry)
        self.registry.register(self._stored)

    def _register(self, registry: CollectorRegistry) -> None:
        named: dict[str, Any] = {"namespace": "graphile_worker", "registry": registry}
        by_task = ("task",)
        self._jobs_total = Counter(
            "jobs_total", "Attempts of jobs that ended.", ("task", "outcome"), **named
        )
        self._run_seconds = Histogram(
            "job_run_seconds", "Duration of attempts.", by_task, buckets=_RUN_BUCKETS, **named
        )
        self._wait_seconds = Histogram(
            "job_wait_seconds",
            "Time from when a job was due until it began.",
            by_task,
            buckets=_WAIT_BUCKETS,
            **named,
        )
        self._running = Gauge("running", "Jobs that run now.", by_task, **named)
        self._fetch_seconds = Histogram("fetch_seconds", "Duration of fetches.", **named)
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
        subscribe(events.JobStart, self._on_start)
        subscribe(events.JobSuccess, lambda event: self._end(event, "completed", event.duration))
        # By its name, because a subscriber of the class would hear a final failure twice.
        subscribe(events.JobError.name, self._on_error)
        subscribe(events.JobSnoozed, lambda event: self._end(event, "snoozed", event.duration))
        subscribe(events.JobDiscarded, lambda event: self._end(event, "discarded", event.duration))
        subscribe(events.JobCancelled, lambda event: self._end(event, "cancelled", event.duration))
        subscribe(events.JobReturned, lambda event: self._end(event, "returned", None))
        subscribe(events.PoolListenSuccess, lambda _event: self._listening.set(1))
        subscribe(events.PoolListenError, lambda _event: self._listening.set(0))
        subscribe(events.PoolListenRelease, lambda _event: self._listening.set(0))
        subscribe(events.PoolRecovered, lambda event: self._recovered.inc(len(event.dead_pool_ids)))

    def pages(self) -> Mapping[str, Page]:
        """The page `/metrics`."""
        return {"/metrics": self._page}

    async def get_jobs(
        self, request: FetchRequest, proceed: Callable[[FetchRequest], Awaitable[Fetched]]
    ) -> Fetched:
        """Measure a fetch."""
        began = perf_counter()
        try:
            return await proceed(request)
        finally:
            self._fetch_seconds.observe(perf_counter() - began)

    def chores(self, pool: Any) -> Iterable[Chore]:
        """Count the jobs in the table."""
        if self._count_interval is None:
            return ()

        async def count(conn: AsyncConnection[Any]) -> None:
            self._counted(await pool.database.run(count_jobs(), conn=conn))

        return [Chore(name="count jobs", interval=self._count_interval, run=count)]

    def text(self) -> bytes:
        """All values in Prometheus' text format."""
        return generate_latest(self.registry)

    def _page(self) -> tuple[str, bytes]:
        return CONTENT_TYPE_LATEST, self.text()

    def _counted(self, counts: JobCounts) -> None:
        values: dict[tuple[str, str], int] = {}
        for task, of_task in counts.tasks.items():
            for state in JobState:
                key = (str(state), self._label(task))
                values[key] = values.get(key, 0) + getattr(of_task, str(state))
        self._stored.set(values)

    def _label(self, task: str) -> str:
        if task not in self._tasks:
            if len(self._tasks) >= MOST_TASKS:
                return OTHER
            self._tasks.add(task)
        return task

    def _on_start(self, event: events.JobStart) -> None:
        task = self._label(event.job.task_identifier)
        found = self._starts.get(task)
        if found is None:
            found = self._running.labels(task).inc, self._wait_seconds.labels(task).observe
            self._starts[task] = found
        begin, wait = found
        begin()
        wait(max(0.0, (utc_now() - event.job.run_at).total_seconds()))

    def _on_error(self, event: events.JobError) -> None:
        self._end(event, "failed" if event.retry_at is not None else "given_up", event.duration)

    def _end(self, event: events.JobEvent, outcome: str, duration: float | None) -> None:
        task = self._label(event.job.task_identifier)
        count = self._ends.get((task, outcome))
        if count is None:
            count = self._ends[task, outcome] = self._ending(task, outcome)
        count(duration)

    def _ending(self, task: str, outcome: str) -> Callable[[float | None], None]:
        total, run = self._jobs_total.labels(task, outcome), self._run_seconds.labels(task)
        running = self._running.labels(task)

        def count(duration: float | None) -> None:
            running.dec()
            total.inc()
            if duration is not None:
                run.observe(duration)

        return count


class _StoredJobs(Collector):
    """The gauge `graphile_worker_jobs`.

    It is not a `Gauge`, which the library refuses next to the counter `graphile_worker_jobs_total`.

    Args:
        lasts: Seconds after which the values are not shown, because another pool leads.
    """

    def __init__(self, *, lasts: float) -> None:
        self._lasts = lasts
        self._values: Mapping[tuple[str, str], int] = {}
        self._at = monotonic()

    def set(self, values: Mapping[tuple[str, str], int]) -> None:
        """Set the numbers of jobs, by state and task."""
        self._values, self._at = values, monotonic()

    def describe(self) -> list[Metric]:
        """Nothing, which avoids the library's check of names."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The gauge, unless its values are too old."""
        if self._values and monotonic() - self._at <= self._lasts:
            gauge = GaugeMetricFamily(
                "graphile_worker_jobs",
                "Jobs in the table, reported by the leader.",
                labels=("state", "task"),
            )
            for labels, value in self._values.items():
                gauge.add_metric(labels, value)
            yield gauge
