"""The tables of the web application in the side schema: audit log and stored answers.

Neither is partitioned: a stored answer must stay unique when a day ends, and changes by people are
few. Expired rows are deleted in small chunks when new ones are written.
"""

from collections.abc import Sequence
from typing import Any, Final, LiteralString

from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.records import Record

LEAF: Final = "web"
MIGRATIONS: Final[Sequence[Sequence[LiteralString]]] = (
    (
        """
        create table graphile_worker_py.audit (
          id pg_catalog.int8 generated always as identity primary key,
          worker_schema pg_catalog.text not null,
          at pg_catalog.timestamptz not null default pg_catalog.clock_timestamp(),
          by pg_catalog.text not null,
          action pg_catalog.text not null,
          job_id pg_catalog.int8,
          filter pg_catalog.jsonb,
          count pg_catalog.int8 not null,
          details pg_catalog.jsonb
        )
        """,
        "create index audit_job on graphile_worker_py.audit (worker_schema, job_id)",
        """
        create table graphile_worker_py.answers (
          worker_schema pg_catalog.text not null,
          key pg_catalog.text not null,
          fingerprint pg_catalog.text not null,
          job_id pg_catalog.int8,
          answer pg_catalog.json,
          at pg_catalog.timestamptz not null default pg_catalog.clock_timestamp(),
          primary key (worker_schema, key)
        )
        """,
        "create index answers_at on graphile_worker_py.answers (at)",
    ),
)
KEPT: Final = 24 * 3600.0
"""Seconds that answers are kept."""


class AuditRow(Record):
    """A change: when, by whom, what.

    Args:
        id: Number of the row.
        at: When, in seconds since 1970.
        by: Who did it.
        action: What was done.
        job_id: The job, for an action on one.
        filter: The filter, for an action on many.
        count: How many jobs or rows were changed.
        details: What else was given.
    """

    id: int
    at: float
    by: str
    action: str
    job_id: int | None
    filter: Any
    count: int
    details: Any


_WRITE_AUDIT: Final = """
with expired as (
  delete from graphile_worker_py.audit as audit
  where audit.id in (
    select old.id
    from graphile_worker_py.audit as old
    where old.at < pg_catalog.clock_timestamp() - $7::pg_catalog.float8 * interval '1 second'
    order by old.id
    limit 100
  )
)
insert into graphile_worker_py.audit (worker_schema, by, action, job_id, filter, count, details)
values (
  $1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.text, $4::pg_catalog.int8,
  $5::pg_catalog.text::pg_catalog.jsonb, $6::pg_catalog.int8,
  $8::pg_catalog.text::pg_catalog.jsonb
)
"""


def write_audit(
    worker_schema: str,
    *,
    by: str,
    action: str,
    job_id: int | None,
    filter_json: str | None,
    count: int,
    details_json: str | None,
    kept: float,
) -> Query[None]:
    """Record a change, and forget some of those that are older than `kept` seconds."""
    values = (worker_schema, by, action, job_id, filter_json, count, kept, details_json)
    return Query(_WRITE_AUDIT, values, no_result, prepare=False)


_READ_AUDIT: Final = """
select audit.id, extract(epoch from audit.at)::pg_catalog.float8, audit.by, audit.action,
  audit.job_id,
  audit.filter::pg_catalog.text, audit.count, audit.details::pg_catalog.text
from graphile_worker_py.audit as audit
where audit.worker_schema = $1::pg_catalog.text
  and ($2::pg_catalog.int8 is null or audit.job_id = $2::pg_catalog.int8)
  and ($3::pg_catalog.int8 is null or audit.id < $3::pg_catalog.int8)
order by audit.id desc
limit $4::pg_catalog.int8
"""


def read_audit(
    worker_schema: str, *, job_id: int | None, before: int | None, limit: int
) -> Query[list[AuditRow]]:
    """Read the audit log, the newest first."""

    def read(rows: list[tuple[Any, ...]]) -> list[AuditRow]:
        names = ("id", "at", "by", "action", "job_id", "filter", "count", "details")
        return [AuditRow(**dict(zip(names, row, strict=True))) for row in rows]

    return Query(_READ_AUDIT, (worker_schema, job_id, before, limit), read, prepare=False)


class Answer(Record):
    """A stored answer.

    Args:
        fingerprint: Of the request that it answered.
        answer: Its JSON text.
    """

    fingerprint: str
    answer: str | None


# Two requests with one key: the second waits for the first one's transaction, at most as long as
# the session's lock_timeout, and then finds its row.
_CLAIM: Final = """
with waiting as (
  select pg_catalog.set_config('lock_timeout', $4::pg_catalog.text, true) as set
),
expired as (
  delete from graphile_worker_py.answers as answers
  where (answers.worker_schema, answers.key) in (
    select old.worker_schema, old.key
    from graphile_worker_py.answers as old
    where old.at < pg_catalog.clock_timestamp() - $5::pg_catalog.float8 * interval '1 second'
    order by old.at
    limit 100
    for update skip locked
  )
),
claimed as (
  insert into graphile_worker_py.answers (worker_schema, key, fingerprint)
  select $1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.text
  from waiting
  where waiting.set is not null
  on conflict (worker_schema, key) do nothing
  returning 1
)
select exists (select from claimed)
"""


def claim_answer(worker_schema: str, key: str, *, fingerprint: str, patience: float) -> Query[bool]:
    """Take a key within a transaction; False if it is taken.

    Raises:
        psycopg.errors.LockNotAvailable: Another transaction is using the key.
    """
    values = (worker_schema, key, fingerprint, f"{round(patience * 1000)}ms", KEPT)
    return Query(_CLAIM, values, lambda rows: bool(rows[0][0]), prepare=False)


_STORE: Final = """
update graphile_worker_py.answers as answers
set job_id = $3::pg_catalog.int8, answer = $4::pg_catalog.json
where answers.worker_schema = $1::pg_catalog.text and answers.key = $2::pg_catalog.text
"""


def store_answer(worker_schema: str, key: str, *, job_id: int, answer: str) -> Query[None]:
    """Store the answer of a request, in the transaction that has claimed its key."""
    return Query(_STORE, (worker_schema, key, job_id, answer), no_result, prepare=False)


_READ_ANSWER: Final = """
select answers.fingerprint, answers.answer::pg_catalog.text
from graphile_worker_py.answers as answers
where answers.worker_schema = $1::pg_catalog.text and answers.key = $2::pg_catalog.text
"""


def read_answer(worker_schema: str, key: str) -> Query[Answer | None]:
    """Read a stored answer."""

    def read(rows: list[tuple[Any, ...]]) -> Answer | None:
        return Answer(fingerprint=rows[0][0], answer=rows[0][1]) if rows else None

    return Query(_READ_ANSWER, (worker_schema, key), read, prepare=False)
