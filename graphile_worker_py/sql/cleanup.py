"""Cleanup: delete rows that are no longer needed. Only users start it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, assert_never

from graphile_worker_py.checks import check_duration, check_one_of, check_texts
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record


class CleanupTask(StrEnum):
    """What cleanup can delete, under upstream's names and in the order in which it is done."""

    DELETE_PERMAFAILED_JOBS = "DELETE_PERMAFAILED_JOBS"
    """Jobs that have used up their attempts and are not running."""
    GC_TASK_IDENTIFIERS = "GC_TASK_IDENTIFIERS"
    """Task identifiers without a job. Workers remember their ids: stop them before."""
    GC_JOB_QUEUES = "GC_JOB_QUEUES"
    """Queues without a job that no worker has locked."""


# Rescheduling can leave a job with more attempts than it may have; it has failed like the others.
# Nothing says when a job failed for the last time. Its `run_at` was put off by its delay then, six
# hours at most by default, and a job that is failed by an SQL function was updated then.
_FAILED_JOBS: Final = """
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as old
  where old.attempts >= old.max_attempts
    and old.locked_at is null
    and (
      $1::pg_catalog.float8 is null
      or greatest(old.run_at, old.updated_at)
        < pg_catalog.now() - $1::pg_catalog.float8 * interval '1 second'
    )
"""

_UNUSED_TASKS: Final = """
  from :GRAPHILE_WORKER_SCHEMA._private_tasks as old
  where old.identifier <> all ($1::pg_catalog.text[])
    and not exists (
      select 1
      from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
      where jobs.task_id = old.id
    )
"""

_UNUSED_QUEUES: Final = """
  from :GRAPHILE_WORKER_SCHEMA._private_job_queues as old
  where old.locked_at is null
    and not exists (
      select 1
      from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
      where jobs.job_queue_id = old.id
    )
"""

_DELETE: Final = "with deleted as (delete"
_COUNT_DELETED: Final = "returning old.id) select pg_catalog.count(*) from deleted"
_COUNT: Final = "select pg_catalog.count(*), null"
_COUNT_WITH_AGE: Final = """
select
  pg_catalog.count(*),
  greatest(0, extract(
    epoch from pg_catalog.now() - pg_catalog.min(greatest(old.run_at, old.updated_at))
  )::pg_catalog.float8)
"""


class CleanupPreview(Record):
    """What a cleanup task would delete.

    Attributes:
        rows: Number of rows.
        oldest: Seconds since the job with the oldest failure failed; None for other rows.
    """

    rows: int
    oldest: float | None


def cleanup(
    tasks: Iterable[str] | None,
    task_identifiers_to_keep: Iterable[str] | None,
    older_than: timedelta | str | None,
) -> dict[CleanupTask, Query[int]]:
    """The statements to send one after the other; each counts the rows that it deletes.

    Without `tasks` it is upstream's choice: queues, and task identifiers if it is given which of
    them to keep.
    """
    chosen, keep = _chosen(tasks, task_identifiers_to_keep)
    age = _age(older_than, chosen)
    return {task: _delete(task, keep, age) for task in chosen}


def preview(
    tasks: Iterable[str] | None,
    task_identifiers_to_keep: Iterable[str] | None,
    older_than: timedelta | str | None,
) -> dict[CleanupTask, Query[CleanupPreview]]:
    """The statements that count what `cleanup` would delete now."""
    chosen, keep = _chosen(tasks, task_identifiers_to_keep)
    age = _age(older_than, chosen)
    return {task: _preview(task, keep, age) for task in chosen}


def _age(older_than: timedelta | str | None, chosen: Sequence[CleanupTask]) -> float | None:
    """Seconds that a job must have failed before; None for no condition."""
    if older_than is None:
        return None
    if CleanupTask.DELETE_PERMAFAILED_JOBS not in chosen:
        raise ConfigurationError(
            f"older_than is for {CleanupTask.DELETE_PERMAFAILED_JOBS}, which is not among the tasks"
        )
    return check_duration("older_than", older_than)


def _chosen(
    tasks: Iterable[str] | None, task_identifiers_to_keep: Iterable[str] | None
) -> tuple[list[CleanupTask], list[str]]:
    keep: list[str] = []
    chosen = {CleanupTask.GC_JOB_QUEUES}
    if task_identifiers_to_keep is not None:
        keep = check_texts("task_identifiers_to_keep", task_identifiers_to_keep)
        chosen.add(CleanupTask.GC_TASK_IDENTIFIERS)
    if tasks is not None:
        chosen = _checked_tasks(tasks)
    return [task for task in CleanupTask if task in chosen], keep


def _checked_tasks(tasks: Iterable[str]) -> set[CleanupTask]:
    if isinstance(tasks, str | bytes | Mapping) or not isinstance(tasks, Iterable):
        raise ConfigurationError(f"tasks must be a list of cleanup tasks, not {tasks!r}")
    chosen = set()
    for at, task in enumerate(tasks):
        check_one_of(f"tasks[{at}]", task, allowed=CleanupTask)
        chosen.add(CleanupTask(task))
    return chosen


def _delete(task: CleanupTask, keep: list[str], age: float | None) -> Query[int]:
    match task:
        case CleanupTask.DELETE_PERMAFAILED_JOBS:
            return Query(_DELETE + _FAILED_JOBS + _COUNT_DELETED, (age,), _count)
        case CleanupTask.GC_TASK_IDENTIFIERS:
            return Query(_DELETE + _UNUSED_TASKS + _COUNT_DELETED, (keep,), _count)
        case CleanupTask.GC_JOB_QUEUES:
            return Query(_DELETE + _UNUSED_QUEUES + _COUNT_DELETED, (), _count)
        case _:
            assert_never(task)


def _preview(task: CleanupTask, keep: list[str], age: float | None) -> Query[CleanupPreview]:
    match task:
        case CleanupTask.DELETE_PERMAFAILED_JOBS:
            return Query(_COUNT_WITH_AGE + _FAILED_JOBS, (age,), _previewed)
        case CleanupTask.GC_TASK_IDENTIFIERS:
            return Query(_COUNT + _UNUSED_TASKS, (keep,), _previewed)
        case CleanupTask.GC_JOB_QUEUES:
            return Query(_COUNT + _UNUSED_QUEUES, (), _previewed)
        case _:
            assert_never(task)


def _count(rows: list[tuple[Any, ...]]) -> int:
    return int(rows[0][0])


def _previewed(rows: list[tuple[Any, ...]]) -> CleanupPreview:
    count, oldest = rows[0]
    return CleanupPreview(rows=count, oldest=oldest)
