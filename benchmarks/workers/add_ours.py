"""Add 100,000 jobs through `add_jobs`, and print how many that is a second."""

import asyncio
import sys
from time import perf_counter

from graphile_worker_py import JobSpec, WorkerUtils

JOBS = 100_000


async def main(dsn: str) -> None:
    async with WorkerUtils(dsn) as utils:
        began = perf_counter()
        await utils.add_jobs([JobSpec("noop", {"n": n}) for n in range(JOBS)])
        print(JOBS / (perf_counter() - began))


asyncio.run(main(sys.argv[1]))
