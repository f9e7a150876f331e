"""The side of PgQueuer: `pgqueuer_side.py install|fill|feed|left|work DSN [VALUE]`."""

import asyncio
import json
import time
from typing import Any

import asyncpg
import progress
from pgqueuer import PgQueuer
from pgqueuer.models import Job
from pgqueuer.queries import Queries


async def connected(dsn: str) -> tuple[asyncpg.Connection, Queries]:
    connection = await asyncpg.connect(dsn)
    return connection, Queries.from_asyncpg_connection(connection)


async def install(dsn: str) -> None:
    connection, queries = await connected(dsn)
    await queries.install()
    # Its performance guide recommends this after the installation.
    await queries.optimize_autovacuum()
    await connection.close()


async def fill(dsn: str, jobs: int) -> None:
    connection, queries = await connected(dsn)
    payloads = [json.dumps({"n": n}).encode() for n in range(jobs)]
    await queries.enqueue(["noop"] * jobs, payloads, [0] * jobs)
    print(time.time())
    await connection.close()


async def feed(dsn: str, jobs: int) -> None:
    connection, queries = await connected(dsn)
    await progress.feed(
        lambda sent: queries.enqueue("timed", json.dumps({"sent": sent}).encode()), jobs
    )
    await connection.close()


async def left(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    print(await connection.fetchval("select count(*) from pgqueuer"))
    await connection.close()


async def work(dsn: str, settings: dict[str, Any]) -> None:
    ended = progress.sigterm()
    seen = progress.Seen()
    consumers: list[PgQueuer] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(settings["consumers"]):
            consumer = PgQueuer.from_asyncpg_connection(await asyncpg.connect(dsn))

            @consumer.entrypoint("noop")
            async def noop(_job: Job) -> None:
                seen.job()

            @consumer.entrypoint("timed")
            async def timed(job: Job) -> None:
                seen.timed(json.loads(job.payload or b"")["sent"])

            consumers.append(consumer)
            group.create_task(consumer.run(batch_size=settings["batch_size"]))
        print("ready", flush=True)
        await seen.tell_until(ended)
        for consumer in consumers:
            consumer.shutdown.set()
    seen.tell_end()


if __name__ == "__main__":
    progress.main(install=install, fill=fill, feed=feed, left=left, work=work)
