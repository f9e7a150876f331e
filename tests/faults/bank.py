"""A worker that moves money, to be killed: `python -m tests.faults.bank DSN OPTIONS`."""

import asyncio
import json
import random
import sys
from typing import Any, Final

from psycopg import AsyncConnection

from graphile_worker_py import Events, JobContext, RetryPolicy, Runner, fixed, task
from graphile_worker_py.events import PoolListenSuccess

MAKE: Final = """
create table accounts (id int primary key, balance int not null);
create table transfers (job_id bigint not null, payer int, payee int, amount int);
insert into accounts select n, 1000 from generate_series(1, 100) as n
"""
MOVE: Final = "update accounts set balance = balance + %s where id = %s"
NOTE: Final = "insert into transfers values (%s, %s, %s, %s)"
AT_ONCE: Final = RetryPolicy(delay=fixed(0))


async def move(conn: AsyncConnection[Any], payload: dict[str, int], ctx: JobContext) -> None:
    """Move an amount, in no hurry: a kill may come between any two statements."""
    payer, payee, amount = payload["payer"], payload["payee"], payload["amount"]
    # In one order, so that there are no deadlocks.
    for account, change in sorted([(payer, -amount), (payee, amount)]):
        await conn.execute(MOVE, (change, account))
        await asyncio.sleep(random.uniform(0, 0.02))
    await conn.execute(NOTE, (ctx.job.id, payer, payee, amount))


@task(retry=AT_ONCE)
async def transfer(payload: dict[str, int], ctx: JobContext) -> None:
    """Move money on a connection of the pool."""
    async with ctx.transaction() as conn:
        await move(conn, payload, ctx)


@task(retry=AT_ONCE)
async def transfer_with(payload: dict[str, int], ctx: JobContext) -> None:
    """Move money on a connection of the task."""
    async with await AsyncConnection.connect(sys.argv[1]) as conn:
        await move(conn, payload, ctx)
        await ctx.complete_with(conn)


async def main(dsn: str, options: dict[str, Any]) -> None:
    """Run until killed."""
    events = Events()
    events.subscribe(PoolListenSuccess, lambda _event: print("ready", flush=True))
    async with Runner(dsn, tasks=[transfer, transfer_with], events=events, **options) as runner:
        await runner.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
