"""Which revision the schema has, and the table that records it."""

from dataclasses import dataclass
from typing import Final

from graphile_worker_py.postgres.query import Query, no_result


@dataclass(frozen=True, slots=True)
class Revisions:
    """What the database says about itself.

    Args:
        server_version: PostgreSQL's version number, 180006 for 18.6.
        latest: Greatest revision recorded; None if none is.
        latest_breaking: Greatest revision marked as breaking; None if none is.
    """

    server_version: int
    latest: int | None
    latest_breaking: int | None


_READ: Final = """
select
  current_setting('server_version_num')::int4,
  (select max(migrations.id) from :GRAPHILE_WORKER_SCHEMA.migrations),
  (select max(migrations.id) from :GRAPHILE_WORKER_SCHEMA.migrations where migrations.breaking)
"""


def read_revisions() -> Query[Revisions]:
    """Read server version and revisions; fails with 42P01 or 42703 before the bootstrap."""
    return Query(_READ, (), lambda rows: Revisions(*rows[0]), prepare=False)


_SERVER: Final = """
select current_setting('server_version_num')::int4,
  exists (select 1 from pg_catalog.pg_namespace where nspname = $1::text)
"""


def read_server(schema: str) -> Query[tuple[int, bool]]:
    """Read the server's version, and whether the schema exists."""
    return Query(_SERVER, (schema,), lambda rows: (rows[0][0], rows[0][1]), prepare=False)


CREATE_SCHEMA: Final = "create schema :GRAPHILE_WORKER_SCHEMA"

# Upstream's first releases had no column `breaking`; a table of theirs, or one that an
# administrator made beforehand, gets it here, with the flags its rows should have.
BOOTSTRAP: Final = """
create table if not exists :GRAPHILE_WORKER_SCHEMA.migrations (
  id int4 primary key,
  ts timestamptz not null default now()
);
alter table :GRAPHILE_WORKER_SCHEMA.migrations
  add column if not exists breaking boolean not null default false;
update :GRAPHILE_WORKER_SCHEMA.migrations
  set breaking = true
  where id in (1, 3, 11, 13, 14, 16, 19) and not breaking;
"""


_RECORD: Final = """
insert into :GRAPHILE_WORKER_SCHEMA.migrations (id, breaking)
select revision.id, revision.breaking
from unnest($1::int4[], $2::bool[]) as revision (id, breaking)
order by revision.id
"""


def record_revisions(revisions: dict[int, bool]) -> Query[None]:
    """Record revisions with their breaking flags; fails with 23505 if one is recorded."""
    values = (list(revisions), list(revisions.values()))
    return Query(_RECORD, values, no_result)
