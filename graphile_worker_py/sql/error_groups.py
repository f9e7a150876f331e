"""Errors that are the same: of one task and exception type, raised at one place."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from graphile_worker_py.checks import check_text, check_whole
from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query, Steps
from graphile_worker_py.records import Record
from graphile_worker_py.sql.side_tables import Moment, as_moment, reading

DEFAULT_LIMIT: Final = 100


class ErrorGroup(Record):
    """Errors that are the same.

    Attributes:
        task: Identifier of the task.
        group: Type of the exception, and the function of the program in which it was raised.
        count: How many attempts ended with it.
        first_seen: When the first of them ended.
        last_seen: When the last one ended.
        job_id: The job of the last one.
        error: Its message.
        by_hour: How many there were in each hour, by its begin; hours without any are left out.
    """

    task: str
    group: str
    count: int
    first_seen: datetime
    last_seen: datetime
    job_id: int
    error: str | None
    by_hour: Mapping[datetime, int]


# The hours are counted after the groups were chosen: a group by hour would be sorted on disk,
# because the planner can't know how few hours there are.
_GROUPS: Final = """
select groups.task, groups.error_group, groups.count, groups.first_seen, groups.last_seen,
  sample.job_id, sample.error, by_hour.hours, by_hour.counts
from (
  select
    runs.task,
    runs.error_group,
    pg_catalog.count(*) as count,
    pg_catalog.min(runs.finished_at) as first_seen,
    pg_catalog.max(runs.finished_at) as last_seen,
    pg_catalog.array_agg(
      pg_catalog.floor(
        pg_catalog.date_part('epoch', runs.finished_at) / 3600::pg_catalog.float8
      )
    ) as each_hour
  from graphile_worker_py.runs_failed as runs
  where runs.worker_schema = $1::pg_catalog.text
    and runs.finished_at >= $2::pg_catalog.timestamptz
    and ($3::pg_catalog.text is null or runs.task = $3::pg_catalog.text)
    and runs.error_group is not null
  group by 1, 2
  order by 3 desc, 1, 2
  limit $4::pg_catalog.int8
) as groups
cross join lateral (
  select
    pg_catalog.array_agg(hours.hour order by hours.hour) as hours,
    pg_catalog.array_agg(hours.count order by hours.hour) as counts
  from (
    select each.hour, pg_catalog.count(*) as count
    from pg_catalog.unnest(groups.each_hour) as each (hour)
    group by 1
  ) as hours
) as by_hour
cross join lateral (
  select runs.job_id, runs.error
  from graphile_worker_py.runs_failed as runs
  where runs.worker_schema = $1::pg_catalog.text
    and runs.task = groups.task
    and runs.error_group = groups.error_group
    and runs.finished_at = groups.last_seen
  limit 1
) as sample
order by groups.count desc, groups.task, groups.error_group
"""


def error_groups(
    worker_schema: str, *, task: str | None, since: Moment, limit: int
) -> Steps[list[ErrorGroup]]:
    """Read groups of errors, the largest first; see `WorkerUtils.error_groups`."""
    if task is not None:
        check_text("task", task)
    check_whole("limit", limit, smallest=1)
    now = yield from reading(worker_schema, "runs_failed")
    values = (worker_schema, as_moment("since", since, now), task, limit)
    return (yield Query(_GROUPS, values, _read, prepare=False))  # type: ignore[no-any-return]


def _hour(number: float) -> datetime:
    return datetime.fromtimestamp(number * 3600, UTC)


def _read(rows: list[tuple[Any, ...]]) -> list[ErrorGroup]:
    return [
        ErrorGroup(
            task=task,
            group=group,
            count=count,
            first_seen=from_timestamp(first_seen),
            last_seen=from_timestamp(last_seen),
            job_id=job_id,
            error=error,
            by_hour=dict(zip(map(_hour, hours), counts, strict=True)),
        )
        for task, group, count, first_seen, last_seen, job_id, error, hours, counts in rows
    ]
