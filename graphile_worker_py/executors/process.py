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
import inspect
import itertools
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

from graphile_worker_py import aio, json_codec
from graphile_worker_py.errors import ConfigurationError, TaskTimeoutError
from graphile_worker_py.executors import memory, wire
from graphile_worker_py.executors.guarding import Guard
from graphile_worker_py.executors.interpreter import END_TIME, STRAY_TIME, Process
from graphile_worker_py.executors.process_use import ProcessUse
from graphile_worker_py.executors.wire import ProcessTaskError
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.processes.ends import end_of
from graphile_worker_py.tasks.context import JobContext, RunningJob
from graphile_worker_py.tasks.job_log import Capture
from graphile_worker_py.tasks.task import Task

START_TIME: Final = 60.0
"""Seconds that a process may take to start, and to import the module of its task."""


class TaskMemoryError(ProcessTaskError):
    """The process of a task was killed because it exceeded its memory limit."""


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
        context = running.context
        order = wire.Run(
            number=next(self._numbers),
            setup=running.pool.provided.setup,
            place=task.place,
            job=running.job,
            cursor=context.cursor,
            worker_id=context.worker_id,
            pool_id=context.pool_id,
            logger=self._logger.name,
            levels=_levels(self._logger, context.log_capture),
        )
        process = await self._take(task)
        talk = _Talk(process, task, context, self._logger, self._groups, self._use)
        try:
            outcome = await talk.hold(order)
            if outcome is None and process.jobs > 0 and not talk.is_begun:
                # It had ended while it was idle, or because of what an earlier job left behind.
                process = await self._take(task, is_fresh=True)
                talk = _Talk(process, task, context, self._logger, self._groups, self._use)
                outcome = await talk.hold(order)
        finally:
            # In any case, cancellation included. If the process still runs the job, it is killed.
            await aio.finish(self._give_back(process))
        match outcome:
            case wire.Done(is_set=True):
                context.set_result(outcome.value)
                return None
            case wire.Done(items=int(items), failed=failed) if failed:
                return [_Failed(failed[at]) if at in failed else None for at in range(items)]
            case wire.Done():
                return outcome.value
            case wire.Failure():
                raise outcome.error()
        raise talk.error()

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
            fits = [
                process
                for process in self._idle
                if not (is_fresh and process.jobs)
                and (task.memory is None or process.resident <= task.memory // 2)
            ]
            if fits:
                # Preferably one that has imported the module; else the one that was used last.
                knows = [process for process in fits if task.place.module in process.modules]
                chosen = (knows or fits)[-1]
                self._idle.remove(chosen)
                chosen.begin(task.place.module)
                return chosen
            if self._idle and len(self._all) >= self._most:
                self._idle.pop(0).end()
            await aio.finish(self._start())

    async def _give_back(self, process: Process) -> None:
        process.jobs += 1
        if process.is_talking or process.is_ended:
            process.kill()
            await aio.wait_for(process.ended, STRAY_TIME)
            process.drop()
            return
        process.resident = memory.resident(process.pid)
        process.first_resident = process.first_resident or process.resident
        has_grown = process.resident > process.first_resident + self._use.growth
        if has_grown or process.jobs >= self._use.jobs:
            process.end()
        else:
            self._idle.append(process)
            process.end_in(self._use.idle)

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


class _Talk:
    """The messages about one job."""

    def __init__(
        self,
        process: Process,
        task: Task[Any],
        context: JobContext,
        logger: logging.Logger,
        groups: memory.Groups,
        use: ProcessUse,
    ) -> None:
        self.is_begun = False
        self._process = process
        self._task = task
        self._context = context
        self._logger = logger
        self._groups = groups
        self._use = use
        self._why: Exception | None = None

    async def hold(self, order: wire.Run) -> wire.Done | wire.Failure | None:
        """Have a job run. Returns its outcome, or None if there is none; see `error`."""
        outcome: wire.Done | wire.Failure | None = None
        try:
            async with asyncio.timeout(START_TIME) as limit, asyncio.TaskGroup() as group:
                watching = [group.create_task(self._hand_on_abort(), name="abort of a process")]
                if self._task.memory is not None:
                    watch = self._watch_memory(self._task.memory)
                    watching.append(group.create_task(watch, name="memory of a process"))
                self._process.send(order)
                outcome = await self._listen(order.number, limit)
                for each in watching:
                    each.cancel()
        except TimeoutError:
            self._why = self._why or self._too_late()
        if outcome is None:
            await self._see_it_end()
        else:
            self._process.is_talking = False
        return outcome

    def error(self) -> Exception:
        """Why there is no outcome."""
        if self._why is not None:
            return self._why
        returncode = self._process.returncode
        message = f"{self._name} {end_of(returncode)} before the task was done"
        if returncode == -signal.SIGKILL:
            message += "; maybe the system had no memory left"
        return ProcessTaskError(message, returncode=returncode)

    @property
    def _name(self) -> str:
        return f"the process of task {self._task.identifier!r}"

    async def _listen(self, number: int, limit: asyncio.Timeout) -> wire.Done | wire.Failure | None:
        while (received := await self._process.receive()) is not None:
            of, said = received
            if isinstance(said, wire.Logged):
                self._log(said.record)
            elif of != number:
                continue  # something that an earlier job has left behind
            elif isinstance(said, wire.Done | wire.Failure):
                return said
            elif isinstance(said, wire.Reported):
                self._context.progress(said.done, said.total, said.message)
            elif isinstance(said, wire.Begun):
                self.is_begun = True
                timeout = self._task.timeout
                now = asyncio.get_running_loop().time()
                limit.reschedule(None if timeout is None else now + timeout)
            else:
                self._process.send(wire.Answer(await self._answer(said)))
        return None

    async def _answer(self, call: wire.Call) -> Any:
        try:
            arguments = dict(call.arguments)
            if "specs" in arguments:
                arguments["specs"] = [_spec(fields) for fields in arguments["specs"]]
            answer = getattr(self._context, call.method)(**arguments)
            return await answer if inspect.isawaitable(answer) else answer
        except Exception as error:  # it is for the task to handle
            return wire.failure(error)

    def _log(self, values: Mapping[str, Any]) -> None:
        record = logging.makeLogRecord(dict(values))
        if self._context.log_capture is not None:
            self._context.log_capture.add(record)
        given = self._logger
        logger = given if record.name == given.name else logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)

    async def _hand_on_abort(self) -> None:
        await self._context.abort_event.wait()
        self._process.send(wire.Abort(self._context.abort_reason))

    async def _watch_memory(self, most: int) -> None:
        pid, looks = self._process.pid, 0
        while True:
            looks += 1
            is_whole = looks % self._use.looks_per_group == 0
            taken = await self._groups.resident(pid) if is_whole else memory.resident(pid)
            if taken > most:
                self._why = TaskMemoryError(
                    f"{self._name} took {taken // 1024**2} MiB of memory, it may take "
                    f"{most // 1024**2} MiB; it was killed"
                )
                self._process.kill()
                return
            await asyncio.sleep(self._use.look)

    def _too_late(self) -> Exception:
        if self.is_begun:
            return TaskTimeoutError(
                f"task {self._task.identifier!r} ran longer than its timeout of "
                f"{self._task.timeout:g} s; its process was killed"
            )
        return ProcessTaskError(f"{self._name} did not start within {START_TIME:g} s")

    async def _see_it_end(self) -> None:
        if self._why is None and not await aio.wait_for(self._process.ended, STRAY_TIME):
            self._why = ProcessTaskError(f"{self._name} broke the connection to its worker")
        self._process.kill()
        await aio.wait_for(self._process.ended, STRAY_TIME)
        self._process.drop()


class _Failed:
    """An item of a batch job that has failed in a process."""

    def __init__(self, failure: wire.Failure) -> None:
        self._failure = failure

    def __await__(self) -> Generator[Any, Any, None]:
        return self._raise().__await__()

    async def _raise(self) -> None:
        raise self._failure.error()


def _spec(fields: dict[str, Any]) -> JobSpec:
    """A job to be added, from its JSON values."""
    payload, run_at = fields["payload"], fields["run_at"]
    given = {
        **fields,
        "payload": None if payload is None else json_codec.loads(payload),
        "run_at": None if run_at is None else datetime.fromisoformat(run_at),
    }
    return JobSpec(**given)


def _levels(own: logging.Logger, capture: Capture | None) -> dict[str, int]:
    """The levels of all loggers that have one, so that no record is sent to be dropped."""
    levels = {"": logging.root.level}
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET:
            levels[name] = logger.level
    if capture is not None:
        # What the logger of jobs leaves out is kept all the same.
        levels[own.name] = min(own.getEffectiveLevel(), capture.level)
    return levels
