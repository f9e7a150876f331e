"""The schema of our own, beside the one that is shared: its migrations, and which it has.

Its name is fixed. Each row says which schema of jobs it is about, so that several can share it.
"""

from typing import Final, LiteralString

from graphile_worker_py.postgres.query import Query, no_result

NAME: Final = "graphile_worker_py"

# Statements of one revision stand one by one, as they are sent. Revisions only add: a release that
# knows fewer of them works on.
#
# pools: one row for each worker pool that runs, deleted when it ends. `lock_key` is the key of the
#   advisory lock that its listening connection holds. `died_at` is set when others have found it
#   dead, `recorded_at` when its jobs are known to be suspects, `unlocked_at` when what it had
#   locked was freed, the last time. The row then stays for a week, so that a pool that was only
#   stopped learns it. Updates come every two seconds: room on each page keeps them from touching
#   the index.
# suspects: jobs that a dead pool had locked. `started_by` is the pool that runs one now.
MIGRATIONS: Final[tuple[tuple[LiteralString, ...], ...]] = (
    (
        """
        create table graphile_worker_py.migrations (
          id int4 primary key,
          ts timestamptz not null default now()
        )
        """,
        """
        create table graphile_worker_py.pools (
          pool_id text primary key,
          worker_schema text not null,
          host text not null,
          pid int4 not null,
          started_at timestamptz not null default clock_timestamp(),
          heartbeat_at timestamptz not null default clock_timestamp(),
          dead_after float8 not null,
          lock_key int8 not null,
          is_stopping boolean not null default false,
          died_at timestamptz,
          recorded_at timestamptz,
          unlocked_at timestamptz
        ) with (fillfactor = 50)
        """,
        """
        create table graphile_worker_py.suspects (
          worker_schema text not null,
          job_id int8 not null,
          crashes int4 not null,
          started_by text,
          recorded_at timestamptz not null default clock_timestamp(),
          primary key (worker_schema, job_id)
        )
        """,
    ),
)
LATEST: Final = len(MIGRATIONS)

_CREATE: Final = "create schema graphile_worker_py"


def create_schema() -> Query[None]:
    """Make the schema. Not "if not exists", which asks for a right even if it is there."""
    return Query(_CREATE, (), no_result, prepare=False)


_EXISTS: Final = "select to_regnamespace('graphile_worker_py') is not null"


def read_schema_exists() -> Query[bool]:
    """Whether the schema is there, whatever is in it."""
    return Query(_EXISTS, (), lambda rows: bool(rows[0][0]), prepare=False)


_TABLE_EXISTS: Final = "select to_regclass('graphile_worker_py.migrations') is not null"


def read_table_exists() -> Query[bool]:
    """Whether there is a table that says the revision."""
    return Query(_TABLE_EXISTS, (), lambda rows: bool(rows[0][0]), prepare=False)


_REVISION: Final = "select coalesce(max(migrations.id), 0) from graphile_worker_py.migrations"


def read_revision() -> Query[int]:
    """Read the latest revision; fails with 42P01 where nothing was installed."""
    return Query(_REVISION, (), lambda rows: int(rows[0][0]), prepare=False)


# Any number that nobody else is likely to use.
_LOCK: Final = "select pg_advisory_xact_lock(7240312864093218563)"


def lock_migrations() -> Query[None]:
    """Wait until nobody else installs, and keep others waiting until the transaction ends."""
    return Query(_LOCK, (), no_result, prepare=False)


_RECORD: Final = "insert into graphile_worker_py.migrations (id) values ($1::int4)"


def record_revision(revision: int) -> Query[None]:
    """Record that a revision was applied."""
    return Query(_RECORD, (revision,), no_result, prepare=False)


def statement(text: LiteralString) -> Query[None]:
    """One statement of a migration."""
    return Query(text, (), no_result, prepare=False)
