"""Limits on the pages and in the API."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from graphile_worker_py import ConcurrencyLimit, RateLimit, Runner, WorkerUtils, task
from graphile_worker_py.web import Access, create_app
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.web.serving import client_of, problem, served

URL = "/api/v1/limits"
AUDIT = "select by, action from graphile_worker_py.audit order by id"


@pytest.fixture
async def limited(dsn: str) -> AsyncIterator[str]:
    """A database with a worker that runs one job of a task with two limits; the pool's id."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    @task("charge", limits=[ConcurrencyLimit(3, name="stripe/a"), RateLimit(9, name="stripe/a")])
    async def charge(_payload: Any) -> None:
        begun.set()
        await go_on.wait()

    async with Runner(dsn, tasks=[charge]) as runner, WorkerUtils(dsn) as utils:
        await utils.add_job("charge")
        await begun.wait()
        yield runner.pool_id
        go_on.set()


async def test_programs_read_what_is_used_set_a_number_and_clear_it(
    limited: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    async def only_the_job_counts() -> bool:
        at_once, rate = (await client.get(URL)).json()["items"]
        assert (at_once["kind"], rate["kind"], rate["burst"]) == ("concurrency", "rate", 2)
        return bool(at_once["pools"] == {limited: 1} and rate["tokens"] == rate["burst"])

    await eventually(only_the_job_counts)
    lowered = await client.post(URL, json={"name": "stripe/a", "amount": 0})
    assert lowered.status_code == 200
    assert lowered.json()["waiting_reason"] == "the limit is 0"
    given = {"name": "stripe/a", "kind": "rate", "amount": 7}
    assert (await client.post(URL, json=given)).json()["set_amount"] == 7
    cleared = await client.delete(URL, params={"name": "stripe/a"})
    assert (cleared.json()["amount"], cleared.json()["set_amount"]) == (3, None)
    assert [row["amount"] for row in (await client.get(URL)).json()["items"]] == [3, 7]
    assert [(row["by"], row["action"]) for row in stored.query(AUDIT)] == [
        ("anna", "set_limit"),
        ("anna", "set_limit"),
        ("anna", "clear_limit"),
    ]
    told = problem(await client.post(URL, json={"name": "paypal", "amount": 1}), 404)
    assert "'paypal'" in told["detail"]
    for bad in ({"name": "stripe/a", "amount": -1}, {"name": "stripe/a", "amount": 2**31}, {}):
        problem(await client.post(URL, json=bad), 422)


async def test_the_page_shows_who_holds_a_limit_and_sets_it(
    limited: str, client: httpx.AsyncClient
) -> None:
    text = (await client.get("/limits")).text
    assert limited in text
    form = {"name": "stripe/a", "kind": "concurrency", "amount": "1", "action": "set"}
    shown = await client.post("/limits", data=form)
    assert (shown.status_code, shown.headers["location"]) == (303, "/limits?done=set_limit&n=1")
    text = (await client.get("/limits?done=set_limit")).text
    assert "The limit was changed" in text
    assert "an operator; the code says 3" in text
    assert "Further jobs wait" in text
    assert 'href="/limits#concurrency-stripe/a"' in (await client.get("/tasks/charge")).text
    await client.post("/limits", data={**form, "action": "clear"})
    assert "an operator" not in (await client.get("/limits")).text
    for bad in ("", "x", "-1", "1.5", "9" * 5000):
        assert (await client.post("/limits", data={**form, "amount": bad})).status_code == 422


async def test_only_operators_of_this_site_may_change_a_limit(limited: str, dsn: str) -> None:
    levels = {"v": Access.viewer("v"), "o": Access.operator("o")}
    app = create_app(dsn, authorize=lambda request: levels[request.headers["x-user"]])
    given = {"name": "stripe/a", "amount": 2}
    form = {"name": "stripe/a", "kind": "concurrency", "amount": "2", "action": "set"}
    async with served(app) as url, client_of(url) as client:
        viewer, operator = {"x-user": "v"}, {"x-user": "o"}
        foreign = {**operator, "sec-fetch-site": "cross-site"}
        assert (await client.get(URL, headers=viewer)).json()["items"][0]["amount"] == 3
        page = await client.get("/limits", headers=viewer)
        assert limited in page.text
        assert 'name="amount"' not in page.text
        for headers in (viewer, foreign):
            problem(await client.post(URL, json=given, headers=headers), 403)
            problem(await client.delete(URL, params={"name": "stripe/a"}, headers=headers), 403)
            assert (await client.post("/limits", data=form, headers=headers)).status_code == 403
        assert (await client.post(URL, json=given, headers=operator)).json()["amount"] == 2


async def test_a_limit_with_a_key_shows_which_values_have_most(
    dsn: str, client: httpx.AsyncClient
) -> None:
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()

    @task("export", limits=[ConcurrencyLimit(2, key="tenant")])
    async def export(_payload: Any) -> None:
        begun.release()
        await go_on.wait()

    async with Runner(dsn, tasks=[export], concurrent_jobs=4), WorkerUtils(dsn) as utils:
        for tenant in ("<b>large", "<b>large", "small"):
            await utils.add_job("export", {"tenant": tenant})
        for _ in range(3):
            await begun.acquire()
        (item,) = (await client.get(URL)).json()["items"]
        assert (item["key"], item["values"]) == ("tenant", {"<b>large": 2, "small": 1})
        assert item["waiting_reason"] == "2 of 2 jobs at once run with '<b>large' at 'tenant'"
        text = (await client.get("/limits")).text
        assert re.search(r"&lt;b&gt;large</span>\s+\(2\)", text)
        assert "3 by 2" in text
        go_on.set()


async def test_without_tables_of_limits_the_page_is_empty_and_a_change_gets_503(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    assert "No limits" in (await client.get("/limits")).text
    stored.query("drop table graphile_worker_py.limit_rates")
    assert (await client.get(URL)).json() == {"items": []}
    problem(await client.post(URL, json={"name": "a", "amount": 1}), 503)
