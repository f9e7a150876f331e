"""What is kept of each task's jobs: the settings of the worker pool, and those of the task."""

from typing import Any

from graphile_worker_py.options.history import HistoryLevel, HistoryOptions
from graphile_worker_py.records import Record
from graphile_worker_py.tasks.task import Task


class Kept(Record):
    """What is kept of a task's jobs.

    Attributes:
        successes: Whether a row is kept for each success.
        failures: Whether a row is kept for each other attempt.
        results: Whether results are kept.
        log_level: Name of the lowest level of logs that are kept; None keeps none.
    """

    successes: bool
    failures: bool
    results: bool
    log_level: str | None


def kept_of(task: Task[Any] | None, options: HistoryOptions) -> Kept:
    """What is kept of a task's jobs; its settings win over those of the worker pool.

    None stands for a task that the pool does not have.
    """
    own = {} if task is None else task.settings
    level = own.get("history", options.history)
    results = own.get("keep_result", False)
    return Kept(
        successes=level == HistoryLevel.ALL or results,
        failures=level != HistoryLevel.NONE,
        results=results,
        log_level=own.get("capture_logs"),
    )
