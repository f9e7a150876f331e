"""Deliver webhooks: wait as long as the receiver asks, give up on what can't succeed.

Run it with a scratch database:

    DATABASE_URL=postgresql://localhost/playground python examples/webhook.py
"""

import asyncio
from dataclasses import dataclass

from graphile_worker_py import (
    Discard,
    RetryIn,
    RetryPolicy,
    WorkerUtils,
    exponential,
    run_once,
    task,
)


@dataclass
class Answer:
    status: int
    retry_after: float = 0


async def post(url: str) -> Answer:
    """Stands for an HTTP client."""
    return {
        "/ok": Answer(200),
        "/busy": Answer(429, retry_after=120),
        "/gone": Answer(404),
        "/broken": Answer(500),
    }[url]


@task(retry=RetryPolicy(delay=exponential(base=2, factor=3), max_attempts=10))
async def deliver(payload: dict[str, str]) -> None:
    answer = await post(payload["url"])
    if answer.status == 429:
        raise RetryIn(answer.retry_after)
    if 400 <= answer.status < 500:
        raise Discard(f"the receiver answers {answer.status}")
    if answer.status >= 500:
        raise ConnectionError(f"the receiver answers {answer.status}")
    print("delivered to", payload["url"])


async def main() -> None:
    async with WorkerUtils() as utils:
        for url in ("/ok", "/busy", "/gone", "/broken"):
            await utils.add_job(deliver, {"url": url})
        done = await run_once(tasks=[deliver])
        print(f"{done.completed} delivered, {done.discarded} given up")
        for job in reversed(await utils.list_jobs()):
            print(job.payload["url"], job.state, f"{job.attempts}/{job.max_attempts}")


asyncio.run(main())
