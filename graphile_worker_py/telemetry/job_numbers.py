"""The numbers of jobs that Prometheus reads.

They are plain lists and dictionaries, which only the event loop changes: `Counter` and `Histogram`
of the library have locks, which cost each job more than all the rest. Jobs are counted when their
outcomes are recorded, a batch at a time, because an event for each job costs more, too.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from time import monotonic, perf_counter, time
from typing import Any, Final
from weakref import WeakSet

from prometheus_client import Histogram
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from graphile_worker_py.job import run_at_seconds_of
from graphile_worker_py.outcomes import (
    Cancelled,
    Completed,
    Failed,
    Outcome,
    Returned,
    Settled,
    Snoozed,
)
from graphile_worker_py.sql.census import Group

MOST_TASKS: Final = 200
"""Tasks that have a label; further ones share the label `other`."""
OTHER: Final = "other"
RUN_BOUNDS: Final = (0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
STATEMENT_BOUNDS: Final = Histogram.DEFAULT_BUCKETS[:-1]
WAIT_BOUNDS: Final = (0.01, 0.05, 0.2, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)

_NAMES: Final[dict[type, str]] = {
    Completed: "completed",
    Snoozed: "snoozed",
    Cancelled: "cancelled",
    Returned: "returned",
}


def _name_of_failure(outcome: Outcome) -> str:
    if not isinstance(outcome, Failed):
        raise TypeError(f"unknown outcome {outcome!r}")
    if outcome.is_discarded:
        return "discarded"
    return "given_up" if outcome.is_final else "failed"


class Durations:
    """A histogram.

    Attributes:
        counts: How many durations each bucket has; the last bucket has no bound.
        total: The sum of the durations.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds

    def put_into(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add the samples of a task, or of all."""
        reached, buckets = 0, []
        for bound, count in zip((*self._bounds, "+Inf"), self.counts, strict=True):
            reached += count
            buckets.append((str(bound), reached))
        family.add_metric(labels, buckets, self.total)


class TaskNumbers:
    """The numbers of one task."""

    __slots__ = ("outcomes", "runs", "waits")

    def __init__(self) -> None:
        self.outcomes: defaultdict[str, int] = defaultdict(int)
        self.runs = Durations(RUN_BOUNDS)
        self.waits = Durations(WAIT_BOUNDS)


class JobNumbers(Collector):
    """The numbers of all tasks, and of the statements that fetch jobs and record outcomes.

    Attributes:
        fetches: Durations of fetches.
        records: For each statement, the time since the end of the attempt that waited most.

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
        self._pools: WeakSet[Any] = WeakSet()
        self.fetches = Durations(STATEMENT_BOUNDS)
        self.records = Durations(STATEMENT_BOUNDS)

    def watch(self, pool: Any) -> None:
        """Show the jobs that run in a worker pool, as long as there is one."""
        self._pools.add(pool)

    def count(self, batch: Sequence[Settled]) -> None:
        """Count outcomes of one kind, of which the first waited most to be recorded."""
        now = perf_counter()
        self.records.add(now - batch[0][2])
        kind = type(batch[0][1])
        name = _NAMES.get(kind)
        # The clock of the durations, as seconds since 1970.
        since = time() - now
        task = numbers = None
        due_times = run_at_seconds_of([settled[0] for settled in batch])
        # Each line costs a job some 50 ns, so there are no calls for what a line does.
        for (job, outcome, ended, duration), due in zip(batch, due_times, strict=True):
            if numbers is None or job.task_identifier != task:
                task = job.task_identifier
                numbers = self._tasks.get(task) or self.of(task)
                outcomes, waits, runs = numbers.outcomes, numbers.waits, numbers.runs
            outcomes[name or _name_of_failure(outcome)] += 1
            waited = since + ended - duration - due
            if waited < 0:
                waited = 0.0
            waits.counts[bisect_left(WAIT_BOUNDS, waited)] += 1
            waits.total += waited
            if kind is not Returned:
                runs.counts[bisect_left(RUN_BOUNDS, duration)] += 1
                runs.total += duration

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
            numbers.runs.put_into(runs, [task])
            numbers.waits.put_into(waits, [task])
        for task, count in self._running().items():
            running.add_metric([task], count)
        return [total, running, runs, waits, *self._of_statements(), *self._of_table()]

    def _of_statements(self) -> Iterable[Metric]:
        for name, text, durations in (
            ("fetch_seconds", "Duration of fetches.", self.fetches),
            (
                "record_seconds",
                "Time until an outcome is recorded, for each statement.",
                self.records,
            ),
        ):
            family = HistogramMetricFamily(f"graphile_worker_{name}", text)
            durations.put_into(family, ())
            yield family

    def _running(self) -> dict[str, int]:
        found = dict.fromkeys(self._tasks, 0)
        for pool in list(self._pools):
            for job in list(pool.running.values()):
                task = job.job.task_identifier
                label = task if task in found or len(found) < MOST_TASKS else OTHER
                found[label] = found.get(label, 0) + 1
        return found

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
