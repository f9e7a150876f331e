"""Add 100,000 jobs through `add_jobs`, 10,000 at a time, and print the rate per second."""

import asyncio
import sys
from time import perf_counter

from graphile_worker_py import JobSpec, WorkerUtils

JOBS = 100_000


async def main(dsn: str, at_a_time: int) -> None:
    async with WorkerUtils(dsn) as utils:
        began = perf_counter()
        for at in range(0, JOBS, at_a_time):
            await utils.add_jobs([JobSpec("noop", {"n": at + n}) for n in range(at_a_time)])
        print(JOBS / (perf_counter() - began))


asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000))
