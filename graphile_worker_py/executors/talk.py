"""A worker and the process of a task talk about one job."""

import asyncio
import inspect
import logging
import signal
import time
from collections.abc import Generator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

from graphile_worker_py import aio, json_codec
from graphile_worker_py.errors import TaskTimeoutError
from graphile_worker_py.executors import memory, wire
from graphile_worker_py.executors.interpreter import STRAY_TIME, Process
from graphile_worker_py.executors.process_use import ProcessUse
from graphile_worker_py.executors.wire import ProcessTaskError
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.processes.ends import end_of
from graphile_worker_py.tasks.abort import AbortReason
from graphile_worker_py.tasks.context import RunningJob
from graphile_worker_py.tasks.task import Task

START_TIME: Final = 60.0
"""Seconds that a process may take to start, and to import the module of its task."""


class TaskMemoryError(ProcessTaskError):
    """The process of a task was killed because it exceeded its memory limit."""


class Talk:
    """The messages about one job."""

    def __init__(
        self,
        process: Process,
        task: Task[Any],
        running: RunningJob,
        logger: logging.Logger,
        groups: memory.Groups,
        use: ProcessUse,
    ) -> None:
        self.running = running
        self._process = process
        self._task = task
        self._logger = logger
        self._groups = groups
        self._use = use
        self._why: Exception | None = None
        self._sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._shown: asyncio.Future[str] | None = None

    @property
    def is_begun(self) -> bool:
        """Whether the process has called the task."""
        return self._process.begun() is not None

    async def hold(self, order: wire.Run) -> wire.Done | wire.Failure | None:
        """Have a job run. Returns its outcome, or None if there is none; see `error`."""
        abort = self.running.abort
        self._sent = time.monotonic()
        self._process.run(order)
        self._look_at_time()
        try:
            self.running.show = partial(self._show, order.number)
            abort.on_set = partial(self._hand_on_abort, order.number)
            if abort.reason is not None:
                abort.on_set(abort.reason)
            outcome = await self._watched(order.number)
        finally:
            abort.on_set = self.running.show = None
            if self._timer is not None:
                self._timer.cancel()
        if outcome is None:
            await self._see_it_end()
        else:
            self._process.is_talking = False
        return outcome

    async def _watched(self, number: int) -> wire.Done | wire.Failure | None:
        if self._task.memory is None:
            return await self._listen(number)
        async with asyncio.TaskGroup() as group:
            watch = self._watch_memory(self._task.memory)
            watching = group.create_task(watch, name="memory of a process")
            outcome = await self._listen(number)
            watching.cancel()
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

    async def _listen(self, number: int) -> wire.Done | wire.Failure | None:
        while (received := await self._process.receive()) is not None:
            of, said = received
            if isinstance(said, wire.Logged):
                self._log(said.record)
            elif of != number:
                continue  # something that an earlier job has left behind
            elif isinstance(said, wire.Done | wire.Failure):
                return said
            elif isinstance(said, wire.Reported):
                self.running.context.progress(said.done, said.total, said.message)
            elif isinstance(said, wire.Shown):
                if self._shown is not None and not self._shown.done():
                    self._shown.set_result(said.calls)
            else:
                try:
                    async with asyncio.timeout(self._time_left()):
                        answer = await self._answer(said)
                except TimeoutError:
                    self._why = self._why or self._too_late()
                    return None
                self._process.send(wire.Answer(answer))
        return None

    def _time_left(self) -> float | None:
        """Seconds until the process is killed; None if the task may run as long as it likes."""
        begun, now = self._process.begun(), time.monotonic()
        if begun is None:
            return self._sent + START_TIME - now
        if self._task.timeout is None:
            return None
        # A task may have written anything there.
        begun = begun if self._sent <= begun <= now else self._sent
        return begun + self._task.timeout - now

    def _look_at_time(self) -> None:
        """Kill the process if its time is over; else look again when it would be.

        It says nowhere when it begins a job. So the first look is at the earliest time at which
        it may be over.
        """
        left = self._time_left()
        if left is None:
            return
        if left <= 0:
            self._why = self._why or self._too_late()
            self._process.kill()
            self._process.hang_up()
            return
        timeout = self._task.timeout
        if timeout is not None and not self.is_begun:
            left = min(left, timeout)
        self._timer = asyncio.get_running_loop().call_later(left, self._look_at_time)

    async def _answer(self, call: wire.Call) -> Any:
        try:
            arguments = dict(call.arguments)
            if "specs" in arguments:
                arguments["specs"] = [_spec(fields) for fields in arguments["specs"]]
            answer = getattr(self.running.context, call.method)(**arguments)
            return await answer if inspect.isawaitable(answer) else answer
        except Exception as error:  # it is for the task to handle
            return wire.failure(error)

    def _log(self, values: Mapping[str, Any]) -> None:
        record = logging.makeLogRecord(dict(values))
        if self.running.capture is not None:
            self.running.capture.add(record)
        given = self._logger
        logger = given if record.name == given.name else logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)

    async def _show(self, number: int) -> str:
        """Where the task is; its process does not answer while native code keeps it."""
        self._shown = asyncio.get_running_loop().create_future()
        self._process.send(wire.Show(number))
        return await self._shown

    def _hand_on_abort(self, number: int, reason: AbortReason) -> None:
        self._process.send(wire.Abort(number, reason))

    async def _watch_memory(self, most: int) -> None:
        process, looks = self._process, 0
        while True:
            looks += 1
            is_whole = looks % self._use.looks_per_group == 0
            taken = await self._groups.resident(process.pid) if is_whole else process.measure()
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


class Failed:
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
