"""The side schema `graphile_worker_py`: its migrations, and which of them were applied.

Its name is fixed. Each row names the schema of jobs that it belongs to, so that several
installations can share the side schema.
"""

from typing import Final, LiteralString

from graphile_worker_py.postgres.query import Query, no_result

NAME: Final = "graphile_worker_py"

# Each statement of a revision is separate, as it is sent. Revisions only add, so that releases that
# know fewer of them keep working.
#
# pools: one row for each running worker pool, deleted when it ends. `lock_key` is the key of the
#   advisory lock that its listening connection holds, `lock_pid` the server process of that
#   connection. Any role that may connect can read the keys in pg_locks and lock them too, so a lock
#   counts only if this server process holds it. `died_at` is set when another pool declares
#   it dead, `recorded_at` when its jobs are recorded as suspects, `unlocked_at` each time its jobs
#   are freed. The row of a dead pool stays for a week, so that a pool that was only paused learns
#   of its death. Rows are updated every two seconds; free room on each page keeps these updates
#   away from the index.
#   The last seven columns are what a pool reports with each heartbeat, see `pools.PoolReport`.
#   `prefetches` says that it may hold jobs that have not begun. `is_quiet` tells it to fetch none.
# suspects: jobs that a dead pool had locked, and, with `crashes` 0, jobs of a prefetching pool that
#   have begun their last attempt. `started_by` is the last pool that has begun the job.
# crontab_items: what workers schedule, for programs that show it; see `cron.published`.
# changes: how often operators have changed something that all pools of a schema must read again.
#   Each heartbeat reads the number through the function, which needs no right on the table.
MIGRATIONS: Final[tuple[tuple[LiteralString, ...], ...]] = (
    (
        """
        create table graphile_worker_py.migrations (
          id pg_catalog.int4 primary key,
          ts pg_catalog.timestamptz not null default pg_catalog.now()
        )
        """,
        """
        create table graphile_worker_py.pools (
          pool_id pg_catalog.text primary key,
          worker_schema pg_catalog.text not null,
          host pg_catalog.text not null,
          pid pg_catalog.int4 not null,
          started_at pg_catalog.timestamptz not null default pg_catalog.clock_timestamp(),
          heartbeat_at pg_catalog.timestamptz not null default pg_catalog.clock_timestamp(),
          dead_after pg_catalog.float8 not null,
          lock_key pg_catalog.int8 not null,
          is_stopping boolean not null default false,
          died_at pg_catalog.timestamptz,
          recorded_at pg_catalog.timestamptz,
          unlocked_at pg_catalog.timestamptz
        ) with (fillfactor = 50)
        """,
        """
        create table graphile_worker_py.suspects (
          worker_schema pg_catalog.text not null,
          job_id pg_catalog.int8 not null,
          crashes pg_catalog.int4 not null,
          started_by pg_catalog.text,
          recorded_at pg_catalog.timestamptz not null default pg_catalog.clock_timestamp(),
          primary key (worker_schema, job_id)
        )
        """,
    ),
    ("alter table graphile_worker_py.pools add column lock_pid pg_catalog.int4",),
    (
        """
        alter table graphile_worker_py.pools
          add column version pg_catalog.text,
          add column tasks pg_catalog.text[],
          add column forbidden_flags pg_catalog.text[],
          add column concurrency pg_catalog.int4,
          add column running pg_catalog.int4,
          add column memory pg_catalog.int8,
          add column loop_lag pg_catalog.float8
        """,
    ),
    (
        """
        alter table graphile_worker_py.pools
          add column prefetches pg_catalog.bool not null default false
        """,
    ),
    (
        """
        create table graphile_worker_py.crontab_items (
          worker_schema pg_catalog.text not null,
          identifier pg_catalog.text not null,
          about pg_catalog.json not null,
          seen_at pg_catalog.timestamptz not null,
          primary key (worker_schema, identifier)
        )
        """,
    ),
    (
        "alter table graphile_worker_py.pools add column name pg_catalog.text",
        """
        create table graphile_worker_py.changes (
          worker_schema pg_catalog.text primary key,
          number pg_catalog.int8 not null
        )
        """,
        """
        create function graphile_worker_py.last_change(pg_catalog.text)
        returns pg_catalog.int8 language sql stable security definer
        set search_path = pg_catalog, pg_temp as $$
          select changes.number
          from graphile_worker_py.changes as changes
          where changes.worker_schema = $1
        $$
        """,
    ),
    (
        """
        alter table graphile_worker_py.pools
          add column is_quiet pg_catalog.bool not null default false,
          add column connections pg_catalog.int4
        """,
    ),
)
LATEST: Final = len(MIGRATIONS)

_CREATE: Final = "create schema graphile_worker_py"


def create_schema() -> Query[None]:
    """Create the schema. Without `if not exists`, which needs a right even if it exists."""
    return Query(_CREATE, (), no_result, prepare=False)


_EXISTS: Final = "select pg_catalog.to_regnamespace('graphile_worker_py') is not null"


def read_schema_exists() -> Query[bool]:
    """Whether the schema exists, with or without tables."""
    return Query(_EXISTS, (), lambda rows: bool(rows[0][0]), prepare=False)


_TABLE_EXISTS: Final = "select pg_catalog.to_regclass('graphile_worker_py.migrations') is not null"


def read_table_exists() -> Query[bool]:
    """Whether the table that records the revision exists."""
    return Query(_TABLE_EXISTS, (), lambda rows: bool(rows[0][0]), prepare=False)


_REVISION: Final = (
    "select coalesce(pg_catalog.max(migrations.id), 0) from graphile_worker_py.migrations"
)


def read_revision() -> Query[int]:
    """Read the latest revision; fails with 42P01 where nothing was installed."""
    return Query(_REVISION, (), lambda rows: int(rows[0][0]), prepare=False)


# An advisory lock could be taken by any role that may connect.
_LOCK: Final = """
select migrations.id
from graphile_worker_py.migrations as migrations
order by migrations.id
for update
"""


def lock_migrations() -> Query[None]:
    """Wait for other installers, and keep them waiting until the transaction ends."""
    return Query(_LOCK, (), no_result, prepare=False)


_RECORD: Final = "insert into graphile_worker_py.migrations (id) values ($1::pg_catalog.int4)"


def record_revision(revision: int) -> Query[None]:
    """Record that a revision was applied."""
    return Query(_RECORD, (revision,), no_result, prepare=False)


def statement(text: LiteralString) -> Query[None]:
    """One statement of a migration."""
    return Query(text, (), no_result, prepare=False)


# Separate from `migrations`, whose numbers are those of the core, in older releases too.
_CREATE_LEAF_TABLE: Final = """
create table graphile_worker_py.leaf_migrations (
  leaf pg_catalog.text not null,
  id pg_catalog.int4 not null,
  ts pg_catalog.timestamptz not null default pg_catalog.now(),
  primary key (leaf, id)
)
"""


def create_leaf_table() -> Query[None]:
    """Create the table that records the migrations of leaves."""
    return Query(_CREATE_LEAF_TABLE, (), no_result, prepare=False)


_LEAF_TABLE_EXISTS: Final = (
    "select pg_catalog.to_regclass('graphile_worker_py.leaf_migrations') is not null"
)


def read_leaf_table_exists() -> Query[bool]:
    """Whether the table that records the migrations of leaves exists."""
    return Query(_LEAF_TABLE_EXISTS, (), lambda rows: bool(rows[0][0]), prepare=False)


# Null, and so not true, where the table is missing.
_LEAF_TABLE_IS_READABLE: Final = """
select pg_catalog.has_table_privilege(
  pg_catalog.to_regclass('graphile_worker_py.leaf_migrations')::pg_catalog.oid, 'select'
)
"""


def read_leaf_table_is_readable() -> Query[bool]:
    """Whether the table that records the migrations of leaves exists, and the role may read it."""
    return Query(_LEAF_TABLE_IS_READABLE, (), lambda rows: bool(rows[0][0]), prepare=False)


_LEAF_REVISIONS: Final = """
select leaf_migrations.leaf, pg_catalog.max(leaf_migrations.id)
from graphile_worker_py.leaf_migrations
group by leaf_migrations.leaf
"""


def read_leaf_revisions() -> Query[dict[str, int]]:
    """Read the latest revision of each leaf; fails with 42P01 where the table is missing."""
    return Query(_LEAF_REVISIONS, (), dict, prepare=False)


_RECORD_LEAF: Final = """
insert into graphile_worker_py.leaf_migrations (leaf, id)
values ($1::pg_catalog.text, $2::pg_catalog.int4)
"""


def record_leaf_revision(leaf: str, revision: int) -> Query[None]:
    """Record that a revision of a leaf was applied."""
    return Query(_RECORD_LEAF, (leaf, revision), no_result, prepare=False)
