"""A Python worker that can be killed; the twin of faults_worker.mjs."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from graphile_worker_py import JobContext, Runner
from tests.faults.trial import DURATION


async def main(dsn: str, file: Path, options: dict[str, Any]) -> None:
    """Work until stopped."""

    def note(what: str, payload: Any, ctx: JobContext) -> None:
        line = {
            "what": what,
            "n": payload["n"],
            "pool": ctx.pool_id,
            "attempt": ctx.job.attempts,
            "at": time.monotonic(),
        }
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")

    async def work(payload: Any, ctx: JobContext) -> None:
        note("began", payload, ctx)
        await asyncio.sleep(DURATION)
        note("ended", payload, ctx)

    async with Runner(dsn, tasks={"work": work}, **options) as runner:
        print("ready", flush=True)
        await runner.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])))
