"""The interpreters in which tasks run, from the worker's side."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final, cast

from graphile_worker_py.executors import wire
from graphile_worker_py.executors.groups import signal_group

END_TIME: Final = 2.0
"""Seconds that a process without a job is given to end by itself."""
STRAY_TIME: Final = 1.0
"""Seconds that a killed process gets to end, and that its last messages may take to arrive."""

_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from graphile_worker_py.executors.child import main; main(int(sys.argv[1]))"
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
        self.ended = asyncio.Event()
        self.is_talking = False
        self._has_ended = has_ended
        self._is_ending = is_ending
        self._transport: asyncio.SubprocessTransport | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._timer: asyncio.TimerHandle | None = None

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
        ours, theirs = socket.socketpair()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        path = json.dumps([each for each in sys.path if isinstance(each, str)])
        with theirs:
            descriptor = theirs.fileno()
            try:
                await asyncio.get_running_loop().subprocess_exec(
                    lambda: self,
                    *(sys.executable, "-c", _BOOT, str(descriptor), path),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=None,
                    stderr=None,
                    pass_fds=[descriptor],
                    start_new_session=True,
                )
            except OSError:
                self.drop()
                raise

    def begin(self, module: str) -> None:
        """Note that it gets a job of a task in this module."""
        if self._timer is not None:
            self._timer.cancel()
        self.modules.add(module)
        self.is_talking = True

    def send(self, order: wire.Order) -> None:
        assert self._writer is not None  # noqa: S101  # it was started
        self._writer.write(wire.encode_order(order))

    async def receive(self) -> tuple[int, wire.Said] | None:
        """Its next message, with the number of the run; None if it ended or sent nonsense."""
        assert self._reader is not None  # noqa: S101  # it was started
        try:
            (size,) = wire.HEADER.unpack(await self._reader.readexactly(wire.HEADER.size))
            if size <= wire.LONGEST:
                return wire.decode_said(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception:  # noqa: S110  # a crash may have left anything in its memory
            pass
        return None

    def end_in(self, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self.end)

    def end(self) -> None:
        """Let it end by itself if it has no job; kill it if it has one, or does not end soon."""
        self._is_ending(self)
        if self.is_ended:
            return
        if self.is_talking:
            self.kill()
            return
        self.send(wire.End())
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
        if self._writer is not None:
            self._writer.transport.abort()
        if self._transport is not None:
            self._transport.close()
