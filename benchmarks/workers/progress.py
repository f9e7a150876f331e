"""What a Python worker under measurement has seen, and how it tells: in the words of all sides.

`ready` when it works, `count N TIME` while it works (the time at which the last of N jobs ran), and
a line of JSON at its end. It imports nothing that not every environment has.
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
    """What the tasks have seen."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        self.latencies: list[float] = []

    def job(self) -> None:
        """Note that a job runs."""
        self.count += 1
        self.last = time.time()

    def timed(self, sent: float) -> None:
        """Note that a job runs which was sent at this time."""
        self.latencies.append(time.time() - sent)
        self.job()

    async def tell_until(self, ended: asyncio.Event) -> None:
        """Tell how many jobs ran, until the worker is to end."""
        told = 0
        while not ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), INTERVAL)
            if self.count != told:
                told = self.count
                print("count", told, self.last, flush=True)

    def tell_end(self) -> None:
        """Tell what was seen in all."""
        print(json.dumps({"count": self.count, "latencies": self.latencies}), flush=True)


def sigterm() -> asyncio.Event:
    """What is set by SIGTERM, for sides that do not handle it themselves."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    return ended


async def feed(add: Callable[[float], Awaitable[object]], jobs: int) -> None:
    """Add timed jobs one by one, each a moment after the other."""
    for number in range(jobs):
        await add(time.time())
        await asyncio.sleep(0.002 + number % 7 / 1000)


def main(**commands: Callable[..., Awaitable[None]]) -> None:
    """Run `COMMAND DSN [VALUE]`, the value written as JSON, on uvloop as all sides."""
    import uvloop  # noqa: PLC0415 - our side can do without

    name, dsn, *values = sys.argv[1:]
    work: Any = commands[name](dsn, *map(json.loads, values))
    uvloop.run(work)
