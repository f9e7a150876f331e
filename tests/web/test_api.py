"""The API of docs/http-api.md: add, read, list, change."""

import asyncio
import json
from typing import Any

import httpx
import psycopg
import pytest

from graphile_worker_py.web import changes
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.web.serving import problem


async def test_an_added_job_has_an_address_and_is_what_was_sent(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    sent = {
        "task": "invoice",
        "payload": {"n": 12345678901234567890123, "ü": None},
        "queue_name": "q",
        "priority": 0,
        "max_attempts": 3,
        "job_key": "k",
        "flags": ["eu"],
    }
    answer = await client.post("/api/v1/jobs", json=sent)
    assert answer.status_code == 201
    job = stored.one(answer.json()["id"])
    assert json.loads(job["json"]) == sent["payload"]
    assert (job["queue_name"], job["priority"], job["max_attempts"]) == ("q", 0, 3)
    read = (await client.get(answer.headers["location"])).json()
    assert read["payload"] == sent["payload"]
    assert (read["task"], read["job_key"], read["flags"]) == ("invoice", "k", ["eu"])


async def test_a_payload_is_shown_byte_for_byte(client: httpx.AsyncClient, stored: Jobs) -> None:
    text = '{"a" : 1.10, "b":1e400,"a":-0.0,  "big":123456789012345678901234567890}'
    job_id = stored.add("a", payload_json=text)
    assert text in (await client.get(f"/api/v1/jobs/{job_id}")).text


async def test_run_in_counts_from_now(client: httpx.AsyncClient, stored: Jobs) -> None:
    answer = await client.post("/api/v1/jobs", json={"task": "a", "run_in": 3600})
    rows = stored.query(
        "select run_at - now() > interval '59 min' as late from graphile_worker.jobs"
    )
    assert rows == [{"late": True}]
    assert answer.status_code == 201


async def test_a_list_is_paged_by_cursors_that_belong_to_their_filter(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    ids = [*reversed(stored.add_many(5, "a")), *stored.add_many(1, "b")][:5]
    first = await client.get("/api/v1/jobs", params={"task": "a", "limit": 2})
    assert [job["id"] for job in first.json()["items"]] == ids[:2]
    assert 'rel="next"' in first.headers["link"]
    url = first.headers["link"].partition(">")[0].removeprefix("<")
    second = await client.get(url)
    assert [job["id"] for job in second.json()["items"]] == ids[2:4]
    third = await client.get(
        "/api/v1/jobs", params={"task": "a", "limit": 2, "after": second.json()["next"]}
    )
    assert third.json()["next"] is None
    assert third.json()["window"] == {"complete": True, "from_id": 1}
    wrong = await client.get("/api/v1/jobs", params={"task": "b", "after": first.json()["next"]})
    assert problem(wrong, 400)["errors"][0]["pointer"] == "after"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("task:a", [1, 2]),
        ("state:failed", [2]),
        ('queue:"the queue"', [3]),
        ("key:k", [3]),
        ("flag:gpu", [4]),
        ("worker:pool-1", [5]),
        ("error:NO", [2]),
        ("payload.user.id:7", [4]),
        ("needle", [1]),
        ("task:a state:failed", [2]),
        ("before:2001-01-01", []),
        ("after:1h", [1, 2, 3, 4, 5]),
    ],
)
async def test_a_filter_finds_what_it_says(
    client: httpx.AsyncClient, stored: Jobs, query: str, found: list[int]
) -> None:
    stored.add("a", {"x": "a Needle"})
    stored.add("a")
    stored.add("b", queue_name="the queue", job_key="k")
    stored.add("b", {"user": {"id": 7}}, flags=["gpu"])
    stored.add("c")
    stored.exhaust(2)
    stored.lock(5)
    answer = await client.get("/api/v1/jobs", params={"q": query})
    assert sorted(job["id"] for job in answer.json()["items"]) == found


async def test_a_failed_job_is_retried_and_a_running_one_is_not(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    failed, running = stored.add("a"), stored.add("a")
    stored.exhaust(failed)
    stored.lock(running)
    assert (await client.post(f"/api/v1/jobs/{failed}/retry")).status_code == 200
    assert stored.one(failed)["attempts"] == 0
    for action in ("retry", "cancel", "fail"):
        answer = await client.post(f"/api/v1/jobs/{running}/{action}")
        assert problem(answer, 409)["locked_by"] == "pool-1"
    answer = await client.delete(f"/api/v1/jobs/{running}")
    assert problem(answer, 409)["locked_by"] == "pool-1"


async def test_jobs_are_rescheduled_given_up_cancelled_and_deleted(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    one, two, three = stored.add_many(3, "a")
    path = "/api/v1/jobs"
    given = {"run_at": "2090-01-01T00:00:00Z", "priority": -5}
    assert (await client.post(f"{path}/{one}/reschedule", json=given)).status_code == 200
    assert stored.one(one)["priority"] == -5
    assert (await client.post(f"{path}/{one}/fail", json={"reason": "no"})).status_code == 200
    assert stored.one(one)["last_error"] == "no"
    assert (await client.post(f"{path}/{two}/cancel")).status_code == 200
    assert (await client.delete(f"{path}/{three}")).status_code == 204
    assert stored.ids() == [one]
    gone = problem(await client.get(f"{path}/{three}"), 410)
    assert "the last change through these pages was 'delete'" in gone["detail"]
    unknown = problem(await client.get(f"{path}/12345"), 404)
    assert "completed jobs are deleted" in unknown["detail"]


async def test_a_bulk_action_counts_first_and_skips_running_jobs(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    ids = stored.add_many(5, "a")
    stored.add("b")
    stored.exhaust(*ids)
    stored.lock(ids[0])
    wanted = {"action": "retry", "filter": "task:a"}
    dry = (await client.post("/api/v1/jobs/actions", json={**wanted, "dry_run": True})).json()
    assert (dry["count"], dry["done"], dry["complete"]) == (5, 0, True)
    assert stored.one(ids[1])["attempts"] == 25
    done = (await client.post("/api/v1/jobs/actions", json=wanted)).json()
    assert (done["count"], done["done"], done["skipped"]) == (5, 4, 1)
    (audit,) = (await client.get("/api/v1/audit")).json()["items"]
    assert (audit["by"], audit["action"], audit["filter"], audit["count"]) == (
        "anna",
        "retry",
        "task:a",
        4,
    )


async def test_a_bulk_action_reports_each_chunk_where_that_is_wanted(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    stored.add_many(2_500, "a")
    answer = await client.post(
        "/api/v1/jobs/actions",
        json={"action": "delete", "filter": ""},
        headers={"accept": "application/x-ndjson"},
    )
    lines = [json.loads(line)["done"] for line in answer.text.splitlines()]
    assert lines == [0, 1000, 2000, 2500]
    assert stored.ids() == []


async def test_a_closed_connection_stops_a_bulk_action_after_its_chunk(
    client: httpx.AsyncClient, stored: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "CHUNK", 10)
    ids = stored.add_many(60, "a")
    request = {"action": "delete", "filter": ""}
    headers = {"accept": "application/x-ndjson"}
    with psycopg.connect(stored.dsn) as conn:
        # The third chunk waits for this transaction, so that the client is gone meanwhile.
        conn.execute(
            "select from graphile_worker._private_jobs where id = %s for update", [ids[25]]
        )
        async with client.stream(
            "POST", "/api/v1/jobs/actions", json=request, headers=headers
        ) as answer:
            async for line in answer.aiter_lines():
                if json.loads(line)["done"] == 20:
                    break
        await asyncio.sleep(0.5)  # till the server knows that the client is gone

    async def noted() -> list[Any]:
        items: list[Any] = (await client.get("/api/v1/audit")).json()["items"]
        return items

    await eventually(noted)
    (audit,) = await noted()
    assert audit["count"] == 30
    assert len(stored.ids()) == 30


async def test_an_array_is_added_as_a_whole_or_not_at_all(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    jobs: list[Any] = [{"task": "a"}, {"task": "b", "priority": "x"}, {"task": ""}]
    refused = problem(await client.post("/api/v1/jobs/bulk", json=jobs), 422)
    assert [(each["index"], each["pointer"]) for each in refused["errors"]] == [
        (1, "/priority"),
        (2, "/task"),
    ]
    assert stored.ids() == []
    partly = await client.post("/api/v1/jobs/bulk?partial=true", json=jobs)
    assert partly.status_code == 201
    assert partly.json()["created"] == 1
    assert len(partly.json()["errors"]) == 2


async def test_lines_and_files_are_added_too(client: httpx.AsyncClient, stored: Jobs) -> None:
    lines = b"\n".join(b'{"task": "a", "payload": {"n": %d}}' % n for n in range(1500))
    sent = await client.post(
        "/api/v1/jobs/bulk", content=lines, headers={"content-type": "application/x-ndjson"}
    )
    assert (sent.status_code, sent.json()["created"]) == (201, 1500)
    file = await client.post("/api/v1/jobs/bulk", files={"file": ("jobs.ndjson", lines[:900])})
    assert problem(file, 400)
    file = await client.post("/api/v1/jobs/bulk", files={"file": ("jobs.json", b'[{"task":"b"}]')})
    assert file.json() == {"created": 1, "errors": []}
    assert len(stored.ids()) == 1501


async def test_facts_of_a_queue_a_task_and_a_pool_of_node_are_there(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    locked = stored.add("a", queue_name="mail")
    stored.add("a", queue_name="mail")
    stored.lock(locked, pool_id="pool-of-node")
    stats = (await client.get("/api/v1/stats")).json()
    assert (stats["kind"], stats["states"]["running"], stats["states"]["ready"]) == ("exact", 1, 1)
    (queue,) = (await client.get("/api/v1/queues")).json()["items"]
    assert (queue["name"], queue["jobs"], queue["locked_by"]) == ("mail", 2, "pool-of-node")
    (worker,) = (await client.get("/api/v1/workers")).json()["items"]
    assert (worker["language"], worker["jobs"][0]["id"]) == ("Node", locked)
    (task,) = (await client.get("/api/v1/tasks")).json()["items"]
    assert (task["task"], task["jobs"]["running"]) == ("a", 1)
    assert 'state="running"} 1' in (await client.get("/metrics")).text
    explained = (await client.get(f"/api/v1/jobs/{locked + 1}/explain")).json()
    assert explained["reasons"][0]["cause"] == "queue_locked"


async def test_events_begin_with_the_current_state(client: httpx.AsyncClient, stored: Jobs) -> None:
    stored.add("a")
    async with client.stream("GET", "/api/v1/events?topics=stats") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert await anext(lines) == "retry: 3000"
        told = [line async for line in _until(lines, "data:")]
    assert json.loads(told[-1].removeprefix("data: "))["states"]["ready"] == 1


async def _until(lines: Any, prefix: str) -> Any:
    async for line in lines:
        yield line
        if line.startswith(prefix):
            return
