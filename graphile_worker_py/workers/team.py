"""The workers of a pool: started together, told to abort, cut off at a forced stop."""

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from graphile_worker_py import aio, events
from graphile_worker_py.errors import WorkerPoolError
from graphile_worker_py.events import Events
from graphile_worker_py.options import WorkerOptions
from graphile_worker_py.processes.interrupts import is_ctrl_c
from graphile_worker_py.tasks.abort import AbortReason
from graphile_worker_py.tasks.context import RunningJob
from graphile_worker_py.tasks.pool_context import PoolContext
from graphile_worker_py.tasks.variables import JobVariables
from graphile_worker_py.workers.worker import End, Worker


class Team:
    """The workers of one pool.

    Args:
        pool_id: Id of the pool.
        make_worker: Makes a worker from its id.
        variables: The context variables of jobs.
        options: How many workers there are, and when running jobs are told to abort.
        task_names: Identifiers of the pool's tasks, for events.
        stop: Set when the pool is to stop.
        kill: Set when it is to stop at once.
        context: What the jobs of the pool share.
        broken: Called with an error and what failed.
        events: Where to emit events.
        patience: Seconds that a forced stop gives cancelled tasks to end.
    """

    def __init__(
        self,
        *,
        pool_id: str,
        make_worker: Callable[[str], Worker],
        variables: JobVariables,
        options: WorkerOptions,
        task_names: tuple[str, ...],
        stop: asyncio.Event,
        kill: asyncio.Event,
        context: PoolContext,
        broken: Callable[[BaseException, str], None],
        events: Events,
        patience: float,
    ) -> None:
        self._pool_id = pool_id
        self._make_worker = make_worker
        self._variables = variables
        self._crew = aio.Crew()
        self._tasks: dict[Worker, asyncio.Task[None]] = {}
        self._options = options
        self._task_names = task_names
        self._stop = stop
        self._kill = kill
        self._context = context
        self._broken = broken
        self._events = events
        self._patience = patience
        self._workers: list[Worker] = []

    @property
    def running(self) -> Mapping[int, RunningJob]:
        """The jobs that run now, by their ids."""
        return {
            running.job.id: running
            for worker in self._workers
            if (running := worker.running) is not None
        }

    @property
    def has_idle(self) -> bool:
        """Whether a worker waits for a job."""
        return any(worker.job is None for worker in self._workers)

    def release(self) -> None:
        """Emit that the workers are to end; they end when the source of jobs ends."""
        for worker in self._workers:
            self._emit(events.WorkerRelease, worker)

    def abort(self, reason: AbortReason) -> None:
        """Ask the running jobs to end, and those that still begin."""
        self._context.abort_reason = reason
        for running in self.running.values():
            running.abort.set(reason)

    def cancel(self, job_id: int, *, reason: str | None, grace: float) -> bool:
        """Cancel a running job.

        An async task and an executable are cut off at once. A function in a thread or process is
        asked to end, and cut off after `grace` seconds. What has not ended `grace` seconds after
        that is left behind: its outcome no longer counts.

        Args:
            job_id: The job.
            reason: For the outcome.
            grace: Seconds.

        Returns:
            Whether the job runs here.
        """
        for worker in self._workers:
            running = worker.running
            if running is None or running.job.id != job_id or running.is_cancelled:
                continue
            worker.cancel_job(reason)
            canceller = _Canceller(worker, running, self._tasks[worker], grace)
            canceller.begin()
            return True
        return False

    def at_work(self, name: str) -> str:
        """What the asyncio task of this name is doing, in words."""
        for worker in self._workers:
            job = worker.job
            if worker.worker_id == name and job is not None:
                return f"job {job.id} of task {job.task_identifier!r}"
        return f"the asyncio task {name!r}"

    async def work(self) -> None:
        """Run the workers until all have ended or were given up."""
        for _ in range(self._options.concurrent_jobs):
            # With `worker_id` given there is only one worker.
            worker = self._make_worker(self._options.worker_id or f"worker-{os.urandom(9).hex()}")
            worker.restart = partial(self._restart, worker)
            self._workers.append(worker)
            self._emit(events.WorkerCreate, worker, tasks=self._task_names)
            self._start(worker)
        async with asyncio.TaskGroup() as watching:
            abort = watching.create_task(self._abort_in_time(), name="abort")
            killer = watching.create_task(self._kill_crew(), name="kill")
            await self._crew.wait()
            abort.cancel()
            if not self._kill.is_set():
                killer.cancel()

    def _start(self, worker: Worker) -> None:
        """Run a worker in a new asyncio task."""
        self._tasks[worker] = self._crew.start(
            self._run(worker), name=worker.worker_id, context=self._variables.new()
        )

    def _restart(self, worker: Worker) -> None:
        """Run a worker anew, while its present asyncio task is stuck in a job."""
        stuck = self._tasks[worker]
        stuck.set_name(f"{worker.worker_id}, stuck")
        self._start(worker)
        self._crew.leave(stuck)

    async def _run(self, worker: Worker) -> None:
        error: BaseException | None = None
        try:
            end = await worker.run()
            if end is not End.NO_MORE_JOBS:
                if end is End.LEFTOVERS:
                    self._start(worker)
                return
        except asyncio.CancelledError:
            if not self._kill.is_set():
                # User code got hold of the asyncio task, and cancelled it between two jobs.
                self._start(worker)
                return
        except BaseException as broken:  # SystemExit included: the pool stops in order
            if isinstance(broken, KeyboardInterrupt) and is_ctrl_c(broken):
                raise
            # Nothing that a task does ends a worker, so this is a fault of ours.
            error = broken
            self._lose(worker, broken)
        self._emit(events.WorkerStop, worker, error=error)

    def _lose(self, worker: Worker, error: BaseException) -> None:
        """Fail the job of a worker that broke down, and stop the pool."""
        job_error = worker.job_error
        self._emit(events.WorkerFatalError, worker, error=error, job_error=job_error)
        if self._stop.is_set():
            self._events.emit(
                events.PoolGracefulShutdownWorkerError(
                    pool_id=self._pool_id, error=error, job=worker.job
                )
            )
        worker.fail_job(error)
        self._broken(error, "run a worker")

    async def _abort_in_time(self) -> None:
        """Some seconds into a graceful stop, ask the running jobs to end."""
        await self._stop.wait()
        await asyncio.sleep(self._options.graceful_shutdown_abort_timeout)
        self.abort("shutdown")

    async def _kill_crew(self) -> None:
        """At a forced stop cancel the workers, and give up on those that do not end."""
        await self._kill.wait()
        stubborn = await self._crew.cancel(patience=self._patience)
        for worker in self._workers:
            if worker.worker_id in stubborn:
                worker.return_job()
        if stubborn:
            error = WorkerPoolError(
                f"{len(stubborn)} task(s) did not end within {self._patience:g} s of being "
                f"cancelled; their jobs were returned"
            )
            self._broken(error, "cut off all tasks")

    def _emit(self, kind: Callable[..., events.WorkerEvent], worker: Worker, **about: Any) -> None:
        self._events.emit(kind(pool_id=self._pool_id, worker_id=worker.worker_id, **about))


class _Canceller:
    """Cuts off the cancelled job of a worker, step by step."""

    def __init__(
        self, worker: Worker, running: RunningJob, task: "asyncio.Task[None]", grace: float
    ) -> None:
        self._worker = worker
        self._running = running
        self._task = task
        self._grace = grace
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """Cut the job off at once, or after its time if it was only asked to end."""
        if self._running.task.is_asked_to_end:
            self._loop.call_later(self._grace, self._cut_off)
        else:
            self._cut_off()

    def _cut_off(self) -> None:
        if self._is_running():
            self._task.cancel()
            self._loop.call_later(self._grace, self._give_up)

    def _give_up(self) -> None:
        if self._is_running():
            self._worker.give_up(self._running.job)

    def _is_running(self) -> bool:
        return self._worker.running is self._running
