"""Add jobs from a generator; print how much more memory the last nine tenths of them take."""

import asyncio
import resource
import sys
from collections.abc import Iterator

from graphile_worker_py import JobSpec, SyncWorkerUtils, WorkerUtils


def peak_memory() -> int:
    """Most resident bytes of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def specs(jobs: int, peaks: list[int]) -> Iterator[JobSpec]:
    """Jobs that are made when they are asked for."""
    for n in range(jobs):
        if n == jobs // 10:
            peaks.append(peak_memory())
        yield JobSpec("a", {"n": n})


async def add(dsn: str, stream: Iterator[JobSpec], chunk_size: int) -> None:
    """Add them with an event loop."""
    async with WorkerUtils(dsn) as utils:
        await utils.add_jobs_from(stream, chunk_size=chunk_size)


if __name__ == "__main__":
    form, dsn, jobs, chunk_size = sys.argv[1:]
    peaks: list[int] = []
    stream = specs(int(jobs), peaks)
    if form == "async":
        asyncio.run(add(dsn, stream, int(chunk_size)))
    else:
        with SyncWorkerUtils(dsn) as utils:
            utils.add_jobs_from(stream, chunk_size=int(chunk_size))
    print(peak_memory() - peaks[0])
