"""Run an executable file, of any language, as a task."""

import asyncio
import codecs
import errno
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

from graphile_worker_py import aio
from graphile_worker_py.errors import CutOffError, GraphileWorkerError
from graphile_worker_py.executors.groups import signal_group
from graphile_worker_py.executors.guarding import Guard
from graphile_worker_py.executors.reports import Reports
from graphile_worker_py.job import LOCK_LIFETIME, Job
from graphile_worker_py.outcomes import Discard
from graphile_worker_py.processes.ends import end_of
from graphile_worker_py.tasks.context import JobContext, RunningJob
from graphile_worker_py.tasks.task import Task

DEFAULT_TIMEOUT: Final = LOCK_LIFETIME
"""Seconds; after this time another worker may free the job and run it."""
TERMINATION_GRACE: Final = 2.0
LINE_LIMIT: Final = 16_384
STDERR_TAIL: Final = 2048
_ENDED_BY_SIGTERM: Final = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""The second is the exit code of shells and Java."""

# A process that outlives the SIGKILL has left the group. Its output is read for this long.
_STRAY_OUTPUT_TIME: Final = 1.0


class ExecutableTaskError(GraphileWorkerError):
    """An executable could not be started, exited with a code other than 0, or was killed.

    Attributes:
        returncode: The exit code, or minus the number of the signal; None if it did not start.
        stderr: The end of what it wrote to its standard error.
    """

    def __init__(self, message: str, *, returncode: int | None = None, stderr: str = "") -> None:
        complaint = stderr.rstrip()
        super().__init__(f"{message}:\n{complaint}" if complaint else message)
        self.returncode = returncode
        self.stderr = stderr


def executable_task(
    path: Path,
    identifier: str,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    grace: float = TERMINATION_GRACE,
) -> Task[Any]:
    """Make an executable file a task.

    The file is run without arguments, in the worker's working directory and in a new session. It
    reads `{"payload": …}` from its standard input; `GRAPHILE_WORKER_*` variables describe the
    job. It can write `Reports` to the descriptor `GRAPHILE_WORKER_PROGRESS_FD`. Lines of its
    standard output are logged at info, those of its standard error at error; the latter are kept
    with the runs of the history. The job is done when it has exited with code 0 and no process
    holds its output open.

    When the worker pool's abort event is set, its process group gets SIGTERM. If that ends it, the
    job is returned with its attempt; else its exit code counts as ever. When the task is
    cut off (forced stop, timeout), the group gets SIGTERM, and SIGKILL `grace` seconds later or
    when the program has exited.

    Args:
        path: The file.
        identifier: The name that its jobs carry.
        timeout: Seconds after which it is cut off and the job fails.
        grace: Seconds between SIGTERM and SIGKILL; the worker pool itself waits five.
    """
    executable = Executable(path.absolute(), identifier, grace)
    return Task(executable, identifier, timeout=timeout, capture_logs="ERROR")


class Executable:
    """An executable file: what the task of one calls."""

    def __init__(self, path: Path, identifier: str, grace: float) -> None:
        self._path = path
        self._identifier = identifier
        self._grace = grace

    def __repr__(self) -> str:
        return f"<executable {self._path}>"

    async def __call__(self, _payload: Any, ctx: JobContext) -> None:
        """Run it for a job, outside a worker pool."""
        guard = Guard()
        try:
            await self.run(ctx, guard)
        finally:
            await guard.close()

    async def run(self, ctx: JobContext, guard: Guard, *, exit_codes: bool = False) -> None:
        """Run it for a job.

        Args:
            ctx: The context of the job.
            guard: Kills it if the worker is killed.
            exit_codes: Whether code 65 discards the job.
        """
        # The stored JSON goes to the program unchanged, so that no number loses digits on its way.
        child = _Child(b'{"payload":' + ctx.job.payload_json + b"}", ctx, guard, self._grace)
        try:
            await aio.run_to_end(self._run(child, ctx), on_cancel=child.stop)
        except ExecutableTaskError as error:
            if exit_codes and error.returncode == os.EX_DATAERR:
                raise Discard(str(error)) from error
            raise

    async def _run(self, child: "_Child", ctx: JobContext) -> None:
        reports = Reports(ctx)
        environment = _environment(ctx.job)
        environment["GRAPHILE_WORKER_PROGRESS_FD"] = str(reports.writer)
        try:
            await self._start(child, environment, reports)
        except BaseException:
            reports.close()
            raise
        try:
            async with asyncio.TaskGroup() as group:
                abort = group.create_task(child.end_on(ctx.abort_event), name="executable abort")
                await child.closed.wait()
                abort.cancel()
        finally:
            child.drop()
            reports.close()
        returncode = child.returncode
        if returncode == 0 or child.is_stopped:
            return  # if it was stopped, the cancellation that did it is raised instead
        message = f"task {self._identifier!r} {end_of(returncode)}"
        if child.is_terminated:
            message += " when the worker pool asked it to end"
            if returncode in _ENDED_BY_SIGTERM:
                raise CutOffError(message)
        raise ExecutableTaskError(message, returncode=returncode, stderr=child.stderr)

    async def _start(self, child: "_Child", environment: dict[str, str], reports: Reports) -> None:
        path = str(self._path)
        try:
            await child.guard.stand_by()
        except OSError as error:
            message = f"task {self._identifier!r} can't be guarded: {error.strerror or error}"
            raise ExecutableTaskError(message) from error
        try:
            try:
                await _spawn(child, [path], environment, reports)
            except OSError as error:
                # A script without `#!` line: it is for the shell, as everywhere else on Unix.
                if error.errno != errno.ENOEXEC:
                    raise
                await _spawn(child, ["/bin/sh", path], environment, reports)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.ENOENT and self._path.exists():
                reason = "the interpreter that its first line names does not exist"
            message = f"task {self._identifier!r} could not start {path}: {reason}"
            raise ExecutableTaskError(message) from error


class ExecutableExecutor:
    """Runs executable files."""

    def __init__(self, guard: Guard, *, exit_codes: bool) -> None:
        self._guard = guard
        self._exit_codes = exit_codes

    def call_of(self, task: Task[Any]) -> Callable[[RunningJob], Awaitable[None]]:
        """How a task is called."""
        executable: Executable = task.function  # type: ignore[assignment]

        def call(running: RunningJob) -> Awaitable[None]:
            return executable.run(running.context, self._guard, exit_codes=self._exit_codes)

        return call


class _Child(asyncio.SubprocessProtocol):
    """A running program: writes its input, logs its output, and ends it."""

    def __init__(self, stdin: bytes, ctx: JobContext, guard: Guard, grace: float) -> None:
        self.closed = asyncio.Event()
        self.guard = guard
        self._grace = grace
        self.is_terminated = False
        self.is_stopped = False
        self.stderr = ""
        self._payload = stdin
        self._input: asyncio.WriteTransport | None = None
        logger = ctx.logger
        self._lines = {1: _Lines(logger.info), 2: _Lines(logger.error)}
        self._transport: asyncio.SubprocessTransport | None = None
        self._pid = 0
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def returncode(self) -> int | None:
        return None if self._transport is None else self._transport.get_returncode()

    async def end_on(self, abort: asyncio.Event) -> None:
        """Ask it to end when the event is set. Like any task, it may take its time."""
        await abort.wait()
        self._terminate()

    def stop(self) -> None:
        """End it and all processes that it has started: by SIGTERM first, then by SIGKILL."""
        if self.is_stopped or self.closed.is_set():
            return
        self.is_stopped = True
        self._terminate()
        if self.returncode is None:
            self._later(self._grace, self._kill)
        else:
            self._kill()  # only processes that it left behind are still there

    def drop(self) -> None:
        """Leave nothing behind, even if the event loop ends before the program has."""
        for timer in self._timers:
            timer.cancel()
        if not self.closed.is_set():
            self._signal(signal.SIGKILL)
            self._close()
        self.guard.forget(self._pid)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self._pid = self._transport.get_pid()
        self.guard.note(self._pid)
        self._input = cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0))
        with suppress(RuntimeError):  # uvloop's answer if the program has ended by now
            self._input.write(self._payload)
        self._input.close()  # once all is written
        self._payload = b""
        if self.is_terminated:
            self._signal(signal.SIGTERM)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        text = self._lines[fd].feed(data)
        if fd == 2:
            self.stderr = (self.stderr + text)[-STDERR_TAIL:]

    def pipe_connection_lost(self, fd: int, _exc: Exception | None) -> None:
        if fd == 0:
            # Maybe a broken pipe: the program did not want to read it all, which is its right.
            self._input = None
        else:
            self._lines[fd].end()

    def process_exited(self) -> None:
        # The rest of the input is not read, even if a child of the program holds the pipe open.
        if self._input is not None and self._input.get_write_buffer_size() > 0:
            self._input.abort()
        if self.is_stopped:
            self._kill()

    def connection_lost(self, _exc: Exception | None) -> None:
        """It has exited and all its pipes are closed."""
        self._close()
        self.closed.set()

    def _terminate(self) -> None:
        if not self.is_terminated:
            self.is_terminated = True
            self._signal(signal.SIGTERM)

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._later(_STRAY_OUTPUT_TIME, self._close)

    def _signal(self, number: signal.Signals) -> None:
        """Signal the program and all processes that it has started."""
        if self._pid != 0:  # 0: not started yet
            signal_group(self._pid, number, is_reaped=self.returncode is not None)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(delay, action))


class _Lines:
    """Cuts a stream of bytes into log records: one for each line, several for a very long one."""

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> str:
        """Log the lines that are complete; the text of `data`."""
        text = self._decoder.decode(data)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._write(line.removesuffix("\r"))
        while len(self._rest) > LINE_LIMIT:
            self._write(self._rest[:LINE_LIMIT])
            self._rest = self._rest[LINE_LIMIT:]
        return text

    def end(self) -> None:
        """Log what has no end of line."""
        self._write(self._rest + self._decoder.decode(b"", final=True))
        self._rest = ""

    def _write(self, line: str) -> None:
        for at in range(0, len(line), LINE_LIMIT):
            self._log("%s", line[at : at + LINE_LIMIT])


async def _spawn(
    child: _Child, command: list[str], environment: dict[str, str], reports: Reports
) -> None:
    loop = asyncio.get_running_loop()
    # A new session, so that Ctrl-C in the terminal reaches the worker only, and a signal to the
    # group reaches all processes that the program starts.
    await loop.subprocess_exec(
        lambda: child,
        *command,
        env=environment,
        start_new_session=True,
        pass_fds=(reports.writer,),
    )
    reports.has_started()


def _environment(job: Job) -> dict[str, str]:
    """This process's environment, and Graphile Worker's variables about the job."""
    environment = {
        **os.environ,
        "GRAPHILE_WORKER_PAYLOAD_FORMAT": "json",
        "GRAPHILE_WORKER_TASK_IDENTIFIER": job.task_identifier,
        "GRAPHILE_WORKER_JOB_ID": str(job.id),
        "GRAPHILE_WORKER_JOB_ATTEMPTS": str(job.attempts),
        "GRAPHILE_WORKER_JOB_MAX_ATTEMPTS": str(job.max_attempts),
        "GRAPHILE_WORKER_JOB_PRIORITY": str(job.priority),
        "GRAPHILE_WORKER_JOB_RUN_AT": _iso(job.run_at),
    }
    # Ours may come from a job that this worker itself is part of.
    environment.pop("GRAPHILE_WORKER_JOB_KEY", None)
    if job.key is not None:
        environment["GRAPHILE_WORKER_JOB_KEY"] = job.key
    return environment


def _iso(time: datetime) -> str:
    """As JavaScript writes a time: UTC, milliseconds, `Z`."""
    return time.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
