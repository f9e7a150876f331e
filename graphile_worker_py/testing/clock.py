"""The clock of a test, which can be moved forward."""

from datetime import datetime, timedelta

from graphile_worker_py.checks import check_seconds
from graphile_worker_py.clock import utc_now


class TestClock:
    """Decides which scheduled jobs are due when a test drains its jobs.

    Rows keep the times that the database wrote, and the application's own SQL sees the real clock.

    Attributes:
        offset: How far the clock is ahead of the real one.
    """

    __test__ = False

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        """The time of the test, in UTC."""
        return utc_now() + self.offset

    def travel(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> datetime:
        """Move the clock forward, and return its new time.

        Raises:
            ConfigurationError: The clock would go back.
        """
        step = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        check_seconds("the time that the clock travels", step.total_seconds())
        self.offset += step
        return self.now()
