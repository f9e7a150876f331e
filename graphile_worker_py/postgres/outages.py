"""Which errors of the database are worth another try, and how soon."""

import psycopg
from psycopg import errors
from psycopg_pool import PoolClosed

from graphile_worker_py.backoff import CONTENTION, UNAVAILABLE, Backoff
from graphile_worker_py.errors import RowsHiddenError

# The statement lost a race: it may succeed at once.
_CONTENTION = (errors.SerializationFailure, errors.DeadlockDetected)

# Server, network or an administrator interfered: it may succeed once that is over.
_UNAVAILABLE_CLASSES = (
    "08",  # connection exception
    "53",  # insufficient resources: disk full, out of memory, too many connections
    "57",  # operator intervention: shutdown, crash, starting up, statement cancelled
    "58",  # system error: I/O
)

_UNAVAILABLE = (
    errors.LockNotAvailable,
    errors.ReadOnlySqlTransaction,  # a standby, or a primary that is being demoted
    errors.IdleInTransactionSessionTimeout,
)

MOST_RACES = 20
"""How often a transaction may lose a race before its error is raised."""
TRIES = 100
"""How often `retrying` tries at most."""


def backoff_for(error: BaseException) -> Backoff | None:
    """How patiently to retry a statement that failed this way; None means a retry can't help."""
    if isinstance(error, _CONTENTION):
        return CONTENTION
    if is_outage(error):
        return UNAVAILABLE
    return None


def delay_after(error: BaseException, *, failures: int) -> float | None:
    """Seconds until the next try after this many failures; None means give up."""
    backoff = backoff_for(error)
    return None if backoff is None or failures >= TRIES else backoff.delay(failures)


def race_delay(error: BaseException, *, failures: int) -> float | None:
    """Seconds until a transaction of ours that lost a race is tried again; None means give up.

    Only for a serialization failure or a deadlock, which undo the whole transaction.
    """
    is_race = isinstance(error, _CONTENTION) and failures < MOST_RACES
    return CONTENTION.delay(failures) if is_race else None


def is_outage(error: BaseException) -> bool:
    """Whether the database, or the way to it, failed rather than the statement."""
    if isinstance(error, PoolClosed):
        return False  # its owner closed it for good
    if isinstance(error, _UNAVAILABLE):
        return True
    if not isinstance(error, psycopg.Error):
        return isinstance(error, ConnectionError | TimeoutError | RowsHiddenError)
    if error.sqlstate is None:
        # Without a code the error is not the server's: the connection was lost or refused, or the
        # pool had none free in time.
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith(_UNAVAILABLE_CLASSES)
