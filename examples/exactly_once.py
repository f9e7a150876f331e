"""Move money and complete the job in one transaction: it happens once, or not at all.

Run it with a scratch database:

    DATABASE_URL=postgresql://localhost/playground python examples/exactly_once.py
"""

import asyncio

from graphile_worker_py import JobContext, WorkerUtils, run_once, task

PREPARE = """
create table accounts (name text primary key, balance int not null check (balance >= 0));
insert into accounts values ('ada', 100), ('grace', 0);
"""
MOVE = "update accounts set balance = balance + %s where name = %s"


@task
async def transfer(payload: dict[str, int], ctx: JobContext) -> None:
    async with ctx.transaction() as conn:
        await conn.execute(MOVE, (payload["amount"], "grace"))
        await conn.execute(MOVE, (-payload["amount"], "ada"))
        # The job is completed when the block ends, in the same commit. A crash before it leaves
        # both balances and the job as they were.


async def main() -> None:
    async with WorkerUtils() as utils:
        async with utils.pool.connection() as conn:
            await conn.execute(PREPARE)
        await utils.add_job(transfer, {"amount": 30})
        await utils.add_job(transfer, {"amount": 500}, max_attempts=1)  # she has not got it
        done = await run_once(tasks=[transfer])
        print(f"{done.completed} transferred, {len(done.failed)} failed")
        async with utils.pool.connection() as conn:
            rows = await conn.execute("select name, balance from accounts order by name")
            print(", ".join([f"{name}: {balance}" async for name, balance in rows]))


asyncio.run(main())
