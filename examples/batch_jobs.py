"""Collect items in one job, process them together, and retry only the items that failed.

Run it with a scratch database:

    DATABASE_URL=postgresql://localhost/playground python examples/batch_jobs.py
"""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta

from graphile_worker_py import WorkerUtils, run_once, task

unreachable = {"grace"}


async def send(name: str) -> None:
    if name in unreachable:
        raise ConnectionError(f"{name} can't be reached")
    print("sent to", name)


@task
async def notify(payload: list[dict[str, str]]) -> list[Awaitable[None]]:
    """Return one awaitable per item; each item succeeds or fails independently."""
    print("together:", ", ".join(item["to"] for item in payload))
    return [send(item["to"]) for item in payload]


async def main() -> None:
    async with WorkerUtils() as utils:
        soon = datetime.now(UTC) + timedelta(hours=1)
        for name in ("ada", "grace", "edsger"):
            # Arrays under the same key are joined; the first call sets the time.
            job = await utils.add_job(
                "notify",
                [{"to": name}],
                job_key="notifications",
                job_key_mode="preserve_run_at",
                run_at=soon,
            )
        now = job.created_at
        await utils.reschedule_jobs([job.id], run_at=now)  # pretend that the hour has passed
        await run_once(tasks=[notify])

        left = await utils.get_job(job.id)
        assert left is not None
        print("left for the next attempt:", left.payload)

        unreachable.clear()
        await utils.reschedule_jobs([job.id], run_at=now)
        await run_once(tasks=[notify])


asyncio.run(main())
