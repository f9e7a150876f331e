"""A worker whose jobs have a limit, in a process of its own: `python -m … DSN LIMIT OPTIONS`.

Its task itself says when it begins and ends, by the clock that all processes share.
"""

import asyncio
import json
import sys
import time
from typing import Any

from graphile_worker_py import ConcurrencyLimit, JobContext, LocalQueueOptions, Runner, task


async def main(dsn: str, amount: int, options: dict[str, Any]) -> None:
    """Run jobs that last as long as their payload says, until told to stop."""

    @task("work", limits=[ConcurrencyLimit(amount, name="stripe")])
    async def work(payload: Any, ctx: JobContext) -> None:
        print("begin", ctx.job.id, time.monotonic(), flush=True)
        try:
            await asyncio.sleep(payload["seconds"])
        finally:
            print("end", ctx.job.id, time.monotonic(), flush=True)

    options["local_queue"] = LocalQueueOptions(size=options.get("local_queue", -1))
    async with Runner(dsn, tasks=[work], **options) as runner:
        print("up", runner.pool_id, flush=True)
        await runner.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
