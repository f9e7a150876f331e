"""The connection of the process of a task to its worker, as the process sees it."""

import os
import queue
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Final

from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.executors import calls, wire
from graphile_worker_py.tasks.abort import AbortReason

REPORT_INTERVAL: Final = 0.1
"""Seconds between two reports of progress."""
_PART: Final = 2**16


class Link:
    """The connection to the worker: two sockets.

    The main thread reads jobs from the first one, and sends what there is to say. A separate
    thread reads from the second one what concerns the job that runs. So no thread has to hand
    over a job to another one. A third thread sends progress, from the first report on.

    Args:
        jobs: The socket for jobs and all that is sent.
        control: The socket for what concerns the job that runs.

    Attributes:
        number: Of the job that runs; 0 if none does.
        process: The process that it belongs to; a fork of it is another one.
        abort_event: Set when the job that runs should end.
        abort_reason: Why it should.
    """

    def __init__(self, jobs: socket.socket, control: socket.socket) -> None:
        jobs.set_inheritable(False)
        control.set_inheritable(False)
        self.abort_event = threading.Event()
        self.abort_reason: AbortReason | None = None
        self.number = 0
        self.process = os.getpid()
        self._connection = jobs
        self._control = control
        self._orders = _Orders(jobs)
        self._aborting = threading.Lock()
        self._abort = wire.Abort(0, None)
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._writing = threading.Lock()
        self._asking = threading.Lock()
        self._reporting = threading.Lock()
        self._has_report = threading.Event()
        self._latest: tuple[int, wire.Reported] | None = None
        self._reporter: threading.Thread | None = None

    def start(self) -> None:
        threading.Thread(target=self.read_control, name="graphile-worker-py", daemon=True).start()

    def forget(self) -> None:
        """Close the connection, in a process that the task has forked."""
        self._connection.close()
        self._control.close()

    def next(self) -> wire.Run | None:
        """Wait for the next job; None if the process should end."""
        order = self._orders.receive()
        if order is None:
            _end_with_worker()
        return order if isinstance(order, wire.Run) else None

    @property
    def asked_last(self) -> int:
        """Number of the last job that was asked to end; 0 if none was."""
        return self._abort.number

    def begin(self, number: int) -> None:
        """Note which job runs. What asks it to end may have arrived before."""
        with self._aborting:
            self.number = number
            if self.abort_event.is_set():
                # What an earlier job has left behind may still look at its own event.
                self.abort_event = threading.Event()
            self.abort_reason = None
            self._heed(self._abort)

    def send(self, number: int, said: wire.Said) -> None:
        encoded = wire.encode_said(number, said)
        with self._writing:
            self._connection.sendall(encoded)

    def ask(self, number: int, call: wire.Call) -> Any:
        """Have the worker do something for a job, and wait for the answer."""
        self._check_process()
        with self._asking:
            self._check_running(number)
            self.send(number, call)
            answer = self._answers.get()
        if isinstance(answer, wire.Failure):
            raise answer.error()
        return answer

    def report(self, number: int, progress: wire.Reported) -> None:
        """Send how far a job is soon, and only what was reported last."""
        self._check_process()
        self._check_running(number)
        with self._reporting:
            self._latest = (number, progress)
            if self._reporter is None:
                self._reporter = threading.Thread(
                    target=self._report, name="graphile-worker-py progress", daemon=True
                )
                self._reporter.start()
        self._has_report.set()

    def send_report(self) -> None:
        """Send what was reported last, if it was not sent yet."""
        with self._reporting:
            latest, self._latest = self._latest, None
            if latest is not None:
                self.send(*latest)

    def _report(self) -> None:
        with suppress(OSError):  # the worker has ended, which ends the process
            while True:
                self._has_report.wait()
                self._has_report.clear()
                self.send_report()
                time.sleep(REPORT_INTERVAL)

    def _check_process(self) -> None:
        if os.getpid() != self.process:
            raise GraphileWorkerError(
                "this process was forked by a task: it can't use the context of the job"
            )

    def _check_running(self, number: int) -> None:
        if number != self.number:
            raise GraphileWorkerError("the job of this context is over")

    def read_control(self) -> None:
        """Heed what concerns the job that runs, until the worker ends."""
        orders = _Orders(self._control)
        while True:
            match orders.receive():
                case wire.Abort() as abort:
                    with self._aborting:
                        self._abort = abort
                        self._heed(abort)
                case wire.Answer(value):
                    self._answers.put(value)
                case wire.Show(number):
                    self._show(number)
                case None:
                    _end_with_worker()

    def _show(self, number: int) -> None:
        thread = threading.main_thread().ident
        if thread is not None and number == self.number:
            with suppress(OSError):  # the worker has ended, which ends the process
                self.send(number, wire.Shown(calls.written(calls.of_thread(thread))))

    def _heed(self, abort: wire.Abort) -> None:
        if abort.number == self.number != 0:
            self.abort_reason = abort.reason
            self.abort_event.set()


class _Orders:
    """What the worker sends through one of the sockets."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()

    def receive(self) -> wire.Order | None:
        """The next message; None if the worker has ended."""
        try:
            (size,) = wire.HEADER.unpack(self._exactly(wire.HEADER.size))
            return wire.decode_order(self._exactly(size))
        except (EOFError, OSError):
            return None

    def _exactly(self, size: int) -> bytes:
        received = self._received
        while len(received) < size:
            part = self._connection.recv(max(_PART, min(size - len(received), 2**20)))
            if not part:
                raise EOFError
            received += part
        taken = bytes(received[:size])
        del received[:size]
        return taken


def _end_with_worker() -> None:
    """The worker has ended without ending this process: the outcome has no reader."""
    with suppress(ProcessLookupError):
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
