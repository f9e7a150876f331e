"""Settings of a connection that fetches jobs, or records their outcomes."""

from typing import Any, Final

from graphile_worker_py.postgres.own_connection import Session
from graphile_worker_py.postgres.query import Query

# The fetch reads the first entries of an index that is in the order it wants; outcomes are written
# by the ids of their jobs. What the planner believes of a table that was empty a moment ago, or was
# not analysed since it grew (the first minute of a large backlog), makes it read and sort all jobs
# instead, for each statement. So it is left no other way here, and plans but once: it would plan
# for longer than the statement runs. Nor does it compile statements of a millisecond. Behind a
# pooler the connection to the server is not ours alone, and stays as it is.
_KEEP_TO_INDEXES: Final = """
select
  pid,
  extract(epoch from backend_start)::pg_catalog.text,
  pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', false),
  pg_catalog.set_config('enable_seqscan', 'off', false),
  pg_catalog.set_config('enable_sort', 'off', false),
  pg_catalog.set_config('enable_bitmapscan', 'off', false),
  pg_catalog.set_config('jit', 'off', false),
  case
    when $2::pg_catalog.text is not null
    then pg_catalog.set_config('lock_timeout', $2::pg_catalog.text, false)
  end,
  case
    when $3::pg_catalog.bool
    then pg_catalog.set_config('synchronous_commit', 'off', false)
  end
from pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())
where pid = $1::pg_catalog.int4
"""


def keep_to_indexes(
    backend_pid: int, *, lock_timeout: str | None = None, relaxed: bool = False
) -> Query[Session | None]:
    """Let the connection's statements use indexes, if it leads to the server directly.

    Args:
        backend_pid: The server process as the connection knows it; a pooler makes one up.
        lock_timeout: How long statements wait for locks, as PostgreSQL's setting; None leaves it.
        relaxed: Whether commits do not wait until they are on disk.

    Returns:
        The session; None behind a pooler.
    """

    def read(rows: list[tuple[Any, ...]]) -> Session | None:
        return (rows[0][0], rows[0][1]) if rows else None

    return Query(_KEEP_TO_INDEXES, (backend_pid, lock_timeout, relaxed), read, prepare=False)
