"""Call plain functions in processes, which can be killed, and may crash.

A process is a new interpreter that leads a new process group and session: Ctrl-C in a terminal
does not reach it, and a signal to the group reaches all processes that it has started. It imports
the module of a task by name and runs one job after another. It is replaced after
`ProcessUse.jobs` jobs, when it has grown, or when it was killed. It is not forked from the
worker, whose threads and connections would not survive that.

Why no library: the processes of pebble, loky and the standard library's pool share a pipe and a
lock, so that a process that is killed at the wrong moment can block or break the rest. None of
them kills the processes that a task has started, or limits memory.

Memory is measured, as resident set size, and not limited by the system (`RLIMIT_AS`): numerical
libraries reserve gigabytes of addresses that they never touch.
"""

import asyncio
import itertools
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from graphile_worker_py import aio
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.executors import memory, wire
from graphile_worker_py.executors.guarding import Guard
from graphile_worker_py.executors.interpreter import END_TIME, STRAY_TIME, Process
from graphile_worker_py.executors.process_use import ProcessUse
from graphile_worker_py.executors.talk import Failed, Talk
from graphile_worker_py.tasks.context import RunningJob
from graphile_worker_py.tasks.job_log import Capture
from graphile_worker_py.tasks.task import Task


class ProcessExecutor:
    """Processes that are made when needed and used again.

    Args:
        tasks: All tasks, those that run elsewhere included.
        most: Most processes at a time.
        use: How long each is used, and how closely its memory is watched.
        logger: The logger of jobs.
        guard: Kills them if the worker is killed.

    Raises:
        ConfigurationError: No interpreter can be started here, or the memory of a task is limited
            and can't be measured.
    """

    def __init__(
        self,
        tasks: Iterable[Task[Any]],
        *,
        most: int,
        use: ProcessUse,
        logger: logging.Logger,
        guard: Guard,
    ) -> None:
        if not sys.executable:
            raise ConfigurationError(
                "tasks can't run in processes here: Python does not know its own program "
                "(sys.executable is empty)"
            )
        if any(task.memory is not None for task in tasks):
            memory.check_supported()
        self._most = most
        self._use = use
        self._logger = logger
        self._idle: list[Process] = []
        self._all: set[Process] = set()
        self._guard = guard
        self._groups = memory.Groups(use.group_age)
        self._none_left = asyncio.Event()
        self._numbers = itertools.count(1)
        self._settings: dict[str, wire.Setting] = {}

    def call_of(self, task: Task[Any]) -> Callable[[RunningJob], Awaitable[Any]]:
        """How a task is called."""
        return partial(self.run, task)

    async def run(self, task: Task[Any], running: RunningJob) -> Any:
        """Run a job of a task in a process. If the caller is cancelled, the process is killed.

        Args:
            task: The task.
            running: The job.

        Returns:
            What the task returned, as JSON can tell. If items of a batch job have failed, a list
            with one for each: None, or what raises the error when awaited.

        Raises:
            TaskTimeoutError: It ran longer than it may, and was killed.
            TaskMemoryError: It took more memory than it may, and was killed.
            ProcessTaskError: Its process ended before it did.
            Exception: What it raised.
        """
        process = await self._take(task)
        talk = self._talk(process, task, running)
        try:
            outcome = await talk.hold(self._order(process, running))
            if outcome is None and process.jobs > 0 and not talk.is_begun:
                # It had ended while it was idle, or because of what an earlier job left behind.
                process = await self._take(task, is_fresh=True)
                talk = self._talk(process, task, running)
                outcome = await talk.hold(self._order(process, running))
        finally:
            process.jobs += 1
            if process.is_talking or process.is_ended:
                # Cancellation included: if the process still runs the job, it is killed.
                await aio.finish(_discard(process))
            else:
                self._put_back(process)
        return self._result(talk, outcome)

    def _result(self, talk: Talk, outcome: wire.Done | wire.Failure | None) -> Any:
        match outcome:
            case wire.Done(is_set=True):
                talk.running.result = outcome.value
                return None
            case wire.Done(items=int(items), failed=failed) if failed:
                return [Failed(failed[at]) if at in failed else None for at in range(items)]
            case wire.Done():
                return outcome.value
            case wire.Failure():
                raise outcome.error()
        raise talk.error()

    def _talk(self, process: Process, task: Task[Any], running: RunningJob) -> Talk:
        return Talk(process, task, running, self._logger, self._groups, self._use)

    def _order(self, process: Process, running: RunningJob) -> wire.Run:
        """What a process is sent for a job: only what it does not know."""
        job = running.job
        identifier, setting = job.task_identifier, None
        if identifier not in process.settings:
            process.settings.add(identifier)
            setting = self._setting(running)
        levels: dict[str, int] | None = _levels(self._logger, running.capture)
        if levels == process.levels:
            levels = None
        else:
            process.levels = levels
        cursor = running.left.cursor
        return wire.Run(next(self._numbers), setting, levels, job, cursor, running.worker_id)

    def _setting(self, running: RunningJob) -> wire.Setting:
        identifier, pool = running.job.task_identifier, running.pool
        setting = self._settings.get(identifier)
        if setting is None:
            setting = self._settings[identifier] = wire.Setting(
                setup=pool.provided.setup,
                place=running.task.place,
                pool_id=pool.pool_id,
                logger=self._logger.name,
            )
        return setting

    async def close(self) -> None:
        """End all processes, and wait until they have."""
        for process in list(self._all):
            process.end()
        if self._all:
            await aio.wait_for(self._none_left, END_TIME + STRAY_TIME)
        for process in self._all:
            self._logger.warning("Process %d of a task does not end", process.pid)

    async def _take(self, task: Task[Any], *, is_fresh: bool = False) -> Process:
        # A new process is put with the idle ones first, so that it is not lost if the job is cut
        # off meanwhile.
        while True:
            chosen = self._best(task, is_fresh=is_fresh)
            if chosen is not None:
                self._idle.remove(chosen)
                chosen.begin(task.place.module)
                return chosen
            if self._idle and len(self._all) >= self._most:
                self._idle.pop(0).end()
            await aio.finish(self._start())

    def _best(self, task: Task[Any], *, is_fresh: bool) -> Process | None:
        """One that has imported the module, or else any; of several the one that was used last.

        So a few processes do most of the work if few are enough, and stay in the caches of the
        processor.
        """
        module, most, best = task.place.module, task.memory, None
        for process in reversed(self._idle):
            if (is_fresh and process.jobs) or (most is not None and process.resident > most // 2):
                continue
            if module in process.modules:
                return process
            best = best or process
        return best

    def _put_back(self, process: Process) -> None:
        process.resident = process.measure()
        process.first_resident = process.first_resident or process.resident
        has_grown = process.resident > process.first_resident + self._use.growth
        if has_grown or process.jobs >= self._use.jobs:
            process.end()
        else:
            self._idle.append(process)
            process.rest(self._use.idle)

    async def _start(self) -> None:
        await self._guard.stand_by()
        process = Process(self._has_ended, self._stop_using)
        await process.start()
        self._none_left.clear()
        self._all.add(process)
        self._guard.note(process.pid)
        self._idle.append(process)

    def _stop_using(self, process: Process) -> None:
        if process in self._idle:
            self._idle.remove(process)

    def _has_ended(self, process: Process) -> None:
        self._stop_using(process)
        self._all.discard(process)
        self._guard.forget(process.pid)
        if not self._all:
            self._none_left.set()


async def _discard(process: Process) -> None:
    process.kill()
    await aio.wait_for(process.ended, STRAY_TIME)
    process.drop()


def _levels(own: logging.Logger, capture: Capture | None) -> dict[str, int]:
    """The levels of all loggers that have one, so that no record is sent to be dropped."""
    # A copy: a thread may make another logger meanwhile.
    known = list(logging.root.manager.loggerDict.items())
    levels = {
        name: logger.level
        for name, logger in known
        if not isinstance(logger, logging.PlaceHolder) and logger.level
    }
    levels[""] = logging.root.level
    if capture is not None:
        # What the logger of jobs leaves out is kept all the same.
        levels[own.name] = min(own.getEffectiveLevel(), capture.level)
    return levels
