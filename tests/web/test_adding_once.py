"""Idempotency keys and the limit of the backlog: once, and not more than fit."""

import asyncio
import os
import random
import sys
from collections import Counter
from typing import Any

import httpx
import psycopg
import pytest

from graphile_worker_py.web import Access, create_app
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.support.processes import Process, Processes
from tests.web.serving import client_of, problem, served

PATH = "/api/v1/jobs"


async def post(client: httpx.AsyncClient, key: str, **more: Any) -> httpx.Response:
    """Add a job with an idempotency key."""
    return await client.post(PATH, json={"task": "a", **more}, headers={"Idempotency-Key": key})


async def test_the_same_request_again_gets_the_stored_answer(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    first, again = await post(client, "k"), await post(client, "k")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert len(stored.ids()) == 1


async def test_a_key_is_not_good_for_another_request(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    await post(client, "k")
    told = problem(await post(client, "k", priority=5), 422)
    assert told["errors"][0]["pointer"] == "Idempotency-Key"
    assert len(stored.ids()) == 1


async def test_a_key_in_use_is_a_conflict(client: httpx.AsyncClient, stored: Jobs) -> None:
    await post(client, "other")
    with psycopg.connect(stored.dsn) as conn:
        conn.execute(
            "insert into graphile_worker_py.answers (worker_schema, key, fingerprint)"
            " values ('graphile_worker', 'k', 'x')"
        )
        answer = await post(client, "k")
        problem(answer, 409)
        assert answer.headers["retry-after"] == "1"


@pytest.mark.timeout(60)  # the machine may be busy with other tests
async def test_200_requests_at_once_with_one_key_add_one_job(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    async def persistent() -> int:
        while True:
            answer = await post(client, "k")
            if answer.status_code in {200, 201}:
                return answer.status_code
            assert answer.status_code in {409, 429}, answer.text
            await asyncio.sleep(random.uniform(0.5, 1.5))

    codes = Counter(await asyncio.gather(*(persistent() for _ in range(200))))
    assert codes == {201: 1, 200: 199}
    assert len(stored.ids()) == 1


async def test_an_answer_expires_after_a_day(client: httpx.AsyncClient, stored: Jobs) -> None:
    await post(client, "k")
    stored.query("update graphile_worker_py.answers set at = now() - interval '25 h'")
    await post(client, "other")
    assert (await post(client, "k")).status_code == 201
    assert len(stored.ids()) == 3


@pytest.mark.timeout(60)
async def test_a_killed_server_leaves_no_second_job(
    dsn: str, stored: Jobs, processes: Processes
) -> None:
    server = start(processes, dsn)
    for number in range(1, 4):
        async with client_of(await server.seen("http://")) as client:
            answers = await _killed_among(client, server, f"k{number}")
        assert 201 in answers
        server = start(processes, dsn)
        async with client_of(await server.seen("http://")) as client:
            assert (await post(client, f"k{number}")).status_code == 200
        assert len(stored.ids()) == number


async def _killed_among(client: httpx.AsyncClient, server: Process, key: str) -> list[int]:
    """The answers to equal requests, of which the server is killed after the first one."""
    requests = [asyncio.create_task(post(client, key)) for _ in range(20)]
    await eventually(lambda: any(each.done() for each in requests))
    server.kill()
    answers = await asyncio.gather(*requests, return_exceptions=True)
    return [getattr(each, "status_code", 0) for each in answers]


def start(processes: Processes, dsn: str, options: str = "") -> Process:
    """Serve in a process of its own, which prints the address."""
    return processes.start([sys.executable, "-c", SERVE.format(dsn=dsn, options=options)])


SERVE = """
import asyncio
from graphile_worker_py.web import Access, create_app
from graphile_worker_py.web.serving import serve

app = create_app({dsn!r}, authorize=lambda request: Access.admin("a"){options})
ready = lambda port: print(f"http://127.0.0.1:{{port}}", flush=True)
asyncio.run(serve(app, host="127.0.0.1", port=0, ready=ready))
"""


@pytest.mark.timeout(60)
async def test_a_flood_above_the_backlog_gets_429_and_loses_nothing(dsn: str, stored: Jobs) -> None:
    app = create_app(dsn, authorize=lambda _request: Access.admin("a"), max_backlog={"a": 100})
    async with served(app) as url, client_of(url) as client:
        codes: Counter[int] = Counter()

        async def flood() -> None:
            for _ in range(15):
                answer = await client.post(PATH, json={"task": "a", "payload": "x" * 1000})
                codes[answer.status_code] += 1
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1
                    problem(answer, 429)

        await asyncio.gather(*(flood() for _ in range(25)))
        assert set(codes) == {201, 429}
        assert len(stored.ids()) == codes[201] == 100
        told = problem(await client.post(PATH, json={"task": "a"}), 429)
        assert told["limit"] == 100
        assert (await client.post(PATH, json={"task": "b"})).status_code == 201


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(60)
async def test_memory_stays_flat_in_a_flood(dsn: str, processes: Processes) -> None:
    server = start(processes, dsn, ", max_backlog=100")
    body = b'{"task": "a", "payload": "' + b"x" * 200_000 + b'"}'
    headers = {"content-type": "application/json"}
    async with client_of(await server.seen("http://")) as client:

        async def flood(times: int) -> None:
            for _ in range(times):
                answer = await client.post(PATH, content=body, headers=headers)
                assert answer.status_code in {201, 429}

        await asyncio.gather(*(flood(4) for _ in range(20)))
        before = _resident(server.pid)
        await asyncio.gather(*(flood(12) for _ in range(20)))
        assert _resident(server.pid) < before + 30_000_000


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
