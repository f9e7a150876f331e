"""Adds the jobs of cron items when they are due, each once among all workers of a database."""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg

from graphile_worker_py.aio import wait_for
from graphile_worker_py.backoff import CONTENTION, Backoff
from graphile_worker_py.cron.items import Overlap, ParsedCronItem, check_items, where
from graphile_worker_py.cron.match import MINUTE, Occurrence, Timetable, ceil_minute, floor_minute
from graphile_worker_py.cron.pattern import Pattern
from graphile_worker_py.cron.published import as_json
from graphile_worker_py.cron.server_clock import ServerClock
from graphile_worker_py.errors import MissingTablesError, one_line
from graphile_worker_py.events import (
    CronBackfill,
    CronOverdueTimer,
    CronPrematureTimer,
    CronSchedule,
    CronScheduled,
    CronStarted,
    CronStarting,
    Events,
)
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.postgres.availability import retrying
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.outages import backoff_for
from graphile_worker_py.sql import crontab_items, known_crontabs
from graphile_worker_py.sql.known_crontabs import AddedRun, CronJob, KnownCrontab

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]
Wait = Callable[[asyncio.Event, float | None], Awaitable[bool]]

PART: Final = "run cron"
RESTART: Final = Backoff(shortest=0.2, longest=60.0)
"""Delays before the protocol starts again after an error that lasted."""
PUBLISH_INTERVAL: Final = 600.0
"""Seconds after which the items are written again, for programs that show them."""
CLOSING_TIME: Final = 1.0
"""Seconds after `close` until a running statement is cancelled."""

# Timers end just after the minute, so that a clock with a coarser resolution shows it, too.
_MARGIN: Final = 0.001
# The longest wait, so that a change of the clock is detected.
_LONGEST_WAIT: Final = 60.0
# Limit for a backfill period, which a timedelta can hold.
_FOR_EVER: Final = 100 * 366 * 86400.0
_DAY: Final = timedelta(days=1)


class Cron:
    """Adds jobs when cron items are due.

    The protocol is Graphile Worker's, so that any number of workers in both languages can have the
    same items: a table holds the last run of each item, and a job is added in the statement that
    records its run. The scheduler goes through these steps:

    - **Register.** Items that are missing in the table are recorded as known since now.
    - **Backfill.** For items that were known before, runs that were missed within their
      `backfill_period` are added, oldest first.
    - **Minute loop.** At each minute, one statement adds the jobs of all due items. If the clock
      has gone back, nothing is due yet. If it has gone ahead (the machine slept, or the clock was
      set), the minutes between are caught up.

    A statement that fails is retried for up to a minute. If the error lasts, the scheduler starts
    again at the first step after a growing delay, without limit.

    Args:
        database: Where jobs are added.
        items: From `parse_crontab` or `parse_cron_items`; their identifiers must be unique.
        events: Where events are emitted.
        clock: Returns the time, aware. None means the clock of this process, corrected by the
            database's if they differ much, because all workers of a database must agree.
        wait: Waits for an event for at most this many seconds, as `aio.wait_for` does.
        publishes: Whether the items are written into the side schema, for programs that show them.

    Raises:
        CrontabError: An item has a value that can't be stored, or identifiers are not unique.
    """

    def __init__(
        self,
        database: Database,
        items: Iterable[ParsedCronItem],
        *,
        events: Events,
        clock: Clock | None = None,
        wait: Wait = wait_for,
        publishes: bool = False,
    ) -> None:
        self._items = tuple(items)
        check_items(self._items)
        self._database = database
        self._availability = database.availability
        self._events = events
        self._clock: Clock = ServerClock(database) if clock is None else clock
        self._wait = wait
        self._timetable = Timetable(self._items)
        self._closed = asyncio.Event()
        self._limit: asyncio.Timeout | None = None
        self._failures = 0
        self._publish_at = -math.inf if publishes else math.inf

    def close(self) -> None:
        """Let `run` return, at once or when the running statement has ended."""
        self._closed.set()
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + CLOSING_TIME)

    async def run(self) -> None:
        """Register, backfill and add jobs until closed. The owner starts this in a task group."""
        if not self._items or self._closed.is_set():
            return
        _warn_of_days_that_never_come(self._items)
        try:
            async with asyncio.timeout(None) as limit:
                self._limit = limit
                await self._run_for_ever()
        except TimeoutError:
            # The database did not answer in time; the next start adds these jobs.
            if not limit.expired():
                raise
        finally:
            self._limit = None
            self._availability.forget(PART)

    async def _run_for_ever(self) -> None:
        while not self._closed.is_set():
            try:
                await self._run_until_error()
            except (psycopg.Error, OSError) as error:
                self._failures += 1
                delay = RESTART.delay(self._failures)
                self._availability.failed(PART, error, delay=delay, log=logger)
                await self._wait(self._closed, delay)

    async def _run_until_error(self) -> None:
        await self._check_clock()
        # Node's times have milliseconds; both must decide alike about the first minute.
        now = self._clock().astimezone(UTC)
        start = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._events.emit(CronStarting(start=start))
        identifiers = [item.identifier for item in self._items]
        known = await self._database.run(known_crontabs.register(identifiers, start))
        self._availability.works(PART)
        _warn_of_future_runs(known)
        await self._backfill(start, known)
        self._events.emit(CronStarted(start=start))
        await self._each_minute(ceil_minute(start))

    async def _backfill(self, start: datetime, known: Mapping[str, KnownCrontab]) -> None:
        """Add the runs that were missed before the start."""
        since: dict[str, datetime] = {}
        for item in self._items:
            row = known.get(item.identifier)
            period = item.options.backfill_period
            if row is None or period == 0:
                continue
            first = start - timedelta(seconds=min(period, _FOR_EVER))
            if row.last_execution is None:
                since[item.identifier] = max(first, row.known_since)
            else:
                since[item.identifier] = max(first, row.last_execution + timedelta.resolution)
        for day in self._missed(since, start):
            for minute, items in day:
                if self._closed.is_set():
                    return
                jobs = [cron_job(item, minute, backfilled=True) for item in items]
                rows = [known[job.cron_identifier] for job in jobs]
                self._tell(
                    CronBackfill,
                    minute,
                    jobs,
                    known_since=[row.known_since for row in rows],
                    last_executions=[row.last_execution for row in rows],
                )
                await self._add(minute, jobs)
            await asyncio.sleep(0)

    async def _each_minute(self, expected: datetime) -> None:
        """Add the jobs that are due from the expected minute on, which only moves forward."""
        await self._publish()
        while await self._reached(expected):
            current = floor_minute(self._clock().astimezone(UTC))
            if current > expected:
                self._events.emit(
                    CronOverdueTimer(current_timestamp=current, expected_timestamp=expected)
                )
                since = {item.identifier: expected for item in self._items}
                for day in self._missed(since, current):
                    for minute, items in day:
                        await self._tick(minute, items)
                    await asyncio.sleep(0)
            due = self._timetable.due(current)
            if due:
                await self._tick(current, due)
            expected = current + MINUTE
            await self._publish()

    async def _publish(self) -> None:
        """Write the items for programs that show them; tried again a minute later if it fails."""
        now = asyncio.get_running_loop().time()
        if now < self._publish_at:
            return
        items = {item.identifier: as_json(item) for item in self._items}
        try:
            await self._database.drive(crontab_items.publish(self._database.schema, items))
        except (MissingTablesError, psycopg.Error, OSError) as error:
            # Without the side schema the pages can't show them, and nothing else is missing.
            logger.debug("Could not write the cron items (%s)", one_line(error))
        else:
            self._publish_at = now + PUBLISH_INTERVAL

    async def _reached(self, expected: datetime) -> bool:
        """Wait until the clock shows a minute; false if closed before."""
        while not self._closed.is_set():
            left = (expected - self._clock()).total_seconds()
            if left <= 0:
                await self._check_clock()
                left = (expected - self._clock()).total_seconds()
            if left <= 0:
                return True
            await self._wait(self._closed, min(left + _MARGIN, _LONGEST_WAIT))
            now = self._clock()
            if now < expected and left < _LONGEST_WAIT and not self._closed.is_set():
                self._events.emit(
                    CronPrematureTimer(
                        current_timestamp=now.astimezone(UTC), expected_timestamp=expected
                    )
                )
        return False

    async def _check_clock(self) -> None:
        if isinstance(self._clock, ServerClock):
            await self._clock.check()

    def _missed(self, since: dict[str, datetime], end: datetime) -> Iterator[list[Occurrence]]:
        """The minutes before `end` at which items were due, from the time of each item on.

        Yields a day at a time, to not block the event loop: scanning years takes seconds.
        """
        items = [item for item in self._items if item.identifier in since]
        for item in items:
            most = item.options.max_backfill
            if most is not None:
                runs = Timetable([item]).between(since[item.identifier], end)
                latest = deque((minute for minute, _ in runs), maxlen=most)
                since[item.identifier] = latest[0] if latest else end
        timetable = Timetable(items)
        day = min(since.values(), default=end)
        while day < end:
            missed: list[Occurrence] = []
            for minute, due in timetable.between(day, min(day + _DAY, end)):
                items_missed = tuple(item for item in due if since[item.identifier] <= minute)
                if items_missed:
                    missed.append((minute, items_missed))
            yield missed
            day += _DAY

    async def _tick(self, minute: datetime, items: Sequence[ParsedCronItem]) -> None:
        if self._closed.is_set():
            return
        jobs = [cron_job(item, minute, backfilled=False) for item in items]
        self._tell(CronSchedule, minute, jobs)
        await self._add(minute, jobs)
        self._tell(CronScheduled, minute, jobs)

    def _tell(
        self,
        kind: type[CronBackfill | CronSchedule | CronScheduled],
        minute: datetime,
        jobs: Sequence[CronJob],
        **about: Any,
    ) -> None:
        if self._events.wants(kind):
            identifiers = [job.cron_identifier for job in jobs]
            specs = [job.spec for job in jobs]
            self._events.emit(kind(identifiers=identifiers, timestamp=minute, jobs=specs, **about))

    async def _add(self, minute: datetime, jobs: Sequence[CronJob]) -> None:
        """Add the runs of one minute that no other worker has added."""
        query = known_crontabs.add(minute, jobs)
        give_up = self._clock() + MINUTE

        def delay_after(error: BaseException, *, failures: int) -> float | None:
            backoff = CONTENTION if known_crontabs.has_lost_race(error) else backoff_for(error)
            delay = None if backoff is None else backoff.delay(failures)
            is_late = delay is None or self._clock() + timedelta(seconds=delay) >= give_up
            return None if is_late else delay

        async def add() -> list[AddedRun]:
            return [] if self._closed.is_set() else await self._database.run(query)

        added = await retrying(
            add,
            what=f"add cron jobs of {minute.isoformat()}",
            log=logger,
            availability=self._availability,
            delay_after=delay_after,
            sleep=lambda delay: self._wait(self._closed, delay),
        )
        self._failures = 0
        for run in added:
            done = "skipped, the previous job still exists" if run.skipped else "added"
            logger.debug("Run of cron item %r at %s: %s", run.cron_identifier, minute, done)


def _warn_of_days_that_never_come(items: Iterable[ParsedCronItem]) -> None:
    # Graphile Worker takes such items, so that a crontab with one starts there and here.
    for item in items:
        if isinstance(item.match, Pattern) and item.match.never_comes:
            name = where(item)
            logger.warning(
                "%s%s never runs: no month of its pattern has such a day",
                name[0].upper(),
                name[1:],
            )


def _warn_of_future_runs(known: Mapping[str, KnownCrontab]) -> None:
    ahead = [row for row in known.values() if row.is_ahead and row.last_execution is not None]
    for row in ahead:
        logger.warning(
            "Cron item %r last ran at %s, which is in the future: a worker had a wrong clock. No "
            "worker adds runs of it before then",
            row.identifier,
            row.last_execution,
        )


def cron_job(item: ParsedCronItem, minute: datetime, *, backfilled: bool) -> CronJob:
    """The job of an item that is due at a minute."""
    options = item.options
    run_at = minute
    if options.jitter > 0:
        run_at += timedelta(seconds=random.uniform(0, options.jitter))  # noqa: S311  # scatter
    mode = options.job_key_mode
    spec = JobSpec(
        item.task,
        {**(item.payload or {}), "_cron": {"ts": timestamp(minute), "backfilled": backfilled}},
        queue_name=options.queue_name,
        run_at=run_at,
        priority=options.priority,
        max_attempts=options.max_attempts,
        job_key=options.job_key,
        job_key_mode=None if mode is None or options.job_key is None else str(mode),
    )
    return CronJob(
        cron_identifier=item.identifier,
        spec=spec,
        skip_if_there=options.overlap == Overlap.SKIP,
    )


def timestamp(minute: datetime) -> str:
    """A full minute in the format of `_cron.ts`: ISO 8601 in UTC, with milliseconds."""
    return minute.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:00.000Z")
