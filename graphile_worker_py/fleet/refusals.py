"""For how long heartbeats have been refused although the database works."""

from collections.abc import Callable
from time import monotonic

import psycopg
from psycopg import errors

from graphile_worker_py.postgres.outages import is_outage


class Refusals:
    """Tells a pool that can't send heartbeats from an outage of the database.

    In an outage a worker waits. But a pool whose heartbeats are refused for another reason, for
    example a lock on the table of pools or a missing right, would wait forever.

    Args:
        longest: Seconds for which a pool may be held back by refusals; 0 means forever.
        stuck: Called, maybe more than once, if it was for longer, with the seconds.
    """

    def __init__(self, *, longest: float, stuck: Callable[[float], None]) -> None:
        self._longest = longest
        self._stuck = stuck
        self._is_connected = False
        self._since: float | None = None

    def connecting(self) -> None:
        """Note that a connection for a heartbeat is being opened."""
        self._is_connected = False

    def connected(self) -> None:
        """Note that there is a connection."""
        self._is_connected = True

    def answered(self) -> None:
        """Note that a heartbeat was answered."""
        self._since = None

    def failed(self, error: Exception) -> None:
        """Note that a heartbeat failed."""
        if not self._is_connected or _is_of_server(error):
            self._since = None
        elif self._since is None:
            self._since = monotonic()

    def check(self) -> None:
        """Report a pool that is held back, if it has been refused for too long."""
        seconds = 0.0 if self._since is None else monotonic() - self._since
        if 0 < self._longest < seconds:
            self._stuck(seconds)


def _is_of_server(error: Exception) -> bool:
    """Whether the server itself says that it does not serve writes, or not yet."""
    if isinstance(error, errors.LockNotAvailable | errors.QueryCanceled):
        return False
    return isinstance(error, psycopg.Error) and error.sqlstate is not None and is_outage(error)
