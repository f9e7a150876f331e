"""The small tables, for people who look: tasks, queues that are locked, the server."""

from typing import Any, Final

from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record


class LockedQueue(Record):
    """A queue that a pool has locked, or a person has paused.

    Args:
        name: Its name.
        locked_by: The pool.
        locked_for: Since how many seconds.
    """

    name: str
    locked_by: str | None
    locked_for: float


_LOCKED_QUEUES: Final = """
select queues.queue_name, queues.locked_by,
  extract(epoch from pg_catalog.now() - queues.locked_at)::pg_catalog.float8
from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
where queues.locked_at is not null
order by queues.locked_at
limit $1::pg_catalog.int8
"""


def read_locked_queues(*, limit: int) -> Query[list[LockedQueue]]:
    """Read the queues that are locked, the oldest lock first."""

    def read(rows: list[tuple[Any, ...]]) -> list[LockedQueue]:
        return [LockedQueue(name=row[0], locked_by=row[1], locked_for=row[2]) for row in rows]

    return Query(_LOCKED_QUEUES, (limit,), read, prepare=False)


_TASKS: Final = """
select tasks.identifier
from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
order by tasks.identifier
limit $1::pg_catalog.int8
"""


def read_task_names(*, limit: int) -> Query[list[str]]:
    """Read the identifiers of all tasks that ever had a job."""
    return Query(_TASKS, (limit,), lambda rows: [row[0] for row in rows], prepare=False)
