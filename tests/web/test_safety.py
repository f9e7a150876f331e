"""What keeps others out, and hides what is not theirs."""

from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import psycopg
import pytest

from graphile_worker_py import run_migrations
from graphile_worker_py.web import Access, create_app
from graphile_worker_py.web.access import TokenDoor
from graphile_worker_py.web.redact import Redaction
from tests.support.jobs import Jobs
from tests.support.pages import blocks_of
from tests.web.serving import client_of, problem, served

pytestmark = pytest.mark.any_server

HTML = {"accept": "text/html"}
PATH = "/api/v1/jobs"
PAGES = ("jobs", "tasks", "queues", "limits", "workers", "recurring", "errors", "maintenance")


class _Inline(HTMLParser):
    """Finds scripts and styles within a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        if tag in {"style", "img"} or (tag == "script" and "src" not in names):
            self.found.append(tag)
        self.found += [name for name in names if name == "style" or name.startswith("on")]


def inline_code(html: str) -> list[str]:
    """Elements and attributes of a page that hold code or styles."""
    parser = _Inline()
    parser.feed(html)
    return parser.found


@pytest.fixture
async def guest(dsn: str) -> AsyncIterator[tuple[httpx.AsyncClient, TokenDoor]]:
    """Nobody yet, and the door of an application without authentication of its own."""
    app = create_app(dsn)
    async with served(app) as url, client_of(url) as client:
        yield client, app.state.door


async def test_without_log_in_the_api_refuses_and_pages_lead_to_the_form(
    guest: tuple[httpx.AsyncClient, TokenDoor],
) -> None:
    client, _door = guest
    problem(await client.get(PATH), 401)
    page = await client.get("/jobs?q=task:a", headers=HTML)
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=jobs")
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200


async def test_a_token_is_good_for_one_log_in_and_the_cookie_holds(
    guest: tuple[httpx.AsyncClient, TokenDoor],
) -> None:
    client, door = guest
    assert (await client.get("/?token=wrong", headers=HTML)).status_code == 401
    entered = await client.get(f"/?token={door.token}", headers=HTML)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert (await client.get(PATH)).status_code == 200
    client.cookies.clear()
    assert (await client.get(f"/?token={door.token}", headers=HTML)).status_code == 401
    client.cookies.set("gwpy", "YW5uYQ==.3.1.99999999999.forged")
    problem(await client.get(PATH), 401)


async def test_a_log_in_never_leads_to_another_site(
    guest: tuple[httpx.AsyncClient, TokenDoor],
) -> None:
    client, door = guest
    answer = await client.get(f"/login?token={door.token}&next=//evil.example/x", headers=HTML)
    assert answer.headers["location"] == "/"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 201),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"cookie": "gwpy=x"}, 403),
        ({}, 201),
    ],
)
async def test_what_another_site_sends_is_refused(
    client: httpx.AsyncClient, stored: Jobs, headers: dict[str, str], status: int
) -> None:
    answer = await client.post(PATH, json={"task": "a"}, headers=headers)
    assert answer.status_code == status
    assert len(stored.ids()) == (1 if status == 201 else 0)


async def test_an_origin_of_ours_is_accepted(client: httpx.AsyncClient) -> None:
    origin = str(client.base_url).rstrip("/")
    answer = await client.post(PATH, json={"task": "a"}, headers={"origin": origin})
    assert answer.status_code == 201


async def test_another_host_name_is_refused_on_loopback(
    guest: tuple[httpx.AsyncClient, TokenDoor],
) -> None:
    client, _door = guest
    problem(await client.get("/livez", headers={"host": "evil.example"}), 421)


async def test_every_answer_has_the_headers_and_pages_have_no_inline_code(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    stored.add("<script>alert(1)</script>", {"a": "</pre><img src=x onerror=alert(1)>"})
    for path in ("/", "/jobs", "/jobs/1", "/tasks", "/errors", "/nothing", "/static/app.js", PATH):
        answer = await client.get(path, headers=HTML)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        if "html" in answer.headers["content-type"]:
            assert answer.headers["cache-control"] == "no-store"
            assert not inline_code(answer.text), path


async def test_secrets_are_hidden_in_pages_api_and_errors(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    job_id = stored.add("a", {"db_Password": "hunter2", "n": [{"token": {"x": "hunter2"}}]})
    stored.exhaust(job_id)
    stored.change(job_id, "last_error = 'failed: api_token=hunter2 at x'")
    for path in (
        f"{PATH}/{job_id}",
        f"/jobs/{job_id}",
        "/jobs",
        "/errors",
        f"{PATH}/{job_id}/payload",
    ):
        text = (await client.get(path, headers=HTML)).text
        assert "hunter2" not in text, path
    searched = await client.get(PATH, params={"q": "payload.db_Password:hunter2"})
    problem(searched, 403)


def test_redaction_keeps_all_else_as_it_was_written() -> None:
    text = b'{"a": 1.10, "b": 12345678901234567890123, "card": {"no": "x", "ok": [1e400]}}'
    assert Redaction(["*password*"]).payload(text) is text
    hidden = Redaction(["$.card.no"]).payload(text)
    assert hidden == text.replace(b'"x"', b'"[redacted]"')


async def test_a_viewer_sees_no_payloads_and_changes_nothing(dsn: str, stored: Jobs) -> None:
    job_id = stored.add("a", {"x": "private"})
    stored.exhaust(job_id)
    stored.change(job_id, "last_error = 'private'")
    app = create_app(dsn, authorize=lambda _request: Access.viewer("victor"))
    async with served(app) as url, client_of(url) as client:
        for path in (
            f"{PATH}/{job_id}",
            f"{PATH}/{job_id}/explain",
            f"/jobs/{job_id}",
            "/jobs",
            "/errors",
        ):
            answer = await client.get(path, headers=HTML)
            assert answer.status_code == 200
            assert "private" not in answer.text, path
        problem(await client.get(PATH, params={"q": "private"}), 403)
        problem(await client.post(f"{PATH}/{job_id}/retry"), 403)
        problem(await client.get(f"{PATH}/{job_id}/payload"), 403)


async def test_an_operator_deletes_nothing(dsn: str, stored: Jobs) -> None:
    job_id = stored.add("a")
    app = create_app(dsn, authorize=lambda _request: Access.operator("olga"))
    async with served(app) as url, client_of(url) as client:
        problem(await client.delete(f"{PATH}/{job_id}"), 403)
        given = {"action": "delete", "ids": [job_id]}
        problem(await client.post(f"{PATH}/actions", json=given), 403)
        assert (await client.post(f"{PATH}/{job_id}/retry")).status_code == 200


async def test_the_host_decides_and_may_be_async(dsn: str) -> None:
    async def authorize(request: object) -> Access | None:
        user = request.headers.get("x-user")  # type: ignore[attr-defined]
        return None if user is None else Access.viewer(user)

    app = create_app(dsn, authorize=authorize)
    async with served(app) as url, client_of(url) as client:
        problem(await client.get(PATH), 401)
        page = await client.get("/", headers=HTML)
        assert page.status_code == 401
        assert (await client.get(PATH, headers={"x-user": "eva"})).status_code == 200


def _grants() -> str:
    """What the page about the web application says that a role needs."""
    page = Path(__file__).parents[2] / "docs" / "web.md"
    (block,) = [each for each in blocks_of(page) if each.language == "sql"]
    return block.text


async def test_a_role_that_can_only_read_suffices_for_looking(dsn: str, stored: Jobs) -> None:
    job_id = stored.add("a")
    await run_migrations(dsn, side_schema=True)
    try:
        for statement in _grants().split(";"):
            if statement.strip():
                stored.query(statement)
        stored.query("alter role jobs_viewer password 'x'")
        role = psycopg.conninfo.make_conninfo(dsn, user="jobs_viewer", password="x")
        app = create_app(role, authorize=lambda _request: Access.admin("a"))
        async with served(app) as url, client_of(url) as client:
            for path in ("", f"jobs/{job_id}", *PAGES):
                page = await client.get(f"/{path}", headers=HTML)
                assert page.status_code == 200, page.text
            told = problem(await client.post(PATH, json={"task": "a"}), 403)
            assert "may not do this" in told["detail"]
            kept = await client.post(PATH, json={"task": "a"}, headers={"idempotency-key": "k"})
            assert "side-schema" in problem(kept, 503)["detail"]
    finally:
        stored.query("drop owned by jobs_viewer")
        stored.query("drop role jobs_viewer")


async def test_under_tls_the_cookie_is_bound_to_the_host(dsn: str) -> None:
    app = create_app(dsn)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://localhost") as client:
        answer = await client.get("/", params={"token": app.state.door.token})
    await app.state.web.site.close()
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("__host-")
    parts = {each.strip() for each in cookie.split(";")}
    assert {"httponly", "secure", "samesite=strict", "path=/"} <= parts


async def test_a_payload_of_a_megabyte_is_cut_and_can_be_downloaded(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    job_id = stored.add("a", {"x": "y" * 1_048_576})
    page = await client.get(f"/jobs/{job_id}", headers={"accept": "text/html"})
    assert len(page.text) < 50_000
    address = f"/api/v1/jobs/{job_id}/payload"
    assert f'href="{address}" download' in page.text
    assert (await client.get(address)).json() == {"x": "y" * 1_048_576}
    listed = (await client.get("/api/v1/jobs")).json()["items"]
    assert listed[0]["payload"] == "[1 MB or more: download it]"
