"""Counters: how the jobs of each task ended in each minute, how long they waited and ran.

Times are counted in histograms with exponential buckets: each is a quarter wider than the one
before it, so a percentile is off by an eighth at most.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from graphile_worker_py.checks import check_seconds, check_text
from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query, Steps, no_result
from graphile_worker_py.records import Record
from graphile_worker_py.sql.side_tables import Moment, as_moment, reading

SMALLEST_BUCKET: Final = 1e-4
"""Seconds; the first bucket has all shorter times."""
FACTOR: Final = 1.25
LAST_BUCKET: Final = 120
"""Of times beyond a year."""
_BOUNDS: Final = [SMALLEST_BUCKET * FACTOR**bucket for bucket in range(LAST_BUCKET)]
"""The longest time of each bucket but the last one, which has no bound."""
MINUTE: Final = 60.0


def bucket_of(seconds: float) -> int:
    """The number of the bucket for a length of time."""
    return bisect_left(_BOUNDS, seconds)


def longest_of(bucket: int) -> float:
    """The longest time of a bucket, in seconds; the last bucket has longer ones, too."""
    return _BOUNDS[min(bucket, LAST_BUCKET - 1)]


class Percentiles(Record, kw_only=False):
    """Lengths of time, in seconds, that a half, 95 % and 99 % of the runs did not exceed."""

    p50: float
    p95: float
    p99: float


def percentiles(histogram: Mapping[int, int]) -> Percentiles | None:
    """The percentiles of a histogram; None if it is empty."""
    total = sum(histogram.values())
    if not total:
        return None
    return Percentiles(*(_percentile(histogram, share * total) for share in (0.5, 0.95, 0.99)))


def _percentile(histogram: Mapping[int, int], rank: float) -> float:
    below = 0
    for bucket in sorted(histogram):
        runs = histogram[bucket]
        if below + runs >= rank:
            # As if the runs were spread evenly over the bucket, on its logarithmic scale.
            place = (rank - below) / runs
            return SMALLEST_BUCKET * FACTOR ** (bucket - 1 + place) if bucket else SMALLEST_BUCKET
        below += runs
    raise AssertionError("unreachable")


class TaskMinute:
    """What was counted of a task in a minute.

    Args:
        task: Identifier of the task.
        minute: Its begin, in seconds since 1970.

    Attributes:
        outcomes: How many runs ended in which way.
        wait: How many runs waited so long, by the number of the bucket.
        run: How many runs took so long.
    """

    def __init__(self, *, task: str, minute: int) -> None:
        self.task = task
        self.minute = minute
        self.outcomes: Counter[str] = Counter()
        self.wait: Counter[int] = Counter()
        self.run: Counter[int] = Counter()

    def add(self, other: "TaskMinute") -> None:
        """Add what was counted elsewhere."""
        self.outcomes.update(other.outcomes)
        self.wait.update(other.wait)
        self.run.update(other.run)


_COUNTED: Final = ("completed", "failed", "retried", "discarded", "snoozed", "cancelled")

# In the order of the key, so that pools that write at the same moment do not deadlock.
_ADD: Final = """
insert into graphile_worker_py.task_minutes as minutes (
  worker_schema, task, minute, completed, failed, retried, discarded, snoozed, cancelled, wait, run
)
select
  $1::pg_catalog.text,
  counted.task,
  pg_catalog.to_timestamp(counted.minute),
  counted.completed,
  counted.failed,
  counted.retried,
  counted.discarded,
  counted.snoozed,
  counted.cancelled,
  counted.wait::pg_catalog.jsonb,
  counted.run::pg_catalog.jsonb
from rows from (
  pg_catalog.unnest($2::pg_catalog.text[]),
  pg_catalog.unnest($3::pg_catalog.float8[]),
  pg_catalog.unnest($4::pg_catalog.int8[]),
  pg_catalog.unnest($5::pg_catalog.int8[]),
  pg_catalog.unnest($6::pg_catalog.int8[]),
  pg_catalog.unnest($7::pg_catalog.int8[]),
  pg_catalog.unnest($8::pg_catalog.int8[]),
  pg_catalog.unnest($9::pg_catalog.int8[]),
  pg_catalog.unnest($10::pg_catalog.text[]),
  pg_catalog.unnest($11::pg_catalog.text[])
) as counted (
  task, minute, completed, failed, retried, discarded, snoozed, cancelled, wait, run
)
order by counted.task, counted.minute
on conflict (worker_schema, task, minute) do update
set completed = minutes.completed + excluded.completed,
  failed = minutes.failed + excluded.failed,
  retried = minutes.retried + excluded.retried,
  discarded = minutes.discarded + excluded.discarded,
  snoozed = minutes.snoozed + excluded.snoozed,
  cancelled = minutes.cancelled + excluded.cancelled,
  wait = (
    select coalesce(pg_catalog.jsonb_object_agg(sums.key, sums.runs), '{}')
    from (
      select buckets.key, pg_catalog.sum(buckets.value::pg_catalog.int8) as runs
      from (
        select * from pg_catalog.jsonb_each_text(minutes.wait)
        union all
        select * from pg_catalog.jsonb_each_text(excluded.wait)
      ) as buckets
      group by buckets.key
    ) as sums
  ),
  run = (
    select coalesce(pg_catalog.jsonb_object_agg(sums.key, sums.runs), '{}')
    from (
      select buckets.key, pg_catalog.sum(buckets.value::pg_catalog.int8) as runs
      from (
        select * from pg_catalog.jsonb_each_text(minutes.run)
        union all
        select * from pg_catalog.jsonb_each_text(excluded.run)
      ) as buckets
      group by buckets.key
    ) as sums
  )
"""


def add_counts(worker_schema: str, counted: Sequence[TaskMinute]) -> Query[None]:
    """Add what a pool has counted."""
    values = (
        worker_schema,
        [each.task for each in counted],
        [float(each.minute) for each in counted],
        *([each.outcomes[name] for each in counted] for name in _COUNTED),
        [_as_json(each.wait) for each in counted],
        [_as_json(each.run) for each in counted],
    )
    return Query(_ADD, values, no_result)


def _as_json(histogram: Mapping[int, int]) -> str:
    return orjson.dumps({str(bucket): runs for bucket, runs in histogram.items()}).decode()


class TaskStats(Record):
    """How the jobs of a task ended in a step of time.

    Attributes:
        task: Identifier of the task.
        at: When the step begins.
        completed: How many jobs have succeeded.
        failed: How many failed at their last attempt.
        retried: How many attempts failed that were not the last one.
        discarded: How many jobs their task gave up.
        snoozed: How often the task put a job off.
        cancelled: How many jobs were cancelled while they ran.
        wait: How long runs waited from the moment that they were due; None if that was not
            measured.
        run: How long they ran.
    """

    task: str
    at: datetime
    completed: int
    failed: int
    retried: int
    discarded: int
    snoozed: int
    cancelled: int
    wait: Percentiles | None
    run: Percentiles | None


_STATS: Final = """
with minutes as materialized (
  select
    minutes.*,
    case when $4::pg_catalog.float8 is null then $2::pg_catalog.timestamptz
      else pg_catalog.to_timestamp(
        pg_catalog.floor(extract(epoch from minutes.minute)::pg_catalog.float8
          / $4::pg_catalog.float8) * $4::pg_catalog.float8
      )
    end as at
  from graphile_worker_py.task_minutes as minutes
  where minutes.worker_schema = $1::pg_catalog.text
    and minutes.minute >= $2::pg_catalog.timestamptz
    and ($3::pg_catalog.text is null or minutes.task = $3::pg_catalog.text)
),
waits as (
  select sums.task, sums.at, pg_catalog.jsonb_object_agg(sums.key, sums.runs) as histogram
  from (
    select minutes.task, minutes.at, buckets.key,
      pg_catalog.sum(buckets.value::pg_catalog.int8) as runs
    from minutes, pg_catalog.jsonb_each_text(minutes.wait) as buckets (key, value)
    group by 1, 2, 3
  ) as sums
  group by 1, 2
),
runs as (
  select sums.task, sums.at, pg_catalog.jsonb_object_agg(sums.key, sums.runs) as histogram
  from (
    select minutes.task, minutes.at, buckets.key,
      pg_catalog.sum(buckets.value::pg_catalog.int8) as runs
    from minutes, pg_catalog.jsonb_each_text(minutes.run) as buckets (key, value)
    group by 1, 2, 3
  ) as sums
  group by 1, 2
)
select
  counted.task,
  counted.at,
  counted.completed,
  counted.failed,
  counted.retried,
  counted.discarded,
  counted.snoozed,
  counted.cancelled,
  waits.histogram,
  runs.histogram
from (
  select
    minutes.task,
    minutes.at,
    pg_catalog.sum(minutes.completed)::pg_catalog.int8 as completed,
    pg_catalog.sum(minutes.failed)::pg_catalog.int8 as failed,
    pg_catalog.sum(minutes.retried)::pg_catalog.int8 as retried,
    pg_catalog.sum(minutes.discarded)::pg_catalog.int8 as discarded,
    pg_catalog.sum(minutes.snoozed)::pg_catalog.int8 as snoozed,
    pg_catalog.sum(minutes.cancelled)::pg_catalog.int8 as cancelled
  from minutes
  group by 1, 2
) as counted
left join waits on waits.task = counted.task and waits.at = counted.at
left join runs on runs.task = counted.task and runs.at = counted.at
order by counted.task, counted.at
"""


def task_stats(
    worker_schema: str, *, task: str | None, since: Moment, step: float | None
) -> Steps[list[TaskStats]]:
    """Read the counters; see `WorkerUtils.task_stats`."""
    if task is not None:
        check_text("task", task)
    if step is not None:
        # Counters are of whole minutes.
        step = max(MINUTE, MINUTE * round(check_seconds("step", step, above_zero=True) / MINUTE))
    now = yield from reading(worker_schema, "task_minutes")
    begin = as_moment("since", since, now).replace(second=0, microsecond=0)
    values = (worker_schema, begin, task, step)
    return (yield Query(_STATS, values, _read, prepare=False))  # type: ignore[no-any-return]


def _read(rows: list[tuple[Any, ...]]) -> list[TaskStats]:
    return [
        TaskStats(
            **dict(zip(("task", *_COUNTED), (row[0], *row[2:8]), strict=True)),
            at=from_timestamp(row[1]),
            wait=percentiles(_histogram(row[8])),
            run=percentiles(_histogram(row[9])),
        )
        for row in rows
    ]


def _histogram(value: bytes | None) -> dict[int, int]:
    if value is None:
        return {}
    return {int(bucket): runs for bucket, runs in orjson.loads(bytes(value)).items()}
