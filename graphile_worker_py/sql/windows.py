"""Look at jobs in windows of ids, so that no statement reads a table of millions of jobs.

No index of the jobs table serves a filter by state, task, queue, error or payload, and we may not
create one. The primary key gives the newest ids quickly, so a filter is applied to these. Where the
window ends is part of the answer.
"""

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

from graphile_worker_py.checks import BIGINT_MAX
from graphile_worker_py.job import JOB_COLUMNS, from_timestamp
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql import fragments
from graphile_worker_py.sql.inspect import JobState, ListedJob

WINDOW: Final = 20_000
"""How many ids a statement looks at."""


class Filter(Record):
    """Which jobs are wanted; conditions that are given must all hold.

    Args:
        state: The state of the job.
        task: Identifier of its task.
        queue: Name of its queue.
        key: Its job key.
        flag: One of its flags.
        worker: Id of the pool that has locked it.
        error: Found in its last error, in upper or lower case.
        text: Found in its payload, key or last error, in upper or lower case.
        path: Keys that lead to a value in its payload; `equals` is that value as text.
        equals: See `path`.
        before: Added before this time.
        after: Added after this time.
    """

    state: JobState | None = None
    task: str | None = None
    queue: str | None = None
    key: str | None = None
    flag: str | None = None
    worker: str | None = None
    error: str | None = None
    text: str | None = None
    path: tuple[str, ...] | None = None
    equals: str | None = None
    before: datetime | None = None
    after: datetime | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it lets all jobs through."""
        return all(getattr(self, field.name) is None for field in fields(self))


class Window(Record):
    """Jobs that a filter found in a window of ids, the newest first.

    Args:
        jobs: The jobs, at most as many as were asked for.
        from_id: The smallest id that was looked at; None if there was none.
        complete: Whether no older jobs are left to look at.
        more: Whether the window has further jobs that the filter lets through.
    """

    jobs: list[ListedJob]
    from_id: int | None
    complete: bool
    more: bool


_CONDITIONS: Final = (
    """
    and ($3::pg_catalog.text is null or $3::pg_catalog.text ="""  # noqa: S608  # constants
    + fragments.STATE  # all parts are constants
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
    and ($7::pg_catalog.text is null or job.flags ? $7::pg_catalog.text)
    and ($8::pg_catalog.text is null or job.locked_by = $8::pg_catalog.text)
    and ($9::pg_catalog.text is null
      or position(pg_catalog.lower($9::pg_catalog.text) in pg_catalog.lower(job.last_error)) > 0
    )
    and ($10::pg_catalog.text is null
      or position(
        pg_catalog.lower($10::pg_catalog.text) in pg_catalog.lower(job.payload::pg_catalog.text)
      ) > 0
      or position(pg_catalog.lower($10::pg_catalog.text) in pg_catalog.lower(job.key)) > 0
      or position(pg_catalog.lower($10::pg_catalog.text) in pg_catalog.lower(job.last_error)) > 0
    )
    and ($11::pg_catalog.text[] is null
      or job.payload #>> $11::pg_catalog.text[] = $12::pg_catalog.text
    )
    and ($13::pg_catalog.timestamptz is null
      or job.created_at < $13::pg_catalog.timestamptz
    )
    and ($14::pg_catalog.timestamptz is null
      or job.created_at >= $14::pg_catalog.timestamptz
    )
"""
)

# The bounds are read from the primary key alone. A job key has an index of its own, so that it is
# looked for in the whole table.
_BOUNDS: Final = """
bounds as materialized (
  select pg_catalog.min(newest.id) as from_id, pg_catalog.count(*) as ids
  from (
    select job.id
    from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
    where job.id < $1::pg_catalog.int8
      and ($6::pg_catalog.text is null or job.key = $6::pg_catalog.text)
    order by job.id desc
    limit $2::pg_catalog.int8
  ) as newest
)
"""

_LIST: Final = (
    "with"  # all parts are constants
    + _BOUNDS
    + """
select bounds.from_id, bounds.ids, found.*
from bounds
left join lateral (
  select"""
    + fragments.JOB
    + """,
    coalesce(tasks.identifier, ''),
    queues.queue_name,
"""
    + fragments.STATE
    + """
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = job.task_id
  left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
    on queues.id = job.job_queue_id
  where job.id >= bounds.from_id
    and job.id < $1::pg_catalog.int8
"""
    + _CONDITIONS
    + """
  order by job.id desc
  limit $15::pg_catalog.int8
) as found on true
"""
)


def list_window(wanted: Filter, *, before_id: int | None, limit: int) -> Query[Window]:
    """Read the newest jobs that a filter lets through, of the `WINDOW` ids before `before_id`."""

    def read(rows: list[tuple[Any, ...]]) -> Window:
        from_id, ids = rows[0][:2]
        found = [row[2:] for row in rows if row[2] is not None]
        return Window(
            jobs=[_listed(row) for row in found[:limit]],
            from_id=from_id,
            complete=ids < WINDOW,
            more=len(found) > limit,
        )

    return Query(_LIST, (*_values(wanted, before_id), limit + 1), read, prepare=False)


_IDS: Final = (
    "with"  # noqa: S608  # all parts are constants
    + _BOUNDS
    + """
select bounds.from_id, bounds.ids, array(
  select job.id
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  where job.id >= bounds.from_id
    and job.id < $1::pg_catalog.int8
"""
    + _CONDITIONS
    + """
  order by job.id desc
)
from bounds
"""
)


class Matches(Record):
    """Ids that a filter found in a window.

    Args:
        ids: The ids, the newest first.
        from_id: As of `Window`.
        complete: As of `Window`.
    """

    ids: list[int]
    from_id: int | None
    complete: bool


def match_window(wanted: Filter, *, before_id: int | None) -> Query[Matches]:
    """Read the ids of all jobs of a window that a filter lets through."""

    def read(rows: list[tuple[Any, ...]]) -> Matches:
        from_id, number, ids = rows[0]
        return Matches(ids=ids, from_id=from_id, complete=number < WINDOW)

    return Query(_IDS, _values(wanted, before_id), read, prepare=False)


_BY_IDS: Final = (
    "select"  # all parts are constants
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
where job.id = any($1::pg_catalog.int8[])
order by job.id desc
"""
)


def read_by_ids(ids: Sequence[int]) -> Query[list[ListedJob]]:
    """Read jobs by their ids, the newest first."""
    return Query(_BY_IDS, (list(ids),), lambda rows: [_listed(row) for row in rows], prepare=False)


class Failure(Record, kw_only=False):
    """A job that was given up.

    Args:
        job_id: Its id.
        task: Identifier of its task; empty if it was deleted.
        added_at: When it was added.
        error: The beginning of its last error.
    """

    job_id: int
    task: str
    added_at: datetime
    error: str


_FAILURES: Final = """
select job.id, coalesce(tasks.identifier, ''), job.created_at,
  coalesce(pg_catalog.left(job.last_error, 1000), '')
from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = job.task_id
where job.id = any($1::pg_catalog.int8[])
  and job.locked_at is null
  and job.attempts >= job.max_attempts
order by job.id desc
"""


def read_failures(ids: Sequence[int]) -> Query[list[Failure]]:
    """Read which of some jobs were given up, the newest first, without their payloads."""

    def read(rows: list[tuple[Any, ...]]) -> list[Failure]:
        return [Failure(row[0], row[1], from_timestamp(row[2]), row[3]) for row in rows]

    return Query(_FAILURES, (list(ids),), read, prepare=False)


def _values(wanted: Filter, before_id: int | None) -> tuple[Any, ...]:
    return (
        BIGINT_MAX if before_id is None else before_id,
        WINDOW,
        None if wanted.state is None else str(wanted.state),
        wanted.task,
        wanted.queue,
        wanted.key,
        wanted.flag,
        wanted.worker,
        wanted.error,
        wanted.text,
        None if wanted.path is None else list(wanted.path),
        wanted.equals,
        wanted.before,
        wanted.after,
    )


def _listed(row: tuple[Any, ...]) -> ListedJob:
    identifier, queue_name, state = row[len(JOB_COLUMNS) :]
    columns = row[: len(JOB_COLUMNS)]
    return ListedJob(columns, identifier, queue_name=queue_name, state=JobState(state))
