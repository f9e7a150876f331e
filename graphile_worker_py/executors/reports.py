"""What an executable reports of its job: JSON lines that it writes to a pipe."""

import asyncio
import os
from contextlib import suppress
from typing import Any, Final

from graphile_worker_py import json_codec
from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.tasks.context import JobContext

LONGEST_LINE: Final = 2 * 1024**2
"""Bytes; a result of more is not kept, either."""
_PART: Final = 65_536


class Reports:
    """The pipe of one program. Lines are `{"progress": 40, "total": 100, "message": "page 40"}`
    and `{"result": …}`.

    What is not such a line is logged, and never fails the job.

    Args:
        ctx: The context of the job.
    """

    def __init__(self, ctx: JobContext) -> None:
        self._ctx = ctx
        self._rest = b""
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self._read)

    def has_started(self) -> None:
        """Only the program writes."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        """Read what is there, and no more."""
        self.has_started()
        if self._reader < 0:
            return
        while self._read():
            pass
        self._hear(self._rest)  # the last line may have no end
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        self._reader = -1

    def _read(self) -> bool:
        """Read what is there; whether there may be more."""
        part = b""
        with suppress(BlockingIOError):
            part = os.read(self._reader, _PART)
            if not part:
                self._loop.remove_reader(self._reader)
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            self._hear(line)
        if len(self._rest) > LONGEST_LINE:
            self._refuse(f"a line of more than {LONGEST_LINE} bytes")
            self._rest = b""
        return bool(part)

    def _hear(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            said = json_codec.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict) or not said.keys() & {"progress", "result"}:
            self._refuse(repr(line[:200].decode(errors="replace")))
            return
        if "result" in said:
            self._ctx.set_result(said["result"])
        if "progress" in said:
            self._report(said)

    def _report(self, said: dict[str, Any]) -> None:
        done, total = said["progress"], said.get("total")
        if total is None and done in (0, 1):
            done = float(done)  # many languages write 1.0 as 1
        try:
            self._ctx.progress(done, total, said.get("message"))
        except ConfigurationError as error:
            self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        self._ctx.logger.warning("Not a report of progress or a result: %s", why)
