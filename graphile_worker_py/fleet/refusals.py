"""For how long heartbeats have been refused although the database works."""

from time import monotonic

import psycopg
from psycopg import errors

from graphile_worker_py.postgres.outages import is_outage


class Refusals:
    """Tells a pool that can't send heartbeats from an outage of the database.

    In an outage a worker waits. But a pool whose heartbeats are refused for another reason, for
    example a lock on the table of pools or a missing right, would wait forever.
    """

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the first refusal in a row; 0 if the last heartbeat was not refused."""
        return 0.0 if self._since is None else monotonic() - self._since

    def answered(self) -> None:
        """Note that a heartbeat was answered."""
        self._since = None

    def failed(self, error: Exception, *, was_connected: bool) -> None:
        """Note that a heartbeat failed; `was_connected` says whether a connection could be made."""
        if not was_connected or _is_of_server(error):
            self._since = None
        elif self._since is None:
            self._since = monotonic()


def _is_of_server(error: Exception) -> bool:
    """Whether the server itself says that it does not serve writes, or not yet."""
    if isinstance(error, errors.LockNotAvailable | errors.QueryCanceled):
        return False
    return isinstance(error, psycopg.Error) and error.sqlstate is not None and is_outage(error)
