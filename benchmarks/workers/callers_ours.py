"""Call `add_job` for some seconds: `callers_ours.py DSN CALLERS SECONDS`; print figures as JSON."""

import asyncio
import json
import sys
from time import perf_counter, process_time

from graphile_worker_py import WorkerUtils


async def main(dsn: str, callers: int, seconds: float) -> None:
    took: list[float] = []

    async def call(until: float) -> None:
        while (began := perf_counter()) < until:
            await utils.add_job("noop", {"n": 1})
            took.append(perf_counter() - began)

    async def call_at_once(seconds: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(call(perf_counter() + seconds))

    async with WorkerUtils(dsn) as utils:
        await call_at_once(seconds / 10)  # connections, plans, compiled code
        took.clear()
        cpu, began = process_time(), perf_counter()
        await call_at_once(seconds)
        elapsed, cpu = perf_counter() - began, process_time() - cpu
    print(json.dumps({"seconds": elapsed, "cpu": cpu, "took": took}))


if __name__ == "__main__":
    work = main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
