"""Circuit breakers on the pages and in the API."""

import html
import json
from typing import Any

import httpx
import pytest

from graphile_worker_py import CircuitBreaker, Runner, WorkerUtils, run_migrations, task
from graphile_worker_py.web import Access, create_app
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.test_cli_limits import call
from tests.web.serving import client_of, problem, served

URL = "/api/v1/breakers"
RESET = f"{URL}/reset"
AUDIT = "select by, action, details from graphile_worker_py.audit"
OPENED = """
insert into graphile_worker_py.breakers
  (worker_schema, name, tasks, open_until, opened_at, failures, reason)
values ('graphile_worker', 'stripe/a', '{charge}', now() + interval '1 hour', now(), 5, 'down'),
  ('graphile_worker', 'closed', '{mail}', null, null, 0, null)
"""


@pytest.fixture
async def opened(dsn: str, stored: Jobs) -> None:
    """A database in which one breaker is open, and another one closed."""
    await run_migrations(dsn, side_schema=True)
    stored.query(OPENED)


async def test_failures_since_it_was_opened_are_counted_until_it_is_reset(
    dsn: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    await run_migrations(dsn, side_schema=True)
    is_down, ended = True, []

    @task("charge", breaker=CircuitBreaker("stripe", failures=2, open_for=0.2))
    async def charge(payload: int) -> None:
        if is_down:
            raise ConnectionError("503")
        ended.append(payload)

    async def shown() -> dict[str, Any]:
        (found,) = (await client.get(URL)).json()["items"]
        assert found["tasks"] == ["charge"]
        return dict(found)

    async with Runner(dsn, tasks=[charge], concurrent_jobs=1), WorkerUtils(dsn) as utils:
        await eventually(lambda: stored.query("select name from graphile_worker_py.breakers") != [])
        assert (await shown())["state"] == "closed"
        for number in range(6):
            await utils.add_job("charge", number)

        async def has_failed_again() -> bool:
            return int((await shown())["failures"]) >= 4

        await eventually(has_failed_again)
        is_down = False
        (known,) = await utils.breakers()
        assert known.reason in {None, "ConnectionError: 503"}
        stored.make_due()
        await client.post(RESET, json={"name": "stripe"})
        await eventually(lambda: len(ended) == 6)
        (known,) = await utils.breakers()
    assert (known.state, known.failures, known.opened_at) == ("closed", 0, None)


async def test_programs_and_the_command_read_breakers_and_programs_reset_them(
    opened: None, dsn: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    closed, found = (await client.get(URL)).json()["items"]
    assert closed == {
        "name": "closed",
        "state": "closed",
        "failures": 0,
        "opened_at": None,
        "open_until": None,
        "open_for": None,
        "reason": None,
        "tasks": ["mail"],
    }
    assert (found["state"], found["failures"], found["reason"]) == ("open", 5, "down")
    assert found["opened_at"] < found["open_until"]
    assert 3000 < found["open_for"] <= 3600
    assert "stripe/a  open" in call(dsn, "breakers")
    assert [each["state"] for each in json.loads(call(dsn, "breakers", "--json"))] == [
        "closed",
        "open",
    ]
    now = (await client.post(RESET, json={"name": "stripe/a"})).json()
    assert (now["state"], now["failures"], now["open_until"]) == ("closed", 0, None)
    assert [row["state"] for row in (await client.get(URL)).json()["items"]] == ["closed"] * 2
    assert stored.query(AUDIT) == [
        {"by": "anna", "action": "reset_breaker", "details": {"breaker": "stripe/a"}}
    ]
    told = problem(await client.post(RESET, json={"name": "paypal"}), 404)
    assert "'paypal'" in told["detail"]
    for bad in ({"name": ""}, {}, {"name": "a\0"}):
        problem(await client.post(RESET, json=bad), 422)


async def test_the_page_shows_why_a_breaker_is_open_and_closes_it(
    opened: None, client: httpx.AsyncClient, stored: Jobs
) -> None:
    text = (await client.get("/limits")).text
    for part in ("Circuit breakers", "stripe/a", "down", "Close it now"):
        assert part in text
    assert text.index("breaker-stripe/a") < text.index("breaker-closed")
    problem_shown = "Breaker 'stripe/a' is open: jobs of 1 task wait"
    assert problem_shown in html.unescape((await client.get("/")).text)
    shown = await client.post("/breakers/reset", data={"name": "stripe/a"})
    assert (shown.status_code, shown.headers["location"]) == (
        303,
        "/limits?done=reset_breaker&n=1",
    )
    text = (await client.get("/limits?done=reset_breaker")).text
    assert "The breaker is closed" in text
    assert "Close it now" not in text
    assert problem_shown not in html.unescape((await client.get("/")).text)
    assert [row["action"] for row in stored.query(AUDIT)] == ["reset_breaker"]
    assert (await client.post("/breakers/reset", data={"name": "paypal"})).status_code == 404
    assert (await client.post("/breakers/reset", data={})).status_code == 422


async def test_only_operators_of_this_site_may_close_a_breaker_and_errors_are_hidden(
    opened: None, dsn: str
) -> None:
    levels = {"v": Access.viewer("v"), "o": Access.operator("o")}
    app = create_app(dsn, authorize=lambda request: levels[request.headers["x-user"]])
    async with served(app) as url, client_of(url) as client:
        viewer, operator = {"x-user": "v"}, {"x-user": "o"}
        foreign = {**operator, "sec-fetch-site": "cross-site"}
        items = (await client.get(URL, headers=viewer)).json()["items"]
        assert items[1]["reason"] == "[not shown to you]"
        page = (await client.get("/limits", headers=viewer)).text
        assert "stripe/a" in page
        assert "down" not in page
        assert "Close it now" not in page
        for headers in (viewer, foreign):
            problem(await client.post(RESET, json={"name": "stripe/a"}, headers=headers), 403)
            form = {"name": "stripe/a"}
            answer = await client.post("/breakers/reset", data=form, headers=headers)
            assert answer.status_code == 403
        assert (await client.get(URL, headers=operator)).json()["items"][1]["state"] == "open"
        done = await client.post(RESET, json={"name": "stripe/a"}, headers=operator)
        assert done.json()["state"] == "closed"


async def test_nothing_is_closed_where_nothing_may_be_changed_or_no_table_is(
    opened: None, dsn: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    app = create_app(dsn, authorize=lambda _request: Access.admin("anna"), read_only=True)
    async with served(app) as url, client_of(url) as reader:
        assert (await reader.get(URL)).json()["items"][1]["state"] == "open"
        problem(await reader.post(RESET, json={"name": "stripe/a"}), 403)
        assert "Close it now" not in (await reader.get("/limits")).text
    stored.query("drop table graphile_worker_py.breakers")
    assert (await client.get(URL)).json() == {"items": []}
    assert "Circuit breakers" not in (await client.get("/limits")).text
    problem(await client.post(RESET, json={"name": "stripe/a"}), 503)
