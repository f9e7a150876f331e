"""Run the jobs that are due, and return: `run_once`."""

from collections import Counter
from contextlib import AsyncExitStack
from typing import Final, Unpack

from graphile_worker_py import aio, events
from graphile_worker_py.adding.adder import JobAdder
from graphile_worker_py.checks import check_flag
from graphile_worker_py.events import Event, Events
from graphile_worker_py.observing.log import log_events
from graphile_worker_py.postgres.connecting import AsyncPool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.processes.signals import handle_signals
from graphile_worker_py.records import Record
from graphile_worker_py.runner import Runner
from graphile_worker_py.runner_options import RunnerOptions, Setup
from graphile_worker_py.schema import migrate, rights
from graphile_worker_py.workers.stopping import Stopping


class RunOnceResult(Record):
    """What `run_once` did.

    Attributes:
        completed: Number of jobs that completed.
        failed: The event of each attempt that failed, with `job`, `error` and `retry_at`.
        returned: Number of jobs that a stop cancelled and returned.
        snoozed: Number of jobs that their task put off.
        discarded: Number of jobs that their task gave up.
    """

    completed: int
    failed: tuple[events.JobError, ...]
    returned: int
    snoozed: int
    discarded: int

    def raise_errors(self) -> None:
        """Raise the error of the attempt that failed; if several did, a group of their errors.

        Raises:
            BaseException: The error of a task.
        """
        errors = [event.error for event in self.failed]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} attempts failed", errors)


async def run_once(
    source: str | AsyncPool | None = None,
    *,
    raise_errors: bool = False,
    **options: Unpack[RunnerOptions],
) -> RunOnceResult:
    """Run all jobs that are due, and the due jobs that they add, then return.

    Serial queues are drained. A failed job waits for its next attempt, which is not awaited. There
    is no cron, and no sweep for old locks.

    Args:
        source: As for `run`.
        raise_errors: Raise the errors of failed attempts at the end, as tests want it.
        options: As for `run`, without those about cron.

    Returns:
        What happened to the jobs.

    Raises:
        As `run`, and StoppedError: A signal stopped the start, so that no job was run.
    """
    setup = Setup(source, options, waits=Runner._waits, once=True)
    check_flag("raise_errors", raise_errors)
    setup.refuse_cron()
    jobs = _Outcomes(setup.events)
    try:
        await _run(setup)
    finally:
        jobs.close()
    result = jobs.result()
    if raise_errors:
        result.raise_errors()
    return result


async def _run(setup: Setup) -> None:
    stopping = Stopping(setup.logger)
    async with AsyncExitStack() as stack:
        if setup.handles_signals:
            stack.enter_context(handle_signals(stop=stopping.stop, kill=stopping.kill))
        with aio.keeping_cancellation():
            async with aio.until(stopping.early):
                pool = await stack.enter_async_context(setup.opened_pool())
                database = setup.database(pool)
                await migrate.migrate(database, setup.hooks)
                await migrate.check_role(database, rights.WORKING)
                stack.callback(log_events(setup.events, setup.logger))
                runner = _OneRun(setup, database)
                stack.push_async_callback(runner._close_waiter)
                living = setup.living(runner, stopping)
                state = await stack.enter_async_context(living)
                stopping.pool = setup.worker_pools(database, state)
        await stopping.started().run()


class _OneRun(Runner):
    """What a `lifespan` gets from `run_once`: it has events and adds jobs, as a runner does."""

    def __init__(self, setup: Setup, database: Database) -> None:
        self._setup = setup
        self._stopping = Stopping(setup.logger)
        self._working = None
        self._health_url = None
        JobAdder.__init__(self, database, setup.around_adding)


_COUNTED: Final = (
    events.JobSuccess,
    events.JobReturned,
    events.JobSnoozed,
    events.JobDiscarded,
)


class _Outcomes:
    """Collects the outcomes of jobs from their events."""

    def __init__(self, observed: Events) -> None:
        self._failed: list[events.JobError] = []
        self._counts: Counter[type[Event]] = Counter()
        # By its name, because a subscriber of the class would hear a final failure twice.
        self._ends = [observed.subscribe(events.JobError.name, self._failed.append)]
        for kind in _COUNTED:
            self._ends.append(observed.subscribe(kind, self._count))

    def close(self) -> None:
        """Collect no more."""
        for end in self._ends:
            end()

    def result(self) -> RunOnceResult:
        """The outcomes so far."""
        completed, returned, snoozed, discarded = (self._counts[kind] for kind in _COUNTED)
        return RunOnceResult(
            completed=completed,
            failed=tuple(self._failed),
            returned=returned,
            snoozed=snoozed,
            discarded=discarded,
        )

    def _count(self, event: Event) -> None:
        self._counts[type(event)] += 1
