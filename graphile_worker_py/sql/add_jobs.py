"""Adding jobs, through the public SQL functions that triggers and Node workers use too."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record
from graphile_worker_py.sql import fragments

_ADD_JOB: Final = (
    "select"
    + fragments.JOB
    + """
from :GRAPHILE_WORKER_SCHEMA.add_job(
  identifier => $1::pg_catalog.text,
  payload => $2::pg_catalog.json,
  queue_name => $3::pg_catalog.text,
  run_at => $4::pg_catalog.timestamptz,
  max_attempts => $5::pg_catalog.int4,
  job_key => $6::pg_catalog.text,
  priority => $7::pg_catalog.int4,
  flags => $8::pg_catalog.text[],
  job_key_mode => $9::pg_catalog.text
) as job
"""
)

# A session plans the statements within the function for the table as it is at the first calls, and
# keeps these plans until the table is analysed. If it was empty then, each call reads all jobs, to
# look for keys: with 20,000 jobs waiting, 24 more took three times as long. Where indexes are all
# that is allowed when it plans, it uses them. The setting ends with the statement; "offset 0" and
# the use of its result put it before the call.
_ADD_JOB_BY_INDEXES: Final = _ADD_JOB.replace(
    "from :GRAPHILE_WORKER_SCHEMA.add_job(",
    """from
  (
    select pg_catalog.set_config('enable_seqscan', 'off', true) offset 0
  ) as planning (setting),
  lateral :GRAPHILE_WORKER_SCHEMA.add_job(""",
).replace(
    "identifier => $1::pg_catalog.text",
    "identifier => case when planning.setting is not null then $1::pg_catalog.text end",
)


def add_job(spec: JobSpec, payload: str, *, own_transaction: bool = False) -> Query[Job | None]:
    """Add one job. None if its key belongs to a job that was being fetched at that moment.

    In a transaction of a caller's, no setting is changed.
    """
    mode = None if spec.job_key_mode is None else str(spec.job_key_mode)
    values = (
        spec.identifier,
        payload,
        spec.queue_name,
        spec.run_at,
        spec.max_attempts,
        spec.job_key,
        spec.priority,
        None if spec.flags is None else list(spec.flags),
        mode,
    )

    def read(rows: list[tuple[Any, ...]]) -> Job | None:
        # The function answers "nothing was added" with a row of nulls.
        return None if rows[0][0] is None else Job(rows[0], spec.identifier)

    return Query(_ADD_JOB_BY_INDEXES if own_transaction else _ADD_JOB, values, read)


# The payload travels as a string within the JSON: what is unpacked from a JSON document is
# decoded on the way, and PostgreSQL refuses to decode U+0000, which a payload may hold.
_SPECS: Final = """
  array(
    select row(
      spec.identifier,
      spec.payload::pg_catalog.json,
      spec.queue_name,
      spec.run_at,
      spec.max_attempts,
      spec.job_key,
      spec.priority,
      spec.flags
    ):::GRAPHILE_WORKER_SCHEMA.job_spec
    from pg_catalog.json_to_recordset($1::pg_catalog.json) as spec (
      identifier pg_catalog.text,
      payload pg_catalog.text,
      queue_name pg_catalog.text,
      run_at pg_catalog.timestamptz,
      max_attempts pg_catalog.int2,
      job_key pg_catalog.text,
      priority pg_catalog.int2,
      flags pg_catalog.text[]
    )
  )
"""

_ADD_JOBS: Final = (
    "select"
    + fragments.JOB
    + """
from :GRAPHILE_WORKER_SCHEMA.add_jobs(
  job_key_preserve_run_at => $2::pg_catalog.bool,
  specs => """
    + _SPECS
    + """
) as job
"""
)

# The plans that a session keeps for the statements within the function may be those for the few
# jobs of that time, and read the whole table at each call. With 300,000 jobs waiting, 1,000 more
# took 30 ms that way, and 8 ms with plans made for the occasion, which take 1 ms to make. The
# setting ends with the transaction; "offset 0" and the use of its result put it before the call.
_ADD_JOBS_PLANNED: Final = (
    "select"
    + fragments.JOB
    + """
from
  (
    select pg_catalog.set_config('plan_cache_mode', 'force_custom_plan', true) offset 0
  ) as planning (mode),
  lateral :GRAPHILE_WORKER_SCHEMA.add_jobs(
    job_key_preserve_run_at => $2::pg_catalog.bool and planning.mode is not null,
    specs => """
    + _SPECS
    + """
  ) as job
"""
)
_WORTH_PLANNING: Final = 500

# Jobs of several callers. None of them is to wait for long because another one's key, task or
# queue is locked: the statement then fails, and each job is added by itself. The setting ends with
# the statement, and covers its commit. The other one is as above.
_ADD_JOBS_OF_SEVERAL: Final = (
    "select"
    + fragments.JOB
    + """
from
  (
    select
      pg_catalog.set_config('lock_timeout', '200ms', true),
      pg_catalog.set_config('enable_seqscan', 'off', true)
    offset 0
  ) as settings (patience, planning),
  lateral :GRAPHILE_WORKER_SCHEMA.add_jobs(
    job_key_preserve_run_at => $2::pg_catalog.bool
      and settings.patience is not null
      and settings.planning is not null,
    specs => """
    + _SPECS
    + """
  ) as job
"""
)


def add_jobs_of_several(
    specs: Sequence[JobSpec], payloads: Sequence[str], *, preserve_run_at: bool
) -> Query[list[tuple[Any, ...]]]:
    """Add jobs of several callers, as `add_jobs` does; it does not wait for locks for long."""
    records = [_record(*each) for each in zip(specs, payloads, strict=True)]
    values = (json_codec.dumps(records).decode(), preserve_run_at)
    return Query(_ADD_JOBS_OF_SEVERAL, values, list)


def add_jobs(
    specs: Sequence[JobSpec],
    payloads: Sequence[str],
    *,
    preserve_run_at: bool,
    own_transaction: bool,
) -> Query[list[tuple[Any, ...]]]:
    """Add jobs in one statement; their rows, in no particular order.

    A spec whose key belongs to a job that was being fetched at that moment has no row. Keys must
    differ, and modes count for all alike: the SQL function has no mode for a single spec. In a
    transaction of a caller's, no setting is changed.
    """
    planned = own_transaction and len(specs) >= _WORTH_PLANNING
    records = [_record(*each) for each in zip(specs, payloads, strict=True)]
    text = _ADD_JOBS_PLANNED if planned else _ADD_JOBS
    return Query(text, (json_codec.dumps(records).decode(), preserve_run_at), list)


def _record(spec: JobSpec, payload: str) -> dict[str, Any]:
    # What is not given is left out: the server would spend a tenth of its time on reading nulls.
    record: dict[str, Any] = {"identifier": spec.identifier, "payload": payload}
    if spec.queue_name is not None:
        record["queue_name"] = spec.queue_name
    if spec.run_at is not None:
        # In UTC, because JSON writes offsets in minutes; some old ones have seconds.
        record["run_at"] = spec.run_at.astimezone(UTC)
    if spec.max_attempts is not None:
        record["max_attempts"] = spec.max_attempts
    if spec.job_key is not None:
        record["job_key"] = spec.job_key
    if spec.priority is not None:
        record["priority"] = spec.priority
    if spec.flags is not None:
        record["flags"] = spec.flags
    return record


_NAMES: Final = """
select true, tasks.id, tasks.identifier
from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
where tasks.identifier = any($1::pg_catalog.text[])
union all
select false, queues.id, queues.queue_name
from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
where queues.queue_name = any($2::pg_catalog.text[])
"""


class Names(Record, kw_only=False):
    """Names of tasks and queues by their ids."""

    tasks: Mapping[int, str]
    queues: Mapping[int, str]


def read_names(identifiers: Iterable[str], queue_names: Iterable[str]) -> Query[Names]:
    """Read the ids of tasks and queues."""

    def read(rows: list[tuple[Any, ...]]) -> Names:
        return Names(
            tasks={row[1]: row[2] for row in rows if row[0]},
            queues={row[1]: row[2] for row in rows if not row[0]},
        )

    return Query(_NAMES, (list(identifiers), list(queue_names)), read)
