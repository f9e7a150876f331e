"""The channels on which new jobs and schema changes are announced.

They belong to the whole database: installations in several schemas share them. Beside them, each
pool has a channel of its own, on which it finds out whether it can hear at all.
"""

from typing import Final

from psycopg import sql

from graphile_worker_py.postgres.query import Query, no_result

JOBS_INSERT: Final = "jobs:insert"
WORKER_MIGRATE: Final = "worker:migrate"

LISTEN: Final = 'listen "jobs:insert"; listen "worker:migrate"'

_NOTIFY: Final = "select pg_notify($1::text, $2::text)"


def echo_channel(pool_id: str) -> str:
    """The channel on which a pool, and nobody else, listens."""
    return f"graphile_worker_py:{pool_id}"


def listen_on(channel: str) -> sql.Composed:
    """The statement that listens on one more channel."""
    return sql.SQL("listen {}").format(sql.Identifier(channel))


def notify(channel: str, payload: str) -> Query[None]:
    """Announce something on a channel."""
    return Query(_NOTIFY, (channel, payload), no_result)
