"""Count jobs in chunks of ids, so that a table of millions is never read by one statement."""

from typing import Any, Final

from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql import fragments

CHUNK: Final = 20_000
"""How many jobs a statement counts."""
NEWEST: Final = 500
"""How many ids of running and of failed jobs each statement returns at most."""


class Group(Record):
    """Jobs of one chunk that have the same task, queue and state.

    Args:
        task: Identifier of the task; empty if its row was deleted.
        queue: Name of the queue; None for jobs without one, and if queues are not told apart.
        state: The state.
        jobs: How many there are.
        oldest: Seconds for which the first of them has been due; None unless they are ready.
    """

    task: str
    queue: str | None
    state: str
    jobs: int
    oldest: float | None


class Chunk(Record):
    """What a chunk of jobs counts.

    Args:
        groups: The jobs by task, queue and state.
        last_id: The largest id of the chunk; None if there were no jobs.
        rows: How many jobs it has.
        running: Ids of running jobs, the newest first.
        failed: Ids of failed jobs, the newest first.
    """

    groups: list[Group]
    last_id: int | None
    rows: int
    running: list[int]
    failed: list[int]


_COUNT: Final = (
    """
with job as materialized (
  select job.id, job.task_id, job.job_queue_id, job.run_at,"""  # noqa: S608  # constants
    + fragments.STATE
    + """as state
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  where job.id > $1::pg_catalog.int8
  order by job.id
  limit $2::pg_catalog.int8
),
counted as (
  select
    job.task_id,
    case when $3::pg_catalog.bool then job.job_queue_id end as queue_id,
    job.state,
    pg_catalog.count(*) as jobs,
    extract(epoch from pg_catalog.now()
      - pg_catalog.min(job.run_at) filter (where job.state = 'ready')
    )::pg_catalog.float8 as oldest
  from job
  group by 1, 2, 3
)
select coalesce(tasks.identifier, ''), queues.queue_name, counted.state, counted.jobs,
  counted.oldest, null, null::pg_catalog.int8[], null::pg_catalog.int8[]
from counted
left join :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks on tasks.id = counted.task_id
left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues on queues.id = counted.queue_id
union all
select null, null, null, pg_catalog.count(*), null, pg_catalog.max(job.id),
  array(
    select job.id from job where job.state = 'running'
    order by job.id desc limit $4::pg_catalog.int8
  ),
  array(
    select job.id from job where job.state = 'failed'
    order by job.id desc limit $4::pg_catalog.int8
  )
from job
"""
)


def count_chunk(after_id: int, *, by_queue: bool) -> Query[Chunk]:
    """Count the `CHUNK` jobs whose ids follow `after_id`."""

    def read(rows: list[tuple[Any, ...]]) -> Chunk:
        (total,) = [row for row in rows if row[0] is None]
        groups = [
            Group(task=row[0], queue=row[1], state=row[2], jobs=row[3], oldest=row[4])
            for row in rows
            if row[0] is not None
        ]
        return Chunk(
            groups=groups, rows=total[3], last_id=total[5], running=total[6], failed=total[7]
        )

    return Query(_COUNT, (after_id, CHUNK, by_queue, NEWEST), read)


class Sizes(Record):
    """How large the tables are, as the server's statistics estimate it.

    Args:
        jobs: Rows of the jobs table; -1 if it was never analyzed.
        queues: Rows of the queues table.
        is_replica: Whether the server is a replica.
        is_read_only: Whether transactions can't write.
    """

    jobs: float
    queues: float
    is_replica: bool
    is_read_only: bool


_SIZES: Final = """
select
  pg_catalog.max(classes.reltuples)
    filter (where classes.relname = '_private_jobs')::pg_catalog.float8,
  pg_catalog.max(classes.reltuples)
    filter (where classes.relname = '_private_job_queues')::pg_catalog.float8,
  pg_catalog.pg_is_in_recovery(),
  pg_catalog.current_setting('transaction_read_only') = 'on'
from pg_catalog.pg_class as classes
join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
where namespaces.nspname = $1::pg_catalog.text
"""


def read_sizes(schema: str) -> Query[Sizes]:
    """Read how large the tables of a schema are, without reading them."""

    def read(rows: list[tuple[Any, ...]]) -> Sizes:
        jobs, queues, is_replica, is_read_only = rows[0]
        return Sizes(
            jobs=-1.0 if jobs is None else jobs,
            queues=-1.0 if queues is None else queues,
            is_replica=is_replica,
            is_read_only=is_read_only,
        )

    return Query(_SIZES, (schema,), read, prepare=False)


_BACKLOG: Final = """
select pg_catalog.count(*)
from (
  select
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  where job.is_available = true
    and job.run_at <= pg_catalog.now()
    and ($1::pg_catalog.text is null or job.task_id = (
      select tasks.id
      from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
      where tasks.identifier = $1::pg_catalog.text
    ))
  limit $2::pg_catalog.int8
) as ready
"""


def count_ready(task: str | None, *, limit: int) -> Query[int]:
    """Count the jobs that are ready, of one task or of all, up to a limit."""
    return Query(_BACKLOG, (task, limit), lambda rows: int(rows[0][0]))
