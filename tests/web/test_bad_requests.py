"""Whatever is sent, the answer says what is wrong and what to do."""

from typing import Any

import httpx
import pytest

from graphile_worker_py.web import Access, create_app
from tests.support.jobs import Jobs
from tests.web.serving import client_of, problem, served

pytestmark = pytest.mark.any_server

JOBS = "/api/v1/jobs"


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b'{"task": "a"', 400, None),
        (b"\xff\xfe", 400, None),
        (b"[" * 100_000, 400, None),
        (b"[]", 422, "/"),
        (b"{}", 422, "/task"),
        (b'{"task": 5}', 422, "/task"),
        (b'{"task": "a\\u0000"}', 422, "/task"),
        (b'{"task": "' + b"x" * 129 + b'"}', 422, "/task"),
        (b'{"task": "a", "pririty": 1}', 422, "/pririty"),
        (b'{"task": "a", "priority": 40000}', 422, "/priority"),
        (b'{"task": "a", "max_attempts": 0}', 422, "/max_attempts"),
        (b'{"task": "a", "run_at": "tomorrow"}', 422, "/run_at"),
        (b'{"task": "a", "run_at": "2026-01-01T00:00:00"}', 422, "/run_at"),
        (b'{"task": "a", "run_in": -1}', 422, "/run_in"),
        (b'{"task": "a", "run_in": 1e400}', 422, "/run_in"),
        (b'{"task": "a", "run_in": 1, "run_at": "2026-01-01T00:00:00Z"}', 422, "/"),
        (b'{"task": "a", "job_key_mode": "merge"}', 422, "/job_key_mode"),
        (b'{"task": "a", "flags": [1]}', 422, "/flags/0"),
    ],
)
async def test_a_wrong_body_is_pointed_at(
    client: httpx.AsyncClient, stored: Jobs, body: bytes, status: int, pointer: str | None
) -> None:
    answer = await client.post(JOBS, content=body, headers={"content-type": "application/json"})
    document = problem(answer, status)
    if pointer is not None:
        assert document["errors"][0]["pointer"] == pointer
    assert stored.ids() == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/jobs/99999999999999999999", 422),
        ("/api/v1/jobs/x", 422),
        ("/api/v1/jobs/123456", 404),
        ("/api/v1/jobs/-5", 422),
        ("/api/v1/jobs?limit=0", 422),
        ("/api/v1/jobs?limit=1000000", 422),
        ("/api/v1/jobs?state=broken", 422),
        ("/api/v1/jobs?after=abc", 400),
        ("/api/v1/jobs?after=99999999999999999999-00000000", 400),
        ("/api/v1/jobs?q=state:broken", 422),
        ("/api/v1/jobs?task=%00", 422),
        ("/api/v1/nothing", 404),
        ("/api/v1/events?topics=none", 422),
    ],
)
async def test_a_wrong_address_is_a_problem(
    client: httpx.AsyncClient, path: str, status: int
) -> None:
    problem(await client.get(path), status)


async def test_a_wrong_method_is_a_problem(client: httpx.AsyncClient) -> None:
    problem(await client.put(f"{JOBS}/1", json={}), 405)


async def test_a_body_over_the_limit_is_refused_with_the_limit(dsn: str, stored: Jobs) -> None:
    app = create_app(dsn, authorize=lambda _request: Access.admin("a"), max_body=500, max_bulk=3)
    async with served(app) as url, client_of(url) as client:
        told = await client.post(JOBS, json={"task": "a", "payload": "x" * 500})
        assert problem(told, 413)["limit"] == 500

        async def blocks() -> Any:
            for _ in range(10):
                yield b" " * 100

        streamed = await client.post(
            JOBS, content=blocks(), headers={"content-type": "application/json"}
        )
        assert problem(streamed, 413)["limit"] == 500
        many = await client.post("/api/v1/jobs/bulk", json=[{"task": "a"}] * 4)
        assert problem(many, 413)["limit"] == 3
    assert stored.ids() == []


async def test_a_bulk_needs_a_content_type_that_is_known(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/api/v1/jobs/bulk", content=b"task=a", headers={"content-type": "text/csv"}
    )
    problem(answer, 415)


async def test_a_database_that_is_away_is_a_problem_and_a_page(dsn: str) -> None:
    away = dsn.rpartition("/")[0].rpartition(":")[0] + ":1/none"
    app = create_app(away, authorize=lambda _request: Access.admin("a"))
    async with served(app) as url, client_of(url) as client:
        answer = await client.get(JOBS)
        problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
        problem(await client.post(JOBS, json={"task": "a"}), 503)
        assert (await client.get("/livez")).status_code == 200
        problem(await client.get("/readyz"), 503)
        page = await client.get("/", headers={"accept": "text/html"})
        assert page.status_code == 503
        assert "<h1>Service Unavailable</h1>" in page.text


async def test_a_missing_or_old_schema_says_what_to_do(dsn: str, stored: Jobs) -> None:
    for schema, said in (("elsewhere", "elsewhere"), ("graphile_worker", "revision")):
        stored.query("delete from graphile_worker.migrations where id > 15")
        app = create_app(dsn, schema=schema, authorize=lambda _request: Access.admin("a"))
        async with served(app) as url, client_of(url) as client:
            document = problem(await client.get(JOBS), 503)
            assert said in document["detail"]
            assert "migrate" in document["detail"]


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        (JOBS, {"task": 1}, "/task"),
        (JOBS, {"tusk": "a"}, "/task"),
        (f"{JOBS}/1/reschedule", {"priority": "high"}, "/priority"),
        (f"{JOBS}/actions", {"action": "explode", "ids": [1]}, "/action"),
    ],
)
async def test_a_wrong_body_is_pointed_at_before_the_database_is_reached(
    path: str, body: dict[str, Any], pointer: str
) -> None:
    app = create_app(
        "postgresql://app@127.0.0.1:9/app", authorize=lambda _request: Access.operator("a")
    )
    async with served(app) as url, client_of(url) as client:
        told = problem(await client.post(path, json=body), 422)
        assert pointer in [error["pointer"] for error in told["errors"]]
        problem(await client.post(JOBS, json={"task": "a"}), 503)


async def test_a_read_only_database_can_be_looked_at_and_not_changed(
    dsn: str, stored: Jobs
) -> None:
    job_id = stored.add("a")
    options = "&" if "?" in dsn else "?"
    read_only = f"{dsn}{options}options=-c%20default_transaction_read_only%3Don"
    app = create_app(read_only, authorize=lambda _request: Access.admin("a"))
    async with served(app) as url, client_of(url) as client:
        assert (await client.get(f"{JOBS}/{job_id}")).status_code == 200
        told = problem(await client.post(JOBS, json={"task": "a"}), 403)
        assert "read-only" in told["detail"]
        page = await client.get(f"/jobs/{job_id}", headers={"accept": "text/html"})
        assert "read-only" in page.text
        assert "Retry now" not in page.text


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/jobs/action", {"action": "retry", "all": "1", "up_to": "x"}, 422),
        ("/jobs/action", {"action": "retry", "id": "9" * 30}, 422),
        ("/jobs/action", {"action": "retry", "all": "1", "q": "state:x"}, 422),
        ("/jobs/action", {"action": "none", "id": "1"}, 422),
        ("/jobs/1/action", {"action": "reschedule", "priority": "-32769"}, 422),
        ("/jobs/1/action", {"action": "reschedule", "priority": "\u00b2"}, 422),
        ("/jobs/1/action", {"action": "reschedule", "run_at": "9999-99-99"}, 422),
        ("/jobs/1/action", {"action": "fail", "reason": "a\0b"}, 422),
        ("/jobs/1/action", {"action": "edit", "payload": "{", "shown": "{}"}, 422),
        ("/jobs/77/action", {"action": "retry"}, 404),
        ("/workers/unlock", {"pool": "a\0"}, 422),
        ("/pauses", {"target": "task", "name": ""}, 422),
        ("/limits", {"name": "none", "kind": "rate", "amount": "1"}, 404),
        ("/recurring/run", {"item": "none"}, 404),
        ("/maintenance/cleanup", {"task": "DELETE_PERMAFAILED_JOBS", "older_than": "x"}, 422),
    ],
)
async def test_a_wrong_form_gets_a_page_that_says_what_is_wrong(
    client: httpx.AsyncClient, stored: Jobs, path: str, form: dict[str, str], status: int
) -> None:
    stored.add("a")
    before = stored.all()
    answer = await client.post(path, data=form, headers={"accept": "text/html"})
    assert answer.status_code == status, answer.text
    assert "<h1>" in answer.text
    assert "Traceback" not in answer.text
    assert stored.all() == before


async def test_a_form_takes_the_smallest_priority(client: httpx.AsyncClient, stored: Jobs) -> None:
    job_id = stored.add("a")
    form = {"action": "reschedule", "priority": "-32768"}
    assert (await client.post(f"/jobs/{job_id}/action", data=form)).status_code == 303
    assert stored.one(job_id)["priority"] == -32768
