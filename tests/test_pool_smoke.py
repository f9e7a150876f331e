import asyncio

from graphile_worker_py import JobSpec, Runner, WorkerUtils, run_once, task


async def test_it_runs(dsn: str) -> None:
    seen = []

    @task
    async def hello(payload, ctx):
        seen.append(payload)
        if payload.get("fail"):
            raise ValueError("boom")

    @task
    def blocking(payload, ctx):
        seen.append(payload)
        ctx.add_job("hello", {"from": "thread"})

    async with WorkerUtils(dsn) as utils:
        await utils.add_jobs([JobSpec("hello", {"n": n}, queue_name="q" if n % 2 else None) for n in range(20)])
        await utils.add_job("hello", {"fail": True})
        await utils.add_job("blocking", {"b": 1})
    await run_once(dsn, tasks=[hello, blocking], concurrent_jobs=4, no_handle_signals=True)
    assert len(seen) == 23
    async with Runner(dsn, tasks=[hello, blocking], concurrent_jobs=4) as runner:
        await runner.add_job("hello", {"late": 1})
        for _ in range(100):
            if {"late": 1} in seen:
                break
            await asyncio.sleep(0.01)
        assert {"late": 1} in seen
