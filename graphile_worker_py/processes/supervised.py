"""The worker's end of the channel to a supervisor: says that it works, stops when it is told."""

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
"""Tells a worker process its number, and the file descriptor of its channel: `2:7`."""
READY: Final = b"ready\n"
STOP: Final = "stop"
KILL: Final = "kill"


class Supervised:
    """A process that a supervisor has started.

    Args:
        number: Which of its processes this is, from 1.
        channel: File descriptor of the way to the supervisor, open for as long as this process
            runs. Its end is the end of the supervisor.
    """

    def __init__(self, number: int, channel: int) -> None:
        self.number = number
        self._channel = channel
        self._heard = b""
        self._put_off: tuple[str, bool] | None = None

    @classmethod
    def from_environment(cls) -> Self | None:
        """What a supervisor has told this process, None if there is none. Can be asked once.

        Raises:
            ConfigurationError: The variable is there, but nobody meant it for this process.
        """
        # Programs that tasks start are not supervised.
        told = os.environ.pop(VARIABLE, None)
        if told is None:
            return None
        number, _, descriptor = told.partition(":")
        try:
            process = cls(int(number), int(descriptor))
            is_channel = stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode)
        except (ValueError, OSError):
            is_channel = False
        if not is_channel:
            raise ConfigurationError(
                f"{VARIABLE} is {told!r}, which no supervisor has set for this process: unset it"
            )
        process.take_over()
        return process

    def take_over(self) -> None:
        """Make the channel, and the signals, this process's own."""
        os.set_blocking(self._channel, False)
        os.set_inheritable(self._channel, False)  # noqa: FBT003  # takes no keywords
        # From here on a Ctrl-C ends it without a word, as SIGTERM does; the supervisor has held it
        # back till now. When jobs run, it is handled like other signals.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def ready(self) -> None:
        """Say that it works; from now on it obeys."""
        self._say(READY)
        if self._put_off is not None:
            name, force = self._put_off
            self._put_off = None
            self._obey(name, force=force)

    async def during(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, and listen to the supervisor meanwhile."""
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
            logger.warning("The supervisor is gone: this process ends")
            self._obey("SIGHUP", force=False)
            return
        *lines, self._heard = (self._heard + part).split(b"\n")
        for line in lines:
            word, _, name = line.decode().partition(" ")
            self._obey(name, force=word == KILL)

    def _obey(self, name: str, *, force: bool) -> None:
        if not pass_on(name, force=force):
            # It is about to begin, or to begin anew with changed tasks.
            self._put_off = (name, force)

    def _say(self, what: bytes) -> None:
        try:
            os.write(self._channel, what)
        except (BlockingIOError, ConnectionError):
            # A supervisor that is gone is noticed where it is listened to.
            logger.debug("The supervisor does not listen")
