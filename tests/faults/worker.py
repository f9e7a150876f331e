"""A worker in a process of its own, to be killed: `python -m tests.faults.worker DSN OPTIONS`.

It says `pool ID` when a pool begins, and the names of a few more events.
"""

import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

from graphile_worker_py import Events, JobContext, LocalQueueOptions, Runner
from graphile_worker_py.events import (
    Event,
    PoolCreate,
    PoolEvent,
    PoolListenSuccess,
    PoolRecovered,
    PoolTakenForDead,
)
from tests.faults.ledger import BEGIN, END


async def work(payload: Any, ctx: JobContext) -> None:
    """Record the run, and last some seconds; or end the process, as a crash does."""
    async with ctx.connection() as conn:
        cursor = await conn.execute(BEGIN, (ctx.job.id, ctx.pool_id))
        row = await cursor.fetchone()
    assert row is not None
    if payload.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    if payload.get("blocks"):
        time.sleep(payload["blocks"])  # noqa: ASYNC251  # that is the fault
    await asyncio.sleep(payload.get("seconds", 0))
    async with ctx.connection() as conn:
        await conn.execute(END, (row[0],))


def say(event: Event) -> None:
    """Print a line that the test can wait for."""
    if isinstance(event, PoolEvent):
        print("pool" if isinstance(event, PoolCreate) else event.name, event.pool_id, flush=True)


async def main(dsn: str, options: dict[str, Any]) -> None:
    """Run until told to stop."""
    hours = options.pop("hours_ahead", None)
    if hours:
        put_clock_forward(hours)
    if "local_queue" in options:
        options["local_queue"] = LocalQueueOptions(size=options["local_queue"])
    events = Events()
    for kind in (PoolCreate, PoolListenSuccess, PoolTakenForDead, PoolRecovered):
        events.subscribe(kind, say)
    async with Runner(dsn, tasks={"work": work}, events=events, **options) as runner:
        await runner.wait()


def put_clock_forward(hours: float) -> None:
    """Let this process believe that it is later."""
    honest = time.time
    time.time = lambda: honest() + hours * 3600


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
