"""Which revision the schema has, and the table that records it."""

from collections.abc import Iterable
from typing import Final

from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.records import Record

LATEST_REVISION: Final = 20
"""The revision that this release installs and works on."""
BASELINE_REVISION: Final = 18
"""The revision that a new schema starts at, in one step."""
BREAKING_REVISIONS: Final = frozenset({1, 3, 11, 13, 14, 16, 19})
"""Revisions on which workers of earlier releases can't work."""


class Revisions(Record, kw_only=False):
    """What the database says about its revisions.

    Args:
        server_version: PostgreSQL's version number, 180006 for 18.6.
        latest: Greatest recorded revision; None if there is none.
        latest_breaking: Greatest revision marked as breaking; None if there is none.
    """

    server_version: int
    latest: int | None
    latest_breaking: int | None


_READ: Final = """
select
  pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
  (select pg_catalog.max(migrations.id) from :GRAPHILE_WORKER_SCHEMA.migrations),
  (
    select pg_catalog.max(migrations.id)
    from :GRAPHILE_WORKER_SCHEMA.migrations
    where migrations.breaking
  )
"""


def read_revisions() -> Query[Revisions]:
    """Read server version and revisions; fails with 42P01 or 42703 before the bootstrap."""
    return Query(_READ, (), lambda rows: Revisions(*rows[0]), prepare=False)


class Found(Record, kw_only=False):
    """What the catalogs of the database say about the schema.

    Args:
        server_version: As for `Revisions`.
        exists: Whether the schema exists.
        has_jobs: Whether it has the table of revisions, and one of jobs, which before revision 16
            had another name.
    """

    server_version: int
    exists: bool
    has_jobs: bool


_FIND: Final = """
with tables as materialized (
  select classes.relname
  from pg_catalog.pg_class as classes
  join pg_catalog.pg_namespace as namespaces on namespaces.oid = classes.relnamespace
  where namespaces.nspname = $1::pg_catalog.text and classes.relkind = 'r'
)
select
  pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
  exists (
    select from pg_catalog.pg_namespace as namespaces where namespaces.nspname = $1::pg_catalog.text
  ),
  exists (select from tables where tables.relname = 'migrations')
    and exists (select from tables where tables.relname in ('_private_jobs', 'jobs'))
"""


def find(schema: str) -> Query[Found]:
    """Look for the schema in the catalogs alone."""
    return Query(_FIND, (schema,), lambda rows: Found(*rows[0]), prepare=False)


_CREATE_SCHEMA: Final = "create schema :GRAPHILE_WORKER_SCHEMA"


def create_schema() -> Query[None]:
    """Create the schema. Without `if not exists`, which needs a right even if it exists."""
    return Query(_CREATE_SCHEMA, (), no_result, prepare=False)


# Graphile Worker's first releases had no column `breaking`. Their table, or one that an
# administrator prepared, gets it here.
BOOTSTRAP: Final = """
create table if not exists :GRAPHILE_WORKER_SCHEMA.migrations (
  id pg_catalog.int4 primary key,
  ts pg_catalog.timestamptz not null default pg_catalog.now()
);
alter table :GRAPHILE_WORKER_SCHEMA.migrations
  add column if not exists breaking boolean not null default false;
"""
"""A script that makes the table of revisions, or brings an old one up to date."""

_MARK_BREAKING: Final = """
update :GRAPHILE_WORKER_SCHEMA.migrations as migrations
set breaking = true
where migrations.id = any($1::pg_catalog.int4[]) and not migrations.breaking
"""


def mark_breaking() -> Query[None]:
    """Set the flag `breaking` of recorded revisions that should have it."""
    return Query(_MARK_BREAKING, (sorted(BREAKING_REVISIONS),), no_result, prepare=False)


_RECORD: Final = """
insert into :GRAPHILE_WORKER_SCHEMA.migrations (id, breaking)
select revision.id, revision.breaking
from rows from (
  pg_catalog.unnest($1::pg_catalog.int4[]),
  pg_catalog.unnest($2::pg_catalog.bool[])
) as revision (id, breaking)
order by revision.id
"""


def record_revisions(revisions: Iterable[int]) -> Query[None]:
    """Record revisions with their breaking flags; fails with 23505 if one is recorded."""
    ids = list(revisions)
    values = (ids, [revision in BREAKING_REVISIONS for revision in ids])
    return Query(_RECORD, values, no_result, prepare=False)
