"""Where a running job is at this moment, as its pool answers."""

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from graphile_worker_py import JobContext, Runner
from graphile_worker_py.web import Access, create_app
from tests import process_tasks
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.web.serving import client_of, problem, served

pytestmark = pytest.mark.any_server

HTML = {"accept": "text/html"}


class Waiting:
    """Tasks that wait until they are let go."""

    def __init__(self) -> None:
        self.on_loop = asyncio.Event()
        self.in_thread = threading.Event()

    async def on_the_loop(self, _payload: Any, ctx: JobContext) -> None:
        """Wait for a call that waits for another one."""
        await self.call_of_a_coroutine()

    async def call_of_a_coroutine(self) -> None:
        await self.on_loop.wait()

    def in_a_thread(self, _payload: Any) -> None:
        """Wait within a call."""
        self.call_of_a_function(password="hunter2")

    def call_of_a_function(self, password: str) -> None:
        self.in_thread.wait(15)


@pytest.mark.parametrize(
    ("task", "calls"),
    [
        ("on_the_loop", ["in on_the_loop", "in call_of_a_coroutine", "in wait"]),
        ("in_a_thread", ["in in_a_thread", "in call_of_a_function", "in wait"]),
    ],
)
async def test_the_stack_of_a_running_task_is_shown(
    client: httpx.AsyncClient, dsn: str, stored: Jobs, task: str, calls: list[str]
) -> None:
    waiting = Waiting()
    job_id = stored.add(task)
    try:
        async with Runner(dsn, tasks={task: getattr(waiting, task)}):

            async def shown() -> str | None:
                text = (await client.get(f"/jobs/{job_id}/stack", headers=HTML)).text
                return text if calls[0] in text else None

            text = await eventually(shown) or ""
            page = (await client.get(f"/jobs/{job_id}", headers=HTML)).text
            assert f'href="/jobs/{job_id}/stack"' in page
            told = (await client.get(f"/api/v1/jobs/{job_id}/stack")).json()
            waiting.on_loop.set()
            waiting.in_thread.set()
    finally:
        waiting.in_thread.set()
    places = [text.index(call) for call in calls]
    assert places == sorted(places)
    assert "graphile_worker_py/executors" not in text
    assert "hunter2" not in text
    assert (told["job_id"], told["state"]) == (job_id, "running")
    assert calls[0] in told["stack"]
    assert "hunter2" not in told["stack"]


async def test_the_process_of_a_task_is_asked_where_it_is_and_may_be_silent(
    client: httpx.AsyncClient, dsn: str, stored: Jobs, tmp_path: Path
) -> None:
    began, go = tmp_path / "began", tmp_path / "go"
    job_id = stored.add("wait_for_file", {"path": str(began), "until": str(go)})
    async with Runner(dsn, tasks=[process_tasks.wait_for_file]) as runner:
        await eventually(began.exists)

        async def shown() -> str:
            return str((await client.get(f"/api/v1/jobs/{job_id}/stack")).json()["stack"])

        stack = await shown()
        assert "in wait_for_file" in stack
        assert "executors" not in stack
        assert "<string>" not in stack
        pid = int(began.read_text().split()[0])
        os.kill(pid, signal.SIGSTOP)

        async def silent() -> bool:
            return "does not answer" in await shown()

        await eventually(silent)
        os.kill(pid, signal.SIGCONT)

        async def answers() -> bool:
            return "in wait_for_file" in await shown()

        await eventually(answers)
        go.touch()
        await eventually(lambda: stored.ids() == [])
        assert runner.health().ready


async def test_a_viewer_without_payloads_sees_no_stack_and_a_pool_of_node_shows_none(
    dsn: str, client: httpx.AsyncClient, stored: Jobs
) -> None:
    job_id = stored.add("work")
    waiting = await client.get(f"/jobs/{job_id}/stack", headers=HTML)
    assert "The job does not run now." in waiting.text
    told = (await client.get(f"/api/v1/jobs/{job_id}/stack")).json()
    assert told == {"job_id": job_id, "state": "ready", "stack": None}
    problem(await client.get("/api/v1/jobs/987654/stack"), 404)
    stored.lock(job_id)
    running = await client.get(f"/jobs/{job_id}/stack", headers=HTML)
    assert "No pool has answered." in running.text
    app = create_app(dsn, authorize=lambda _request: Access.viewer("bob"))
    async with served(app) as url, client_of(url) as viewer:
        assert (await viewer.get(f"/jobs/{job_id}/stack")).status_code == 403
        problem(await viewer.get(f"/api/v1/jobs/{job_id}/stack"), 403)
        assert "/stack" not in (await viewer.get(f"/jobs/{job_id}", headers=HTML)).text
