"""Cron items as all workers of a database know them, and the jobs that they add."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from psycopg.errors import DivisionByZero

from graphile_worker_py.job import EARLIEST, LATEST
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record


class KnownCrontab(Record):
    """A cron item that was registered.

    Attributes:
        identifier: Its identifier.
        known_since: Time at which it was first seen.
        last_execution: Time of the last run that was added; None if there is none.
        is_ahead: Whether that time is in the future by the database's clock. Until then no worker
            adds runs.
    """

    identifier: str
    known_since: datetime
    last_execution: datetime | None
    is_ahead: bool = False


class CronJob(Record):
    """A job that a cron item adds.

    Args:
        cron_identifier: Identifier of the item.
        spec: The job; its `run_at` is the minute at which the item is due, plus its jitter.
        skip_if_there: Whether to add nothing while an unfinished job with the same key exists.
    """

    cron_identifier: str
    spec: JobSpec
    skip_if_there: bool


class AddedRun(Record):
    """A run that was ours to add; `skipped` if the job of the last one was still there."""

    cron_identifier: str
    skipped: bool


# The statement reads what was there before it began, so what it inserts is not in its result: a
# new item is known from now on, and has missed nothing.
_REGISTER: Final = """
with registered as (
  insert into :GRAPHILE_WORKER_SCHEMA._private_known_crontabs (identifier, known_since)
  select item.identifier, $2::pg_catalog.timestamptz
  from pg_catalog.unnest($1::pg_catalog.text[]) with ordinality as item (identifier, position)
  where not exists (
    select 1
    from :GRAPHILE_WORKER_SCHEMA._private_known_crontabs as known
    where known.identifier = item.identifier
  )
  order by item.position
  on conflict do nothing
)
select
  known.identifier,
  extract(epoch from known.known_since)::pg_catalog.float8,
  extract(epoch from known.last_execution)::pg_catalog.float8,
  known.last_execution > pg_catalog.clock_timestamp() + interval '1 minute'
from :GRAPHILE_WORKER_SCHEMA._private_known_crontabs as known
where known.identifier = any($1::pg_catalog.text[])
"""


def register(identifiers: Sequence[str], now: datetime) -> Query[dict[str, KnownCrontab]]:
    """Make items known; those that were known before, by identifier."""

    def read(rows: list[tuple[Any, ...]]) -> dict[str, KnownCrontab]:
        return {row[0]: _known(row) for row in rows}

    return Query(_REGISTER, (list(identifiers), now), read)


_LIST: Final = """
select
  known.identifier,
  extract(epoch from known.known_since)::pg_catalog.float8,
  extract(epoch from known.last_execution)::pg_catalog.float8,
  known.last_execution > pg_catalog.clock_timestamp() + interval '1 minute'
from :GRAPHILE_WORKER_SCHEMA._private_known_crontabs as known
order by known.identifier
"""


def read_clock() -> Query[datetime]:
    """The time by the database's clock."""
    statement = "select extract(epoch from pg_catalog.clock_timestamp())::pg_catalog.float8"
    return Query(statement, (), lambda rows: _moment(rows[0][0]))


def list_known() -> Query[list[KnownCrontab]]:
    """All items that were ever registered."""
    return Query(_LIST, (), lambda rows: [_known(row) for row in rows])


# One statement, so that a run is recorded if and only if its job is added. The row lock of the
# upsert and the strict comparison give each run to one worker, whatever language that is in.
# The rows are taken in the order of the items, which is Node's order too: two workers with the
# same crontab can't wait for each other in a circle.
#
# Jobs without a key are added with one call, measured at a twentieth of the time of one call
# each. Those with a key are added one by one: a key that comes twice fails the common call, while
# here the later job replaces the earlier one.
#
# With skip_if_there an existing job stays as it is (unsafe_dedupe), unless it failed for good,
# which would block the item for ever. That is decided within add_job, after the wait for other
# schedulers, and not by looking first.
#
# add_job answers with nulls if the key's job was being fetched just then and nothing was added;
# then the division fails, and with it the statement, so that it is sent again (22012).
_ADD: Final = """
with due as (
  select item.*
  from rows from (
    pg_catalog.unnest($2::pg_catalog.text[]),
    pg_catalog.unnest($3::pg_catalog.text[]),
    pg_catalog.unnest($4::pg_catalog.text[]),
    pg_catalog.unnest($5::pg_catalog.text[]),
    pg_catalog.unnest($6::pg_catalog.timestamptz[]),
    pg_catalog.unnest($7::pg_catalog.int4[]),
    pg_catalog.unnest($8::pg_catalog.text[]),
    pg_catalog.unnest($9::pg_catalog.int4[]),
    pg_catalog.unnest($10::pg_catalog.text[]),
    pg_catalog.unnest($11::pg_catalog.bool[])
  ) with ordinality as item (
    identifier, task, payload, queue_name, run_at,
    max_attempts, job_key, priority, job_key_mode, skip_if_there, position
  )
),
recorded as (
  insert into :GRAPHILE_WORKER_SCHEMA._private_known_crontabs as known
    (identifier, known_since, last_execution)
  select due.identifier, $1::pg_catalog.timestamptz, $1::pg_catalog.timestamptz
  from due
  order by due.position
  on conflict (identifier) do update
  set last_execution = excluded.last_execution
  where known.last_execution is null or known.last_execution < excluded.last_execution
  returning known.identifier
),
ours as (
  select
    due.*,
    case
      when not due.skip_if_there then due.job_key_mode
      when exists (
        select 1
        from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
        where jobs.key = due.job_key
          and jobs.locked_at is null
          and jobs.attempts >= jobs.max_attempts
      ) then 'replace'
      else 'unsafe_dedupe'
    end as mode
  from recorded
  join due on due.identifier = recorded.identifier
  order by due.position
),
without_key as (
  select pg_catalog.count(*) as number
  from (
    select pg_catalog.array_agg(
      row(
        ours.task,
        ours.payload::pg_catalog.json,
        ours.queue_name,
        ours.run_at,
        ours.max_attempts,
        null,
        ours.priority,
        null
      ):::GRAPHILE_WORKER_SCHEMA.job_spec
      order by ours.position
    ) as specs
    from ours
    where ours.job_key is null
    having pg_catalog.count(*) > 0
  ) as spec
  cross join lateral :GRAPHILE_WORKER_SCHEMA.add_jobs(spec.specs, false)
)
select ours.identifier, false
from ours
where ours.job_key is null
  and (select without_key.number from without_key) > 0
union all
select
  ours.identifier,
  case
    when job.id is null then 1 / (job.id is not null)::pg_catalog.int4 > 0
    else ours.skip_if_there and ours.mode = 'unsafe_dedupe' and job.revision > 0
  end
from ours
cross join lateral :GRAPHILE_WORKER_SCHEMA.add_job(
  ours.task,
  ours.payload::pg_catalog.json,
  ours.queue_name,
  ours.run_at,
  ours.max_attempts,
  ours.job_key,
  ours.priority,
  null,
  ours.mode
) as job
where ours.job_key is not null
"""


def has_lost_race(error: BaseException) -> bool:
    """Whether `add` failed because a job with one of its keys was being fetched just then."""
    return isinstance(error, DivisionByZero)


def add(minute: datetime, jobs: Sequence[CronJob]) -> Query[list[AddedRun]]:
    """Add the runs of one minute that no worker has added yet, and record them.

    May be sent again without harm: what was recorded is not added twice.
    """

    def read(rows: list[tuple[Any, ...]]) -> list[AddedRun]:
        return [AddedRun(cron_identifier=row[0], skipped=row[1]) for row in rows]

    values = (
        minute,
        [job.cron_identifier for job in jobs],
        [job.spec.identifier for job in jobs],
        [job.spec.payload_json(nan_as_null=True) for job in jobs],
        [job.spec.queue_name for job in jobs],
        [job.spec.run_at for job in jobs],
        [job.spec.max_attempts for job in jobs],
        [job.spec.job_key for job in jobs],
        [job.spec.priority for job in jobs],
        [job.spec.job_key_mode for job in jobs],
        [job.skip_if_there for job in jobs],
    )
    return Query(_ADD, values, read)


def _known(row: tuple[Any, ...]) -> KnownCrontab:
    return KnownCrontab(
        identifier=row[0],
        known_since=_moment(row[1]),
        last_execution=None if row[2] is None else _moment(row[2]),
        is_ahead=bool(row[3]),
    )


def _moment(epoch: float) -> datetime:
    """A point in time from seconds since 1970; beyond Python's years, the nearest there is."""
    if math.isfinite(epoch):
        try:
            return datetime.fromtimestamp(epoch, UTC)
        except (OverflowError, ValueError, OSError):
            pass
    return LATEST if epoch > 0 else EARLIEST
