"""Task identifiers and the numbers that stand for them in one database."""

from collections.abc import Sequence
from typing import Any, Final

from graphile_worker_py.postgres.query import Query, no_result

# Looked for before they are inserted: an insert that meets a conflict still uses up a number.
_REGISTER: Final = """
insert into :GRAPHILE_WORKER_SCHEMA._private_tasks (identifier)
select supported.identifier
from pg_catalog.unnest($1::pg_catalog.text[]) as supported (identifier)
where not exists (
  select 1
  from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
  where tasks.identifier = supported.identifier
)
on conflict do nothing
"""


def register_tasks(identifiers: Sequence[str]) -> Query[None]:
    """Insert the identifiers that are missing."""
    return Query(_REGISTER, (list(identifiers),), no_result, prepare=False)


_READ: Final = """
select tasks.id, tasks.identifier
from :GRAPHILE_WORKER_SCHEMA._private_tasks as tasks
where tasks.identifier = any($1::pg_catalog.text[])
"""


def read_task_ids(identifiers: Sequence[str]) -> Query[dict[int, str]]:
    """Read the numbers of the identifiers."""

    def read(rows: list[tuple[Any, ...]]) -> dict[int, str]:
        return {row[0]: row[1] for row in rows}

    return Query(_READ, (list(identifiers),), read, prepare=False)
