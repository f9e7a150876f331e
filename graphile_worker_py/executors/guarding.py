"""End the processes that tasks have started when the worker ends, even by SIGKILL."""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from graphile_worker_py import aio
from graphile_worker_py.executors import guard

END_TIME: Final = 2.0
"""Seconds that its process is given to end."""


class Guard:
    """Has the process groups that tasks have started killed if the worker is killed.

    A separate process does that; see the module `guard`. It is started when the first group is
    about to start, and again if it has ended.
    """

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process: _Process | None = None
        self._starting = asyncio.Lock()

    async def stand_by(self) -> None:
        """Be ready for a group. Does nothing if Python does not know its own program.

        Raises:
            OSError: The process could not be started.
        """
        if not sys.executable:
            return
        async with self._starting:
            if self._process is None or self._process.ended.is_set():
                process = _Process()
                await process.start()
                # Only now: another process may have been started meanwhile.
                if self._process is not None:
                    await self._process.close()
                self._process = process
                for group in self._groups:
                    process.send(f"+{group}\n")

    def note(self, group: int) -> None:
        """Guard a process group, given by its leader, from this moment on."""
        self._groups.add(group)
        if self._process is not None:
            self._process.send(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Stop guarding a group: it has ended, or what is left of it may stay."""
        self._groups.discard(group)
        if self._process is not None:
            self._process.send(f"-{group}\n")

    async def close(self) -> None:
        """End the process, which kills the groups that are still guarded."""
        if self._process is not None:
            await self._process.close()


class _Process(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None
        self._pipe = -1

    async def start(self) -> None:
        read, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            await asyncio.get_running_loop().subprocess_exec(
                lambda: self,
                *(sys.executable, "-I", "-S", str(Path(guard.__file__))),
                stdin=read,
                stdout=None,
                stderr=None,
                start_new_session=True,
            )
        except BaseException:
            self._hang_up()
            raise
        finally:
            os.close(read)

    def send(self, line: str) -> None:
        # Not by a transport, which may write later: the line must arrive even if the worker is
        # killed the next moment.
        if self._pipe >= 0:
            with suppress(OSError):  # it has ended
                os.write(self._pipe, line.encode())

    async def close(self) -> None:
        self._hang_up()
        await aio.wait_for(self.ended, END_TIME)
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def process_exited(self) -> None:
        self.ended.set()

    def _hang_up(self) -> None:
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            os.close(pipe)
