"""Announcements of jobs as reasons to fetch, also where many of them are false."""

import asyncio
from typing import Final

FALSE_ALARMS: Final = 20
"""Fetches in a second that may find none of the announced jobs before announcements have to wait.

Any role that may connect may announce jobs. And of many pools, each finds others faster at times.
"""


class Announcements:
    """Counts the jobs that were announced since the last fetch.

    Attributes:
        count: How many there were.
        heeded_from: The loop's time from which on they are a reason to fetch.
    """

    def __init__(self) -> None:
        self.count = 0
        self.heeded_from = 0.0
        self._false = 0.0
        self._last_false = 0.0

    def take(self) -> int:
        """How many jobs were announced, to look for them now."""
        count, self.count = self.count, 0
        return count

    def were_true(self) -> None:
        """Note that a fetch found jobs."""
        self._false = 0.0

    def were_false(self) -> None:
        """Note that a fetch found none of the announced jobs; later ones may have to wait."""
        now = asyncio.get_running_loop().time()
        forgotten = (now - self._last_false) * FALSE_ALARMS
        self._false = max(self._false - forgotten, 0.0) + 1
        self._last_false = now
        if self._false >= FALSE_ALARMS:
            self.heeded_from = now + 1 / FALSE_ALARMS
