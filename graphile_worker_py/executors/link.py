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
from graphile_worker_py.executors import wire
from graphile_worker_py.tasks.abort import AbortReason

REPORT_INTERVAL: Final = 0.1
"""Seconds between two reports of progress."""


class Link:
    """The connection to the worker. A separate thread reads from it.

    Another one sends progress, from the first report on.

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
        self._reporting = threading.Lock()
        self._has_report = threading.Event()
        self._latest: tuple[int, wire.Reported] | None = None
        self._reporter: threading.Thread | None = None

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
