"""Pools are unlocked from the page of workers: dead ones at once, a live one only by force."""

import asyncio
from typing import Any

import httpx

from graphile_worker_py import Runner
from tests.support.jobs import Jobs

PAGE = {"accept": "text/html"}
URL = "/workers/unlock"


async def test_a_live_pool_is_unlocked_only_by_force(
    dsn: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_payload: Any) -> None:
        begun.set()
        await go_on.wait()

    job_id = stored.add("slow")
    async with Runner(dsn, tasks={"slow": slow}):
        try:
            await asyncio.wait_for(begun.wait(), 10)
            pool_id = stored.one(job_id)["locked_by"]
            refused = await client.post(URL, data={"pool": pool_id}, headers=PAGE)
            assert refused.status_code == 409
            assert pool_id in refused.text
            assert stored.one(job_id)["locked_by"] == pool_id
            form = {"pool": pool_id, "force": "1"}
            assert (await client.post(URL, data=form, headers=PAGE)).status_code == 303
            assert stored.one(job_id)["locked_by"] is None
        finally:
            go_on.set()


async def test_a_pool_of_node_that_is_gone_is_unlocked_and_the_audit_log_has_it(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    job_id = stored.add("a", queue_name="q")
    stored.lock(job_id, pool_id="pool-of-node")
    answer = await client.post(URL, data={"pool": "pool-of-node"}, headers=PAGE)
    assert answer.headers["location"] == "/workers?done=unlock&n=2"
    assert stored.one(job_id)["locked_by"] is None
    (audit,) = (await client.get("/api/v1/audit")).json()["items"]
    assert (audit["action"], audit["count"]) == ("unlock", 2)
