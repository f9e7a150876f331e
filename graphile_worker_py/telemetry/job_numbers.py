"""The numbers of jobs that Prometheus reads.

They are plain lists and dictionaries, which only the event loop changes. With `Counter` and
`Histogram` of the library, which have locks, the plugin costs each job about twice as much
(measured, with the events).
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, Final

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from graphile_worker_py.sql.census import Group

MOST_TASKS: Final = 200
"""Tasks that have a label; further ones share the label `other`."""
OTHER: Final = "other"
RUN_BOUNDS: Final = (0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
WAIT_BOUNDS: Final = (0.01, 0.05, 0.2, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)


class Durations:
    """A histogram."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def put_into(self, family: HistogramMetricFamily, task: str) -> None:
        """Add the samples of a task."""
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((str(bound), total))
        family.add_metric([task], buckets, self._sum)


class TaskNumbers:
    """The numbers of one task."""

    __slots__ = ("outcomes", "running", "runs", "waits")

    def __init__(self) -> None:
        self.running = 0
        self.outcomes: dict[str, int] = {}
        self.runs = Durations(RUN_BOUNDS)
        self.waits = Durations(WAIT_BOUNDS)


class JobNumbers(Collector):
    """The numbers of all tasks.

    Args:
        lasts: Seconds after which the numbers of stored jobs are not shown, because another pool
            counts them now.
    """

    def __init__(self, *, lasts: float) -> None:
        self._lasts = lasts
        self._tasks: dict[str, TaskNumbers] = {}
        self._stored: dict[tuple[str, str], int] = {}
        self._ages: dict[str, float] = {}
        self._stored_at = monotonic()

    def of(self, task: str) -> TaskNumbers:
        """The numbers of a task, or those that further tasks share."""
        found = self._tasks.get(task)
        if found is None:
            found = self._tasks.setdefault(self._label(task), TaskNumbers())
        return found

    def store(self, groups: Iterable[Group]) -> None:
        """Set the numbers of the jobs in the table."""
        self._stored, self._ages = {}, {}
        labels: dict[str, str] = {}
        for group in groups:
            if group.task not in labels:
                is_known = group.task in self._tasks or len(labels) < MOST_TASKS
                labels[group.task] = group.task if is_known else OTHER
            label = labels[group.task]
            key = (group.state, label)
            self._stored[key] = self._stored.get(key, 0) + group.jobs
            if group.oldest is not None:
                self._ages[label] = max(self._ages.get(label, 0.0), group.oldest)
        self._stored_at = monotonic()

    def describe(self) -> list[Metric]:
        """Nothing: a counter and a gauge of one name are fine in the text format."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        total = CounterMetricFamily(
            "graphile_worker_jobs", "Attempts of jobs that ended.", labels=("task", "outcome")
        )
        running = _by_task(GaugeMetricFamily, "running", "Jobs that run now.")
        runs = _by_task(HistogramMetricFamily, "job_run_seconds", "Duration of attempts.")
        waits = _by_task(
            HistogramMetricFamily,
            "job_wait_seconds",
            "Time from when a job was due until it began.",
        )
        for task, numbers in self._tasks.items():
            for outcome, count in numbers.outcomes.items():
                total.add_metric([task, outcome], count)
            running.add_metric([task], numbers.running)
            numbers.runs.put_into(runs, task)
            numbers.waits.put_into(waits, task)
        return [total, running, runs, waits, *self._of_table()]

    def _of_table(self) -> Iterable[Metric]:
        if not self._stored or monotonic() - self._stored_at > self._lasts:
            return
        jobs = GaugeMetricFamily(
            "graphile_worker_jobs",
            "Jobs in the table, reported by the leader.",
            labels=("state", "task"),
        )
        for labels, count in self._stored.items():
            jobs.add_metric(labels, count)
        yield jobs
        ages = _by_task(
            GaugeMetricFamily,
            "oldest_ready_age_seconds",
            "Time since the first ready job was due, reported by the leader.",
        )
        for task, age in self._ages.items():
            ages.add_metric([task], age)
        yield ages

    def _label(self, task: str) -> str:
        return task if len(self._tasks) < MOST_TASKS else OTHER


def _by_task(kind: Any, name: str, text: str) -> Any:
    return kind(f"graphile_worker_{name}", text, labels=("task",))
