"""The process of a task, from the inside: it runs one job after another."""

import asyncio
import dataclasses
import faulthandler
import functools
import importlib
import inspect
import logging
import operator
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from graphile_worker_py import aio
from graphile_worker_py.errors import (
    presentable,
    traceback_of,
)
from graphile_worker_py.executors import wire
from graphile_worker_py.executors.beginning import Beginning
from graphile_worker_py.executors.link import Link
from graphile_worker_py.executors.process_context import ProcessJobContext
from graphile_worker_py.job.results import written_result
from graphile_worker_py.options.history import LARGEST_RESULT
from graphile_worker_py.outcomes import Discard, RetryIn, Snooze, decision_of
from graphile_worker_py.tasks.batches import batch_of
from graphile_worker_py.tasks.current import CURRENT, add_job_to_record
from graphile_worker_py.tasks.importing import import_file, open_package
from graphile_worker_py.tasks.injection import NO_STATE, State
from graphile_worker_py.tasks.locating import TaskPlace
from graphile_worker_py.tasks.program import set_up
from graphile_worker_py.tasks.task import Task
from graphile_worker_py.tasks.variables import JobVariables

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(jobs: int, control: int, beginning: int) -> None:
    """Run jobs until the worker ends the process.

    Args:
        jobs: Descriptor of the socket for jobs.
        control: Descriptor of the socket for what concerns the job that runs.
        beginning: Descriptor of the file for `Beginning`.
    """
    faulthandler.enable()
    for number in _ENDING:
        # The worker decides when to end. Otherwise a supervisor that signals all processes of a
        # service would cut off jobs that a graceful stop lets finish.
        signal.signal(number, _ignore)
    link = Link(socket.socket(fileno=jobs), socket.socket(fileno=control))
    calls = _Calls(Beginning(beginning))
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=link.forget)
    os.register_at_fork(after_in_child=_heed_signals)
    forward = _Forward(link)
    forward.addFilter(add_job_to_record)
    logging.root.handlers[:] = [forward]
    link.start()
    while (order := link.next()) is not None:
        _run(order, link, calls)


class _Calls:
    """What the process keeps from one job to the next.

    Args:
        beginning: Where it notes that a job begins.
    """

    def __init__(self, beginning: Beginning) -> None:
        self.beginning = beginning
        self.variables = JobVariables()
        self._settings: dict[str, wire.Setting] = {}
        self._tasks: dict[str, Task[Any]] = {}
        self._levels: list[tuple[logging.Logger, int]] = []

    def heed(self, order: wire.Run) -> wire.Setting:
        """Keep what is new, and set the levels of loggers, which a task may have changed."""
        if order.levels is not None:
            self._levels = [
                (logging.getLogger(name), level) for name, level in order.levels.items()
            ]
        for logger, level in self._levels:
            if logger.level != level:
                logger.setLevel(level)
        if order.setting is not None:
            self._settings[order.job.task_identifier] = order.setting
        return self._settings[order.job.task_identifier]

    def task(self, identifier: str, setting: wire.Setting) -> Task[Any]:
        """The task of a job, which is imported for the first one."""
        task = self._tasks.get(identifier)
        if task is None:
            state = NO_STATE if setting.setup is None else _state(setting.setup)
            task = self._tasks[identifier] = _task(setting.place, state)
            # Setup and modules may have set some.
            self.variables = JobVariables()
        return task


class _Forward(logging.Handler):
    """Sends log records to the worker, whose handlers write them."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._link.process:
            # A process that the task has forked: the connection does not belong to it.
            if logging.lastResort is not None:
                logging.lastResort.handle(record)
            return
        try:
            self._link.send(self._link.number, wire.Logged(_plain(record)))
        except Exception:
            self.handleError(record)


def _plain(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a record, as values that can be sent."""
    values = {
        name: value if wire.is_plain(value) else str(value)
        for name, value in vars(record).items()
        if name not in {"msg", "args", "exc_info", "message"}
    }
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        values["exc_text"] = traceback_of(record.exc_info[1])
    return {**values, "msg": record.getMessage(), "args": None}


def _run(order: wire.Run, link: Link, calls: _Calls) -> None:
    setting = calls.heed(order)
    link.begin(order.number)
    status: object = 0
    try:
        task = calls.task(order.job.task_identifier, setting)
        context = ProcessJobContext(order, setting, link)
        variables = calls.variables.new()
        calls.beginning.write(time.monotonic())
        outcome: wire.Said = variables.run(_call, task, context, setting, calls)
    except BaseException as raised:  # SystemExit included: it is the task's failure
        error = presentable(raised)
        status = error.code if isinstance(error, SystemExit) else 1
        outcome = _failure(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed by the task, or not there
            stream.flush()
    if os.getpid() != link.process:
        # A fork of the task has come here, too. The job is not its concern.
        os._exit(status if isinstance(status, int) else 1)
    link.number = 0
    link.send_report()
    link.send(order.number, outcome)


@functools.cache
def _state(setup: str) -> State:
    """Call the program's setup, once; what it returns."""
    return set_up(setup).state


def _task(place: TaskPlace, state: State) -> Task[Any]:
    if place.directory is None or place.file is None:
        module = importlib.import_module(place.module)
    elif place.module in sys.modules:
        module = sys.modules[place.module]
    else:
        package = open_package(Path(place.directory))
        file = Path(place.file)
        parts = file.relative_to(place.directory).with_suffix("").parts
        module = import_file(package, parts, file)
    found = operator.attrgetter(place.name)(module)
    task = found if isinstance(found, Task) else Task(found, place.identifier)
    if not task.injected:
        return task
    # Other processes do not pay for the import.
    from graphile_worker_py.executors.injecting import bound_in_process  # noqa: PLC0415

    return bound_in_process(task, state)


def _call(
    task: Task[Any], context: ProcessJobContext, setting: wire.Setting, calls: _Calls
) -> wire.Done:
    calls.variables.begin_job()
    job = context.job
    CURRENT.set(job)
    payload = job.payload if task.decode is None else task.decode(job.payload_json)
    arguments = (payload, context)[: task.arguments]
    returned = task.function(*arguments)
    if inspect.isawaitable(returned):
        returned = asyncio.run(aio.awaited(returned))
    decision = decision_of(returned)
    if decision is not None:
        raise decision  # which is the same as returning it
    is_set = returned is None
    result, omitted = None, None
    if not is_set or context.result is not None:
        result, omitted = written_result(
            context.result if is_set else returned, limit=LARGEST_RESULT
        )
    done = wire.Done(result=result, omitted=omitted, is_set=is_set)
    if omitted is None and isinstance(returned, list | tuple) and not any(map(_decides, returned)):
        return done  # the worker sees whether they fit
    logger = logging.getLogger(setting.logger)
    batch = batch_of(job.task_identifier, job.payload_json, returned, logger)
    if batch is None:
        return done
    asyncio.run(batch.settle())
    failed = {at: _failure(error) for at, error in batch.failures.items()}
    return dataclasses.replace(done, items=len(returned), failed=failed)


def _decides(item: object) -> bool:
    """Whether an item of a batch job has an outcome that is not known, or not a success."""
    return inspect.isawaitable(item) or isinstance(item, RetryIn | Snooze | Discard | type)


def _failure(error: BaseException) -> wire.Failure:
    return wire.failure(error, traceback_of(error))


def _ignore(_number: int, _frame: object) -> None:
    pass


def _block() -> None:
    # So that no signal is lost between the fork and the end of `_heed_signals`.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _heed_signals() -> None:
    """Let signals end a process that the task forks, as `Process.terminate` does."""
    for number in _ENDING:
        if signal.getsignal(number) is _ignore:
            signal.signal(number, signal.SIG_DFL)
    _unblock()
