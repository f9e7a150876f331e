"""How long a transaction may take, for itself and for those that wait for it."""

from typing import Final

from graphile_worker_py.postgres.query import Query, no_result

# The client may be gone, or stand still, in the middle of it; or somebody may have the table locked
# for long, and then a transaction that waits for it keeps what it has locked itself from others.
_LIMIT: Final = """
select
  set_config('lock_timeout', $1::text, true),
  set_config('statement_timeout', $2::text, true),
  set_config('idle_in_transaction_session_timeout', $3::text, true)
"""


def limit_transaction(*, lock: float, statement: float, idle: float) -> Query[None]:
    """Let the server end the transaction that has begun if it takes too long; in seconds."""
    values = tuple(str(round(1000 * seconds)) for seconds in (lock, statement, idle))
    return Query(_LIMIT, values, no_result, prepare=False)
