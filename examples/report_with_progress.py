"""A report that goes on where it was, shows how far it is, and returns a result.

Run it with a scratch database:

    DATABASE_URL=postgresql://localhost/playground python examples/report_with_progress.py
"""

import asyncio

from graphile_worker_py import (
    JobContext,
    JobOutcome,
    JobProgress,
    Runner,
    WorkerUtils,
    run_migrations,
    task,
)

PAGES = 40


@task
async def report(_payload: object, ctx: JobContext) -> dict[str, int]:
    first = 0 if ctx.cursor is None else ctx.cursor["page"]
    for page in range(first, PAGES):
        await asyncio.sleep(0.1)  # the work
        ctx.progress(page + 1, total=PAGES, message=f"page {page + 1}")
        if page % 10 == 9:
            await ctx.checkpoint({"page": page + 1})
    return {"pages": PAGES}


async def main() -> None:
    await run_migrations(side_schema=True)
    async with WorkerUtils() as utils, Runner(tasks=[report]):
        handle = utils.handle(await utils.add_job(report, awaited=True))
        async for update in handle.watch():
            match update:
                case JobProgress(progress=float(done), total=float(total)):
                    print(f"{done / total:.0%}")
                case JobOutcome():
                    print(update.status, update.result)


asyncio.run(main())
