"""Pauses on the pages and in the API."""

import re

import httpx

from tests.support.jobs import Jobs

QUEUES = "select queue_name, locked_by from graphile_worker._private_job_queues"
PAUSES = "select target, name, paused_by from graphile_worker_py.pauses"


async def test_programs_pause_list_and_resume(client: httpx.AsyncClient, stored: Jobs) -> None:
    paused = await client.post("/api/v1/pauses", json={"queue": "q", "reason": "no more"})
    assert (paused.status_code, paused.json()["target"]) == (201, "queue")
    assert stored.query(QUEUES) == [{"queue_name": "q", "locked_by": "gwpy-pause:by anna: no more"}]
    assert (await client.post("/api/v1/pauses", json={"everything": True})).status_code == 201
    items = (await client.get("/api/v1/pauses")).json()["items"]
    assert [(each["target"], each["name"], each["by"]) for each in items] == [
        ("everything", "", "anna"),
        ("queue", "q", "anna"),
    ]
    assert (await client.delete("/api/v1/pauses", params={"queue": "q"})).json()["ending"]
    assert (await client.delete("/api/v1/pauses", params={"everything": True})).status_code == 200
    assert (await client.delete("/api/v1/pauses", params={"task": "a"})).status_code == 404
    for bad in ({}, {"task": "a", "queue": "b"}, {"pool": "none of this name"}):
        assert (await client.post("/api/v1/pauses", json=bad)).status_code == 422
    assert (await client.get("/api/v1/pauses")).json()["items"] == []


async def test_pages_have_a_button_that_pauses_and_one_that_resumes(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    stored.add("a", queue_name="q")
    for target, name, page in (("task", "a", "tasks"), ("queue", "q", "queues")):
        assert re.search(r'value="pause">Pause', (await client.get(f"/{page}")).text)
        form = {"target": target, "name": name}
        shown = await client.post("/pauses", data={**form, "action": "pause"})
        assert shown.status_code == 303
        assert stored.query(PAUSES) == [{"target": target, "name": name, "paused_by": "anna"}]
        text = (await client.get(shown.headers["location"])).text
        assert "It is paused" in text
        assert 'value="resume"' in text
        await client.post("/pauses", data={**form, "action": "resume"})
        assert stored.query(PAUSES) == []
