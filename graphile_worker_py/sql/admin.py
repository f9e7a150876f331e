"""Changing jobs from outside, through the public SQL functions that Node's tools use too.

They leave alone what a worker has locked within the last four hours, and skip ids and keys that
nobody has.
"""

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from graphile_worker_py.checks import (
    check_aware,
    check_job_ids,
    check_smallint,
    check_text,
    check_texts,
)
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.job import JOB_COLUMNS, Job
from graphile_worker_py.job.spec import MAX_JOB_KEY_LENGTH
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.records import Record
from graphile_worker_py.sql import fragments
from graphile_worker_py.sql.backlog import registered_pools
from graphile_worker_py.sql.pauses import PAUSE_PREFIX

logger = logging.getLogger(__name__)

# The functions return rows of the jobs table, which hold the task's id. Its identifier was there
# before the statement began, so the same statement can look it up. A task whose row somebody
# deleted has none; its jobs are shown nevertheless.
_COMPLETE: Final = (
    "select"
    + fragments.JOB
    + """,
  coalesce(tasks.identifier, '')
from :GRAPHILE_WORKER_SCHEMA.complete_jobs($1::pg_catalog.int8[]) as job
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = job.task_id
order by job.id
"""
)


def complete_jobs(ids: Iterable[int | str]) -> Query[list[Job]]:
    """Delete jobs; they are returned as they were."""
    return Query(_COMPLETE, (check_job_ids("ids", ids),), read_jobs)


_FAIL: Final = (
    "select"
    + fragments.JOB
    + """,
  coalesce(tasks.identifier, '')
from :GRAPHILE_WORKER_SCHEMA.permanently_fail_jobs(
  $1::pg_catalog.int8[], $2::pg_catalog.text
) as job
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = job.task_id
order by job.id
"""
)


def permanently_fail_jobs(ids: Iterable[int | str], reason: str | None) -> Query[list[Job]]:
    """Use up all attempts of jobs."""
    if reason is not None:
        check_text("reason", reason)
    return Query(_FAIL, (check_job_ids("ids", ids), reason), read_jobs)


_RESCHEDULE: Final = (
    "select"
    + fragments.JOB
    + """,
  coalesce(tasks.identifier, '')
from :GRAPHILE_WORKER_SCHEMA.reschedule_jobs(
  $1::pg_catalog.int8[],
  run_at => $2::pg_catalog.timestamptz,
  priority => $3::pg_catalog.int4,
  attempts => $4::pg_catalog.int4,
  max_attempts => $5::pg_catalog.int4
) as job
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = job.task_id
order by job.id
"""
)


def reschedule_jobs(
    ids: Iterable[int | str],
    *,
    run_at: datetime | None,
    priority: int | None,
    attempts: int | None,
    max_attempts: int | None,
) -> Query[list[Job]]:
    """Change when and how often jobs run; None leaves a value as it is."""
    if run_at is not None:
        check_aware("run_at", run_at)
    if priority is not None:
        check_smallint("priority", priority)
    if attempts is not None:
        check_smallint("attempts", attempts, smallest=0)
    if max_attempts is not None:
        check_smallint("max_attempts", max_attempts, smallest=1)
    values = (check_job_ids("ids", ids), run_at, priority, attempts, max_attempts)
    return Query(_RESCHEDULE, values, read_jobs)


_REMOVE: Final = (
    "select"
    + fragments.JOB
    + """,
  coalesce(tasks.identifier, '')
from :GRAPHILE_WORKER_SCHEMA.remove_job($1::pg_catalog.text) as job
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = job.task_id
"""
)


def remove_job(job_key: str) -> Query[Job | None]:
    """Delete the job with a key, or take key and attempts from it while it runs, and log that."""
    job_key = check_text("job_key", job_key, shortest=1, longest=MAX_JOB_KEY_LENGTH)

    def read(rows: list[tuple[Any, ...]]) -> Job | None:
        # The function answers "no such key" with a row of nulls.
        if rows[0][0] is None:
            return None
        job = read_jobs(rows)[0]
        if job.key is None:  # a job that was deleted is returned as it was
            logger.warning(
                "Job %d (%s) is running and goes on: it was not deleted, but has lost its key %r "
                "and its retries. cancel_jobs ends a running job",
                job.id,
                job.task_identifier,
                job_key,
                extra={"job_id": job.id, "task_identifier": job.task_identifier},
            )
        return job

    return Query(_REMOVE, (job_key,), read)


class Unlocked(Record):
    """What was freed.

    Args:
        jobs: How many jobs the pools had locked.
        queues: How many queues they had locked.
    """

    jobs: int
    queues: int


# The counts are of the statement's own snapshot, from before the function is called.
_UNLOCK: Final = """
select
  (
    select pg_catalog.count(*)
    from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
    where jobs.locked_by = any($1::pg_catalog.text[])
  ),
  (
    select pg_catalog.count(*)
    from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
    where queues.locked_by = any($1::pg_catalog.text[])
  ),
  :GRAPHILE_WORKER_SCHEMA.force_unlock_workers($1::pg_catalog.text[])
"""


def force_unlock_workers(pool_ids: Iterable[str]) -> Query[Unlocked]:
    """Free all jobs and queues that pools have locked."""
    wanted = check_texts("pool_ids", pool_ids)
    for pool_id in wanted:
        if pool_id.startswith(PAUSE_PREFIX):
            raise ConfigurationError(
                f"{pool_id!r} is no worker pool: it holds a queue that is paused. Resume the queue"
            )

    def read(rows: list[tuple[Any, ...]]) -> Unlocked:
        return Unlocked(jobs=rows[0][0], queues=rows[0][1])

    return Query(_UNLOCK, (wanted,), read)


def unlock_dead_workers(pool_ids: Iterable[str], schema: str) -> Steps[Unlocked]:
    """Release the locks of pools, none of which may be alive.

    Raises:
        GraphileWorkerError: A pool is alive.
    """
    unlock = force_unlock_workers(pool_ids)
    (wanted,) = unlock.values
    for pool in (yield from registered_pools(schema)) or ():
        if pool.pool_id in wanted and not pool.overdue:
            raise GraphileWorkerError(
                f"worker pool {pool.pool_id} is alive: process {pool.pid} on {pool.host}, last "
                f"heartbeat {pool.heartbeat_age:.1f} s ago. Its jobs would run twice; stop it first"
            )
    return (yield unlock)  # type: ignore[no-any-return]


def read_jobs(rows: list[tuple[Any, ...]]) -> list[Job]:
    """Jobs from rows of the jobs table that are followed by the task's identifier."""
    return [Job(row[: len(JOB_COLUMNS)], row[-1]) for row in rows]
