"""The worker's end of the channel to a supervisor: reports readiness, receives stops."""

import asyncio
import logging
import os
import signal
import stat
from collections.abc import Coroutine
from typing import Any, Final, Self

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.processes.signals import pass_on

logger = logging.getLogger(__name__)

VARIABLE: Final = "GRAPHILE_WORKER_PY_SUPERVISED"
"""Holds the number of a worker process and the file descriptor of its channel: `2:7`."""
READY: Final = b"ready\n"
STOP: Final = "stop"
KILL: Final = "kill"


class Supervised:
    """A process that a supervisor has started.

    Args:
        number: Number of this process among those of the supervisor, from 1.
        channel: File descriptor of the socket to the supervisor, which stays open for as long as
            this process runs. The socket closes when the supervisor ends.
    """

    def __init__(self, number: int, channel: int) -> None:
        self.number = number
        self._channel = channel
        self._heard = b""
        self._put_off: tuple[str, bool] | None = None

    @classmethod
    def from_environment(cls) -> Self | None:
        """This process as its supervisor started it; None without a supervisor.

        A second call returns None: the first one removes the variable, so that programs that tasks
        start are not taken for supervised ones.

        Raises:
            ConfigurationError: The variable is set, but not by a supervisor of this process.
        """
        value = os.environ.pop(VARIABLE, None)
        if value is None:
            return None
        number, _, descriptor = value.partition(":")
        try:
            process = cls(int(number), int(descriptor))
            is_channel = stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode)
        except (ValueError, OSError):
            is_channel = False
        if not is_channel:
            raise ConfigurationError(
                f"{VARIABLE} is {value!r}, which no supervisor has set for this process: unset it"
            )
        process.take_over()
        return process

    def take_over(self) -> None:
        """Make the channel private to this process, and let Ctrl-C end it."""
        os.set_blocking(self._channel, False)
        os.set_inheritable(self._channel, False)  # noqa: FBT003  # takes no keywords
        # The supervisor has blocked Ctrl-C up to here. From here on it ends the process silently,
        # as SIGTERM does; the runner later handles it like other signals.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def ready(self) -> None:
        """Report that this process works, and carry out a stop that came earlier."""
        self._say(READY)
        if self._put_off is not None:
            name, force = self._put_off
            self._put_off = None
            self._obey(name, force=force)

    async def during(self, work: Coroutine[Any, Any, object]) -> None:
        """Do the work, and receive stops from the supervisor meanwhile."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel, self._listen)
        try:
            await work
        finally:
            loop.remove_reader(self._channel)

    def _listen(self) -> None:
        try:
            part = os.read(self._channel, 4096)
        except BlockingIOError:
            return
        except ConnectionError:
            part = b""
        if not part:
            asyncio.get_running_loop().remove_reader(self._channel)
            logger.warning("The supervisor has ended; stopping this process")
            self._obey("SIGHUP", force=False)
            return
        *lines, self._heard = (self._heard + part).split(b"\n")
        for line in lines:
            word, _, name = line.decode().partition(" ")
            self._obey(name, force=word == KILL)

    def _obey(self, name: str, *, force: bool) -> None:
        if not pass_on(name, force=force):
            # No runner yet: it starts, or restarts with changed tasks.
            self._put_off = (name, force)

    def _say(self, what: bytes) -> None:
        try:
            os.write(self._channel, what)
        except (BlockingIOError, ConnectionError):
            # `_listen` detects that the supervisor has ended.
            logger.debug("The supervisor did not receive %r", what)
