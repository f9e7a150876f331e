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
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn, Unpack

from graphile_worker_py import aio
from graphile_worker_py.errors import (
    GraphileWorkerError,
    JobCancelledError,
    presentable,
    traceback_of,
)
from graphile_worker_py.executors import wire
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobSpec, PayloadT, SpecOptions, TaskName
from graphile_worker_py.outcomes import Discard, RetryIn, Snooze
from graphile_worker_py.tasks.abort import AbortReason
from graphile_worker_py.tasks.batches import batch_of
from graphile_worker_py.tasks.importing import import_file, open_package
from graphile_worker_py.tasks.job_log import job_logger
from graphile_worker_py.tasks.locating import TaskPlace
from graphile_worker_py.tasks.task import Task
from graphile_worker_py.tasks.variables import JobVariables

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ProcessJobContext:
    """What a task in a process knows of its job, and what it can ask of its worker.

    It has no `connection()`: a process makes its own connections.

    Attributes:
        job: The job, as it was fetched.
        worker_id: Id of the worker that runs it.
        pool_id: Id of the worker's pool, which has locked the job under this name.
        abort_event: Set when the job should end. See `JobContext.abort_event`.
        logger: A logger of the worker, whose records carry the job's id, task, attempt, worker
            and pool.
    """

    def __init__(self, order: wire.Run, link: "_Link") -> None:
        self.job = order.job
        self.worker_id = order.worker_id
        self.pool_id = order.pool_id
        self.abort_event = link.abort_event
        self.logger = job_logger(
            logging.getLogger(order.logger), order.job, order.worker_id, order.pool_id
        )
        self._number = order.number
        self._link = link
        self._cursor = order.cursor

    @property
    def abort_reason(self) -> AbortReason | None:
        """Why `abort_event` is set. See `JobContext.abort_reason`."""
        return self._link.abort_reason

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled, and should end. See `JobContext.cancelled`."""
        return self.abort_reason == "cancelled"

    def raise_if_cancelled(self) -> None:
        """End the task here if the job was cancelled. See `JobContext.raise_if_cancelled`.

        Raises:
            JobCancelledError: It was.
        """
        if self.cancelled:
            raise JobCancelledError("the job was cancelled")

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Report how far the job is. See `JobContext.progress`."""
        self._call("progress", done=done, total=total, message=message)

    @property
    def cursor(self) -> Any:
        """What `checkpoint` has left. See `JobContext.cursor`."""
        return self._cursor

    def checkpoint(self, cursor: Any) -> None:
        """Keep a value from which the next attempt can go on. See `JobContext.checkpoint`."""
        self._call("checkpoint", cursor=cursor)
        self._cursor = cursor

    def set_result(self, result: Any) -> None:
        """Set the result that is kept. See `JobContext.set_result`."""
        self._call("set_result", result=result)

    def transaction(self) -> NoReturn:
        """Not available: a process has no connection of the worker.

        Raises:
            GraphileWorkerError: Always.
        """
        raise GraphileWorkerError(
            "a task in a process can't complete its job in a transaction: use an async task or "
            "one in a thread"
        )

    complete_with = transaction

    def add_job(
        self,
        identifier: str | TaskName[PayloadT],
        payload: PayloadT | None = None,
        **options: Unpack[SpecOptions],
    ) -> Job:
        """Add a job, through the worker. See `WorkerUtils.add_job`."""
        return self.add_jobs([JobSpec(identifier, payload, **options)])[0]  # pyright: ignore[reportArgumentType]

    def add_jobs(self, specs: Iterable[JobSpec]) -> list[Job]:
        """Add many jobs, all or none, through the worker. See `WorkerUtils.add_jobs`."""
        jobs: list[Job] = self._call("add_jobs", specs=[_as_data(spec) for spec in specs])
        return jobs

    def get_queue_name(self, queue_id: int | None = None) -> str | None:
        """Name of the job's serial queue, or of another one. See `JobContext.get_queue_name`."""
        name: str | None = self._call("get_queue_name", queue_id=queue_id)
        return name

    def _call(self, method: str, **arguments: Any) -> Any:
        """Have the worker call a method of the job's `JobContext`."""
        return self._link.ask(self._number, wire.Call(method, arguments))


def main(descriptor: int) -> None:
    """Run jobs until the worker ends the process."""
    faulthandler.enable()
    for number in _ENDING:
        # The worker decides when to end. Otherwise a supervisor that signals all processes of a
        # service would cut off jobs that a graceful stop lets finish.
        signal.signal(number, _ignore)
    link = _Link(socket.socket(fileno=descriptor))
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=link.forget)
    os.register_at_fork(after_in_child=_heed_signals)
    logging.root.handlers[:] = [_Forward(link)]
    link.start()
    while (order := link.orders.get()) is not None:
        _run(order, link)


class _Link:
    """The connection to the worker. A separate thread reads from it.

    Attributes:
        number: Of the job that runs; 0 if none does.
        process: The process that it belongs to; a fork of it is another one.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.set_inheritable(False)
        self.orders: queue.SimpleQueue[wire.Run | None] = queue.SimpleQueue()
        self.abort_event = threading.Event()
        self.abort_reason: AbortReason | None = None
        self.number = 0
        self.process = os.getpid()
        self._connection = connection
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._writing = threading.Lock()
        self._asking = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._read, name="graphile-worker-py", daemon=True).start()

    def forget(self) -> None:
        """Close the connection, in a process that the task has forked."""
        self._connection.close()

    def send(self, number: int, said: wire.Said) -> None:
        encoded = wire.encode_said(number, said)
        with self._writing:
            self._connection.sendall(encoded)

    def ask(self, number: int, call: wire.Call) -> Any:
        """Have the worker do something for a job, and wait for the answer."""
        if os.getpid() != self.process:
            raise GraphileWorkerError(
                "this process was forked by a task: it can't use the context of the job"
            )
        with self._asking:
            if number != self.number:
                raise GraphileWorkerError("the job of this context is over")
            self.send(number, call)
            answer = self._answers.get()
        if isinstance(answer, wire.Failure):
            raise answer.error()
        return answer

    def _read(self) -> None:
        while True:
            match self._receive():
                case wire.Run() as order:
                    self.orders.put(order)
                case wire.Abort(reason):
                    self.abort_reason = reason
                    self.abort_event.set()
                case wire.Answer(value):
                    self._answers.put(value)
                case wire.End():
                    self.orders.put(None)
                    return
                case None:
                    # The worker has ended without ending this process: the outcome has no reader.
                    with suppress(ProcessLookupError):
                        os.killpg(os.getpid(), signal.SIGKILL)
                    os._exit(1)

    def _receive(self) -> wire.Order | None:
        try:
            header = self._exactly(wire.HEADER.size)
            return wire.decode_order(self._exactly(*wire.HEADER.unpack(header)))
        except (EOFError, OSError):
            return None

    def _exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            part = self._connection.recv(min(size - len(received), 2**20))
            if not part:
                raise EOFError
            received += part
        return bytes(received)


class _Forward(logging.Handler):
    """Sends log records to the worker, whose handlers write them."""

    def __init__(self, link: _Link) -> None:
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


def _run(order: wire.Run, link: _Link) -> None:
    for name, level in order.levels.items():
        logging.getLogger(name).setLevel(level)
    link.number = order.number
    status: object = 0
    try:
        task = _task(order.place)
        link.send(order.number, wire.Begun())
        variables = JobVariables()
        outcome: wire.Said = variables.new().run(_call, task, order, link, variables)
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
    link.send(order.number, outcome)


@functools.cache
def _task(place: TaskPlace) -> Task[Any]:
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
    return found if isinstance(found, Task) else Task(found, place.identifier)


def _call(task: Task[Any], order: wire.Run, link: _Link, variables: JobVariables) -> wire.Done:
    variables.begin_job()
    job = order.job
    payload = job.payload if task.decode is None else task.decode(job.payload_json)
    arguments = (payload, ProcessJobContext(order, link))[: task.arguments]
    result = task.function(*arguments)
    if inspect.isawaitable(result):
        result = asyncio.run(aio.awaited(result))
    if isinstance(result, RetryIn | Snooze | Discard):
        raise result  # which is the same as returning it
    if isinstance(result, list) and not any(map(inspect.isawaitable, result)):
        return wire.Done(results=len(result), failed={})  # the worker sees whether they fit
    batch = batch_of(job.task_identifier, job.payload_json, result, logging.getLogger(order.logger))
    if batch is None:
        return wire.Done(results=None, failed={})
    asyncio.run(batch.settle())
    failed = {at: _failure(error) for at, error in batch.failures.items()}
    return wire.Done(results=len(result), failed=failed)


def _failure(error: BaseException) -> wire.Failure:
    return wire.failure(error, traceback_of(error))


def _as_data(spec: JobSpec) -> dict[str, Any]:
    """A job to be added, as JSON values."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    fields["payload"] = None if spec.payload is None else spec.payload_json()
    fields["run_at"] = None if spec.run_at is None else spec.run_at.isoformat()
    return fields


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
