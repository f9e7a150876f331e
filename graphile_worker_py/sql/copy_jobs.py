"""Adding many jobs without key by COPY, with the effects that the SQL function has for them.

COPY takes half as long. It can't return the rows, so their ids are taken from the sequence before;
the rest of a new row is known.

- `RESERVE`  takes the ids, announces the jobs, and tells the time at which they are added. It does
  nothing, and returns no row, where COPY might do something else than the function: on a revision
  for which it was not made, with triggers or rules on the table, and for roles that it is refused.
- `register_tasks`, `register_queues`, `read_names`: the names, as the function does it.
- `copy_jobs`  is the COPY itself.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.records import Record
from graphile_worker_py.sql.migrations import LATEST_REVISION
from graphile_worker_py.sql.notifications import JOBS_INSERT, announcement

_RESERVE: Final = """
with jobs as materialized (
  select
    pg_catalog.pg_get_serial_sequence(
      pg_catalog.format('%I._private_jobs', $1::pg_catalog.text), 'id'
    )::pg_catalog.regclass as sequence
  from pg_catalog.pg_class as classes
  join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
  where namespaces.nspname = $1::pg_catalog.text
    and classes.relname = '_private_jobs'
    and not exists (
      select from pg_catalog.pg_trigger as triggers where triggers.tgrelid = classes.oid
    )
    and not exists (
      select from pg_catalog.pg_rewrite as rules where rules.ev_class = classes.oid
    )
    and not pg_catalog.row_security_active(classes.oid)
    and pg_catalog.has_table_privilege(classes.oid, 'insert')
    and (
      select pg_catalog.max(migrations.id) from :GRAPHILE_WORKER_SCHEMA.migrations as migrations
    ) = $3::pg_catalog.int4
)
select
  array(
    select pg_catalog.nextval(jobs.sequence)
    from pg_catalog.generate_series(1, $2::pg_catalog.int4)
  ),
  pg_catalog.now(),
  pg_catalog.pg_notify($4::pg_catalog.text, $5::pg_catalog.text)
from jobs
where pg_catalog.has_sequence_privilege(jobs.sequence, 'usage')
"""


class Reserved(Record, kw_only=False):
    """What is known of jobs before they are there.

    Args:
        ids: One for each.
        now: The time at which they are added, in PostgreSQL's binary form.
    """

    ids: Sequence[int]
    now: bytes


def reserve(schema: str, count: int) -> Query[Reserved | None]:
    """Take ids for a number of jobs and announce them; None where COPY is not to be used."""

    def read(rows: list[tuple[Any, ...]]) -> Reserved | None:
        return Reserved(rows[0][0], rows[0][1]) if rows else None

    values = (schema, count, LATEST_REVISION, JOBS_INSERT, announcement(count))
    return Query(_RESERVE, values, read)


_REGISTER_QUEUES: Final = """
insert into :GRAPHILE_WORKER_SCHEMA._private_job_queues (queue_name)
select wanted.queue_name
from pg_catalog.unnest($1::pg_catalog.text[]) as wanted (queue_name)
where not exists (
  select
  from :GRAPHILE_WORKER_SCHEMA._private_job_queues as job_queues
  where job_queues.queue_name = wanted.queue_name
)
on conflict do nothing
"""


def register_queues(names: Collection[str]) -> Query[None]:
    """Insert the queues that are missing."""
    return Query(_REGISTER_QUEUES, (list(names),), no_result, prepare=False)


_COPY: Final = "copy :GRAPHILE_WORKER_SCHEMA._private_jobs (id, task_id, payload"
OPTIONAL: Final = ("queue_name", "run_at", "priority", "max_attempts", "flags")
"""What is left to the defaults of the table where no job of many has anything to say of it."""


def copy_jobs(given: Collection[str]) -> Query[None]:
    """Copy jobs; `given` are those of `OPTIONAL` that follow the payload, in their order."""
    text = _COPY
    text += ", job_queue_id" if "queue_name" in given else ""
    text += ", run_at" if "run_at" in given else ""
    text += ", priority" if "priority" in given else ""
    text += ", max_attempts" if "max_attempts" in given else ""
    text += ", flags" if "flags" in given else ""
    text += ") from stdin"
    return Query(text, (), no_result)
