"""A worker whose jobs have a limit, in a process of its own: `python -m … DSN LIMIT OPTIONS`.

LIMIT is how many jobs run at once, how many of each value of a field, or how many start a second
and at once: `5`, `5 tenant` or `200,20`. The task itself says when it begins and ends, by the clock
that all processes share.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

from graphile_worker_py import (
    ConcurrencyLimit,
    JobContext,
    LocalQueueOptions,
    RateLimit,
    Runner,
    task,
)


def limit_of(text: str) -> ConcurrencyLimit | RateLimit:
    """The limit that is given."""
    amount, _, burst = text.partition(",")
    if burst:
        return RateLimit(float(amount), burst=int(burst), name="stripe")
    amount, _, key = text.partition(" ")
    return ConcurrencyLimit(int(amount), name="stripe", key=key or None)


async def main(dsn: str, limit: ConcurrencyLimit | RateLimit, options: dict[str, Any]) -> None:
    """Run jobs that last as long as their payload says, until told to stop."""

    @task("work", limits=[limit])
    async def work(payload: Any, ctx: JobContext) -> None:
        print("begin", ctx.job.id, time.monotonic(), flush=True)
        try:
            await asyncio.sleep(payload["seconds"])
        finally:
            print("end", ctx.job.id, time.monotonic(), flush=True)

    options["local_queue"] = LocalQueueOptions(size=options.get("local_queue", -1))
    async with Runner(dsn, tasks=[work], **options) as runner:
        print("up", runner.pool_id, time.time(), datetime.now(UTC).timestamp(), flush=True)
        await runner.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], limit_of(sys.argv[2]), json.loads(sys.argv[3])))
