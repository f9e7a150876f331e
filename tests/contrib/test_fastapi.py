"""FastAPI and Starlette: utils for requests, a worker beside them, and progress in the browser."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from graphile_worker_py import (
    ConfigurationError,
    GraphileWorkerError,
    JobContext,
    MigrationError,
    task,
)
from graphile_worker_py.contrib import fastapi, starlette
from tests.support.jobs import Jobs

SECRET = "a secret of this test"


@task
async def count(payload: dict[str, int], ctx: JobContext) -> dict[str, int]:
    """Report progress, or fail."""
    ctx.progress(1, 2, "half")
    if payload["to"] < 0:
        raise ValueError("it is private why")
    return {"counted": payload["to"]}


def application(dsn: str, stream: fastapi.JobStream, **options: Any) -> FastAPI:
    """An application that adds jobs and lets browsers follow them."""
    app = FastAPI(lifespan=fastapi.lifespan(dsn, side_schema=True, **options))
    app.router.routes.append(stream.route)

    @app.post("/jobs")
    async def add(to: int, utils: fastapi.Utils) -> str:
        job = await utils.add_job(count, {"to": to}, max_attempts=1, awaited=True)
        return stream.url(job)

    return app


@asynccontextmanager
async def started(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose lifespan has begun, as a server begins it."""
    async with app.router.lifespan_context(app) as given:

        async def served(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(given or {})}, receive, send)

        transport = httpx.ASGITransport(served)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            yield client


def events_of(text: str) -> list[tuple[str, Any]]:
    """The events of a stream."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event: ")]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in blocks
    ]


async def test_a_request_adds_a_job_whose_end_the_browser_sees(dsn: str) -> None:
    stream = fastapi.JobStream(SECRET, results=True)
    app = application(dsn, stream, tasks=[count], concurrent_jobs=2)
    async with started(app) as client:
        url = (await client.post("/jobs", params={"to": 3})).json()
        answer = await client.get(url)
        assert answer.headers["content-type"].startswith("text/event-stream")
        *_, last = events_of(answer.text)
        assert last == ("end", {"status": "completed", "result": {"counted": 3}, "error": None})
        # Who follows it later learns the same.
        assert events_of((await client.get(url)).text)[-1] == last


async def test_why_a_job_failed_stays_private(dsn: str) -> None:
    stream = fastapi.JobStream(SECRET.encode(), path="/follow/{token}")
    async with started(application(dsn, stream, tasks=[count])) as client:
        url = (await client.post("/jobs", params={"to": -1})).json()
        assert url.startswith("/follow/")
        text = (await client.get(url)).text
    assert events_of(text)[-1] == ("end", {"status": "failed"})
    assert "private" not in text


async def test_a_waiting_job_is_followed_until_the_stream_ends(dsn: str, stored: Jobs) -> None:
    stream = fastapi.JobStream(SECRET, longest=1.2, keep_alive=0.3)
    async with started(application(dsn, stream)) as client:
        url = (await client.post("/jobs", params={"to": 1})).json()
        text = (await client.get(url)).text
    waiting = {"state": "ready", "progress": None, "total": None, "message": None}
    assert events_of(text) == [("progress", waiting)]
    assert "\n\n:\n\n" in text
    assert len(stored.all()) == 1


async def test_only_a_valid_token_shows_a_job(dsn: str) -> None:
    stream = fastapi.JobStream(SECRET)
    valid = stream.url(1)
    wrong = {
        "changed": valid.replace("/jobs/", "/jobs/MTA")[:9] + valid[9:],
        "nonsense": "/jobs/nonsense/progress",
        "another secret": fastapi.JobStream("another secret, as long").url(1),
        "expired": fastapi.JobStream(SECRET, max_age=1e-9).url(1),
    }
    async with started(application(dsn, stream)) as client:
        answers = {why: (await client.get(url)).status_code for why, url in wrong.items()}
    assert answers == dict.fromkeys(wrong, 403)


async def text_of_utils(request: Request) -> PlainTextResponse:
    """What plain Starlette does with utils."""
    job = await starlette.utils(request).add_job("ship")
    return PlainTextResponse(job.task_identifier)


async def test_plain_starlette_has_utils_too(dsn: str, stored: Jobs) -> None:
    routes = [Route("/", text_of_utils)]
    async with started(Starlette(routes=routes, lifespan=starlette.lifespan(dsn))) as client:
        assert (await client.get("/")).text == "ship"
    assert len(stored.all()) == 1
    async with started(Starlette(routes=routes)) as client:
        with pytest.raises(GraphileWorkerError, match=r"lifespan=lifespan\(dsn\)"):
            await client.get("/")


async def test_a_missing_schema_stops_a_start_without_migrations(empty_dsn: str) -> None:
    app = Starlette(lifespan=starlette.lifespan(empty_dsn, migrate=False))
    with pytest.raises(MigrationError):
        async with started(app):
            pass


def test_what_can_not_be_meant_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="but no tasks"):
        starlette.lifespan("postgresql:///", concurrent_jobs=3)
    with pytest.raises(ConfigurationError, match="at least 16 bytes"):
        starlette.JobStream("short")
    with pytest.raises(ConfigurationError, match="must have"):
        starlette.JobStream(SECRET, path="/progress")
