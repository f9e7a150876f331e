"""The side of Procrastinate.

`procrastinate_side.py install|fill|feed|left|work DSN [VALUE]`
"""

import asyncio
import logging
import time
from typing import Any

import progress
from procrastinate import App, PsycopgConnector

SEEN = progress.Seen()


def app_on(dsn: str, connections: int = 1) -> App:
    app = App(connector=PsycopgConnector(conninfo=dsn, min_size=1, max_size=connections))

    @app.task(name="noop")
    async def noop(n: int) -> None:  # noqa: ARG001 - in each payload
        SEEN.job()

    @app.task(name="timed")
    async def timed(sent: float) -> None:
        SEEN.timed(sent)

    return app


async def install(dsn: str) -> None:
    async with app_on(dsn).open_async() as app:
        await app.schema_manager.apply_schema_async()


async def fill(dsn: str, jobs: int) -> None:
    async with app_on(dsn).open_async() as app:
        await app.tasks["noop"].batch_defer_async(*({"n": n} for n in range(jobs)))
        print(time.time())


async def feed(dsn: str, jobs: int) -> None:
    async with app_on(dsn).open_async() as app:
        await progress.feed(lambda sent: app.tasks["timed"].defer_async(sent=sent), jobs)


async def left(dsn: str) -> None:
    async with app_on(dsn).open_async() as app:
        found = await app.job_manager.list_jobs_async()
        print(sum(job.status in ("todo", "doing") for job in found))


async def work(dsn: str, settings: dict[str, Any]) -> None:
    ended = progress.sigterm()
    async with app_on(dsn, settings["connections"]).open_async() as app:
        working = asyncio.create_task(
            app.run_worker_async(
                concurrency=settings["concurrency"],
                delete_jobs=settings["delete_jobs"],
                install_signal_handlers=False,
            )
        )
        print("ready", flush=True)
        await SEEN.tell_until(ended)
        working.cancel()  # asks it to stop; running jobs finish
        await asyncio.wait([working])
    SEEN.tell_end()


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # it logs a line for each job
    progress.main(install=install, fill=fill, feed=feed, left=left, work=work)
