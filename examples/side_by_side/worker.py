"""The Python half: see README.md."""

import asyncio
import sys

from graphile_worker_py import JobContext, JobSpec, Runner, task

IMAGES = ("ada.png", "grace.png", "edsger.png")

left = len(IMAGES)
done = asyncio.Event()


@task
async def caption(payload: dict[str, str], ctx: JobContext) -> None:
    global left
    queue = await ctx.get_queue_name()
    print(f"python caption  {payload['image']} (queue {queue})", flush=True)
    left -= 1
    if left == 0:
        done.set()


async def main() -> None:
    async with Runner(tasks=[caption], concurrent_jobs=4) as runner:
        print("python ready", flush=True)
        # `resize` is a task of the Node worker. In one queue, only one job runs at a time.
        await runner.add_jobs(
            [
                JobSpec("resize", {"image": image}, queue_name="images", priority=number)
                for number, image in enumerate(IMAGES)
            ]
        )
        try:
            async with asyncio.timeout(60):
                await done.wait()
        except TimeoutError:
            sys.exit("The jobs did not finish: is the Node worker running?")


asyncio.run(main())
