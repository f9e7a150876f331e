"""Log an outage of the database once, and let all parts of a worker return from it together."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import monotonic
from typing import Protocol, TypeVar

import psycopg

from graphile_worker_py import aio
from graphile_worker_py.errors import one_line
from graphile_worker_py.postgres.outages import backoff_for, delay_after, is_outage

T = TypeVar("T")


class Availability:
    """Whether the database serves the parts of a worker.

    The parts have connections of their own, so each meets an outage by itself: fetches, outcomes,
    the listener, heartbeats, cron. The first one that fails logs a warning; further failures are
    logged at debug. When all of them work again, that is logged once.

    Each part retries after delays that grow. The first part that works again wakes the others, so
    that none waits for the rest of its delay. They are woken again only if a part fails that did
    not fail before, or fails again after it worked.
    """

    def __init__(self) -> None:
        self._failing: set[str] = set()
        self._began = self._ended = 0.0
        self._returning = asyncio.Event()
        self._log: logging.Logger | None = None
        self._extra: Mapping[str, object] | None = None

    def failed(
        self,
        part: str,
        error: BaseException,
        *,
        delay: float,
        log: logging.Logger,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log that a part failed, which will retry.

        Args:
            part: What the part does, for example `fetch jobs`.
            error: Why it failed.
            delay: Seconds until it retries.
            log: Where to log.
            extra: Fields of the log record.
        """
        if is_outage(error) and not self._failing:
            self._began, self._log, self._extra = monotonic(), log, extra
            message = "The database failed: could not %s (%s); retrying"
            log.warning(message, part, one_line(error), extra=extra)
        else:
            level = logging.DEBUG if is_outage(error) else _level(error)
            message = "Could not %s (%s); retrying in %.1f s"
            log.log(level, message, part, one_line(error), delay, extra=extra)
        if is_outage(error) and part not in self._failing:
            self._returning.clear()
            self._failing.add(part)

    def skipped(
        self,
        work: str,
        error: BaseException,
        *,
        log: logging.Logger,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log that work failed which is not retried soon. In a known outage, at debug."""
        level = logging.DEBUG if self.is_away() and is_outage(error) else logging.WARNING
        log.log(level, "Could not %s (%s); retrying later", work, one_line(error), extra=extra)

    def is_away(self, *, except_for: Iterable[str] = ()) -> bool:
        """Whether parts fail because of an outage, apart from those of `except_for`."""
        return not self._failing.issubset(except_for)

    def works(self, part: str) -> None:
        """Note that a part succeeded. Cheap unless the part had failed."""
        if part not in self._failing:
            return
        if not self._returning.is_set():
            self._ended = monotonic()
            self._returning.set()
        self.forget(part)
        if not self._failing and self._log is not None:
            lasted = self._ended - self._began
            self._log.info("The database works again after %.1f s", lasted, extra=self._extra)

    def forget(self, part: str) -> None:
        """Note that a part gave up, so that the end of the outage does not depend on it."""
        self._failing.discard(part)

    def forget_all(self) -> None:
        """Note that all parts have ended."""
        self._failing.clear()

    async def wait(self, delay: float, *, stop: asyncio.Event | None = None) -> None:
        """Wait before the next try, until `stop` is set or another part works again."""
        stop = asyncio.Event() if stop is None else stop
        if self._returning.is_set() or not self._failing:
            await aio.wait_for(stop, delay)
        else:
            async with aio.until(self._returning):
                await aio.wait_for(stop, delay)


class DelayAfter(Protocol):
    """Decides about the next try, as `delay_after` does."""

    def __call__(self, error: BaseException, *, failures: int) -> float | None: ...


async def retrying(
    attempt: Callable[[], Awaitable[T]],
    *,
    what: str,
    log: logging.Logger,
    availability: Availability,
    delay_after: DelayAfter = delay_after,
    sleep: Callable[[float], Awaitable[object]] | None = None,
) -> T:
    """Await `attempt`, again after errors of the database that may pass.

    Args:
        attempt: Awaited anew for each try; must be safe to repeat.
        what: Names the work in the log: `Could not <what> (<error>); retrying in <n> s`.
        log: Where to log.
        availability: Logs outages.
        delay_after: Decides about the next try.
        sleep: Waits this many seconds, or less; None waits as `Availability.wait` does.

    Raises:
        psycopg.Error | OSError: No retry helps, or too many tries failed.
    """
    failures = 0
    sleep = availability.wait if sleep is None else sleep
    try:
        while True:
            try:
                result = await attempt()
            except (psycopg.Error, OSError) as error:
                failures += 1
                delay = delay_after(error, failures=failures)
                if delay is None:
                    raise
                availability.failed(what, error, delay=delay, log=log)
                await sleep(delay)
            else:
                availability.works(what)
                return result
    finally:
        availability.forget(what)


def _level(error: BaseException) -> int:
    """The level of an error that is not an outage: a person must act unless it passes."""
    return logging.ERROR if backoff_for(error) is None else logging.WARNING
