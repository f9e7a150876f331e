"""What workers have recorded is shown, and what is missing is said."""

import asyncio
from typing import Any

import httpx

from graphile_worker_py import Runner
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
    for path, said in (
        (f"/jobs/{fails}", "1. failed"),
        ("/errors", "Failed attempts of the last day"),
        ("/", "Completed"),
        ("/tasks/work?range=24h", "Run time"),
    ):
        page = await client.get(path, headers=HTML)
        assert page.status_code == 200
        assert said in page.text, path
        assert "hunter2" not in page.text


async def test_a_running_job_of_python_is_asked_to_end_and_not_tried_again(
    dsn: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def work(_payload: Any) -> None:
        began.set()
        await go_on.wait()

    job_id = stored.add("work", job_key="k")
    async with Runner(dsn, tasks={"work": work}, history="all"):
        await began.wait()
        answer = await client.post(f"{PATH}/{job_id}/cancel")
        assert answer.status_code == 200, answer.text
        rows = stored.query("select key, attempts = max_attempts as last from graphile_worker.jobs")
        assert rows in ([], [{"key": None, "last": True}])
        go_on.set()
