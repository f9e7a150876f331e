"""Cleanup: delete what nobody needs any more. Nothing runs it by itself."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, assert_never

from graphile_worker_py.checks import check_one_of, check_texts
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.postgres.query import Query


class CleanupTask(StrEnum):
    """What cleanup can delete, under upstream's names and in the order in which it is done."""

    DELETE_PERMAFAILED_JOBS = "DELETE_PERMAFAILED_JOBS"
    """Jobs that have used up their attempts and are not running."""
    GC_TASK_IDENTIFIERS = "GC_TASK_IDENTIFIERS"
    """Task identifiers without a job. Workers remember their ids: stop them before."""
    GC_JOB_QUEUES = "GC_JOB_QUEUES"
    """Queues without a job that no worker has locked."""


# Rescheduling can leave a job with more attempts than it may have; it is as dead as the others.
_DELETE_PERMAFAILED_JOBS: Final = """
with deleted as (
  delete from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.attempts >= jobs.max_attempts
    and jobs.locked_at is null
  returning jobs.id
)
select pg_catalog.count(*) from deleted
"""

_GC_TASK_IDENTIFIERS: Final = """
with deleted as (
  delete from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
  where tasks.identifier <> all ($1::pg_catalog.text[])
    and not exists (
      select 1
      from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
      where jobs.task_id = tasks.id
    )
  returning tasks.id
)
select pg_catalog.count(*) from deleted
"""

_GC_JOB_QUEUES: Final = """
with deleted as (
  delete from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  where queues.locked_at is null
    and not exists (
      select 1
      from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
      where jobs.job_queue_id = queues.id
    )
  returning queues.id
)
select pg_catalog.count(*) from deleted
"""


def cleanup(
    tasks: Iterable[str] | None, task_identifiers_to_keep: Iterable[str] | None
) -> dict[CleanupTask, Query[int]]:
    """The statements to send one after the other; each counts what it deletes.

    Without `tasks` it is upstream's choice: queues, and task identifiers too if it is said which
    of them to keep.
    """
    keep: list[str] = []
    chosen = {CleanupTask.GC_JOB_QUEUES}
    if task_identifiers_to_keep is not None:
        keep = check_texts("task_identifiers_to_keep", task_identifiers_to_keep)
        chosen.add(CleanupTask.GC_TASK_IDENTIFIERS)
    if tasks is not None:
        chosen = _checked_tasks(tasks)
    return {task: _query(task, keep) for task in CleanupTask if task in chosen}


def _checked_tasks(tasks: Iterable[str]) -> set[CleanupTask]:
    if isinstance(tasks, str | bytes | Mapping) or not isinstance(tasks, Iterable):
        raise ConfigurationError(f"tasks must be a list of cleanup tasks, not {tasks!r}")
    chosen = set()
    for at, task in enumerate(tasks):
        check_one_of(f"tasks[{at}]", task, allowed=CleanupTask)
        chosen.add(CleanupTask(task))
    return chosen


def _query(task: CleanupTask, keep: list[str]) -> Query[int]:
    match task:
        case CleanupTask.DELETE_PERMAFAILED_JOBS:
            return Query(_DELETE_PERMAFAILED_JOBS, (), _count)
        case CleanupTask.GC_TASK_IDENTIFIERS:
            return Query(_GC_TASK_IDENTIFIERS, (keep,), _count)
        case CleanupTask.GC_JOB_QUEUES:
            return Query(_GC_JOB_QUEUES, (), _count)
        case _:
            assert_never(task)


def _count(rows: list[tuple[Any, ...]]) -> int:
    return int(rows[0][0])
