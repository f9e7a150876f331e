"""The counters of tasks over a range of time, added up by one statement: by step, and by task."""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from typing import Any, Final

import orjson

from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.records import Record
from graphile_worker_py.sql.side_tables import reading


class Trend(Record):
    """How jobs ended, of all tasks in a step of time, or of one task in the whole range.

    Args:
        task: Identifier of the task; None means all of them.
        at: When the step begins; None means the whole range.
        completed: How many jobs have succeeded.
        failed: How many were given up, by their last attempt or by their task.
        retried: How many attempts failed that were not the last one.
        wait: How many runs waited so long, by the number of the bucket; see `task_minutes`.
        run: How many runs took so long.
    """

    task: str | None
    at: datetime | None
    completed: int
    failed: int
    retried: int
    wait: Mapping[int, int] = field(default_factory=dict)
    run: Mapping[int, int] = field(default_factory=dict)


_TRENDS: Final = """
with minutes as materialized (
  select
    minutes.*,
    pg_catalog.to_timestamp(
      pg_catalog.floor(extract(epoch from minutes.minute)::pg_catalog.float8
        / $4::pg_catalog.float8) * $4::pg_catalog.float8
    ) as at
  from graphile_worker_py.task_minutes as minutes
  where minutes.worker_schema = $1::pg_catalog.text
    and minutes.minute
      >= pg_catalog.statement_timestamp() - $2::pg_catalog.float8 * interval '1 second'
    and ($3::pg_catalog.text is null or minutes.task = $3::pg_catalog.text)
),
buckets as (
  select minutes.task, minutes.at, each.kind, each.bucket,
    pg_catalog.sum(each.runs::pg_catalog.int8) as runs
  from minutes
  cross join lateral (
    select 'wait', waits.key, waits.value
    from pg_catalog.jsonb_each_text(minutes.wait) as waits
    union all
    select 'run', runs.key, runs.value
    from pg_catalog.jsonb_each_text(minutes.run) as runs
  ) as each (kind, bucket, runs)
  group by grouping sets (
    (minutes.task, each.kind, each.bucket), (minutes.at, each.kind, each.bucket)
  )
),
histograms as (
  select
    buckets.task,
    buckets.at,
    pg_catalog.jsonb_object_agg(buckets.bucket, buckets.runs)
      filter (where buckets.kind = 'wait') as wait,
    pg_catalog.jsonb_object_agg(buckets.bucket, buckets.runs)
      filter (where buckets.kind = 'run') as run
  from buckets
  group by 1, 2
),
counted as (
  select
    minutes.task,
    minutes.at,
    pg_catalog.sum(minutes.completed)::pg_catalog.int8 as completed,
    pg_catalog.sum(minutes.failed + minutes.discarded)::pg_catalog.int8 as failed,
    pg_catalog.sum(minutes.retried)::pg_catalog.int8 as retried
  from minutes
  group by grouping sets ((minutes.task), (minutes.at))
)
select counted.*, histograms.wait, histograms.run
from counted
left join histograms
  on histograms.task is not distinct from counted.task
  and histograms.at is not distinct from counted.at
order by counted.at, counted.task
"""


def read_trends(
    worker_schema: str, *, task: str | None, seconds: float, step: float
) -> Steps[list[Trend]]:
    """Read how the jobs of one task, or of all, ended in the last seconds.

    Raises:
        MissingTablesError: The table is missing, or the role may not read it.
    """
    yield from reading(worker_schema, "task_minutes")
    values = (worker_schema, seconds, task, step)
    return (yield Query(_TRENDS, values, _read, prepare=False))  # type: ignore[no-any-return]


def _read(rows: list[tuple[Any, ...]]) -> list[Trend]:
    return [
        Trend(
            task=row[0],
            at=None if row[1] is None else from_timestamp(row[1]),
            completed=row[2],
            failed=row[3],
            retried=row[4],
            wait=_histogram(row[5]),
            run=_histogram(row[6]),
        )
        for row in rows
    ]


def _histogram(value: bytes | None) -> dict[int, int]:
    if value is None:
        return {}
    return {int(bucket): runs for bucket, runs in orjson.loads(bytes(value)).items()}
