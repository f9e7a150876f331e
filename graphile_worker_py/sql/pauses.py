"""Pauses of tasks, queues, pools and everything, in the side schema.

A paused queue is locked in Graphile Worker's own table, so that Node's workers leave it alone too:
by a holder that is no pool, and for so long that no sweep frees it.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, LiteralString

from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.records import Record

LEAF: Final = "pausing"
"""Name under which the table is registered in the side schema."""
PAUSE_PREFIX: Final = "gwpy-pause:"
"""How the holder of a paused queue begins."""
TOPIC: Final = "pauses"
"""Topic of notifications that pauses have changed."""

# `name` is empty where everything is paused. `holder` is the `locked_by` of a paused queue. A queue
# that was resumed while a job of it still runs keeps its row, with `resumed_at`, until that job has
# ended: freed earlier, the queue would run two jobs at a time.
MIGRATIONS: Final[Sequence[Sequence[LiteralString]]] = (
    (
        """
        create table graphile_worker_py.pauses (
          worker_schema pg_catalog.text not null,
          target pg_catalog.text not null,
          name pg_catalog.text not null,
          reason pg_catalog.text,
          paused_by pg_catalog.text not null,
          paused_at pg_catalog.timestamptz not null,
          until pg_catalog.timestamptz,
          resumed_at pg_catalog.timestamptz,
          holder pg_catalog.text not null,
          primary key (worker_schema, target, name)
        )
        """,
    ),
)


class PauseTarget(StrEnum):
    """What is paused."""

    TASK = "task"
    """No Python pool starts jobs of the task."""
    QUEUE = "queue"
    """No worker starts jobs of the queue, Node's neither."""
    POOL = "pool"
    """Pools of this name start no jobs."""
    EVERYTHING = "everything"
    """No Python pool starts a job."""


class Pause(Record):
    """A pause.

    Attributes:
        target: What kind of thing is paused.
        name: Which task, queue or pool; empty for everything.
        reason: Why.
        by: Who paused it: a role of the database, or a user of the pages.
        at: Since when.
        until: When it ends by itself; None for never.
        ending: Whether a queue was resumed, and is freed when its running job has ended.
        queue_id: Id of a paused queue.
        notice: In the answer of `pause`: that no such task or queue is known.
    """

    target: PauseTarget
    name: str
    reason: str | None
    by: str
    at: datetime
    until: datetime | None
    ending: bool
    queue_id: int | None = None
    notice: str | None = None

    @property
    def what(self) -> str:
        """What is paused, in words."""
        if self.target is PauseTarget.EVERYTHING:
            return "everything"
        return f"{self.target} {self.name!r}"

    @property
    def why(self) -> str:
        """By whom and why, in words."""
        return f"by {self.by}" if not self.reason else f"by {self.by}: {self.reason}"

    def as_json(self) -> dict[str, Any]:
        """All attributes as JSON values, without the id of the queue."""
        return {
            "target": str(self.target),
            "name": self.name,
            "reason": self.reason,
            "by": self.by,
            "at": self.at.isoformat(),
            "until": None if self.until is None else self.until.isoformat(),
            "ending": self.ending,
            "notice": self.notice,
        }


# counted: each heartbeat reads the number, so that a pool that hears no notification looks, too.
_TELL: Final = """
counted as (
  insert into graphile_worker_py.changes as changes (worker_schema, number)
  select $1::pg_catalog.text, 1
  where exists (select from changed)
  on conflict (worker_schema) do update set number = changes.number + 1
  returning changes.number
),
told as (
  select pg_catalog.pg_notify('graphile_worker_py', pg_catalog.json_build_object(
    's', $1::pg_catalog.text, 't', 'pauses'
  )::pg_catalog.text)
  where exists (select from changed)
)
"""
_COLUMNS: Final = """
  changed.target, changed.name, changed.reason, changed.paused_by, changed.paused_at,
  changed.until, changed.resumed_at is not null, null
from changed
where (select pg_catalog.count(*) from counted) + (select pg_catalog.count(*) from told) >= 0
"""

_PAUSE: Final = (
    "with "  # noqa: S608  # all parts are constants
    """changed as (
  insert into graphile_worker_py.pauses as pauses (
    worker_schema, target, name, reason, paused_by, paused_at, until, holder
  )
  select
    $1::pg_catalog.text,
    $2::pg_catalog.text,
    $3::pg_catalog.text,
    $4::pg_catalog.text,
    author.name,
    pg_catalog.now(),
    $6::pg_catalog.timestamptz,
    pg_catalog.concat(
      'gwpy-pause:by ', author.name, nullif(pg_catalog.concat(': ', $4::pg_catalog.text), ': ')
    )
  from (values (coalesce($5::pg_catalog.text, current_user::pg_catalog.text))) as author (name)
  on conflict (worker_schema, target, name) do update
  set reason = excluded.reason,
    paused_by = excluded.paused_by,
    paused_at = excluded.paused_at,
    until = excluded.until,
    resumed_at = null,
    holder = excluded.holder
  returning
    pauses.target, pauses.name, pauses.reason, pauses.paused_by, pauses.paused_at, pauses.until,
    pauses.resumed_at, pauses.holder
),
held as (
  insert into :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues (
    queue_name, locked_by, locked_at
  )
  select changed.name, changed.holder, pg_catalog.now() + interval '100 years'
  from changed
  where changed.target = 'queue'
  on conflict (queue_name) do update
  set locked_by = excluded.locked_by,
    locked_at = excluded.locked_at
  returning queues.id
),""" + _TELL + "select" + _COLUMNS
)


def pause(
    worker_schema: str,
    target: PauseTarget,
    name: str,
    *,
    reason: str | None,
    by: str | None,
    until: datetime | None,
) -> Query[Pause]:
    """Pause something, or change its pause; `by` None stands for the role of the session."""
    values = (worker_schema, str(target), name, reason, by, until)
    return Query(_PAUSE, values, lambda rows: _read(rows)[0], prepare=False)


_RESUME: Final = (
    "with "  # noqa: S608  # all parts are constants
    """ended as (
  delete from graphile_worker_py.pauses as pauses
  where pauses.worker_schema = $1::pg_catalog.text
    and pauses.target = $2::pg_catalog.text
    and pauses.name = $3::pg_catalog.text
    and pauses.target <> 'queue'
  returning
    pauses.target, pauses.name, pauses.reason, pauses.paused_by, pauses.paused_at, pauses.until,
    pauses.resumed_at
),
ending as (
  update graphile_worker_py.pauses as pauses
  set resumed_at = pg_catalog.now()
  where pauses.worker_schema = $1::pg_catalog.text
    and pauses.target = $2::pg_catalog.text
    and pauses.name = $3::pg_catalog.text
    and pauses.target = 'queue'
  returning
    pauses.target, pauses.name, pauses.reason, pauses.paused_by, pauses.paused_at, pauses.until,
    pauses.resumed_at
),
changed as (
  select ended.* from ended
  union all
  select ending.* from ending
),""" + _TELL + "select" + _COLUMNS
)


def resume(worker_schema: str, target: PauseTarget, name: str) -> Query[Pause | None]:
    """End a pause; None if there is none. A queue is freed by `free_queues`."""

    def read(rows: list[tuple[Any, ...]]) -> Pause | None:
        return _read(rows)[0] if rows else None

    return Query(_RESUME, (worker_schema, str(target), name), read, prepare=False)


# leaving: locks the pauses, so that none of them is paused again meanwhile. As long as a pause
#   stands, no job of its queue can be locked, so what the statement sees of the jobs can only
#   have ended since.
# held: locks the queues. One that was freed by force belongs to whatever has locked it since.
# announced: has Node's workers look, too.
_FREE: Final = (
    "with "  # noqa: S608  # all parts are constants
    """leaving as materialized (
  select pauses.name
  from graphile_worker_py.pauses as pauses
  where pauses.worker_schema = $1::pg_catalog.text
    and pauses.target = 'queue'
    and pauses.resumed_at is not null
  order by pauses.name
  for update
),
held as materialized (
  select queues.id, queues.queue_name
  from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  where queues.queue_name = any(array(select leaving.name from leaving))
    and pg_catalog.starts_with(queues.locked_by, 'gwpy-pause:')
  order by queues.id
  for update
),
freed as (
  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  set locked_by = null, locked_at = null
  from held
  where queues.id = held.id
    and not exists (
      select
      from :GRAPHILE_WORKER_SCHEMA._private_jobs as jobs
      where jobs.job_queue_id = held.id and jobs.locked_at is not null
    )
  returning held.queue_name
),
changed as (
  delete from graphile_worker_py.pauses as pauses
  where pauses.worker_schema = $1::pg_catalog.text
    and pauses.target = 'queue'
    and pauses.name = any(array(select leaving.name from leaving))
    and (
      pauses.name = any(array(select freed.queue_name from freed))
      or pauses.name <> all(array(select held.queue_name from held))
    )
  returning pauses.name
),
announced as (
  select pg_catalog.pg_notify('jobs:insert', pg_catalog.json_build_object(
    'r', pg_catalog.random(), 'count', (select pg_catalog.count(*) from changed)
  )::pg_catalog.text)
  where exists (select from changed)
),"""
    + _TELL
    + """
select changed.name
from changed
where (select pg_catalog.count(*) from announced)
  + (select pg_catalog.count(*) from counted)
  + (select pg_catalog.count(*) from told) >= 0
"""
)


def free_queues(worker_schema: str) -> Query[list[str]]:
    """Free the queues that were resumed and of which no job runs; their names."""
    return Query(_FREE, (worker_schema,), lambda rows: [row[0] for row in rows], prepare=False)


_READ: Final = """
select
  pauses.target, pauses.name, pauses.reason, pauses.paused_by, pauses.paused_at, pauses.until,
  pauses.resumed_at is not null, queues.id
from graphile_worker_py.pauses as pauses
left join :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  on pauses.target = 'queue' and queues.queue_name = pauses.name
where pauses.worker_schema = $1::pg_catalog.text
order by pauses.target, pauses.name
"""


def read_pauses(worker_schema: str) -> Query[list[Pause]]:
    """Read all pauses of a schema."""
    return Query(_READ, (worker_schema,), _read, prepare=False)


_END_OVERDUE: Final = (
    "with "  # noqa: S608  # all parts are constants
    """ended as (
  delete from graphile_worker_py.pauses as pauses
  where pauses.worker_schema = $1::pg_catalog.text
    and pauses.until <= pg_catalog.now()
    and pauses.target <> 'queue'
  returning pauses.name
),
ending as (
  update graphile_worker_py.pauses as pauses
  set resumed_at = pg_catalog.now()
  where pauses.worker_schema = $1::pg_catalog.text
    and pauses.until <= pg_catalog.now()
    and pauses.target = 'queue'
    and pauses.resumed_at is null
  returning pauses.name
),
changed as (
  select ended.name from ended
  union all
  select ending.name from ending
),"""
    + _TELL
    + """
select pg_catalog.count(*)
from changed
where (select pg_catalog.count(*) from counted) + (select pg_catalog.count(*) from told) >= 0
"""
)


def end_overdue(worker_schema: str) -> Query[int]:
    """End the pauses whose time has come; returns how many."""
    return Query(_END_OVERDUE, (worker_schema,), lambda rows: int(rows[0][0]), prepare=False)


# Locking them waits for a session that resumes one, and leaves that one out.
_HOLD: Final = """
with standing as materialized (
  select pauses.name, pauses.holder
  from graphile_worker_py.pauses as pauses
  where pauses.worker_schema = $1::pg_catalog.text
    and pauses.target = 'queue'
    and pauses.resumed_at is null
    and not exists (
      select
      from :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
      where queues.queue_name = pauses.name
        and pg_catalog.starts_with(queues.locked_by, 'gwpy-pause:')
    )
  order by pauses.name
  for update
)
insert into :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues (
  queue_name, locked_by, locked_at
)
select standing.name, standing.holder, pg_catalog.now() + interval '100 years'
from standing
on conflict (queue_name) do update
set locked_by = excluded.locked_by,
  locked_at = excluded.locked_at
"""


def hold_queues(worker_schema: str) -> Query[None]:
    """Lock paused queues again that were freed by force, or deleted."""
    return Query(_HOLD, (worker_schema,), no_result, prepare=False)


def _read(rows: list[tuple[Any, ...]]) -> list[Pause]:
    return [
        Pause(
            target=PauseTarget(target),
            name=name,
            reason=reason,
            by=by,
            at=from_timestamp(at),
            until=None if until is None else from_timestamp(until),
            ending=ending,
            queue_id=queue_id,
        )
        for target, name, reason, by, at, until, ending, queue_id in rows
    ]
