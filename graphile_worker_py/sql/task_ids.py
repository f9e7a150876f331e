"""Task identifiers and their ids in one database."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from graphile_worker_py.postgres.query import Query, array_text, no_result

# Identifiers that exist are left out: an insert that meets a conflict still uses up an id.
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


class TaskIds(dict[int, str]):
    """Identifiers of tasks by their ids, which must not change.

    Attributes:
        numbers: The ids as PostgreSQL writes an array, which is sent faster than a list.
        identifiers: The identifiers in the same order, written in the same way.
    """

    def __init__(self, identifiers: Mapping[int, str]) -> None:
        super().__init__(identifiers)
        self.numbers = array_text(self)
        self.identifiers = array_text(self.values())

    def among(self, identifiers: Collection[str]) -> "TaskIds":
        """The ids of these tasks only."""
        return TaskIds({number: name for number, name in self.items() if name in identifiers})


def read_task_ids(identifiers: Sequence[str]) -> Query[TaskIds]:
    """Read the ids of tasks."""
    return Query(_READ, (list(identifiers),), lambda rows: TaskIds(dict(rows)), prepare=False)
