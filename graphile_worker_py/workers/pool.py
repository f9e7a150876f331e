"""A worker pool: owns all parts that run jobs, starts them, stops them in order.

Parts live in rings. The outermost one proves that the pool is alive; the next one writes outcomes,
so it sees every one; the next one feeds (local queue, listener, sweep for stale locks); the inner
one works. Stopping goes from the inside out: no more jobs are handed out, running ones finish, what
was fetched and not started is returned, the last outcomes are written, the pool takes its leave.

Parts are told to stop, never cancelled; only the workers are, at a forced stop. Cancelling
`WorkerPool.run` is a forced stop, too. All that starts and ends a part stands in this one module,
because the order is the point of it.
"""

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import AsyncConnection

from graphile_worker_py import aio, events
from graphile_worker_py.errors import IncompatibleSchemaError, WorkerPoolError, one_line
from graphile_worker_py.events import Events
from graphile_worker_py.executors import guarding
from graphile_worker_py.executors.guarding import Guard
from graphile_worker_py.executors.thread import ThreadExecutor
from graphile_worker_py.fleet.heartbeat import Heartbeat
from graphile_worker_py.fleet.old_locks import OldLocks
from graphile_worker_py.fleet.recovery import RecoveryLoop
from graphile_worker_py.fleet.suspects import Suspects
from graphile_worker_py.job import Job
from graphile_worker_py.options import LocalQueueOptions, WorkerOptions
from graphile_worker_py.plugins import Hooks
from graphile_worker_py.postgres.connecting import connect_directly, connect_like
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.schema import migrate
from graphile_worker_py.sql.get_jobs import Fetched
from graphile_worker_py.sql.planning import keep_to_indexes
from graphile_worker_py.sql.reset_locked_at import reset_locked_at
from graphile_worker_py.tasks.context import Abort, JobContext
from graphile_worker_py.tasks.queue_names import QueueNames
from graphile_worker_py.tasks.task import Task
from graphile_worker_py.workers.fetcher import Fetcher
from graphile_worker_py.workers.health import Health, State, Vitals
from graphile_worker_py.workers.listener import Listener
from graphile_worker_py.workers.local_queue import LocalQueue
from graphile_worker_py.workers.settler import Settler
from graphile_worker_py.workers.waits import Waits
from graphile_worker_py.workers.watchdog import Pace, Watchdog
from graphile_worker_py.workers.worker import Surroundings, Worker

if TYPE_CHECKING:
    from graphile_worker_py.executors.process import ProcessExecutor

FIRST_SWEEP_WITHIN: Final = 60.0
CONFIRM_INTERVAL: Final = 1.0
"""Seconds between two tries to make sure that the pool is not taken for dead."""
SWEEP_DEADLINE: Final = 600.0
"""Seconds that a sweep may take; it reads the whole table."""
LONGEST_PAUSE: Final = 90.0
"""Seconds, beside the poll interval, until a fetch follows another one at the latest."""


def own_connections(options: WorkerOptions) -> int:
    """How many connections a pool keeps to itself, to fetch and to record; one more listens."""
    return min(2, options.max_pool_size - 1)


class WorkerPool:
    """Runs jobs of one database and schema, some at a time.

    Args:
        database: Where the jobs are.
        tasks: Tasks by identifier.
        options: How to run them.
        logger: Where jobs log to.
        events: Where to tell what happens.
        hooks: Plugins that wrap fetches and task calls.
        once: Whether to end when no job is due any more, instead of waiting for more.
        ends_process: Whether a standstill of `watchdog_timeout` ends the process.
        waits: How long it waits; None means as long as `Waits` says.

    Attributes:
        pool_id: What its jobs are locked by.
        taken_for_dead: Whether it ended because others have found it dead; another one is to take
            its place.
    """

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
    ) -> None:
        self.pool_id = f"{'otpool' if once else 'pool'}-{os.urandom(9).hex()}"
        self._database = database
        self._tasks = tasks
        if once:
            # Nobody adds to the last outcomes, so they wait for nobody.
            options = replace(options, complete_job_batch_delay=-1.0, fail_job_batch_delay=-1.0)
        self._options = options
        self._logger = logger
        self._events = events
        self._once = once
        self._ends_process = ends_process
        self._waits = Waits() if waits is None else waits
        self._state = State.STARTING
        self._vitals = Vitals(self.pool_id, events)
        self._listener: Listener | None = None
        self._guard = Guard()
        self._watchdog: Watchdog | None = None
        self._hooks = hooks
        self._fatal: BaseException | None = None
        self._stopping: str | None = None
        self._killing: str | None = None
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._parts: list[asyncio.Task[None]] = []
        self._gave_up = False
        self._cut_off: list[Job] = []
        self._abort = Abort()
        self._queue_names = QueueNames(database, delay=options.get_queue_name_batch_delay)
        self._threads = ThreadExecutor()
        self._processes = self._process_executor()
        self._fetching = OwnConnection(database, begin=keep_to_indexes)
        self._settling = self._fetching
        if own_connections(options) > 1:
            self._settling = OwnConnection(database, begin=keep_to_indexes)
        self._settler = Settler(
            pool_id=self.pool_id,
            line=self._settling,
            options=options,
            events=events,
            logger=logger,
            settled=self._settled,
            broken=self._break,
        )
        self._fetcher = Fetcher(
            pool_id=self.pool_id,
            database=database,
            line=self._fetching,
            names=tasks,
            forbidden_flags=options.forbidden_flags,
            hooks=hooks,
            known_ids=lambda: self._queue.known_ids,
            waits=self._waits,
        )
        self.taken_for_dead = False
        self._suspects = Suspects(
            pool_id=self.pool_id, database=database, max_crashes=options.max_crashes, logger=logger
        )
        self._heartbeat = Heartbeat(
            pool_id=self.pool_id,
            database=database,
            options=options,
            listens=not once,
            suspects=self._suspects,
            taken_for_dead=self._lose,
            logger=logger,
        )
        self._recovery = RecoveryLoop(
            pool_id=self.pool_id,
            database=database,
            options=options,
            heartbeat=self._heartbeat,
            suspects=self._suspects,
            events=events,
            logger=logger,
        )
        self._old_locks = OldLocks(
            pool_id=self.pool_id,
            database=database,
            heartbeat_interval=options.heartbeat_interval,
            known_ids=lambda: self._queue.known_ids,
            heartbeat=self._heartbeat,
            suspects=self._suspects,
            logger=logger,
        )
        self._queue = LocalQueue(
            pool_id=self.pool_id,
            fetch=self._vitals.watched(self._fetch),
            give_back=self._settler.give_back_now,
            options=self._local_queue_options(),
            poll_interval=options.poll_interval,
            drain=once,
            events=events,
        )
        self._workers: list[Worker] = []

    def nudge(self, count: int) -> None:
        """Look for jobs now; `count` says how many there may be."""
        if not self._stop.is_set():
            self._queue.nudge(count)

    def stop(self, reason: str = "Worker pool is shutting down gracefully") -> None:
        """Stop gracefully: fetch no more, let running jobs finish. `run` returns when done."""
        if self._stopping is not None:
            return
        self._stopping = reason
        self._state = State.STOPPING
        self._stop.set()
        self._heartbeat.stopping()
        self._queue.stop()
        self._events.emit(events.PoolGracefulShutdown(pool_id=self.pool_id, message=reason))
        for worker in self._workers:
            self._emit_worker(events.WorkerRelease, worker)

    def kill(self, reason: str = "Terminated through .kill() command") -> None:
        """Stop at once: running jobs are cut off and returned with their attempt."""
        self.stop(reason)
        if self._killing is not None:
            return
        self._killing = reason
        self._events.emit(events.PoolForcefulShutdown(pool_id=self.pool_id, message=reason))
        self._abort.set()
        self._kill.set()
        # Cancelled tasks get their time, then the last outcomes get theirs; a database that is
        # away does not hold us any longer.
        asyncio.get_running_loop().call_later(2 * self._waits.kill, self._give_up)

    def health(self) -> Health:
        """How it fares."""
        vitals, listener = self._vitals, self._listener
        return Health(
            pool_id=self.pool_id,
            state=self._state,
            started_at=vitals.started_at,
            connected=vitals.connected,
            standing_still=self._watchdog is not None and self._watchdog.standing_still,
            held_back=self._heartbeat.held_back,
            listening=listener is not None and listener.listening,
            last_fetch_at=vitals.last_fetch_at,
            last_heard_at=None if listener is None else listener.heard_at,
            running_jobs=sum(worker.job is not None for worker in self._workers),
            locked_jobs=len(self._queue.known_ids),
            busy_threads=self._threads.busy,
            stuck_threads=self._threads.stuck,
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
        self._events.emit(events.PoolCreate(pool_id=self.pool_id))
        guarding.CURRENT.set(self._guard)
        self._watchdog = watchdog = self._make_watchdog()
        watchdog.start()
        try:
            async with aio.until(self._stop):
                await self._fetcher.register_tasks(
                    partial(self._database.run_retrying, what="register the tasks")
                )
            if not self._stop.is_set():
                self._state = State.RUNNING
                async with self._fetching, self._settling:
                    await self._be_present_and_below()
        finally:
            if self._processes is not None:
                await self._processes.close()
            await self._guard.close()
            watchdog.close()
            self._end()
        if self._fatal is not None:
            raise self._fatal

    def _end(self) -> None:
        still_running = self._threads.close()
        if still_running:
            self._logger.warning(
                "%d thread(s) run on: their functions did not return", still_running
            )
        left = sorted(self._queue.known_ids)
        if self.taken_for_dead:
            pass  # others have them
        elif left:
            error = WorkerPoolError(
                f"stopped with {len(left)} job(s) whose outcome could not be recorded; they stay "
                f"locked by {self.pool_id}: {', '.join(map(str, left[:10]))}"
            )
            self._break(error, "record all outcomes")
        elif self._fetcher.in_doubt:
            error = WorkerPoolError(
                f"a fetch was not answered; jobs that it may have locked stay locked by "
                f"{self.pool_id}"
            )
            self._break(error, "fetch jobs")
        self._tell_end()
        self._state = State.STOPPED
        self._vitals.close()
        self._events.emit(events.PoolRelease(pool_id=self.pool_id))

    def _tell_end(self) -> None:
        graceful = self._killing is None
        if self._fatal is not None:
            kind: Callable[..., events.PoolEvent] = (
                events.PoolGracefulShutdownError if graceful else events.PoolForcefulShutdownError
            )
            self._events.emit(kind(pool_id=self.pool_id, error=self._fatal))
        if graceful:
            self._events.emit(events.PoolGracefulShutdownComplete(pool_id=self.pool_id))
        else:
            returned = tuple(self._cut_off)
            self._events.emit(
                events.PoolForcefulShutdownComplete(pool_id=self.pool_id, returned=returned)
            )

    # The rings, from the outside in.

    async def _be_present_and_below(self) -> None:
        await self._heartbeat.begin(self._stop)
        async with asyncio.TaskGroup() as present:
            self._start_part(present, self._heartbeat.run(), "prove to be alive")
            self._start_part(present, self._recovery.run(), "recover dead pools")
            self._start_part(present, self._old_locks.run(), "look after old locks")
            try:
                if not self._stop.is_set():
                    await self._settle_and_below()
                    await self._leave_nothing_locked()
            finally:
                self._recovery.close()
                self._old_locks.close()
                left_locks = bool(self._queue.known_ids) or self._fetcher.in_doubt
                self._heartbeat.close(left_locks=left_locks)

    async def _settle_and_below(self) -> None:
        async with asyncio.TaskGroup() as settling:
            for part, action in self._settler.parts():
                self._start_part(settling, part, action)
            try:
                await self._feed_and_below()
            finally:
                self._settler.close()

    async def _leave_nothing_locked(self) -> None:
        """Return what is locked without the pool's knowing, now that all outcomes are recorded."""
        if not self._gave_up:
            async with asyncio.TaskGroup() as last:
                self._start_part(last, self._fetcher.resolve_doubt_in_time(), "return lost jobs")

    async def _feed_and_below(self) -> None:
        self._listener = listener = Listener(
            pool_id=self.pool_id,
            connect=self._connect_listener,
            database=self._database,
            nudge=self.nudge,
            schema_changed=self._check_schema,
            echo_interval=self._options.listen_echo_interval,
            poll_interval=self._options.poll_interval,
            hint=self._listen_hint(),
            events=self._events,
            on_listen=self._heartbeat.hold_lock,
            waits=self._waits,
        )
        async with asyncio.TaskGroup() as feeding:
            self._start_part(feeding, self._fetch_jobs(feeding), "fetch jobs")
            if not self._once:
                self._start_part(feeding, listener.run(), "listen")
                self._start_part(feeding, self._sweep(), "reset locks")
            try:
                await self._work()
            finally:
                self.stop("No more jobs are due" if self._once else "All workers have ended")
                listener.close()
                self._queue.close()

    async def _work(self) -> None:
        crew = aio.Crew()
        around = Surroundings(
            pool_id=self.pool_id,
            database=self._database,
            tasks=self._tasks,
            threads=self._threads,
            run_in_process=self._run_in_process,
            abort=self._abort,
            queue_names=self._queue_names,
            events=self._events,
            hooks=self._hooks,
            suspects=self._suspects,
            logger=self._logger,
            take_job=self._queue.take,
            get_job=self._queue.get,
            is_late=self._heartbeat.is_late,
            confirm=self._confirm,
            complete=self._settler.complete,
            fail=self._settler.fail,
            give_back=self._take_back,
            is_killed=self._kill.is_set,
        )
        for _ in range(self._options.concurrent_jobs):
            # A worker with a name of its own is the only one.
            worker = Worker(self._options.worker_id or f"worker-{os.urandom(9).hex()}", around)
            self._workers.append(worker)
            self._emit_worker(events.WorkerCreate, worker, tasks=tuple(self._tasks))
            crew.start(self._run_worker(worker), name=worker.worker_id)
        async with asyncio.TaskGroup() as watching:
            abort = watching.create_task(self._abort_in_time(), name="abort")
            killer = watching.create_task(self._kill_crew(crew), name="kill")
            await crew.wait()
            abort.cancel()
            if not self._kill.is_set():
                killer.cancel()

    async def _run_worker(self, worker: Worker) -> None:
        error: BaseException | None = None
        try:
            await self._run_until_killed(worker)
        except Exception as broken:
            # Nothing that a task does ends a worker, so this is a fault of ours.
            error = broken
            job_error = worker.job_error
            self._emit_worker(events.WorkerFatalError, worker, error=broken, job_error=job_error)
            job = worker.abandon()
            if self._stop.is_set():
                self._events.emit(
                    events.PoolGracefulShutdownWorkerError(
                        pool_id=self.pool_id, error=broken, job=job
                    )
                )
            if job is not None:
                self._take_back(job, worker.worker_id)
            self._break(broken, "run a worker")
        self._emit_worker(events.WorkerStop, worker, error=error)

    async def _run_until_killed(self, worker: Worker) -> None:
        while True:
            try:
                await worker.run()
            except asyncio.CancelledError:
                if not self._kill.is_set():
                    # User code got hold of the asyncio task, and struck between two jobs.
                    await aio.absorb_cancellation()
                    continue
            return

    async def _abort_in_time(self) -> None:
        """Some seconds into a graceful stop, tell jobs that they should end."""
        await self._stop.wait()
        await asyncio.sleep(self._options.graceful_shutdown_abort_timeout)
        self._abort.set()

    async def _kill_crew(self, crew: aio.Crew) -> None:
        """At a forced stop cut off what runs, and give up on what does not end."""
        await self._kill.wait()
        stubborn = await crew.cancel(patience=self._waits.kill)
        for worker in self._workers:
            if worker.worker_id in stubborn:
                job = worker.abandon()
                if job is not None:
                    self._take_back(job, worker.worker_id)
        if stubborn:
            error = WorkerPoolError(
                f"{len(stubborn)} task(s) did not end within {self._waits.kill:g} s of being "
                f"cancelled; their jobs were returned"
            )
            self._break(error, "cut off all tasks")

    # What the parts need of the pool.

    async def _confirm(self) -> bool:
        """Wait until it is sure that fetched jobs are still the pool's; False if it is to stop."""
        while not await self._heartbeat.confirm():
            if await aio.wait_for(self._stop, CONFIRM_INTERVAL):
                return False
        return True

    async def _fetch(self, count: int) -> Fetched:
        if not await self._heartbeat.confirm():
            return Fetched([], more=False)
        fetched = await self._fetcher.fetch(count)
        self._vitals.has_fetched()
        return fetched

    async def _fetch_jobs(self, group: asyncio.TaskGroup) -> None:
        """Run the local queue; after a stop, don't wait for long for what it fetches."""
        cutting_off = group.create_task(self._cut_off_fetch(), name="cut off the last fetch")
        try:
            await self._queue.run()
        except Exception:
            await self._fetcher.resolve_doubt_in_time()
            raise
        finally:
            cutting_off.cancel()

    async def _cut_off_fetch(self) -> None:
        """After a stop wait for a fetch that is under way, but not for long: not in an outage."""
        await self._stop.wait()
        await asyncio.sleep(self._waits.stop)
        await self._fetcher.cut_off()

    def _process_executor(self) -> "ProcessExecutor | None":
        if not any(task.is_process for task in self._tasks.values()):
            return None
        # Whoever has no such tasks does not pay for what they import.
        from graphile_worker_py.executors.process import ProcessExecutor  # noqa: PLC0415

        return ProcessExecutor(
            self._tasks.values(),
            most=self._options.concurrent_jobs,
            logger=self._logger,
            guard=self._guard,
        )

    async def _run_in_process(self, task: Task[Any], job: Job, context: JobContext) -> Any:
        assert self._processes is not None  # noqa: S101  # there is such a task
        return await self._processes.run(task, job, context)

    def _settled(self, jobs: Sequence[Job]) -> None:
        if any(job.job_queue_id is not None for job in jobs):
            self._fetcher.look_at_all()
        self._queue.settled(jobs)

    def _local_queue_options(self) -> LocalQueueOptions:
        # Flags that are asked for before each fetch may be a rate limit: they must count when the
        # job starts, not when it was put in store.
        if callable(self._options.forbidden_flags):
            return LocalQueueOptions()
        return self._options.local_queue

    def _lose(self) -> None:
        """Others have found this pool dead: its jobs are not its own any more."""
        self.taken_for_dead = True
        self._logger.error(
            "Others took this pool for dead and freed its jobs; aborting what runs here",
            extra={"pool_id": self.pool_id},
        )
        self._events.emit(events.PoolTakenForDead(pool_id=self.pool_id))
        self.kill("Taken for dead by another worker pool")

    def _take_back(self, job: Job, worker_id: str, reason: str | None = None) -> None:
        self._cut_off.append(job)
        self._events.emit(
            events.JobReturned(
                pool_id=self.pool_id,
                worker_id=worker_id,
                job=job,
                reason=reason or self._killing or "its worker broke down",
            )
        )
        self._settler.give_back(job)

    def _give_up(self) -> None:
        self._gave_up = True
        for part in self._parts:
            part.cancel()

    def _make_watchdog(self) -> Watchdog:
        return Watchdog(
            limit=self._options.watchdog_timeout,
            exits=self._ends_process,
            at_work=self._at_work,
            fetching=self._pace,
            logger=self._logger,
            about={"pool_id": self.pool_id},
            waits=self._waits,
        )

    def _at_work(self, name: str) -> str:
        """What the asyncio task of a name is doing, in words."""
        for worker in self._workers:
            job = worker.job
            if worker.worker_id == name and job is not None:
                return f"job {job.id} of task {job.task_identifier!r}"
        return f"the asyncio task {name!r}"

    def _pace(self) -> Pace | None:
        """How far fetching is; None if nobody waits for jobs, or an outage is known of."""
        vitals = self._vitals
        if vitals.is_fetching:
            return Pace(vitals.fetch_steps, 0)
        waiting = any(worker.job is None for worker in self._workers)
        if self._stop.is_set() or not waiting or not vitals.connected:
            return None
        return Pace(vitals.fetch_steps, 1.5 * self._options.poll_interval + LONGEST_PAUSE)

    def _connect_listener(self) -> Awaitable[AsyncConnection[Any]]:
        direct = self._options.listen_connection_string
        return connect_like(self._database.pool) if direct is None else connect_directly(direct)

    def _listen_hint(self) -> str:
        if self._options.listen_connection_string is None:
            return "Give the listener a direct connection: listen_connection_string."
        return "The listen_connection_string must lead to the same database, and directly."

    async def _check_schema(self) -> None:
        """Stop if the schema, and not another one of this database, has changed too much."""
        try:
            await migrate.check_revision(self._database)
        except IncompatibleSchemaError as error:
            self._break(error, "work on the schema")

    async def _sweep(self) -> None:
        """Free locks older than four hours, every eight to ten minutes, as Node workers do."""
        shortest = self._options.min_reset_locked_interval
        longest = self._options.max_reset_locked_interval
        delay = random.random() * min(FIRST_SWEEP_WITHIN, longest)  # noqa: S311
        while not await aio.wait_for(self._stop, delay):
            delay = shortest + random.random() * (longest - shortest)  # noqa: S311
            self._events.emit(events.ResetLockedStarted(pool_id=self.pool_id))
            freed: list[int] = []
            done = False
            try:
                async with aio.until(self._stop):
                    freed = await self._database.run(
                        reset_locked_at(self._database.now()), within=SWEEP_DEADLINE
                    )
                    # A cleanup may have deleted tasks that had no jobs; ours have other numbers
                    # then.
                    await self._fetcher.register_tasks(self._database.run)
                    done = True
            except (psycopg.Error, OSError) as error:
                self._logger.warning("Could not reset stale locks (%s)", one_line(error))
                self._events.emit(
                    events.ResetLockedFailure(pool_id=self.pool_id, error=error, delay=delay)
                )
                continue
            if freed:
                self._logger.warning(
                    "Reset the locks of %d job(s), older than four hours: %s",
                    len(freed),
                    ", ".join(map(str, freed[:10])),
                    extra={"pool_id": self.pool_id},
                )
                self.nudge(len(freed))
            if done:  # and not cut off by a stop
                self._events.emit(events.ResetLockedSuccess(pool_id=self.pool_id, delay=delay))

    def _start_part(self, group: asyncio.TaskGroup, part: Awaitable[None], action: str) -> None:
        self._parts.append(group.create_task(self._guarded(part, action), name=action))

    async def _guarded(self, part: Awaitable[None], action: str) -> None:
        """Run a part; should it break, stop the pool in order instead of tearing it down."""
        try:
            await part
        except asyncio.CancelledError:
            if self._killing is None:
                self._break(
                    WorkerPoolError(f"what is to {action} was cancelled from outside"), action
                )
            raise
        except Exception as error:  # raised again by run()
            self._break(error, action)

    def _break(self, error: BaseException, action: str) -> None:
        if self._fatal is None:
            self._fatal = error
            self._events.emit(
                events.PoolFatalError(pool_id=self.pool_id, error=error, action=action)
            )
        self.stop(f"Could not {action}")

    def _emit_worker(
        self, kind: Callable[..., events.WorkerEvent], worker: Worker, **about: object
    ) -> None:
        self._events.emit(kind(pool_id=self.pool_id, worker_id=worker.worker_id, **about))
