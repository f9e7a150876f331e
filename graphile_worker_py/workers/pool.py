"""A worker pool: owns all parts that run jobs, starts them, stops them in order.

Parts live in rings. The outermost one proves that the pool is alive; the next one records outcomes,
so it sees every one; the next one feeds (local queue, listener, sweep for stale locks); the inner
one works. Stopping goes from the inside out: no more jobs are handed out, running jobs finish,
fetched jobs that were not started are returned, the last outcomes are recorded, the pool leaves.

Parts are asked to stop, never cancelled; only the workers are, at a forced stop. Cancelling
`WorkerPool.run` is a forced stop, too.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from graphile_worker_py import aio, events
from graphile_worker_py.errors import IncompatibleSchemaError, WorkerPoolError
from graphile_worker_py.events import Events
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.plugins import Part, PartEnd
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.schema import migrate
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.task_ids import TaskIds
from graphile_worker_py.tasks.context import RunningJob
from graphile_worker_py.tasks.injection import NOTHING_PROVIDED, Provided
from graphile_worker_py.tasks.pool_context import PoolContext
from graphile_worker_py.tasks.task import Task
from graphile_worker_py.workers.health import Health, State, Vitals
from graphile_worker_py.workers.listener import Listener
from graphile_worker_py.workers.local_queue import PART as FETCH
from graphile_worker_py.workers.parts import Parts
from graphile_worker_py.workers.waits import Waits
from graphile_worker_py.workers.watchdog import Pace, Watchdog

LONGEST_PAUSE: Final = 90.0
"""Seconds, in addition to the poll interval, until the next fetch at the latest."""


class WorkerPool:
    """Runs jobs of one database and schema, some at a time.

    Args:
        database: Where the jobs are.
        tasks: Tasks by identifier.
        options: How to run them.
        logger: Where jobs log to.
        events: Where to emit events.
        hooks: Plugins that wrap fetches and task calls.
        once: Whether to end when no job is due, instead of waiting for more.
        ends_process: Whether a standstill of `watchdog_timeout` ends the process.
        waits: How long its parts wait; None means as long as `Waits` says.
        provided: What the program provides for tasks that ask for it.

    Attributes:
        parts: Its parts, which `wiring.build_pool` makes and connects.
        pool_id: What its jobs are locked by.
        declared_dead: Whether it ended because other pools have declared it dead; a new pool is
            to take its place.
    """

    parts: Parts

    def __init__(
        self,
        database: Database,
        tasks: Mapping[str, Task[Any]],
        options: WorkerOptions,
        *,
        logger: logging.Logger,
        events: Events,
        hooks: Hooks,
        once: bool = False,
        ends_process: bool = False,
        waits: Waits | None = None,
        provided: Provided = NOTHING_PROVIDED,
    ) -> None:
        self.pool_id = f"{'otpool' if once else 'pool'}-{os.urandom(9).hex()}"
        self.declared_dead = False
        self.database = database
        self.tasks = tasks
        self.options = options
        self.logger = logger
        self.events = events
        self.hooks = hooks
        self.once = once
        self.ends_process = ends_process
        self.waits = Waits() if waits is None else waits
        self.provided = provided
        self.stopping = asyncio.Event()
        self.killed = asyncio.Event()
        self.vitals = Vitals(self.pool_id, events)
        self._state = State.STARTING
        self._stop_reason: str | None = None
        self._kill_reason: str | None = None
        self._fatal: BaseException | None = None
        self._parts: list[asyncio.Task[None]] = []
        self._gave_up = False
        self._is_stuck = False
        self._watchdog: Watchdog | None = None

    @property
    def kill_reason(self) -> str | None:
        """Why the pool is being stopped by force; None if it is not."""
        return self._kill_reason

    @property
    def listener(self) -> Listener:
        """Where plugins register the topics that they want to hear."""
        return self.parts.listener

    @property
    def running(self) -> Mapping[int, RunningJob]:
        """The jobs that run now, by their ids; each of them can be asked to end."""
        return self.parts.team.running

    @property
    def shared(self) -> PoolContext:
        """What its running jobs share."""
        return self.parts.context

    @property
    def task_ids(self) -> TaskIds:
        """The ids of the pool's tasks in this database."""
        return self.parts.fetcher.task_ids

    def server_time(self, moment: float) -> float | None:
        """The server's clock at a moment of `perf_counter`; see `Gaps.server_time`."""
        return self.parts.heartbeat.server_time(moment)

    @property
    def prefetches(self) -> bool:
        """Whether it locks more jobs than its workers begin at once.

        A function for forbidden flags, called before each fetch, may be a rate limit: it must count
        when the job starts, not when it was stored.
        """
        return self.options.local_queue.size > 0 and not callable(self.options.forbidden_flags)

    def cancel(self, job_id: int, *, reason: str | None = None, grace: float = 30.0) -> bool:
        """Cancel a job that runs here; returns whether there is one. See `Team.cancel`."""
        return self.parts.team.cancel(job_id, reason=reason, grace=grace)

    def nudge(self, count: int) -> None:
        """Fetch now: there may be this many jobs."""
        if not self.stopping.is_set():
            self.parts.queue.nudge(count)

    def stop(self, reason: str = "Worker pool is shutting down gracefully") -> None:
        """Stop gracefully: fetch no more, let running jobs finish. `run` returns when done."""
        if self._stop_reason is not None:
            return
        self._stop_reason = reason
        self._state = State.STOPPING
        self.stopping.set()
        self.parts.heartbeat.stopping()
        self.parts.queue.stop()
        self.events.emit(events.PoolGracefulShutdown(pool_id=self.pool_id, message=reason))
        self.parts.team.release()

    def kill(self, reason: str = "Terminated through .kill() command") -> None:
        """Stop at once: running jobs are cut off and returned with their attempt."""
        self.stop(reason)
        if self._kill_reason is not None:
            return
        self._kill_reason = reason
        self.events.emit(events.PoolForcefulShutdown(pool_id=self.pool_id, message=reason))
        self.parts.team.abort("lost" if self.declared_dead else "shutdown")
        self.killed.set()
        # First cancelled tasks, then the last outcomes get their time. A database that is away
        # does not delay the end further.
        asyncio.get_running_loop().call_later(2 * self.waits.kill, self._give_up)

    def health(self) -> Health:
        """The state of the pool, and when and how it last worked."""
        vitals, parts = self.vitals, self.parts
        return Health(
            pool_id=self.pool_id,
            state=self._state,
            started_at=vitals.started_at,
            connected=vitals.connected,
            standing_still=self._is_stuck
            or (self._watchdog is not None and self._watchdog.standing_still),
            held_back=parts.heartbeat.held_back,
            listening=parts.listener.listening,
            last_fetch_at=vitals.last_fetch_at,
            last_heard_at=parts.listener.heard_at,
            running_jobs=len(parts.team.running),
            locked_jobs=len(parts.holdings.ids),
            busy_threads=parts.executors.threads.busy,
            stuck_threads=parts.executors.threads.stuck,
            stuck_tasks=parts.executors.time_limits.stuck,
            rider_failures=parts.riders.failures.total(),
            rider_error=parts.riders.last_error,
            leads=parts.leader.leads,
            plugin_failures=parts.plugin_failures,
            plugin_error=parts.plugin_error,
            troubles=self.hooks.troubles(self),
            last_error=vitals.last_error,
            last_error_at=vitals.last_error_at,
        )

    async def run(self) -> None:
        """Run until stopped, or, with `once`, until no job is due.

        Raises:
            WorkerPoolError: Outcomes could not be recorded, or tasks did not end when cut off.
            IncompatibleSchemaError: The schema changed into one that this release can't work on.
        """
        await aio.run_to_end(self._run(), on_cancel=lambda: self.kill("Cancelled"))

    async def _run(self) -> None:
        parts = self.parts
        self.events.emit(events.PoolCreate(pool_id=self.pool_id))
        self._watchdog = watchdog = parts.make_watchdog()
        watchdog.start()
        try:
            async with aio.until(self.stopping):
                await parts.fetcher.register_tasks(
                    partial(self.database.run_retrying, what="register the tasks")
                )
            if not self.stopping.is_set():
                self._state = State.RUNNING
                async with parts.fetching, parts.settling, parts.beating:
                    await self._be_present_and_below()
        finally:
            threads_left = await parts.executors.close()
            await self.database.task_sessions.give_up_idle()
            watchdog.close()
            self.database.availability.forget_all()
            self._end(threads_left)
        if self._fatal is not None:
            raise self._fatal

    def _end(self, threads_left: int) -> None:
        if threads_left:
            self.logger.warning("%d thread(s) run on: their functions did not return", threads_left)
        self._check_nothing_is_locked()
        self._emit_end()
        self._state = State.STOPPED
        self.vitals.close()
        self.events.emit(events.PoolRelease(pool_id=self.pool_id))

    def _check_nothing_is_locked(self) -> None:
        if self.declared_dead:
            return  # other pools have freed its jobs
        left = sorted(self.parts.holdings.ids)
        if left:
            error = WorkerPoolError(
                f"stopped with {len(left)} job(s) whose outcome could not be recorded; they stay "
                f"locked by {self.pool_id}: {', '.join(map(str, left[:10]))}"
            )
            self.break_down(error, "record all outcomes")
        elif self.parts.holdings.in_doubt:
            error = WorkerPoolError(
                f"a fetch was not answered; jobs that it may have locked stay locked by "
                f"{self.pool_id}"
            )
            self.break_down(error, "fetch jobs")

    def _emit_end(self) -> None:
        graceful = self._kill_reason is None
        if self._fatal is not None:
            kind: Callable[..., events.PoolEvent] = (
                events.PoolGracefulShutdownError if graceful else events.PoolForcefulShutdownError
            )
            self.events.emit(kind(pool_id=self.pool_id, error=self._fatal))
        if graceful:
            self.events.emit(events.PoolGracefulShutdownComplete(pool_id=self.pool_id))
        else:
            returned = tuple(self.parts.settler.returned)
            self.events.emit(
                events.PoolForcefulShutdownComplete(pool_id=self.pool_id, returned=returned)
            )

    # The rings, from the outside in.

    async def _be_present_and_below(self) -> None:
        parts = self.parts
        await parts.heartbeat.begin(self.stopping)
        async with asyncio.TaskGroup() as present:
            self._start(present, parts.heartbeat.run(), "prove to be alive")
            for part, action in parts.looking_after_others():
                self._start(present, part.run(), action)
            try:
                if not self.stopping.is_set():
                    async with self._plugins_parts():
                        await self._settle_and_below()
                    await self._leave_nothing_locked()
            finally:
                for part, _ in parts.looking_after_others():
                    part.close()
                left_locks = bool(parts.holdings.ids) or parts.holdings.in_doubt
                parts.heartbeat.close(left_locks=left_locks)

    async def _settle_and_below(self) -> None:
        settler = self.parts.settler
        async with asyncio.TaskGroup() as settling:
            for part, action in settler.parts():
                self._start(settling, part, action)
            try:
                await self._feed_and_below()
            finally:
                settler.close()

    async def _leave_nothing_locked(self) -> None:
        """Return jobs that are locked but not held, now that all outcomes are recorded."""
        if not self._gave_up:
            async with asyncio.TaskGroup() as last:
                work = self.parts.fetcher.resolve_doubt_in_time()
                self._start(last, work, "return lost jobs")

    async def _feed_and_below(self) -> None:
        parts = self.parts
        async with asyncio.TaskGroup() as feeding:
            self._start(feeding, self._fetch_jobs(feeding), "fetch jobs")
            if not self.once:
                self._start(feeding, parts.listener.run(), "listen")
                self._start(feeding, parts.sweep.run(), "reset locks")
            try:
                await parts.team.work()
            finally:
                self.stop("No more jobs are due" if self.once else "All workers have ended")
                parts.listener.close()
                parts.queue.close()

    @asynccontextmanager
    async def _plugins_parts(self) -> AsyncIterator[None]:
        """Run the parts that plugins add to the pool."""
        crew = aio.Crew()
        for part in self.hooks.parts(self):
            crew.start(self._run_plugins_part(part), name=part.name)
        try:
            yield
        finally:
            await crew.cancel(patience=self.waits.plugins_parts)

    async def _run_plugins_part(self, part: Part) -> None:
        try:
            if part.ends is PartEnd.WITH_FETCHING:
                async with aio.until(self.stopping):
                    await part.run()
            else:
                await part.run()
        except Exception as error:  # raised again by run()
            self.break_down(error, f"run {part.name}")

    async def _fetch_jobs(self, group: asyncio.TaskGroup) -> None:
        """Run the local queue; after a stop, do not wait long for its last fetch."""
        cutting_off = group.create_task(self._cut_off_fetch(), name="cut off the last fetch")
        try:
            await self.parts.queue.run()
        except Exception:
            await self.parts.fetcher.resolve_doubt_in_time()
            raise
        finally:
            cutting_off.cancel()

    async def _cut_off_fetch(self) -> None:
        await self.stopping.wait()
        await asyncio.sleep(self.waits.stop)
        await self.parts.fetcher.cut_off()

    # What the parts need of the pool.

    def is_late(self) -> bool:
        """Whether other pools may have declared this one dead by now."""
        return self.parts.heartbeat.is_late()

    async def confirm(self) -> bool:
        """Wait until fetched jobs are known to be the pool's; False if the pool is to stop."""
        while not await self.parts.heartbeat.confirm():
            if await aio.wait_for(self.stopping, self.waits.confirm):
                return False
        return True

    async def fetch(self, count: int) -> Fetched:
        """Fetch jobs, unless other pools may have declared this one dead."""
        if not await self.parts.heartbeat.confirm():
            return Fetched([], more=False)
        fetched = await self.parts.fetcher.fetch(count)
        self.vitals.has_fetched()
        self.database.availability.works(FETCH)
        return fetched

    def lose(self) -> None:
        """Stop at once: other pools have declared this one dead and freed its jobs."""
        self.declared_dead = True
        self.logger.error(
            "Other pools declared this pool dead and freed its jobs; aborting what runs here",
            extra={"pool_id": self.pool_id},
        )
        self.events.emit(events.PoolTakenForDead(pool_id=self.pool_id))
        self.kill("Declared dead by another worker pool")

    def stuck(self, seconds: float) -> None:
        """Stop in order: heartbeats have been refused for too long."""
        self._is_stuck = True
        error = WorkerPoolError(
            f"this pool could not prove for {seconds:.0f} s that it is alive, although the "
            f"database works; see the warnings about heartbeats"
        )
        self.break_down(error, "prove that the pool is alive")

    def break_down(self, error: BaseException, action: str) -> None:
        """Stop in order because of an error that `run` raises in the end."""
        if self._fatal is None:
            self._fatal = error
            self.events.emit(
                events.PoolFatalError(pool_id=self.pool_id, error=error, action=action)
            )
        self.stop(f"Could not {action}")

    async def check_schema(self) -> None:
        """Stop if the schema, and not another one of this database, has changed too much."""
        try:
            await migrate.check_revision(self.database)
        except IncompatibleSchemaError as error:
            self.break_down(error, "work on the schema")

    def pace(self) -> Pace | None:
        """How far fetching has come; None if no worker waits for jobs, or in a known outage."""
        vitals = self.vitals
        if vitals.is_fetching:
            return Pace(vitals.fetch_steps, 0)
        if self.stopping.is_set() or not self.parts.team.has_idle or not vitals.connected:
            return None
        return Pace(vitals.fetch_steps, 1.5 * self.options.poll_interval + LONGEST_PAUSE)

    def _give_up(self) -> None:
        self._gave_up = True
        for part in self._parts:
            part.cancel()

    def _start(self, group: asyncio.TaskGroup, part: Awaitable[None], action: str) -> None:
        self._parts.append(group.create_task(self._guarded(part, action), name=action))

    async def _guarded(self, part: Awaitable[None], action: str) -> None:
        """Run a part; if it breaks, stop the pool in order instead of tearing it down."""
        try:
            await part
        except asyncio.CancelledError:
            if self._kill_reason is None:
                error = WorkerPoolError(
                    f"the task that should {action} was cancelled by other code"
                )
                self.break_down(error, action)
            raise
        except Exception as error:  # raised again by run()
            self.break_down(error, action)
