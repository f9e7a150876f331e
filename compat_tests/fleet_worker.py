"""A Python worker whose jobs say what they are to do; the twin of fleet_worker.mjs."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from graphile_worker_py import Job, JobContext, LocalQueueOptions, Runner, run_once
from graphile_worker_py.events import Events, PoolForcefulShutdown, PoolGracefulShutdown

BEGIN = """
insert into ledger.runs (job_id, side, task, name, queue, attempt, payload)
values (%s, 'python', %s, %s, %s, %s, %s::json) returning id
"""
END = "update ledger.runs set ended = clock_timestamp(), error = %s where id = %s"
WAIT = "select pg_advisory_xact_lock_shared(%s)"


@asynccontextmanager
async def recorded(payload: Any, ctx: JobContext) -> AsyncIterator[None]:
    """Write down when the job began and when it ended."""
    job = ctx.job
    name = payload.get("name") if isinstance(payload, dict) else None
    queue = await ctx.get_queue_name()
    async with ctx.connection() as conn:
        values = (job.id, job.task_identifier, name, queue, job.attempts, json.dumps(payload))
        row = await (await conn.execute(BEGIN, values)).fetchone()
    assert row is not None
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
        raise
    finally:
        async with ctx.connection() as conn:
            text = None if error is None else str(error).replace("\0", "")
            readable = None if text is None else text.encode(errors="backslashreplace").decode()
            await conn.execute(END, (readable, row[0]))


def fail_if_told(told: dict[str, Any], job: Job) -> None:
    """Fail each time ("fail"), or in all attempts before a certain one ("fail_until")."""
    if "fail" in told:
        raise RuntimeError(told["fail"])
    if job.attempts < told.get("fail_until", 0):
        raise RuntimeError(f"attempt {job.attempts}")


async def step(payload: Any, ctx: JobContext) -> None:
    """Wait behind a gate, take some time, fail: as the payload says."""
    async with recorded(payload, ctx):
        if "hold" in payload:
            async with ctx.connection() as conn:
                await conn.execute(WAIT, (payload["hold"],))
        if "ms" in payload:
            await asyncio.sleep(payload["ms"] / 1000)
        fail_if_told(payload, ctx.job)


async def batch(items: list[Any], ctx: JobContext) -> list[Any]:
    """Do each item by itself."""

    async def do(item: Any) -> None:
        fail_if_told(item, ctx.job)

    async with recorded(items, ctx):
        pass
    return [do(item) for item in items]


TASKS = {"step": step, "other": step, "batch": batch}


async def main() -> None:
    """Work until stopped, or once, as the settings in the first argument say."""
    settings = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO)
    dsn, once = settings.pop("dsn"), settings.pop("once", False)
    if "local_queue" in settings:
        settings["local_queue"] = LocalQueueOptions(**settings["local_queue"])
    if once:
        await run_once(dsn, tasks=TASKS, **settings)
        return
    events = Events()
    events.subscribe(PoolGracefulShutdown, lambda _: print("stopping", flush=True))
    events.subscribe(PoolForcefulShutdown, lambda _: print("killing", flush=True))
    async with Runner(dsn, tasks=TASKS, events=events, **settings) as runner:
        print("ready", flush=True)
        await runner.wait()


if __name__ == "__main__":
    asyncio.run(main())
