"""A worker in a process of its own, for the tests that send it signals; says what happens.

Called with a connection string and the name of one of its functions.
"""

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette

from graphile_worker_py import JobContext, Runner, SyncJobContext, run, run_once
from graphile_worker_py.events import Event, Events

TOLD = ("gracefulShutdown", "forcefulShutdown", "job:start", "stop")


def say(*words: object) -> None:
    """Print a line that the test can wait for."""
    print(*words, flush=True)


async def until_abort(payload: Any, ctx: JobContext) -> None:
    """Ends by itself when it is asked to."""
    await ctx.abort_event.wait()
    say("done")


async def hang(payload: Any) -> None:
    """Ends when it is cut off."""
    try:
        await asyncio.Event().wait()
    finally:
        say("cut off")


def block(payload: Any, ctx: SyncJobContext) -> None:
    """Never ends."""
    threading.Event().wait()


async def stubborn(payload: Any) -> None:
    """Does not end even if it is cut off."""
    say("stubborn")
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            say("ignored")


TASKS: dict[str, Any] = {
    "until_abort": until_abort,
    "hang": hang,
    "block": block,
    "stubborn": stubborn,
}


def options(name: str = "") -> dict[str, Any]:
    """What all functions here run with."""
    events = Events()

    def tell(event: Event) -> None:
        if event.name in TOLD:
            say(f"{name}{event.name}")

    events.subscribe(Event, tell)
    return {
        "tasks": TASKS,
        "concurrent_jobs": 2,
        "graceful_shutdown_abort_timeout": 0.5,
        "events": events,
    }


async def one(dsn: str) -> None:
    """Run until stopped."""
    await run(dsn, **options())
    say("ended")


async def once(dsn: str) -> None:
    """Run what is due."""
    await run_once(dsn, **options())
    say("ended")


async def logged_one(dsn: str) -> None:
    """Run until stopped, and log."""
    logging.basicConfig(level=logging.INFO)
    await one(dsn)


async def logged_once(dsn: str) -> None:
    """Run what is due, and log."""
    logging.basicConfig(level=logging.INFO)
    await once(dsn)


async def two(dsn: str) -> None:
    """Run two runners until both are stopped."""
    async with Runner(dsn, **options("a ")) as a, Runner(dsn, **options("b ")) as b:
        say("ready")
        await a.wait()
        await b.wait()
    say("ended")


async def staggered(dsn: str) -> None:
    """Run two runners, of which the first one ends first."""
    first = Runner(dsn, **options("a "))
    await first.__aenter__()
    async with Runner(dsn, **options("b ")) as second:
        await first.__aexit__(None, None, None)
        say("ready")
        await second.wait()
    say("ended")
    await asyncio.Event().wait()


async def web(dsn: str) -> None:
    """Serve an application that runs jobs, as long as its server runs."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with Runner(dsn, **options()):
            yield

    config = uvicorn.Config(Starlette(lifespan=lifespan), port=0, log_level="info")
    await uvicorn.Server(config).serve()


async def unhandled(dsn: str) -> None:
    """Run without handling signals."""
    await run(dsn, no_handle_signals=True, **options())


async def idle(dsn: str) -> None:
    """Run without jobs until stopped."""
    async with Runner(dsn, tasks=TASKS) as runner:
        say("ready")
        await runner.wait()
    say("ended")


async def afterwards(dsn: str) -> None:
    """Go on after a runner has ended."""
    async with Runner(dsn, **options()):
        pass
    say("ready")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[2]](sys.argv[1]))
