"""Put together the statements that record outcomes.

Each begins with a *change*: a statement that deletes or updates those of the given jobs that the
pool still has locked (`$1` is its id), and returns `id` and `job_queue_id`. A job that was taken
from the pool, and may be running elsewhere, stays as it is. Two things may follow in the same
statement: the release of the jobs' queues, and *riders*.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, LiteralString

from graphile_worker_py.postgres.query import Query

_UNLOCK: Final = """
  update :GRAPHILE_WORKER_SCHEMA._private_job_queues as queues
  set locked_by = null,
    locked_at = null
  where queues.id = any (
      array(select changed.job_queue_id from changed where changed.job_queue_id is not null)
    )
    and queues.locked_by = $1::pg_catalog.text
"""

_GIVEN: Final = "select given.id from pg_catalog.unnest($1::pg_catalog.int8[]) as given (id)"


@dataclass(frozen=True, slots=True)
class BoundRider:
    """A statement that rides on the one that records outcomes, for one batch.

    Args:
        text: A statement that returns rows. It may read `changed (id)`, the jobs whose outcome
            this statement records. Its parameters are `$r1`, `$r2`, and so on.
        values: One for each parameter.
    """

    text: LiteralString
    values: Sequence[Any]


def record(
    change: Query[set[int]], *, queued: bool, riders: Sequence[BoundRider] = ()
) -> Query[set[int]]:
    """Record outcomes; the ids of the jobs that were still the pool's.

    Args:
        change: The change.
        queued: Whether jobs of queues are among them, whose queues are released.
        riders: What else is part of the statement.
    """
    if not queued and not riders:
        return change
    texts = tuple(rider.text for rider in riders)
    values = [*change.values, *(value for rider in riders for value in rider.values)]
    text = _composed(change.text, queued, len(change.values), texts)
    return replace(change, text=text, values=values)


def ride_alone(job_ids: Sequence[int], rider: BoundRider) -> Query[set[int]]:
    """Run a rider for jobs whose outcome is recorded already."""
    given = Query(_GIVEN, [list(job_ids)], ids, prepare=False)
    return record(given, queued=False, riders=[rider])


@lru_cache(maxsize=64)
def _composed(
    change: LiteralString,
    queued: bool,  # noqa: FBT001  # lru_cache
    taken: int,
    riders: tuple[LiteralString, ...],
) -> LiteralString:
    parts = [_named("changed", change)]
    columns = ["changed.id"]
    if queued:
        parts.append(_named("unlocked", _UNLOCK))
    for number, rider in enumerate(riders):
        name = f"rider_{number}"
        # A SELECT in a WITH clause that nothing refers to would not run.
        columns.append("".join(("(select pg_catalog.count(*) from ", name, ")")))
        parts.append(_named(name, _renumbered(rider, taken)))
        taken += len(set(re.findall(r"\$r\d+", rider)))
    return "".join(("with ", ", ".join(parts), " select ", ", ".join(columns), " from changed"))


def _named(name: str, text: str) -> str:
    return "".join((name, " as (", text, ")"))


def _renumbered(rider: str, taken: int) -> str:
    return re.sub(r"\$r(\d+)", lambda found: f"${taken + int(found[1])}", rider)


def ids(rows: list[tuple[Any, ...]]) -> set[int]:
    """Read the first column."""
    return {row[0] for row in rows}
