"""Serve an application on a free port, within the event loop of a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn

from tests.support.eventually import eventually

PROBLEM = "application/problem+json"


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application; gives its URL."""
    settings = uvicorn.Config(
        app,
        port=0,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=1,
        ws="none",
    )
    server = uvicorn.Server(settings)
    running = asyncio.create_task(server._serve())
    try:
        await eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running


def client_of(url: str, **options: Any) -> httpx.AsyncClient:
    """A program that speaks HTTP."""
    return httpx.AsyncClient(base_url=url, timeout=60, **options)


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of an answer, which must have this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert "Traceback" not in answer.text
    return document
