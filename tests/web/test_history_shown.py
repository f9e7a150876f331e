"""What workers have recorded is shown, and what is missing is said."""

import asyncio
from typing import Any

import httpx
import pytest

from graphile_worker_py import JobContext, Runner
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.web.serving import problem

HTML = {"accept": "text/html"}
PATH = "/api/v1/jobs"


async def test_without_history_pages_and_api_say_so(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    job_id = stored.add("a")
    # A process that also runs workers creates all tables.
    await client.get("/api/v1/stats")
    for table in ("runs_completed", "runs_failed", "task_minutes"):
        stored.query(f"drop table if exists graphile_worker_py.{table} cascade")
    for path in ("/", f"/jobs/{job_id}", "/tasks/a", "/errors"):
        page = await client.get(path, headers=HTML)
        assert "Workers record no history here" in page.text, path
    assert (await client.get(f"{PATH}/{job_id}/runs")).json()["missing"]
    assert (await client.get("/api/v1/errors")).json()["missing"]


async def test_attempts_of_a_failed_and_of_a_completed_job_are_told(
    dsn: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    async def work(payload: dict[str, Any]) -> dict[str, Any]:
        if payload["fails"]:
            raise ValueError("api_token=hunter2 was refused")
        return {"password": "hunter2", "ok": True}

    fails = stored.add("work", {"fails": True}, max_attempts=1)
    works = stored.add("work", {"fails": False})
    async with Runner(dsn, tasks={"work": work}, history="all", poll_interval=0.1):
        await eventually(lambda: stored.ids() == [fails] and not stored.locked())
    runs = (await client.get(f"{PATH}/{fails}/runs")).json()["items"]
    assert [(run["attempt"], run["outcome"]) for run in runs] == [(1, "failed")]
    assert runs[0]["error"] == "api_token=[redacted] was refused"
    gone = problem(await client.get(f"{PATH}/{works}"), 410)
    assert gone["outcome"] == "completed"
    ended = (await client.get(f"{PATH}/{works}/outcome")).json()
    assert (ended["state"], ended["over"], ended["last_run"]["outcome"]) == (
        "ended",
        True,
        "completed",
    )
    (group,) = (await client.get("/api/v1/errors")).json()["attempts"]
    assert (group["task"], group["count"]) == ("work", 1)
    assert list(group["by_hour"].values()) == [1]
    for path, said in (
        (f"/jobs/{fails}", "1. failed"),
        ("/errors", "Failed attempts of the last day"),
        ("/", "Completed"),
        ("/", "Waiting time"),
        ("/errors", "1 error in the worst hour"),
        ("/tasks/work?range=24h", "Run time of jobs"),
        ("/tasks/work?range=7d", "Jobs that ended in each 240 min"),
    ):
        page = await client.get(path, headers=HTML)
        assert page.status_code == 200
        assert said in page.text, path
        assert "hunter2" not in page.text


@pytest.mark.parametrize("way", ["api", "page"])
async def test_a_running_job_of_python_is_cancelled(
    dsn: str, client: httpx.AsyncClient, stored: Jobs, way: str
) -> None:
    ended = asyncio.Event()

    async def work(_payload: Any, ctx: JobContext) -> None:
        ctx.progress(30, total=120, message="password=hunter2, page 30")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    job_id = stored.add("work", job_key="k")

    async def shows_progress() -> bool:
        pages = [await client.get(path, headers=HTML) for path in (f"/jobs/{job_id}", "/workers")]
        assert all("hunter2" not in page.text for page in pages)
        return "page 30" in pages[0].text and all("25 %" in page.text for page in pages)

    async with Runner(dsn, tasks={"work": work}):
        await eventually(shows_progress)
        if way == "api":
            answer = await client.post(f"{PATH}/{job_id}/cancel")
            assert answer.status_code == 200, answer.text
        else:
            answer = await client.post(f"/jobs/{job_id}/action", data={"action": "cancel"})
            assert answer.status_code == 303, answer.text
        await asyncio.wait_for(ended.wait(), 15)
        await eventually(lambda: stored.ids() == [])
    gone = problem(await client.get(f"{PATH}/{job_id}"), 410)
    assert gone["outcome"] == "cancelled"
    (run,) = (await client.get(f"{PATH}/{job_id}/runs")).json()["items"]
    assert (run["attempt"], run["outcome"]) == (1, "cancelled")


async def test_a_request_that_waits_gets_the_outcome(
    dsn: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    async def work(payload: dict[str, Any]) -> dict[str, Any]:
        if payload["fails"]:
            raise ValueError("no")
        return {"token": "hunter2", "sum": 12345678901234567890}

    async def added(task: str, payload: Any, *, wait: int = 30) -> tuple[int, Any]:
        job = {"task": task, "payload": payload, "max_attempts": 1}
        answer = await client.post(PATH, json=job, headers={"Prefer": f"wait={wait}"})
        assert answer.headers["preference-applied"] == f"wait={wait}"
        return answer.status_code, answer.json().get("outcome")

    await client.get("/api/v1/stats")
    # Each pool has heard that jobs are awaited before the one that counts is added.
    stored.query(
        "insert into graphile_worker_py.awaited values"
        " ('graphile_worker', 0, now(), now() + interval '1 h')"
    )
    async with Runner(dsn, tasks={"work": work}):
        status, outcome = await added("work", {"fails": False})
        assert (status, outcome["status"], outcome["attempts"]) == (200, "completed", 1)
        assert outcome["result"] == {"token": "[redacted]", "sum": 12345678901234567890}
        status, outcome = await added("work", {"fails": True})
        assert (status, outcome["status"], outcome["error"]) == (200, "failed", "no")
        assert await added("nobody_has_it", {}, wait=0) == (202, None)
