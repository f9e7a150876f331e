"""Looking at jobs, queues and locks. Nothing here changes or locks a row."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from graphile_worker_py.checks import (
    BIGINT_MAX,
    check_job_id,
    check_one_of,
    check_text,
    check_whole,
)
from graphile_worker_py.job import JOB_COLUMNS, Job, from_timestamp
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql import fragments

DEFAULT_LIMIT: Final = 100


class JobState(StrEnum):
    """Where a job stands; each job is in one of these."""

    READY = "ready"
    """Due, and waiting for a worker, or for the job of its queue that is running."""
    SCHEDULED = "scheduled"
    """Not due yet: added for later, or waiting to be tried again."""
    RUNNING = "running"
    """Locked by a worker pool."""
    FAILED = "failed"
    """Given up: no attempts are left."""


class ListedJob(Job):
    """A job with the name of its queue, and with its state when it was read.

    `task_identifier` is an empty string if the row of the task was deleted; no worker runs
    such a job.
    """

    __slots__ = ("queue_name", "state")

    queue_name: str | None
    """Name of the serial queue; None for a job without queue."""
    state: JobState
    """Where the job stood, by the clock of the database."""

    def __init__(
        self,
        row: tuple[Any, ...],
        task_identifier: str,
        *,
        queue_name: str | None,
        state: JobState,
    ) -> None:
        super().__init__(row, task_identifier)
        self.queue_name = queue_name
        self.state = state

    def to_dict(self) -> dict[str, Any]:
        """All columns, `task_identifier`, `queue_name` and `state` by name."""
        return {**super().to_dict(), "queue_name": self.queue_name, "state": self.state}


# Newest first, by id: the primary key has that order, and pages stay the same while jobs come and
# go. Key, task and queue are looked up once, by their unique indexes. Ready and scheduled jobs are
# available, which lets the planner use the partial indexes on `is_available`; running and failed
# jobs have no index. The planner knows the values, and drops conditions that are null.
_LIST: Final = (
    "select"  # noqa: S608  # all parts are constants
    + fragments.JOB
    + """,
  coalesce(tasks.identifier, ''),
  queues.queue_name,
"""
    + fragments.STATE
    + """
from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = job.task_id
left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues on queues.id = job.job_queue_id
where ($1::pg_catalog.int8 is null or job.id = $1::pg_catalog.int8)
  and ($2::pg_catalog.int8 is null or job.id < $2::pg_catalog.int8)
  and ($3::pg_catalog.text is null
    or $3::pg_catalog.text in ('running', 'failed')
    or job.is_available = true
  )
  and ($3::pg_catalog.text is null or $3::pg_catalog.text ="""
    + fragments.STATE
    + """)
  and ($4::pg_catalog.text is null or job.task_id = (
    select tasks.id
    from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
    where tasks.identifier = $4::pg_catalog.text
  ))
  and ($5::pg_catalog.text is null or job.job_queue_id = (
    select queues.id
    from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
    where queues.queue_name = $5::pg_catalog.text
  ))
  and ($6::pg_catalog.text is null or job.key = $6::pg_catalog.text)
  and ($7::pg_catalog.text is null or job.locked_by = $7::pg_catalog.text)
  and ($8::pg_catalog.text is null
    or position(
      pg_catalog.lower($8::pg_catalog.text) in pg_catalog.lower(job.payload::pg_catalog.text)
    ) > 0
    or position(pg_catalog.lower($8::pg_catalog.text) in pg_catalog.lower(job.key)) > 0
    or position(pg_catalog.lower($8::pg_catalog.text) in pg_catalog.lower(job.last_error)) > 0
  )
order by job.id desc
limit $9::pg_catalog.int8
"""
)


def get_job(job_id: int | str) -> Query[ListedJob | None]:
    """Read one job."""
    values = (check_job_id("id", job_id), None, None, None, None, None, None, None, 1)
    return Query(_LIST, values, lambda rows: _listed(rows[0]) if rows else None)


def list_jobs(
    *,
    state: JobState | str | None,
    task: str | None,
    queue: str | None,
    key: str | None,
    text: str | None,
    locked_by: str | None,
    limit: int | None,
    after: int | str | None,
) -> Query[list[ListedJob]]:
    """Read jobs, newest first."""
    if state is not None:
        check_one_of("state", state, allowed=JobState)
    for name, value in (
        ("task", task),
        ("queue", queue),
        ("key", key),
        ("text", text),
        ("locked_by", locked_by),
    ):
        if value is not None:
            check_text(name, value)
    if limit is not None:
        check_whole("limit", limit, smallest=1, or_else="(None for all)")
    values = (
        None,
        None if after is None else check_job_id("after", after),
        None if state is None else str(state),
        task,
        queue,
        key,
        locked_by,
        text,
        None if limit is None else min(limit, BIGINT_MAX),
    )
    return Query(_LIST, values, lambda rows: [_listed(row) for row in rows])


def _listed(row: tuple[Any, ...]) -> ListedJob:
    identifier, queue_name, state = row[-3:]
    columns = row[: len(JOB_COLUMNS)]
    return ListedJob(columns, identifier, queue_name=queue_name, state=JobState(state))


class StateCounts(Record):
    """How many jobs are in each state.

    Args:
        ready: Due and not running.
        scheduled: Not due yet.
        running: Locked by a worker pool.
        failed: Given up, no attempts left.
    """

    ready: int
    scheduled: int
    running: int
    failed: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.ready + self.scheduled + self.running + self.failed


class JobCounts(StateCounts):
    """How many jobs there are, in all and by task.

    Args:
        tasks: The counts of each task that has jobs, by its identifier.
    """

    tasks: dict[str, StateCounts]


# Grouped by id before the names are looked up, because there are fewer ids than jobs.
_COUNT: Final = (
    """
select coalesce(tasks.identifier, ''), counted.state, counted.jobs
from (
  select job.task_id, pg_catalog.count(*) as jobs,"""  # noqa: S608  # all parts are constants
    + fragments.STATE
    + """as state
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  group by 1, 3
) as counted
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = counted.task_id
order by 1
"""
)


def count_jobs() -> Query[JobCounts]:
    """Count the jobs by state and by task; reads the whole table."""

    def read(rows: list[tuple[Any, ...]]) -> JobCounts:
        # Tasks whose rows were deleted share one identifier, the empty one.
        tasks: dict[str, Counter[str]] = {}
        for identifier, state, jobs in rows:
            tasks.setdefault(identifier, Counter())[state] += jobs
        return JobCounts(
            **_by_state(sum(tasks.values(), Counter())),
            tasks={
                identifier: StateCounts(**_by_state(each)) for identifier, each in tasks.items()
            },
        )

    return Query(_COUNT, (), read)


def _by_state(counted: Mapping[str, int]) -> dict[str, int]:
    return {str(state): counted.get(state, 0) for state in JobState}


class JobQueue(Record):
    """A serial queue.

    Args:
        name: Its name.
        jobs: How many jobs it has, in whatever state.
        locked_by: Id of the worker pool that runs a job of it; None if no pool does.
        locked_at: Since when.
    """

    name: str
    jobs: int
    locked_by: str | None
    locked_at: datetime | None


_QUEUES: Final = """
select queues.queue_name, coalesce(counted.jobs, 0), queues.locked_by, queues.locked_at
from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
left join (
  select jobs.job_queue_id, pg_catalog.count(*) as jobs
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.job_queue_id is not null
  group by jobs.job_queue_id
) as counted on counted.job_queue_id = queues.id
order by queues.queue_name
"""


def list_queues() -> Query[list[JobQueue]]:
    """Read all queues by name, those without jobs too; reads the whole table of jobs."""

    def read(rows: list[tuple[Any, ...]]) -> list[JobQueue]:
        return [
            JobQueue(name=row[0], jobs=row[1], locked_by=row[2], locked_at=_moment(row[3]))
            for row in rows
        ]

    return Query(_QUEUES, (), read)


class LockHolder(Record):
    """A worker pool that has something locked, whether it still lives or not.

    Args:
        pool_id: Its id, which is what `force_unlock_workers` takes.
        jobs: How many jobs it has locked.
        queues: How many queues it has locked.
        locked_at: Since when it has the oldest of these locks.
    """

    pool_id: str
    jobs: int
    queues: int
    locked_at: datetime | None


# Nothing in the schema registers a pool: those that have nothing locked can't be seen. The holder
# of a paused queue is no pool.
_LOCK_HOLDERS: Final = """
select
  locks.locked_by,
  pg_catalog.count(*) filter (where locks.is_job),
  pg_catalog.count(*) filter (where not locks.is_job),
  pg_catalog.min(locks.locked_at)
from (
  select jobs.locked_by, jobs.locked_at, true
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
  where jobs.locked_by is not null
  union all
  select queues.locked_by, queues.locked_at, false
  from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  where queues.locked_by is not null
    and not pg_catalog.starts_with(queues.locked_by, 'gwpy-pause:')
) as locks (locked_by, locked_at, is_job)
group by locks.locked_by
order by pg_catalog.min(locks.locked_at), locks.locked_by
"""


def list_lock_holders() -> Query[list[LockHolder]]:
    """Read which pools have jobs or queues locked, the oldest lock first."""

    def read(rows: list[tuple[Any, ...]]) -> list[LockHolder]:
        return [
            LockHolder(pool_id=row[0], jobs=row[1], queues=row[2], locked_at=_moment(row[3]))
            for row in rows
        ]

    return Query(_LOCK_HOLDERS, (), read)


def _moment(value: bytes | None) -> datetime | None:
    return None if value is None else from_timestamp(value)
