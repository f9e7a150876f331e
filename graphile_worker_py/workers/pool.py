"""A worker pool: owns all parts that run jobs, starts them, stops them in order.

How its parts run, and end in order, is in `rings`. Cancelling `WorkerPool.run` is a forced stop.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from graphile_worker_py import aio, events
from graphile_worker_py.errors import IncompatibleSchemaError, WorkerPoolError
from graphile_worker_py.events import Events
from graphile_worker_py.job import Job
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.options.pools import DEFAULT_NAME
from graphile_worker_py.plugins.hooks import Hooks
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.schema import migrate
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.task_ids import TaskIds
from graphile_worker_py.tasks.context import RunningJob
from graphile_worker_py.tasks.pool_context import PoolContext
from graphile_worker_py.tasks.program import NOTHING_PROVIDED, Provided
from graphile_worker_py.tasks.task import Task
from graphile_worker_py.workers.health import Health, State, Vitals
from graphile_worker_py.workers.hearing import Hearing
from graphile_worker_py.workers.in_common import InCommon
from graphile_worker_py.workers.local_queue import PART as FETCH
from graphile_worker_py.workers.parts import Parts
from graphile_worker_py.workers.rings import Rings
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
        in_common: What it has in common with the other pools of its runner.
        connections: How many connections it may open.
        once: Whether to end when no job is due, instead of waiting for more.
        ends_process: Whether a standstill of `watchdog_timeout` ends the process.
        waits: How long its parts wait; None means as long as `Waits` says.
        provided: What the program provides for tasks that ask for it.
        name: Its name in its runner.

    Attributes:
        parts: Its parts, which `wiring.build_pool` makes and connects.
        pool_id: What its jobs are locked by.
        declared_dead: Whether it ended because other pools have declared it dead; a new pool is
            to take its place.
    """

    parts: Parts
    _rings: Rings | None = None
    _watchdog: Watchdog | None = None

    def __init__(
        self,
        database: Database,
        tasks: Mapping[str, Task[Any]],
        options: WorkerOptions,
        *,
        logger: logging.Logger,
        events: Events,
        hooks: Hooks,
        in_common: InCommon,
        connections: int,
        once: bool = False,
        ends_process: bool = False,
        waits: Waits | None = None,
        provided: Provided = NOTHING_PROVIDED,
        name: str = DEFAULT_NAME,
    ) -> None:
        self.pool_id = f"{'otpool' if once else 'pool'}-{os.urandom(9).hex()}"
        self.name = name
        self.declared_dead = False
        self.database = database
        self.tasks = tasks
        self.options = options
        self.logger = logger
        self.events = events
        self.hooks = hooks
        self.in_common = in_common
        self.connections = connections
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
        self._is_stuck = False

    @property
    def kill_reason(self) -> str | None:
        """Why the pool is being stopped by force; None if it is not."""
        return self._kill_reason

    @property
    def listener(self) -> Hearing:
        """Where plugins register the topics that they want to hear."""
        return self.parts.hearing

    @property
    def listening(self) -> bool:
        """Whether notifications are known to arrive; if not, it depends on polling."""
        return self.in_common.listening

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

    @property
    def changes(self) -> int:
        """How often operators have changed what pools must read again, by the last heartbeat."""
        last = self.parts.heartbeat.last
        return 0 if last is None else last.changes

    @property
    def quiet(self) -> bool:
        """Whether it was told to fetch no more jobs, by the last heartbeat."""
        last = self.parts.heartbeat.last
        return last is not None and last.quiet

    @property
    def leads(self) -> bool:
        """Whether it is the leader of its schema now."""
        return self.parts.leader.leads

    async def give_back(self, unwanted: Callable[[Job], bool]) -> None:
        """Return jobs that were fetched and have not begun, with their attempt."""
        await self.parts.queue.return_some(unwanted)

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
            name=self.name,
            quiet=self.quiet,
            state=self._state,
            started_at=vitals.started_at,
            connected=vitals.connected,
            standing_still=self._is_stuck
            or (self._watchdog is not None and self._watchdog.standing_still),
            held_back=parts.heartbeat.held_back,
            listening=self.listening,
            last_fetch_at=vitals.last_fetch_at,
            last_heard_at=self.in_common.heard_at,
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
                async with parts.fetching, parts.settling, self.in_common.beating:
                    await self._run_in_rings()
        finally:
            threads_left = await parts.executors.close()
            await self.database.task_sessions.give_up_idle()
            watchdog.close()
            self.database.availability.forget_all()
            self._end(threads_left)
        if self._fatal is not None:
            raise self._fatal

    async def _run_in_rings(self) -> None:
        self._rings = Rings(
            self.parts,
            in_common=self.in_common,
            added=partial(self.hooks.parts, self),
            once=self.once,
            stopping=self.stopping,
            killed=self.killed,
            stop=self.stop,
            broken=self.break_down,
            waits=self.waits,
        )
        await self._rings.run()

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

    # What the parts need of the pool.

    @property
    def is_late(self) -> Callable[[], bool]:
        """Tells whether other pools may have declared this one dead by now."""
        return self.parts.heartbeat.is_late

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
        if self._rings is not None:
            self._rings.give_up()
