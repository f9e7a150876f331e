"""What is known of a job while it has its row: its progress, and where its next attempt goes on."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.job import Job, from_timestamp
from graphile_worker_py.postgres.query import Query, Steps, no_result
from graphile_worker_py.records import Record
from graphile_worker_py.sql.outcomes import BoundRider
from graphile_worker_py.sql.side_tables import reading


class Progress(Record, kw_only=False):
    """What a task has reported of its progress.

    Args:
        done: How much, of `total`; or a share from 0 to 1, if that is None.
        total: How much there is.
        message: What it is doing.
    """

    done: float
    total: float | None = None
    message: str | None = None


_WRITE: Final = """
insert into graphile_worker_py.job_state as state (
  worker_schema, job_id, job_created_at, progress, total, message
)
select
  $1::pg_catalog.text, given.job_id, given.created_at, given.progress, given.total, given.message
from rows from (
  pg_catalog.unnest($2::pg_catalog.int8[]),
  pg_catalog.unnest($3::pg_catalog.timestamptz[]),
  pg_catalog.unnest($4::pg_catalog.float8[]),
  pg_catalog.unnest($5::pg_catalog.float8[]),
  pg_catalog.unnest($6::pg_catalog.text[])
) as given (job_id, created_at, progress, total, message)
order by given.job_id
on conflict (worker_schema, job_id) do update
set job_created_at = excluded.job_created_at,
  progress = excluded.progress,
  total = excluded.total,
  message = excluded.message
"""


def write_progress(worker_schema: str, jobs: Sequence[tuple[Job, Progress]]) -> Query[None]:
    """Write how far jobs are, in one statement."""
    values = (
        worker_schema,
        [job.id for job, _ in jobs],
        [job.created_at for job, _ in jobs],
        [float(progress.done) for _, progress in jobs],
        [progress.total for _, progress in jobs],
        [progress.message for _, progress in jobs],
    )
    return Query(_WRITE, values, no_result)


class Reported(Record, kw_only=False):
    """What the table says of a running job.

    Args:
        created_at: When the job was added; ids come back if the schema is made anew.
        progress: What its task has reported; None if nothing.
        is_cancelled: Whether it was asked to end.
    """

    created_at: datetime
    progress: Progress | None
    is_cancelled: bool

    @property
    def share(self) -> float | None:
        """How much is done, from 0 to 1; None if that is not known."""
        if self.progress is None:
            return None
        total = 1.0 if self.progress.total is None else self.progress.total
        return min(max(self.progress.done / total, 0.0), 1.0) if total > 0 else None


_REPORTED: Final = """
select state.job_id, state.job_created_at, state.progress, state.total, state.message,
  state.cancel_at is not null
from graphile_worker_py.job_state as state
where state.worker_schema = $1::pg_catalog.text
  and state.job_id = any($2::pg_catalog.int8[])
"""


def read_reported(worker_schema: str, job_ids: Sequence[int]) -> Steps[dict[int, Reported]]:
    """What is known of some running jobs, by their ids.

    Raises:
        MissingTablesError: The table is missing, or the role may not read it.
    """

    def read(rows: list[tuple[Any, ...]]) -> dict[int, Reported]:
        return {
            job_id: Reported(
                created_at=from_timestamp(created_at),
                progress=None if done is None else Progress(done, total, message),
                is_cancelled=is_cancelled,
            )
            for job_id, created_at, done, total, message, is_cancelled in rows
        }

    yield from reading(worker_schema, "job_state")
    query = Query(_REPORTED, (worker_schema, list(job_ids)), read, prepare=False)
    return (yield query)  # type: ignore[no-any-return]


_CHECKPOINT: Final = """
with held as (
  select job.id, job.created_at
  from :GRAPHILE_WORKER_SCHEMA._private_jobs as job
  where job.id = $2::pg_catalog.int8 and job.locked_by = $3::pg_catalog.text
  for share
)
insert into graphile_worker_py.job_state as state (
  worker_schema, job_id, job_created_at, cursor
)
select $1::pg_catalog.text, held.id, held.created_at, $4::pg_catalog.text::pg_catalog.json
from held
on conflict (worker_schema, job_id) do update
set job_created_at = excluded.job_created_at,
  cursor = excluded.cursor
returning state.job_id
"""


def checkpoint(worker_schema: str, job_id: int, *, pool_id: str, cursor: str) -> Query[set[int]]:
    """Keep the cursor of a job that the pool still has locked; its id if it has."""
    values = (worker_schema, job_id, pool_id, cursor)
    return Query(_CHECKPOINT, values, lambda rows: {row[0] for row in rows})


class Left(Record, kw_only=False):
    """What earlier attempts of a job have left.

    Args:
        cursor: That of the last checkpoint; None if there was none.
        snoozes: How often the job was snoozed.
    """

    cursor: Any = None
    snoozes: int = 0


NOTHING_LEFT: Final = Left()

_ANY_LEFT: Final = """
select exists (
  select
  from graphile_worker_py.job_state as state
  where state.worker_schema = $1::pg_catalog.text
    and (state.cursor is not null or state.snoozes > 0)
)
"""


def is_any_left(worker_schema: str) -> Query[bool]:
    """Whether attempts of any job have left something."""
    return Query(_ANY_LEFT, (worker_schema,), lambda rows: bool(rows[0][0]))


_LEFT: Final = """
select state.cursor, state.snoozes
from graphile_worker_py.job_state as state
where state.worker_schema = $1::pg_catalog.text
  and state.job_id = $2::pg_catalog.int8
  and state.job_created_at = $3::pg_catalog.timestamptz
"""


def read_left(worker_schema: str, job: Job) -> Query[Left]:
    """What earlier attempts of a job have left."""

    def read(rows: list[tuple[Any, ...]]) -> Left:
        if not rows:
            return NOTHING_LEFT
        cursor, snoozes = rows[0]
        return Left(None if cursor is None else json_codec.loads(bytes(cursor)), snoozes)

    return Query(_LEFT, (worker_schema, job.id, job.created_at), read)


_COUNT_SNOOZES: Final = """
insert into graphile_worker_py.job_state as state (
  worker_schema, job_id, job_created_at, snoozes
)
select $r1::pg_catalog.text, changed.id, changed.created_at, 1
from changed
order by changed.id
on conflict (worker_schema, job_id) do update
set job_created_at = excluded.job_created_at,
  snoozes = case
    when state.job_created_at = excluded.job_created_at then state.snoozes + 1 else 1
  end
returning 1
"""


def counted_snoozes(worker_schema: str) -> BoundRider:
    """Count one more snooze of each job, as a part of the statement that snoozes them."""
    return BoundRider(_COUNT_SNOOZES, (worker_schema,))


_FORGET_GONE: Final = """
delete from graphile_worker_py.job_state as states
where states.worker_schema = $1::pg_catalog.text
  and states.job_id = any(array(
    select gone.job_id
    from graphile_worker_py.job_state as gone
    where gone.worker_schema = $1::pg_catalog.text
      and not exists (
        select
        from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
        where jobs.id = gone.job_id and jobs.created_at = gone.job_created_at
      )
    limit $2::pg_catalog.int8
  ))
returning 1
"""


def forget_gone(worker_schema: str, *, limit: int) -> Query[int]:
    """Delete rows of jobs that are gone, at most `limit`; returns how many."""
    return Query(_FORGET_GONE, (worker_schema, limit), len, prepare=False)
