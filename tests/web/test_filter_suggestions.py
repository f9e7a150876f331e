"""What the filter of jobs suggests: states, tasks, queues, and paths of payloads."""

import html
import re

import httpx
import pytest

from graphile_worker_py.web import Access, create_app
from tests.support.jobs import Jobs
from tests.web.serving import client_of, served

PAGE = {"accept": "text/html"}


async def suggested(client: httpx.AsyncClient, q: str = "") -> list[str]:
    """What the page of jobs suggests."""
    page = await client.get("/jobs", params={"q": q}, headers=PAGE)
    return [html.unescape(each) for each in re.findall(r'<option value="([^"]*:[^"]*)"', page.text)]


async def test_paths_of_the_payloads_that_are_listed_find_their_jobs(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    job_id = stored.add("a", {"user": {"id": 7, "name": "the <b> user"}, "ok": True, "far": [1]})
    stored.add("b", {"x" * 3: "x" * 100, "a b": 1, "n": None, "": "", "deep": {"a": {"b": {}}}})
    found = [each for each in await suggested(client) if each.startswith("payload.")]
    assert sorted(found) == [
        "payload.ok:true",
        "payload.user.id:7",
        'payload.user.name:"the <b> user"',
    ]
    for query in found:
        answer = await client.get("/api/v1/jobs", params={"q": query})
        assert [job["id"] for job in answer.json()["items"]] == [job_id]
    assert "state:ready task:a" in await suggested(client, "state:ready")


@pytest.mark.parametrize(
    ("access", "redact", "found"),
    [
        (Access.viewer("v"), (), []),
        (Access.viewer("v", payloads=True), ("*id*",), ["payload.to:a"]),
        (Access.viewer("v", payloads=True), ("$.user.*",), ["payload.to:a"]),
    ],
)
async def test_what_a_user_may_not_see_is_not_suggested(
    dsn: str, stored: Jobs, access: Access, redact: tuple[str, ...], found: list[str]
) -> None:
    stored.add("a", {"user": {"id": 7}, "to": "a"})
    app = create_app(dsn, authorize=lambda _request: access, redact=redact)
    async with served(app) as url, client_of(url) as client:
        told = await suggested(client)
    assert "state:ready" in told
    assert [each for each in told if each.startswith("payload.")] == found
