"""The advisory lock that a pool holds for as long as its listening session lasts."""

import os
from typing import Final

from graphile_worker_py.postgres.query import Query
from graphile_worker_py.records import Record


class PoolLock(Record, kw_only=False):
    """An advisory lock that proves that a pool lives.

    Args:
        key: Its key.
        pid: The server process of the session that holds it.
    """

    key: int
    pid: int


# The settings are for a host that is lost: its session, and with it the lock, must not outlive it
# by hours. They have no effect on connections that are not TCP. The lock is shared, so that a
# session that holds the same key by chance or on purpose does not matter.
_HOLD_LOCK: Final = """
select
  pg_catalog.set_config('tcp_keepalives_idle', $2::pg_catalog.text, false),
  pg_catalog.set_config('tcp_keepalives_interval', $2::pg_catalog.text, false),
  pg_catalog.set_config('tcp_keepalives_count', '3', false),
  pg_catalog.set_config('tcp_user_timeout', $3::pg_catalog.text, false),
  pg_catalog.pg_try_advisory_lock_shared($1::pg_catalog.int8),
  pg_catalog.pg_backend_pid()
"""


def hold_lock(*, dead_after: float) -> Query[PoolLock]:
    """Take a lock that proves to other pools, while this session lasts, that the pool lives.

    Its key is random, so that no other session can have taken it before.
    """
    key = int.from_bytes(os.urandom(8), signed=True)
    seconds = max(1, round(dead_after / 4))
    values = (key, str(seconds), str(max(1000, round(dead_after * 1000))))
    return Query(_HOLD_LOCK, values, lambda rows: PoolLock(key, rows[0][-1]), prepare=False)
