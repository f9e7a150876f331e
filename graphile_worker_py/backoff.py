"""How long to wait before trying again, and which database errors are worth it."""

import random
from dataclasses import dataclass

import psycopg
from psycopg import errors
from psycopg_pool import PoolClosed

# A statement that lost a race: it may succeed at once.
_CONTENTION = (errors.SerializationFailure, errors.DeadlockDetected)

# The server, the network or an administrator got in the way: it may succeed once that is over.
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


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that grow, scattered so that many clients do not return at the same moment.

    Args:
        shortest: First delay, in seconds.
        longest: No delay before the scatter is longer than this, in seconds.
        factor: Growth from one delay to the next.
    """

    shortest: float
    longest: float
    factor: float = 1.5

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row (1 or more), times 0.5 to 1.5."""
        # The exponent is bounded because a float power overflows after some thousand failures.
        exponent = min(max(failures - 1, 0), 100)
        raw = min(self.shortest * self.factor**exponent, self.longest)
        return raw * random.uniform(0.5, 1.5)  # noqa: S311  # scatter, not a secret


CONTENTION = Backoff(shortest=0.05, longest=5.0)
"""Between two tries of a statement that lost a race."""
UNAVAILABLE = Backoff(shortest=0.2, longest=15.0)
"""Between two tries while the database can't be reached or can't serve."""
TRIES = 100
"""So often work is tried."""


def backoff_for(error: BaseException) -> Backoff | None:
    """Tell whether a statement that failed this way may be sent again, and how patiently.

    None means that it would fail the same way again.
    """
    if isinstance(error, _CONTENTION):
        return CONTENTION
    if is_outage(error):
        return UNAVAILABLE
    return None


def delay_after(error: BaseException, *, failures: int) -> float | None:
    """Seconds to wait before work is tried again that has failed so often; None: not again."""
    backoff = backoff_for(error)
    return None if backoff is None or failures >= TRIES else backoff.delay(failures)


def is_outage(error: BaseException) -> bool:
    """Tell whether the database, or the way to it, failed rather than the statement."""
    if isinstance(error, PoolClosed):
        return False  # by its owner, and not for a while
    if isinstance(error, _UNAVAILABLE):
        return True
    if not isinstance(error, psycopg.Error):
        return isinstance(error, ConnectionError | TimeoutError)
    if error.sqlstate is None:
        # Without a code it was not the server that spoke: the connection was lost or refused,
        # or the pool had none to give in time.
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith(_UNAVAILABLE_CLASSES)
