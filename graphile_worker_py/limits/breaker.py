"""One circuit breaker as one pool sees it."""

import asyncio
from collections import deque

from graphile_worker_py.errors import one_line
from graphile_worker_py.options.limits import CircuitBreaker


class PoolBreaker:
    """Counts failures, opens, and lets one job through when the time is over.

    It decides by itself, at once; what it has decided is written and told to other pools later.

    Args:
        settings: The breaker as the code has it.
        tasks: The pool's tasks that have it.

    Attributes:
        name: Its name.
        probe: The job that is let through; None if none is.
        reason: The failure that has opened it; None if it is closed.
        unwritten: Whether other pools do not know its state yet.
        failures: How many failures have opened it, or kept it open, that they do not know yet.
        next_try: The loop's time of the next try to let a job through.
    """

    def __init__(self, settings: CircuitBreaker, tasks: frozenset[str]) -> None:
        self.name = settings.name
        self.settings = settings
        self.tasks = tasks
        self.probe: int | None = None
        self.reason: str | None = None
        self.unwritten = False
        self.failures = 0
        self.next_try = 0.0
        self._is_open = False
        self._failures: deque[float] = deque(maxlen=settings.failures)

    @property
    def is_open(self) -> bool:
        """Whether jobs wait; also while one is let through."""
        return self._is_open

    @property
    def state(self) -> str:
        """What it is, in words."""
        left = self.next_try - _now()
        if left > 0:
            return f"breaker {self.name!r} is open for another {left:.1f} s: {self.reason}"
        return f"breaker {self.name!r} lets one job through after: {self.reason}"

    def lets(self, job_id: int) -> bool:
        """Whether a job may run now."""
        return not self._is_open or job_id == self.probe

    def succeeded(self, job_id: int) -> bool:
        """Note that a job has succeeded; returns whether that has closed the breaker."""
        if job_id != self.probe:
            return False
        self.close()
        self.unwritten = True
        return True

    def failed(self, job_id: int, error: BaseException) -> bool:
        """Note that a job has failed; returns whether that has opened the breaker."""
        now = _now()
        if job_id != self.probe:
            self._failures.append(now)
            oldest = now - self.settings.window
            if len(self._failures) < self.settings.failures or self._failures[0] < oldest:
                return False
            self.failures += len(self._failures)
        else:
            self.failures += 1
        self.open(self.settings.open_for, one_line(error))
        self.unwritten = True
        return True

    def open(self, seconds: float, reason: str | None) -> None:
        """Let jobs wait."""
        self._is_open, self.probe, self.reason = True, None, reason
        self.next_try = _now() + seconds

    def close(self) -> None:
        """Let all jobs go on."""
        self._is_open, self.probe, self.reason = False, None, None
        self.failures = 0
        self._failures.clear()

    def is_due(self) -> bool:
        """Whether a job is to be let through now."""
        return self._is_open and self.probe is None and _now() >= self.next_try


def _now() -> float:
    return asyncio.get_running_loop().time()
