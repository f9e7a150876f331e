"""Sample tasks that give the board something to show: each minute adds a hundred of them."""

import asyncio
import random

from graphile_worker_py import JobContext, task


@task
async def make_load(_payload: object, ctx: JobContext) -> None:
    """Add jobs that are due within the next minute."""
    for _ in range(90):
        await ctx.add_job(send_email, {"to": "ada@example.com"}, run_in=random.uniform(0, 60))
    for _ in range(10):
        await ctx.add_job(render_report, {}, run_in=random.uniform(0, 60))


@task(max_attempts=3)
async def send_email(_payload: object) -> None:
    """Take a moment; some mail servers are busy."""
    await asyncio.sleep(random.uniform(0.02, 0.4))
    if random.random() < 0.1:
        raise ConnectionError("421 too busy")


@task
async def render_report(_payload: object) -> None:
    """Take some seconds."""
    await asyncio.sleep(random.uniform(1, 8))
