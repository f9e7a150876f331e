"""The parent that keeps several worker processes running.

The parent starts each worker by running its own command line again, with a variable that holds the
worker's number and channel (`supervised` is the worker's end). Workers are not forked: modules with
tasks may start threads or open connections when they are imported, and some native libraries, such
as libpq, do not survive a fork on every platform.

Each worker has a socket to the parent, its channel. The worker reports when it is ready, and the
parent tells it when to stop. When the parent ends, for whatever reason, the channel closes and the
worker stops, too. The parent does not forward signals: a terminal or a process manager may signal
the whole process group, and a worker that received one Ctrl-C twice would cancel its jobs.

The first worker starts alone. If it fails to start, because it can't read the crontab or can't
reach the database, the others would fail, too: it logs the reason once, and the parent exits with
its exit code. Later, the parent replaces a worker that died, after a delay that grows with each
death in a row.
"""

import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from graphile_worker_py.backoff import Backoff
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.processes.early import ENDING
from graphile_worker_py.processes.ends import end_of
from graphile_worker_py.processes.signals import REPEAT_WINDOW
from graphile_worker_py.processes.supervised import KILL, STOP, VARIABLE
from graphile_worker_py.records import Record

logger = logging.getLogger(__name__)


SIGNALLED: Final = 128
"""Added to the number of the signal that ended a process, as shells do."""


class Patience(Record):
    """How long the parent waits, in seconds.

    Attributes:
        healthy: A worker that ran for this long did not die at its start.
        restart: Delay before a worker is replaced, by its deaths in a row.
        deaths: The parent gives up when every worker has died this often in a row.
        forced: Longest time for a forced stop; then the parent kills the workers with SIGKILL. A
            worker that is not blocked needs at most ten seconds.
    """

    healthy: float = 10.0
    restart: Backoff = Backoff(shortest=1.0, longest=60.0, factor=2.0)
    deaths: int = 3
    forced: float = 15.0


@dataclass(slots=True)
class _Place:
    """One of the workers: its process, or the time at which to start its next process.

    Attributes:
        number: Number of the worker, from 1.
        pid: Its process; None while it has none.
        channel: The socket to that process.
        started_at: When that process started.
        ready: Whether that process has reported that it is ready.
        excused: Whether the parent ended it before it was ready; then its exit code does not count.
        deaths: Number of its processes that died early, in a row.
        due_at: When to start its next process.
    """

    number: int
    pid: int | None = None
    channel: socket.socket | None = None
    started_at: float = 0.0
    ready: bool = False
    excused: bool = False
    deaths: int = 0
    due_at: float | None = None

    def tell(self, word: str, reason: str) -> None:
        """Send a line to the process, unless it has just ended."""
        if self.channel is not None:
            with suppress(OSError):
                self.channel.send(f"{word} {reason}\n".encode())

    def has_lived_well(self, now: float, patience: Patience) -> bool:
        """Whether the process ran long enough to forget the deaths before it."""
        return self.ready and now - self.started_at >= patience.healthy


@dataclass(slots=True)
class _Stop:
    """How far a stop has come."""

    signalled_at: float | None = None
    begun: bool = False
    forced: bool = False
    give_up_at: float | None = None
    verdict: int | None = None
    codes: list[int] = field(default_factory=list)


class Supervisor:
    """Starts worker processes, replaces those that die, and ends with them.

    Args:
        count: Number of workers.
        command: Command line of a worker; None means that of this process.
        once: Whether workers end by themselves; then none is replaced.
        final: Exit codes with which a replacement would end, too; then all workers are stopped.
        patience: How long to wait; None means the defaults.
    """

    def __init__(
        self,
        count: int,
        *,
        command: Sequence[str] | None = None,
        once: bool = False,
        final: Collection[int] = (),
        patience: Patience | None = None,
    ) -> None:
        if not hasattr(os, "posix_spawn"):
            raise ConfigurationError(
                f"processes: this platform supports only 1 process, not {count}"
            )
        self._command = own_command() if command is None else list(command)
        self._once = once
        self._final = final
        self._patience = Patience() if patience is None else patience
        self._places = [_Place(number) for number in range(1, count + 1)]
        self._some_worked = False
        self._stop = _Stop()
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Run until all workers have ended for good.

        Call it in the main thread, as the last thing that the process does: it leaves signals
        ignored.

        Returns:
            The exit code: that of the worker because of which all ended, otherwise the highest.
        """
        logger.info("Supervising %d processes", len(self._places))
        try:
            with self._selector, _woken_by_signals() as signals:
                self._selector.register(signals, selectors.EVENT_READ)
                self._start(self._places[0])
                while self._is_busy():
                    ready = self._selector.select(self._rest())
                    self._hear([key.data for key, _ in ready if key.data is not None])
                    self._reap()
                    self._take_signals(_read_all(signals))
                    self._take_time()
        finally:
            # If a bug ended the loop, closing the channels stops the workers that still run.
            for place in self._places:
                if place.channel is not None:
                    place.channel.close()
        code = self._exit_code()
        logger.info("All processes have ended; exit code %d", code)
        return code

    def _is_busy(self) -> bool:
        return any(place.pid is not None or place.due_at is not None for place in self._places)

    def _rest(self) -> float | None:
        """Seconds until the next restart or deadline; None if there is none."""
        times = [place.due_at for place in self._places if place.due_at is not None]
        if self._stop.give_up_at is not None:
            times.append(self._stop.give_up_at)
        return max(min(times) - time.monotonic(), 0) if times else None

    def _start(self, place: _Place) -> None:
        place.due_at = None
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            environment = {**os.environ, VARIABLE: f"{place.number}:{theirs.fileno()}"}
            try:
                place.pid = os.posix_spawn(
                    self._command[0],
                    self._command,
                    environment,
                    # A Ctrl-C reaches the worker, too; the worker unblocks it when it can exit
                    # without a traceback.
                    setsigmask=[signal.SIGINT],
                )
            except OSError as error:
                ours.close()
                self._has_ended(place, f"could not be started ({error})", 1)
                return
        ours.settimeout(0)
        place.channel = ours
        place.ready = place.excused = False
        place.started_at = time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ, place)
        logger.info("Process %d started, pid %d", place.number, place.pid)

    def _hear(self, places: Sequence[_Place]) -> None:
        for place in places:
            if place.channel is None or not _read_all(place.channel):
                self._close(place)
            elif not place.ready:
                place.ready = True
                self._works(place)

    def _works(self, place: _Place) -> None:
        if self._stop.begun:
            place.excused = False
            place.tell(STOP, "SIGTERM")
            return
        logger.debug("Process %d is ready", place.number)
        if not self._some_worked:
            # The others will be able to run, too.
            self._some_worked = True
            for other in self._places[1:]:
                self._start(other)

    def _reap(self) -> None:
        # Any child: as the first process of a container, the parent inherits orphans.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for place in self._places:
                if place.pid == pid:
                    place.pid = None
                    self._hear([place])  # it may have reported to be ready just before it ended
                    self._close(place)
                    returncode = os.waitstatus_to_exitcode(status)
                    code = returncode if returncode >= 0 else SIGNALLED - returncode
                    self._has_ended(place, end_of(returncode), code)

    def _close(self, place: _Place) -> None:
        if place.channel is not None:
            self._selector.unregister(place.channel)
            place.channel.close()
            place.channel = None

    def _has_ended(self, place: _Place, how: str, code: int) -> None:
        now = time.monotonic()
        name = f"Process {place.number}"
        if self._stop.begun or (self._once and self._some_worked):
            self._stop.codes.append(0 if place.excused else code)
            log = logger.debug if code == 0 or place.excused else logger.warning
            log("%s %s", name, how)
        elif not self._some_worked:
            # It has logged why; the others would fail in the same way.
            self._end_for(code or 1, f"{name} {how} before it was ready")
        elif code in self._final:
            self._end_for(code, f"{name} {how}, and a replacement would, too")
        else:
            self._replace(place, name, how, code, now)

    def _replace(self, place: _Place, name: str, how: str, code: int, now: float) -> None:
        healthy = place.has_lived_well(now, self._patience)
        place.deaths = 0 if healthy else place.deaths
        if healthy and code == 0:
            place.due_at = now
            logger.info("%s %s; starting another one", name, how)
            return
        place.deaths += 1
        if all(self._is_dying(other, now) for other in self._places):
            self._end_for(code or 1, f"{name} {how}; all processes keep dying at their start")
            return
        delay = self._patience.restart.delay(place.deaths)
        place.due_at = now + delay
        logger.warning("%s %s; starting another one in %.1f s", name, how, delay)

    def _is_dying(self, place: _Place, now: float) -> bool:
        if place.pid is not None and place.has_lived_well(now, self._patience):
            return False
        return place.deaths >= self._patience.deaths

    def _end_for(self, code: int, why: str) -> None:
        logger.error("%s", why)
        self._stop.verdict = code
        self._begin_stop("SIGTERM")

    def _take_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number not in ENDING:
                continue
            name = signal.Signals(number).name
            now = time.monotonic()
            if self._stop.signalled_at is None:
                self._stop.signalled_at = now
                logger.info("Stopping all processes due to %s", name)
                self._begin_stop(name)
            elif now - self._stop.signalled_at > REPEAT_WINDOW:
                self._force(name)

    def _begin_stop(self, name: str) -> None:
        self._stop.begun = True
        for place in self._places:
            place.due_at = None
            if place.pid is None:
                continue
            if place.ready:
                place.tell(STOP, name)
            else:
                place.excused = True
                os.kill(place.pid, signal.SIGTERM)

    def _force(self, name: str) -> None:
        if self._stop.forced:
            return
        self._stop.forced = True
        logger.warning("Stopping all processes at once due to %s", name)
        self._stop.give_up_at = time.monotonic() + self._patience.forced
        for place in self._places:
            if place.pid is None:
                continue
            if place.ready:
                place.tell(KILL, name)
            else:
                os.kill(place.pid, signal.SIGKILL)

    def _take_time(self) -> None:
        now = time.monotonic()
        for place in self._places:
            if place.due_at is not None and place.due_at <= now:
                self._start(place)
        if self._stop.give_up_at is not None and self._stop.give_up_at <= now:
            self._stop.give_up_at = None
            lost = "Process %d does not stop; killing it with SIGKILL, its jobs stay locked"
            for place in self._places:
                if place.pid is not None:
                    logger.error(lost, place.number)
                    os.kill(place.pid, signal.SIGKILL)

    def _exit_code(self) -> int:
        if self._stop.verdict is not None:
            return self._stop.verdict
        return max(self._stop.codes, default=0)


def own_command() -> list[str]:
    """The command line of this process, with the interpreter and its flags."""
    return [sys.executable, *sys.orig_argv[1:]]


def _read_all(source: socket.socket) -> bytes:
    """What can be read without waiting; empty also if the other end is closed."""
    found = b""
    with suppress(OSError):
        while part := source.recv(4096):
            found += part
    return found


@contextmanager
def _woken_by_signals() -> Iterator[socket.socket]:
    """A socket that receives the numbers of signals: those that end the process, and SIGCHLD.

    When it is full, further numbers are lost, but it still wakes the reader.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        theirs.settimeout(0)
        numbers = (*ENDING, signal.SIGCHLD)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            for number in ENDING:
                # A late signal must not change the exit code, which reports how the workers ended.
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(wakeup)
