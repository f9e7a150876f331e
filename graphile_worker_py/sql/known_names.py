"""Which tasks and queues a schema knows."""

from typing import Final

from graphile_worker_py.postgres.query import Query

_READ_TASKS: Final = """
select tasks.identifier from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
"""
_HAS_QUEUE: Final = """
select exists (
  select
  from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  where queues.queue_name = $1::pg_catalog.text
)
"""


def read_task_identifiers() -> Query[set[str]]:
    """Read the tasks that have had a job or a worker, unless a cleanup has removed them."""
    return Query(_READ_TASKS, (), lambda rows: {row[0] for row in rows}, prepare=False)


def has_queue(name: str) -> Query[bool]:
    """Look whether a queue has had a job, unless a cleanup has removed it."""
    return Query(_HAS_QUEUE, (name,), lambda rows: bool(rows[0][0]), prepare=False)
