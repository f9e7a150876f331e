"""For how long a pool has sent its heartbeats without a gap, and what the server's clock says."""

import asyncio
import math
from time import perf_counter


class Gaps:
    """Detects gaps between the heartbeats of a pool.

    Args:
        longest: Seconds between two heartbeats that are not a gap yet.
    """

    def __init__(self, *, longest: float) -> None:
        self.longest = longest
        self._last_beat = 0.0
        self._steady_since = 0.0
        self._clocks_apart = math.inf

    @property
    def steady(self) -> float:
        """Seconds from the first heartbeat after the last gap to the latest answered one."""
        return self._last_beat - self._steady_since

    def sent(self, at: float, *, after_failure: bool) -> None:
        """Note that a heartbeat is sent, by the clock of the event loop."""
        if after_failure or at > self._last_beat + self.longest:
            self._steady_since = at

    def answered(self, sent: float, *, server_time: float) -> None:
        """Note the answer to a heartbeat that was sent at `sent`."""
        apart = server_time - sent
        if apart > self._clocks_apart + self.longest:
            # The server's clock was put forward: all pools look late, whether or not they are.
            self._steady_since = sent
        self._clocks_apart = apart
        self._last_beat = sent

    def server_time(self, moment: float) -> float | None:
        """The server's clock, in seconds since 1970, at a moment of `perf_counter`.

        None before the first heartbeat was answered.
        """
        if self._clocks_apart == math.inf:
            return None
        return self._clocks_apart + asyncio.get_running_loop().time() - (perf_counter() - moment)
