"""Circuit breakers in the side schema: what worker pools and operators read and write."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from graphile_worker_py.checks import check_text
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query, Steps, no_result
from graphile_worker_py.records import Record
from graphile_worker_py.sql.side_tables import reading

TOPIC: Final = "breaker"
"""Topic of notifications that a breaker was opened or closed."""


class Breaker(Record):
    """A circuit breaker that a worker pool has had.

    Attributes:
        name: Its name.
        tasks: Identifiers of the tasks that have it.
        open_for: Seconds until it lets one job through; 0 if it does; None if it is closed.
        reason: The last failure that has opened it, or kept it open; None if it is closed.
        opened_at: When it was opened; None if it is closed.
        open_until: When it lets one job through; None if it is closed.
        failures: How many failures have opened it, and kept it open since.
    """

    name: str
    tasks: list[str]
    open_for: float | None
    reason: str | None
    opened_at: datetime | None
    open_until: datetime | None
    failures: int

    @property
    def state(self) -> str:
        """In a word: `closed`, `open`, or `half-open`: it lets one job through, which decides."""
        if self.open_for is None:
            return "closed"
        return "open" if self.open_for > 0 else "half-open"


_READ: Final = """
select breakers.name, breakers.tasks,
  case when breakers.open_until is not null then greatest(0::pg_catalog.float8, extract(
    epoch from breakers.open_until - pg_catalog.clock_timestamp()
  )::pg_catalog.float8) end,
  breakers.reason, breakers.opened_at, breakers.open_until, breakers.failures
from graphile_worker_py.breakers as breakers
where breakers.worker_schema = $1::pg_catalog.text
order by breakers.name
"""


def read_breakers(worker_schema: str) -> Query[list[Breaker]]:
    """Read the breakers of a schema, by name."""
    return Query(_READ, (worker_schema,), _breakers)


def _breakers(rows: list[tuple[Any, ...]]) -> list[Breaker]:
    return [
        Breaker(
            name=name,
            tasks=tasks,
            open_for=open_for,
            reason=reason,
            opened_at=None if opened_at is None else from_timestamp(opened_at),
            open_until=None if open_until is None else from_timestamp(open_until),
            failures=failures,
        )
        for name, tasks, open_for, reason, opened_at, open_until, failures in rows
    ]


def known_breakers(worker_schema: str) -> Steps[list[Breaker]]:
    """Read the breakers of a schema, by name.

    Raises:
        MissingTablesError: The table of breakers is missing.
    """
    yield from reading(worker_schema, "breakers")
    return (yield read_breakers(worker_schema))  # type: ignore[no-any-return]


_KNOW: Final = """
insert into graphile_worker_py.breakers as breakers (worker_schema, name, tasks)
values ($1::pg_catalog.text, $2::pg_catalog.text, $3::pg_catalog.text[])
on conflict (worker_schema, name) do update
set tasks = array(
  select pg_catalog.unnest(breakers.tasks) union select pg_catalog.unnest(excluded.tasks) order by 1
)
where not breakers.tasks operator(pg_catalog.@>) excluded.tasks
"""


def know_breaker(worker_schema: str, name: str, tasks: Sequence[str]) -> Query[None]:
    """Note that there is a breaker, and which tasks have it."""
    return Query(_KNOW, (worker_schema, name, list(tasks)), no_result, prepare=False)


# The pools are told in the same transaction. Without seconds it is closed.
_CHANGE: Final = """
with changed as (
  update graphile_worker_py.breakers as breakers
  set open_until = case when $3::pg_catalog.float8 is not null then greatest(
      breakers.open_until,
      pg_catalog.clock_timestamp() + $3::pg_catalog.float8 * interval '1 second'
    ) end,
    opened_at = case when $3::pg_catalog.float8 is not null then
      coalesce(breakers.opened_at, pg_catalog.clock_timestamp())
    end,
    failures = case when $3::pg_catalog.float8 is not null then
      breakers.failures + $5::pg_catalog.int4 else 0
    end,
    reason = $4::pg_catalog.text,
    probe_by = null
  where breakers.worker_schema = $1::pg_catalog.text
    and breakers.name = $2::pg_catalog.text
    and ($3::pg_catalog.float8 is not null or breakers.open_until is not null)
  returning breakers.name
)
select pg_catalog.pg_notify('graphile_worker_py', pg_catalog.json_build_object(
  's', $1::pg_catalog.text, 't', 'breaker', 'n', changed.name
)::pg_catalog.text)
from changed
"""


def open_breaker(
    worker_schema: str, name: str, *, seconds: float, reason: str, failures: int
) -> Query[None]:
    """Open a breaker for some seconds, or for longer if it is open for longer.

    `failures` are added to those that have opened it.
    """
    values = (worker_schema, name, seconds, reason, failures)
    return Query(_CHANGE, values, no_result, prepare=False)


def close_breaker(worker_schema: str, name: str) -> Query[None]:
    """Close a breaker."""
    return Query(_CHANGE, (worker_schema, name, None, None, 0), no_result, prepare=False)


# A pool whose jobs were freed no longer has a probe.
_PROBE: Final = """
update graphile_worker_py.breakers as breakers
set probe_by = $3::pg_catalog.text
where breakers.worker_schema = $1::pg_catalog.text and breakers.name = $2::pg_catalog.text
  and breakers.open_until <= pg_catalog.clock_timestamp()
  and (
    coalesce(breakers.probe_by, $3::pg_catalog.text) = $3::pg_catalog.text
    or not exists (
      select
      from graphile_worker_py.pools as pools
      where pools.pool_id = breakers.probe_by and pools.unlocked_at is null
    )
  )
returning true
"""


def take_probe(worker_schema: str, name: str, pool_id: str) -> Query[bool]:
    """Whether this pool may let one job through, now that a breaker's time is over."""
    return Query(_PROBE, (worker_schema, name, pool_id), bool, prepare=False)


_LEAVE: Final = """
update graphile_worker_py.breakers as breakers
set probe_by = null
where breakers.worker_schema = $1::pg_catalog.text and breakers.name = $2::pg_catalog.text
  and breakers.probe_by = $3::pg_catalog.text
"""


def leave_probe(worker_schema: str, name: str, pool_id: str) -> Query[None]:
    """Let another pool take the next job, because this one has found none."""
    return Query(_LEAVE, (worker_schema, name, pool_id), no_result, prepare=False)


def reset_breaker(worker_schema: str, name: str) -> Steps[None]:
    """Close a breaker, whatever the failures were.

    Raises:
        ConfigurationError: No worker pool has had such a breaker.
        MissingTablesError: The table of breakers is missing.
    """
    check_text("name", name, shortest=1)
    yield from reading(worker_schema, "breakers", right="update")
    known: list[Breaker] = yield read_breakers(worker_schema)
    if name not in {each.name for each in known}:
        names = ", ".join(repr(each.name) for each in known) or "none"
        raise ConfigurationError(
            f"there is no breaker {name!r}; breakers that workers have had are: {names}"
        )
    yield close_breaker(worker_schema, name)
