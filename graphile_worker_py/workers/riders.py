"""The riders of a pool: which take part in a statement, and which are left out after errors."""

import logging
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import Final, TypeAlias

import psycopg
from psycopg import errors

from graphile_worker_py.errors import one_line, traceback_of
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.plugins import Rider
from graphile_worker_py.postgres.outages import is_outage
from graphile_worker_py.sql.outcomes import BoundRider

Riding: TypeAlias = list[tuple[Rider, BoundRider]]
"""Riders, each with what it adds to a statement."""
LEFT_OUT_FOR: Final = 60.0
"""Seconds for which riders are left out after an error that the next batch would meet, too."""
_OWN_ROWS: Final = '"_private_job'
"""In the context of an error: a row of a job or of a queue could not be locked."""
_LOST_RACE: Final = (errors.SerializationFailure, errors.DeadlockDetected)


class Riders:
    """The riders of one pool.

    Args:
        riders: What plugins add.
        pool_id: Id of the pool, for the log.
        logger: Where to log.
        left_out_for: See `LEFT_OUT_FOR`.

    Attributes:
        failures: How often each rider had a part in a statement that failed.
        last_error: The last of these errors; None if there was none.
    """

    def __init__(
        self,
        riders: Sequence[Rider],
        *,
        pool_id: str,
        logger: logging.Logger,
        left_out_for: float = LEFT_OUT_FOR,
    ) -> None:
        self._riders = riders
        self._about = {"pool_id": pool_id}
        self._logger = logger
        self._left_out_for = left_out_for
        self._left_out_until = 0.0
        self.failures: Counter[str] = Counter()
        self.last_error: str | None = None

    @property
    def left_out(self) -> bool:
        """Whether riders are left out at the moment; asked by tasks in threads, too."""
        return monotonic() < self._left_out_until

    def __bool__(self) -> bool:
        return bool(self._riders)

    def bind(self, batch: Sequence[Settled]) -> tuple[Sequence[Settled], Riding]:
        """How many jobs of a batch one statement records, and the riders that take part in it."""
        if not self._riders or self.left_out:
            return batch, []
        while True:
            bound = [(rider, self.bound(rider, batch)) for rider in self._riders]
            riding = [(rider, statement) for rider, statement in bound if statement is not None]
            covered = min(
                (each.covers for _, each in riding if each.covers is not None), default=len(batch)
            )
            if covered >= len(batch) or len(riding) == 1:
                return batch[:covered], riding
            batch = batch[:covered]

    def bound(self, rider: Rider, batch: Sequence[Settled]) -> BoundRider | None:
        """The part of a rider in the statement for a batch; None if making it fails."""
        try:
            return rider.bind(batch)
        except Exception as error:  # of the plugin, or of an error that it looks at
            self.failures[rider.name] += 1
            self.last_error = one_line(error)
            self._logger.error(  # noqa: TRY400  # which may fail on the error
                "%s could not take part in recording %d outcome(s)\n%s",
                rider.name,
                len(batch),
                traceback_of(error),
                extra=self._about,
            )
            return None

    def stay(self, error: Exception) -> bool:
        """Whether the statement is sent again with its riders: after outages and lost races."""
        if isinstance(error, errors.LockNotAvailable):
            # `lock_timeout`: an outcome does not wait for the tables of a rider. For its own rows,
            # which another session has locked, it has to wait anyway.
            return _OWN_ROWS in (error.diag.context or "")
        return is_outage(error) or isinstance(error, _LOST_RACE)

    def failed(self, riders: Sequence[Rider], error: Exception) -> None:
        """Count a statement that failed with these riders, and leave them out if that may help."""
        self.failures.update(rider.name for rider in riders)
        known, self.last_error = self.last_error, one_line(error)
        state = error.sqlstate if isinstance(error, psycopg.Error) else None
        if state is not None and (state.startswith("42") or state == "23514"):
            # A missing table, column, right or partition.
            self._left_out_until = monotonic() + self._left_out_for
            self._logger.log(
                logging.DEBUG if known == self.last_error else logging.WARNING,
                "Recording outcomes without %s for %.0f s (%s)",
                ", ".join(rider.name for rider in riders),
                self._left_out_for,
                self.last_error,
                extra=self._about,
            )


def is_data_error(error: Exception) -> bool:
    """Whether one row of a batch is at fault, so that riders may succeed for the others."""
    if isinstance(error, UnicodeEncodeError | psycopg.DataError):
        return True
    return isinstance(error, psycopg.IntegrityError) and error.sqlstate != "23514"
