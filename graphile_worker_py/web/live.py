"""Live updates: one look at the database feeds all streams of server-sent events."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any, Final

import psycopg
import psycopg_pool

from graphile_worker_py import json_codec
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.web import facts
from graphile_worker_py.web.problems import ProblemError, problem_of
from graphile_worker_py.web.site import Site

INTERVAL: Final = 2.0
KEEP_ALIVE: Final = 15.0
MOST_STREAMS: Final = 500
TOPICS: Final = ("stats", "workers", "troubles")


class Streams:
    """The open streams of one application."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._open = 0

    def stream(self, topics: Sequence[str]) -> AsyncIterator[bytes]:
        """Events for some topics: the current state first, then whenever it has changed.

        Raises:
            ProblemError: A topic is unknown (422), or too many streams are open (503).
        """
        unknown = sorted(set(topics) - set(TOPICS))
        if unknown:
            raise ProblemError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"unknown topics: {', '.join(unknown)}; there are {', '.join(TOPICS)}",
            )
        if self._open >= MOST_STREAMS:
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{MOST_STREAMS} streams are open",
                headers={"Retry-After": "10"},
            )
        return self._events(list(topics) or list(TOPICS))

    async def _events(self, topics: Sequence[str]) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            yield b"retry: 3000\n\n"
            sent: dict[str, str] = {}
            silent = 0.0
            while True:
                block = await self._news(topics, sent)
                silent = 0.0 if block else silent + INTERVAL
                if not block and silent >= KEEP_ALIVE - INTERVAL:
                    block, silent = b": still here\n\n", 0.0
                if block:
                    yield block
                await asyncio.sleep(INTERVAL)
        finally:
            self._open -= 1

    async def _news(self, topics: Sequence[str], sent: dict[str, str]) -> bytes:
        blocks = []
        for wanted in topics:
            topic = wanted
            try:
                value = await self._value(topic)
            except (psycopg.Error, psycopg_pool.PoolTimeout, OSError, GraphileWorkerError) as error:
                topic, value = "trouble", {"detail": problem_of(error).detail}
            text = json_codec.dumps(value).decode()
            mark = hashlib.sha256(text.encode()).hexdigest()
            if sent.get(topic) != mark:
                sent[topic] = mark
                blocks.append(f"event: {topic}\nid: {mark[:16]}\ndata: {text}\n\n")
        return "".join(blocks).encode()

    async def _value(self, topic: str) -> Any:
        match topic:
            case "stats":
                told = (await facts.standing(self._site)).as_json()
                # Ages change all the time; what they are of does not.
                return {**told, "as_of": None, "oldest_ready": None}
            case "workers":
                return [
                    [worker.pool_id, worker.state, [job.id for job in worker.jobs]]
                    for worker in await facts.workers(self._site)
                ]
        return [trouble.fact for trouble in await facts.troubles(self._site)]
