"""Run three jobs of two tasks; one job fails at first and is retried.

Run it with a scratch database:

    DATABASE_URL=postgresql://localhost/playground python examples/quick_start.py
"""

import asyncio

from graphile_worker_py import JobContext, SyncJobContext, WorkerUtils, run_once, task


@task
async def greet(payload: dict[str, str], ctx: JobContext) -> None:
    """Run on the event loop."""
    if ctx.job.attempts == 1 and payload["name"] == "Grace":
        raise ConnectionError("no answer")
    print(f"Hello {payload['name']}, attempt {ctx.job.attempts}")


@task
def count_words(payload: dict[str, str], ctx: SyncJobContext) -> None:
    """Run in a thread, so it may block."""
    print(f"{len(payload['text'].split())} words, in queue {ctx.get_queue_name()}")


async def main() -> None:
    async with WorkerUtils() as utils:
        await utils.add_job("greet", {"name": "Ada"})
        grace = await utils.add_job("greet", {"name": "Grace"})
        await utils.add_job("count_words", {"text": "one two three"}, queue_name="words")

        await run_once(tasks=[greet, count_words])

        failed = await utils.get_job(grace.id)
        assert failed is not None
        print(f"Job {failed.id} has failed: {failed.last_error}")
        print(f"Next attempt at {failed.run_at:%H:%M:%S}; rescheduling it to run now")

        await utils.reschedule_jobs([grace.id], run_at=failed.created_at)
        await run_once(tasks=[greet, count_words])


asyncio.run(main())
