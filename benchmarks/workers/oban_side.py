"""The side of Oban for Python: `oban_side.py install|fill|feed|left|work DSN [VALUE]`."""

import time
from typing import Any

import progress
from oban import Job, Oban, worker
from oban.schema import install as install_schema

SEEN = progress.Seen()


@worker(queue="default")
class Noop:
    async def process(self, _job: Job) -> None:
        SEEN.job()


@worker(queue="default")
class Timed:
    async def process(self, job: Job) -> None:
        SEEN.timed(job.args["sent"])


async def install(dsn: str) -> None:
    async with await Oban.create_pool(dsn, max_size=1) as pool:
        await install_schema(pool)


async def fill(dsn: str, jobs: int) -> None:
    async with await Oban.create_pool(dsn, max_size=1) as pool:
        await Oban(pool=pool).enqueue_many(Noop.new({"n": n}) for n in range(jobs))
        print(time.time())


async def feed(dsn: str, jobs: int) -> None:
    async with await Oban.create_pool(dsn, max_size=1) as pool:
        oban = Oban(pool=pool)
        await progress.feed(lambda sent: oban.enqueue(Timed.new({"sent": sent})), jobs)


async def left(dsn: str) -> None:
    async with await Oban.create_pool(dsn, max_size=1) as pool, pool.connection() as conn:
        found = await conn.execute("select count(*) from oban_jobs where state <> 'completed'")
        print((await found.fetchone())[0])


async def work(dsn: str, settings: dict[str, Any]) -> None:
    ended = progress.sigterm()
    async with (
        await Oban.create_pool(dsn) as pool,
        Oban(pool=pool, queues={"default": settings["limit"]}),
    ):
        print("ready", flush=True)
        await SEEN.tell_until(ended)
    SEEN.tell_end()


if __name__ == "__main__":
    progress.main(install=install, fill=fill, feed=feed, left=left, work=work)
