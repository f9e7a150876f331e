"""Stand between a worker and its server, and be the network when it is at its worst."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import psycopg

from tests.support.eventually import eventually

CHUNK = 65536


class Proxy:
    """Hands on what both sides say, until it is told to do it badly.

    Attributes:
        dsn: Leads to the server through it.
        delay: Seconds that everything takes, in each direction.
        connections: How many were taken so far.
    """

    def __init__(self, dsn: str) -> None:
        info = psycopg.conninfo.conninfo_to_dict(dsn)
        self._server = (str(info["host"]), int(str(info["port"])))
        self._info = info
        # The two ends of each connection: towards the worker, and towards the server.
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._questions = asyncio.Event()
        self._questions.set()
        self._answers = asyncio.Event()
        self._answers.set()
        self._refusing = False
        self.delay = 0.0
        self.connections = 0
        self.dsn = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Take connections within the block."""
        listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = listening.sockets[0].getsockname()
        given = {**self._info, "host": host, "port": port, "sslmode": "disable"}
        self.dsn = psycopg.conninfo.make_conninfo("", **given)
        try:
            yield self
        finally:
            listening.close()
            self.cut()
            await eventually(lambda: not self._pairs)

    @contextmanager
    def answers_held(self) -> Iterator[None]:
        """Within the block the server hears the worker, and not the other way; then cut."""
        self._answers.clear()
        try:
            yield
        finally:
            self.cut()

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """Within the block nothing arrives anywhere, and nobody is told; afterwards it does."""
        self._questions.clear()
        self._answers.clear()
        try:
            yield
        finally:
            self._free()

    @contextmanager
    def stranded(self) -> Iterator[None]:
        """Within the block nothing arrives on the connections that there are; new ones do well.

        What was sent on the old ones arrives afterwards, late.
        """
        held = self._questions, self._answers
        self._questions, self._answers = asyncio.Event(), asyncio.Event()
        self._free()
        for event in held:
            event.clear()
        try:
            yield
        finally:
            for event in held:
                event.set()

    def cut(self) -> None:
        """Cut all connections."""
        self._free()
        for pair in self._pairs:
            for writer in pair:
                writer.transport.abort()

    def half_close(self) -> None:
        """Say to the workers that the server has ended all connections, and not to the server."""
        for to_worker, _ in self._pairs:
            if not to_worker.is_closing():
                with suppress(OSError):  # the worker may have gone, and nobody noticed yet
                    to_worker.write_eof()

    def refuse(self) -> None:
        """Cut all connections, and each new one."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Let new connections through again."""
        self._refusing = False

    def _free(self) -> None:
        self._questions.set()
        self._answers.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.connections += 1
        up_reader, up_writer = await asyncio.open_connection(*self._server)
        pair = (writer, up_writer)
        self._pairs.add(pair)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hand_on(reader, up_writer, self._questions))
            group.create_task(self._hand_on(up_reader, writer, self._answers))
        self._pairs.remove(pair)

    async def _hand_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, free: asyncio.Event
    ) -> None:
        try:
            while chunk := await reader.read(CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await free.wait()
                writer.write(chunk)
                await writer.drain()
            # An end arrives no sooner than what was said before.
            await free.wait()
        except (ConnectionError, RuntimeError):
            # RuntimeError: the way was closed half.
            pass
        finally:
            writer.close()
