"""The channels on which new jobs and schema changes are announced.

They belong to the whole database: installations in several schemas share them. In addition each
pool has its own channel, on which it tests whether its notifications arrive.
"""

import random
from typing import Final

from psycopg import sql

from graphile_worker_py.postgres.query import Query, no_result

JOBS_INSERT: Final = "jobs:insert"
WORKER_MIGRATE: Final = "worker:migrate"

OWN: Final = "graphile_worker_py"
"""The one channel of this package; its topics are told apart by the payload."""
LISTEN: Final = 'listen "' + JOBS_INSERT + '"; listen "' + WORKER_MIGRATE + '"'
"""A script that listens on both channels of Graphile Worker."""

_NOTIFY: Final = "select pg_catalog.pg_notify($1::pg_catalog.text, $2::pg_catalog.text)"


def echo_channel(pool_id: str) -> str:
    """The channel on which only this pool listens."""
    return f"graphile_worker_py:{pool_id}"


def listen_on(*channels: str) -> str:
    """The script that listens on channels."""
    each = (sql.SQL("listen {}").format(sql.Identifier(channel)) for channel in channels)
    return sql.SQL("; ").join(each).as_string()


def notify(channel: str, payload: str) -> Query[None]:
    """Announce something on a channel."""
    return Query(_NOTIFY, (channel, payload), no_result)


def announcement(count: int) -> str:
    """The payload that announces new jobs on `JOBS_INSERT`, as Graphile Worker writes it.

    The random number keeps PostgreSQL from folding equal notifications of one transaction.
    """
    return f'{{"r":{random.random()},"count":{count}}}'  # noqa: S311


def announce_jobs(count: int) -> Query[None]:
    """Announce jobs that may run now, so that workers do not wait for the next poll."""
    return notify(JOBS_INSERT, announcement(count))


def announce_migration(revision: int, *, breaking: bool) -> Query[None]:
    """Announce to running workers that the schema is at another revision."""
    flag = "true" if breaking else "false"
    return notify(WORKER_MIGRATE, f'{{"migrationNumber":{revision},"breaking":{flag}}}')
