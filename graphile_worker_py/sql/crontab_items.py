"""The crontab items of workers, as far as programs that only look want to know them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.job import from_timestamp
from graphile_worker_py.postgres.query import Query, Steps, no_result
from graphile_worker_py.records import Record
from graphile_worker_py.sql.side_tables import reading

TABLE: Final = "crontab_items"


class PublishedItem(Record):
    """A crontab item that a worker schedules, or did.

    Args:
        identifier: Its identifier.
        about: What the worker has written of it.
        seen_at: When a worker last wrote it.
        age: Seconds since then.
    """

    identifier: str
    about: Mapping[str, Any]
    seen_at: datetime
    age: float


# In the order of the key, so that workers that write at the same moment do not deadlock.
_PUBLISH: Final = """
insert into graphile_worker_py.crontab_items (worker_schema, identifier, about, seen_at)
select $1::pg_catalog.text, item.identifier, item.about::pg_catalog.json,
  pg_catalog.statement_timestamp()
from rows from (
  pg_catalog.unnest($2::pg_catalog.text[]),
  pg_catalog.unnest($3::pg_catalog.text[])
) as item (identifier, about)
order by item.identifier
on conflict (worker_schema, identifier) do update
set about = excluded.about, seen_at = excluded.seen_at
"""


def publish(worker_schema: str, items: Mapping[str, Mapping[str, Any]]) -> Steps[None]:
    """Write what a worker schedules, by identifier.

    Raises:
        MissingTablesError: The table is missing, or the role may not write to it.
    """
    yield from reading(worker_schema, TABLE, right="insert")
    about = [json_codec.dumps(item).decode() for item in items.values()]
    yield Query(_PUBLISH, (worker_schema, list(items), about), no_result, prepare=False)


_READ: Final = """
select items.identifier, items.about, items.seen_at,
  extract(epoch from pg_catalog.clock_timestamp() - items.seen_at)::pg_catalog.float8
from graphile_worker_py.crontab_items as items
where items.worker_schema = $1::pg_catalog.text
order by items.identifier
"""


def read_published(worker_schema: str) -> Steps[dict[str, PublishedItem]]:
    """Read what workers schedule, by identifier.

    Raises:
        MissingTablesError: The table is missing, or the role may not read it.
    """

    def read(rows: list[tuple[Any, ...]]) -> dict[str, PublishedItem]:
        return {
            row[0]: PublishedItem(
                identifier=row[0],
                about=json_codec.loads(bytes(row[1])),
                seen_at=from_timestamp(row[2]),
                age=row[3],
            )
            for row in rows
        }

    yield from reading(worker_schema, TABLE)
    return (yield Query(_READ, (worker_schema,), read, prepare=False))  # type: ignore[no-any-return]
