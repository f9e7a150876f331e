"""The interpreters in which tasks run, from the worker's side."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, cast

from graphile_worker_py.executors import memory, wire
from graphile_worker_py.executors.beginning import Beginning, new_file
from graphile_worker_py.executors.channel import Channel
from graphile_worker_py.executors.groups import signal_group

END_TIME: Final = 2.0
"""Seconds that a process without a job is given to end by itself."""
STRAY_TIME: Final = 1.0
"""Seconds that a killed process gets to end, and that its last messages may take to arrive."""

_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from graphile_worker_py.executors.child import main; main(*json.loads(sys.argv[1]))"
)


class Process(asyncio.SubprocessProtocol):
    """A process, from the worker's side.

    Args:
        has_ended: Called with it when it has ended.
        is_ending: Called with it when it is asked to end, so that it can't be used again.
    """

    def __init__(
        self,
        has_ended: Callable[["Process"], None],
        is_ending: Callable[["Process"], None],
    ) -> None:
        self.pid = 0
        self.jobs = 0
        self.resident = 0
        self.first_resident = 0
        self.modules: set[str] = set()
        self.settings: set[str] = set()
        self.levels: dict[str, int] | None = None
        self.ended = asyncio.Event()
        self.is_talking = False
        self._has_ended = has_ended
        self._is_ending = is_ending
        self._transport: asyncio.SubprocessTransport | None = None
        self._channel = Channel()
        self._control = Channel()
        self._beginning: Beginning | None = None
        self._memory: memory.Resident | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_until = 0.0

    @property
    def is_ended(self) -> bool:
        return self.ended.is_set()

    @property
    def returncode(self) -> int | None:
        return None if self._transport is None else self._transport.get_returncode()

    async def start(self) -> None:
        """Start it.

        Raises:
            OSError: The system allows no more processes.
        """
        path = json.dumps([each for each in sys.path if isinstance(each, str)])
        with ExitStack() as theirs:
            try:
                descriptors = [
                    await _connect(self._channel, theirs),
                    await _connect(self._control, theirs),
                    self._share_memory(theirs),
                ]
                await asyncio.get_running_loop().subprocess_exec(
                    lambda: self,
                    *(sys.executable, "-c", _BOOT, json.dumps(descriptors), path),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=None,
                    stderr=None,
                    pass_fds=descriptors,
                    start_new_session=True,
                )
            except OSError:
                self.drop()
                raise
        self._memory = memory.Resident(self.pid)

    def begin(self, module: str) -> None:
        """Note that it gets a job of a task in this module."""
        self.modules.add(module)
        self.is_talking = True

    def run(self, order: wire.Run) -> None:
        """Have it run a job."""
        if self._beginning is not None:
            self._beginning.clear()
        self._channel.write(wire.encode_order(order))

    def send(self, order: wire.Abort | wire.Answer | wire.Show) -> None:
        """Send it what concerns the job that runs."""
        self._control.write(wire.encode_order(order))

    async def receive(self) -> tuple[int, wire.Said] | None:
        """Its next message, with the number of the run; None if it ended or sent nonsense."""
        message = await self._channel.receive()
        if message is None:
            return None
        try:
            return wire.decode_said(message)
        except Exception:  # a crash may have left anything in its memory
            return None

    def hang_up(self) -> None:
        """Receive nothing from it any longer."""
        self._channel.hang_up()

    def begun(self) -> float | None:
        """When its job has begun, by `time.monotonic`; None if it has not."""
        beginning = self._beginning
        return beginning.read() if beginning is not None and beginning.is_written() else None

    def measure(self) -> int:
        """Bytes that it holds in memory; 0 if that can't be known now."""
        return 0 if self._memory is None else self._memory.read()

    def rest(self, delay: float) -> None:
        """Let it wait for a job, and end it if none comes within some seconds."""
        loop = asyncio.get_running_loop()
        self._idle_until = loop.time() + delay
        # One timer for many jobs: it looks what became of the process when it is due.
        if self._timer is None:
            self._timer = loop.call_later(delay, self._look_whether_idle)

    def end(self) -> None:
        """Let it end by itself if it has no job; kill it if it has one, or does not end soon."""
        self._is_ending(self)
        if self.is_ended:
            return
        if self.is_talking:
            self.kill()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._channel.write(wire.encode_order(wire.End()))
        self._timer = asyncio.get_running_loop().call_later(END_TIME, self.kill)

    def kill(self) -> None:
        """Kill it and all processes that it has started."""
        if not self.is_ended:
            signal_group(self.pid, signal.SIGKILL, is_reaped=self.returncode is not None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self.pid = self._transport.get_pid()

    def process_exited(self) -> None:
        # The processes that it has started must not run on, and may hold its connection open.
        signal_group(self.pid, signal.SIGKILL, is_reaped=True)
        if self._timer is not None:
            self._timer.cancel()
        self.ended.set()
        self._has_ended(self)
        if self.is_talking:
            # Its last messages are still to be read.
            asyncio.get_running_loop().call_later(STRAY_TIME, self.drop)
        else:
            self.drop()

    def drop(self) -> None:
        """Close the connection, once it has ended."""
        self._channel.close()
        self._control.close()
        for part in (self._transport, self._memory):
            if part is not None:
                part.close()

    def _look_whether_idle(self) -> None:
        self._timer = None
        left = self._idle_until - asyncio.get_running_loop().time()
        if self.is_talking:
            return
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._look_whether_idle)
        else:
            self.end()

    def _share_memory(self, theirs: ExitStack) -> int:
        """Share memory with it. Returns its descriptor, which is closed with the stack."""
        descriptor = new_file()
        theirs.callback(os.close, descriptor)
        self._beginning = Beginning(os.dup(descriptor))
        return descriptor


async def _connect(channel: Channel, theirs: ExitStack) -> int:
    """Connect a channel. Returns the descriptor of the other end, closed with the stack."""
    ours, other = socket.socketpair()
    theirs.enter_context(other)
    await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
    return other.fileno()
