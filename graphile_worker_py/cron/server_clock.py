"""The clock of this process, corrected where it differs from the database's."""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from graphile_worker_py.clock import shortened, utc_now
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.sql.known_crontabs import read_clock

logger = logging.getLogger(__name__)

TOLERANCE: Final = 5.0
"""Seconds by which the clocks may differ without effect."""
CHECK_INTERVAL: Final = 600.0
"""Seconds after which the clocks are compared again, if this one does not jump before."""


class ServerClock:
    """Shows this process's time, or the database's time if the two differ much.

    A worker whose clock is an hour ahead would record runs of the next hour, and all workers would
    skip their runs until then.

    Args:
        database: Where to read the time.
        clock: The clock of this process.
        monotonic: A clock that is never set, in seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._offset = timedelta()
        self._checked_at: float | None = None
        self._drift = 0.0

    def __call__(self) -> datetime:
        """The time."""
        return self._clock() + self._offset

    async def check(self) -> None:
        """Compare the clocks, if this one has jumped or was not compared for a while.

        Raises:
            psycopg.Error: The database can't be reached.
        """
        if self._checked_at is not None:
            is_fresh = self._monotonic() - self._checked_at < CHECK_INTERVAL
            has_jumped = abs(self._measured_drift() - self._drift) > TOLERANCE / 2
            if is_fresh and not has_jumped:
                return
        before = self._clock()
        server = await self._database.run(read_clock())
        ahead = (before + (self._clock() - before) / 2 - server).total_seconds()
        self._checked_at = self._monotonic()
        self._drift = self._measured_drift()
        was_off = bool(self._offset)
        self._offset = timedelta(seconds=-ahead) if abs(ahead) > TOLERANCE else timedelta()
        if self._offset and not was_off:
            logger.warning(
                "The clock of this machine is %s %s the database's; recurring jobs are scheduled "
                "by the database's",
                shortened(abs(ahead)),
                "ahead of" if ahead > 0 else "behind",
            )

    def _measured_drift(self) -> float:
        """Changes when the clock is set, or the machine has slept."""
        return self._clock().timestamp() - self._monotonic()
