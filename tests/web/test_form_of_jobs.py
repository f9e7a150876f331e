"""The form that adds a job: it says what is wrong, and keeps what was typed."""

import html

import httpx
import pytest

from graphile_worker_py.web import Access, create_app
from tests.support.jobs import Jobs
from tests.web.serving import client_of, served

pytestmark = pytest.mark.any_server

PAGE = {"accept": "text/html"}
URL = "/jobs/new"


async def test_a_job_is_added_with_all_that_was_typed(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    typed = {
        "task": " charge ",
        "payload": '{"id": 12345678901234567890123, "to": ["a"]}',
        "queue_name": "mail",
        "run_at": "2090-01-31T04:00",
        "priority": "-5",
        "max_attempts": "3",
        "job_key": "order:42",
    }
    answer = await client.post(URL, data=typed, headers=PAGE)
    (job,) = stored.all()
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        f"/jobs/{job['id']}?done=add&n=1",
    )
    assert job["json"] == '{"id":12345678901234567890123,"to":["a"]}'
    assert f"{job['run_at']:%Y-%m-%dT%H:%M%z}" == "2090-01-31T04:00+0000"
    names = ("task_identifier", "queue_name", "priority", "max_attempts", "key")
    assert [job[name] for name in names] == ["charge", "mail", -5, 3, "order:42"]
    (audit,) = (await client.get("/api/v1/audit")).json()["items"]
    assert (audit["by"], audit["action"], audit["job_id"]) == ("anna", "add", job["id"])


async def test_fields_that_are_empty_leave_the_defaults(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    empty = dict.fromkeys(("payload", "queue_name", "run_at", "priority", "max_attempts"), " ")
    await client.post(URL, data={"task": "a", **empty}, headers=PAGE)
    (job,) = stored.all()
    names = ("json", "queue_name", "priority", "max_attempts", "key")
    assert [job[name] for name in names] == ["{}", None, 0, 25, None]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("task", "", "Give the name of a task"),
        ("task", "x" * 129, "Give the name of a task"),
        ("payload", '{"to": ', "This is not JSON"),
        ("payload", "[" * 100_000, "This is not JSON"),
        ("payload", '{"n": NaN}', "NaN is no number that JSON can hold"),
        ("payload", '{"n": 1e400}', "1e400 is no number that JSON can hold"),
        ("queue_name", "q" * 129, "128 characters"),
        ("run_at", "<b>tomorrow", "'<b>tomorrow' is no time"),
        ("priority", "40000", "less than or equal to 32767"),
        ("priority", "soon", "valid integer"),
        ("max_attempts", "0", "greater than or equal to 1"),
        ("job_key", "k\0", "should match pattern"),
    ],
)
async def test_what_is_wrong_is_said_at_its_field_and_nothing_typed_is_lost(
    client: httpx.AsyncClient, stored: Jobs, name: str, value: str, told: str
) -> None:
    typed = {"task": "kept task", "payload": "[7]", "job_key": "kept key", name: value}
    answer = await client.post(URL, data=typed, headers=PAGE)
    text = html.unescape(answer.text)
    assert answer.status_code == 422
    assert "The job was not added." in text
    at = text.index(f'id="{name}-bad"')
    assert told in text[at : at + 400]
    assert all(each in text for each in typed.values())
    assert "<b>" not in answer.text
    assert stored.ids() == []


async def test_above_the_backlog_the_form_says_so(dsn: str, stored: Jobs) -> None:
    app = create_app(dsn, authorize=lambda _request: Access.operator("a"), max_backlog=1)
    async with served(app) as url, client_of(url) as client:
        typed = {"task": "a", "payload": '["typed"]'}
        assert (await client.post(URL, data=typed, headers=PAGE)).status_code == 303
        answer = await client.post(URL, data=typed, headers=PAGE)
    assert answer.status_code == 429
    assert "1 jobs are waiting, and at most 1 may" in answer.text
    assert "typed" in answer.text
    assert len(stored.ids()) == 1


async def test_tasks_that_are_known_are_suggested_and_the_address_may_name_one(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    stored.add("send_mail")
    text = (await client.get(f"{URL}?task=%22%3Eb", headers=PAGE)).text
    assert '<option value="send_mail"></option>' in text
    assert 'value="&#34;&gt;b"' in text
    page = await client.get("/tasks/send_mail", headers=PAGE)
    assert 'href="/jobs/new?task=send_mail"' in page.text


async def test_only_operators_get_the_form_and_nobody_where_it_is_read_only(
    dsn: str, stored: Jobs
) -> None:
    viewer = create_app(dsn, authorize=lambda _request: Access.viewer("v", payloads=True))
    read_only = create_app(dsn, authorize=lambda _request: Access.admin("a"), read_only=True)
    for app in (viewer, read_only):
        async with served(app) as url, client_of(url) as client:
            assert "Add a job" not in (await client.get("/jobs", headers=PAGE)).text
            assert (await client.get(URL, headers=PAGE)).status_code == 403
            answer = await client.post(URL, data={"task": "a"}, headers=PAGE)
            assert answer.status_code == 403
    operator = create_app(dsn, authorize=lambda _request: Access.operator("o"))
    async with served(operator) as url, client_of(url) as client:
        foreign = {**PAGE, "sec-fetch-site": "cross-site"}
        assert (await client.post(URL, data={"task": "a"}, headers=foreign)).status_code == 403
    assert stored.ids() == []
