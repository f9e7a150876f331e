"""How long to wait before trying again."""

import random

from graphile_worker_py.records import Record


class Backoff(Record, kw_only=False):
    """Growing delays with jitter, so that many clients do not retry at the same moment.

    Args:
        shortest: First delay, in seconds.
        longest: Longest delay before jitter, in seconds.
        factor: Growth from one delay to the next.
    """

    shortest: float
    longest: float
    factor: float = 1.5

    def delay(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row (1 or more), times 0.5 to 1.5."""
        # The exponent is bounded because a float power overflows after some thousand failures.
        exponent = min(max(failures - 1, 0), 100)
        raw = min(self.shortest * self.factor**exponent, self.longest)
        return raw * random.uniform(0.5, 1.5)  # noqa: S311  # jitter, not a secret


CONTENTION = Backoff(shortest=0.05, longest=5.0)
"""Between tries of a statement that lost a race."""
UNAVAILABLE = Backoff(shortest=0.2, longest=15.0)
"""Between tries while the database can't be reached or can't serve."""
