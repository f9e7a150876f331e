"""A measured worker of this package: `work_ours.py DSN SETTINGS-AS-JSON`."""

import asyncio
import json
import sys
from typing import Any

import progress

from graphile_worker_py import (
    ConcurrencyLimit,
    JobContext,
    LocalQueueOptions,
    Runner,
    SyncJobContext,
    task,
)


async def main(dsn: str, settings: dict[str, Any]) -> None:
    seen = progress.Seen()
    ended = asyncio.Event()

    limit, lasts = settings.get("limit"), settings.get("lasts", 0)

    @task(limits=None if limit is None else [ConcurrencyLimit(limit, key=settings.get("key"))])
    async def noop(_payload: Any) -> None:
        if lasts:
            await asyncio.sleep(lasts)
        seen.job()

    @task("noop")
    async def borrowing(_payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:
            await conn.execute("select 1")
        seen.job()

    loop = asyncio.get_running_loop()

    @task("noop")
    def borrowing_in_thread(_payload: Any, ctx: SyncJobContext) -> None:
        with ctx.connection() as conn:
            conn.execute("select 1")
        loop.call_soon_threadsafe(seen.job)

    borrows = {"async": borrowing, "thread": borrowing_in_thread}

    @task
    async def timed(payload: Any) -> None:
        seen.timed(payload["sent"])

    size = settings.get("local_queue_size", -1)
    async with (
        asyncio.TaskGroup() as group,
        Runner(
            dsn,
            tasks=[borrows.get(settings.get("borrows", ""), noop), timed],
            concurrent_jobs=settings["concurrent_jobs"],
            local_queue=LocalQueueOptions(size=size),
            history=settings.get("history"),
            hooks=settings.get("hooks", []),
        ) as runner,
    ):
        print("ready", flush=True)
        group.create_task(seen.tell_until(ended))
        await runner.wait()
        ended.set()
    seen.tell_end()


if __name__ == "__main__":
    work = main(sys.argv[1], json.loads(sys.argv[2]))
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
