"""Progress of a measured Python worker, reported in lines that are the same for all sides.

`ready` when it works, `count N TIME` while it works (TIME is when the last of N jobs ran), and a
line of JSON at its end. This module imports only what every environment has.
"""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

INTERVAL = 0.02


class Seen:
    """The jobs that the tasks have run."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        self.latencies: list[float] = []

    def job(self) -> None:
        """Record that a job runs."""
        self.count += 1
        self.last = time.time()

    def timed(self, sent: float) -> None:
        """Record that a job runs that was sent at this time."""
        self.latencies.append(time.time() - sent)
        self.job()

    async def tell_until(self, ended: asyncio.Event) -> None:
        """Report the number of jobs until the worker ends."""
        told = 0
        while not ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), INTERVAL)
            if self.count != told:
                told = self.count
                print("count", told, self.last, flush=True)

    def tell_end(self) -> None:
        """Report the totals."""
        print(json.dumps({"count": self.count, "latencies": self.latencies}), flush=True)


def sigterm() -> asyncio.Event:
    """An event that SIGTERM sets, for sides that do not handle it themselves."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    return ended


async def feed(add: Callable[[float], Awaitable[object]], jobs: int) -> None:
    """Add timed jobs one by one, with short pauses."""
    for number in range(jobs):
        await add(time.time())
        await asyncio.sleep(0.002 + number % 7 / 1000)


def main(**commands: Callable[..., Awaitable[None]]) -> None:
    """Run `COMMAND DSN [VALUE]`, where the value is JSON, on uvloop like all sides."""
    import uvloop  # noqa: PLC0415 - optional for our side

    name, dsn, *values = sys.argv[1:]
    work: Any = commands[name](dsn, *map(json.loads, values))
    uvloop.run(work)
