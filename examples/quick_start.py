"""Two tasks, three jobs, one of them failing at first.

Run it with a database that may be played with:

    DATABASE_URL=postgresql://localhost/playground python examples/quick_start.py
"""

import asyncio

from graphile_worker_py import JobContext, SyncJobContext, WorkerUtils, run_once, task


@task
async def greet(payload: dict[str, str], ctx: JobContext) -> None:
    """Runs on the event loop."""
    if ctx.job.attempts == 1 and payload["name"] == "Grace":
        raise ConnectionError("nobody at home")
    print(f"Hello {payload['name']}, attempt {ctx.job.attempts}")


@task
def count_words(payload: dict[str, str], ctx: SyncJobContext) -> None:
    """Runs in a thread, so it may block."""
    print(f"{len(payload['text'].split())} words, in queue {ctx.get_queue_name()}")


async def main() -> None:
    async with WorkerUtils() as utils:
        await utils.add_job("greet", {"name": "Ada"})
        grace = await utils.add_job("greet", {"name": "Grace"})
        await utils.add_job("count_words", {"text": "one two three"}, queue_name="words")

        await run_once(tasks=[greet, count_words])

        failed = await utils.get_job(grace.id)
        assert failed is not None
        print(f"Job {failed.id} has failed: {failed.last_error}; again at {failed.run_at:%H:%M:%S}")

        await utils.reschedule_jobs([grace.id], run_at=failed.created_at)  # not so patient
        await run_once(tasks=[greet, count_words])


asyncio.run(main())
