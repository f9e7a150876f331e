"""A worker of this package under measurement: `work_ours.py DSN SETTINGS-AS-JSON`.

It prints `ready`, then `count N TIME` while it works, and a line of JSON when SIGTERM ends it.
"""

import asyncio
import json
import sys
import time
from typing import Any

from graphile_worker_py import LocalQueueOptions, Runner, task


class Seen:
    """What the task has seen."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        self.latencies: list[float] = []


async def main(dsn: str, settings: dict[str, Any]) -> None:
    seen = Seen()

    @task
    async def noop(_payload: Any) -> None:
        seen.count += 1

    @task
    async def timed(payload: Any) -> None:
        seen.latencies.append(time.time() - payload["sent"])

    size = settings.get("local_queue_size", -1)
    async with Runner(
        dsn,
        tasks=[noop, timed],
        concurrent_jobs=settings["concurrent_jobs"],
        local_queue=LocalQueueOptions(size=size),
    ) as runner:
        print("ready", flush=True)
        waiting = asyncio.ensure_future(runner.wait())
        told = 0
        while not waiting.done():
            await asyncio.wait([waiting], timeout=0.02)
            if seen.count != told:
                told = seen.count
                print("count", told, time.time(), flush=True)
    print(json.dumps({"count": seen.count, "latencies": seen.latencies}), flush=True)


if __name__ == "__main__":
    work = main(sys.argv[1], json.loads(sys.argv[2]))
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
