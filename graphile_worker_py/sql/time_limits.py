"""Time limits of a transaction."""

from typing import Final

from graphile_worker_py.postgres.query import Query, no_result

# The client may be gone or paused in the middle of a transaction. Or another session may have a
# table locked for long: a transaction that waits for it would keep its own locks meanwhile.
_LIMIT: Final = """
select
  pg_catalog.set_config('lock_timeout', $1::pg_catalog.text, true),
  pg_catalog.set_config('statement_timeout', $2::pg_catalog.text, true),
  pg_catalog.set_config('idle_in_transaction_session_timeout', $3::pg_catalog.text, true)
"""


def limit_transaction(*, lock: float, statement: float, idle: float) -> Query[None]:
    """Let the server end the current transaction if it takes too long.

    Args:
        lock: Seconds to wait for each lock.
        statement: Seconds that each statement may take.
        idle: Seconds that the client may be silent.
    """
    values = tuple(str(round(1000 * seconds)) for seconds in (lock, statement, idle))
    return Query(_LIMIT, values, no_result, prepare=False)


_WAIT_SHORTLY: Final = "select pg_catalog.set_config('lock_timeout', $1::pg_catalog.text, true)"


def wait_shortly(seconds: float) -> Query[None]:
    """Let the statements of the current transaction wait so long for each lock."""
    return Query(_WAIT_SHORTLY, (str(round(1000 * seconds)),), no_result, prepare=False)
