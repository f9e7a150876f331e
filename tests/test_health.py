"""A worker tells how it fares, in code, to probes and on the command line."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click.testing
import pytest

from graphile_worker_py import ConfigurationError, JobContext, LocalQueueOptions, Runner
from graphile_worker_py.cli.main import main
from graphile_worker_py.events import JobStart, JobSuccess
from graphile_worker_py.observing.probes import MOST_CLIENTS, health_server
from graphile_worker_py.workers.health import State
from tests.cron_support import know
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.running import Jobs, Told


async def ask(url: str | None, request: str = "GET /healthz HTTP/1.1") -> tuple[int, str]:
    """Send a request as it is written here; status and body of the answer."""
    assert url is not None
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    try:
        writer.write(f"{request}\r\nHost: x\r\n\r\n".encode())
        head, _, body = (await asyncio.wait_for(reader.read(), 15)).decode().partition("\r\n\r\n")
        return int(head.split()[1]), body
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_worker_tells_what_it_does(dsn: str) -> None:
    jobs, told, finish = Jobs(dsn), Told(), asyncio.Event()
    before = datetime.now(UTC)

    async def work(_payload: Any) -> None:
        await finish.wait()

    jobs.add_many(5, "work")
    async with Runner(
        dsn,
        tasks={"work": work},
        concurrent_jobs=2,
        local_queue=LocalQueueOptions(size=4),
        events=told.events,
    ) as runner:
        await told.seen(JobStart, count=2)
        await eventually(lambda: runner.health().listening)
        health = runner.health()
        assert (health.live, health.ready, health.state) == (True, True, State.RUNNING)
        assert health.trouble == ""
        assert health.pool_id == runner.pool_id
        assert (health.running_jobs, health.locked_jobs) == (2, 4)
        assert (health.busy_threads, health.stuck_threads) == (0, 0)
        assert (health.last_error, health.last_error_at) == (None, None)
        for moment in (health.started_at, health.last_fetch_at, health.last_heard_at):
            assert moment is not None
            assert before - timedelta(seconds=1) <= moment <= datetime.now(UTC)
        assert runner.health_url is None
        finish.set()
        await told.seen(JobSuccess, count=5)
    health = runner.health()
    assert (health.live, health.ready, health.state) == (False, False, State.STOPPED)
    assert (health.running_jobs, health.locked_jobs) == (0, 0)


async def test_probes_are_answered_while_it_works(dsn: str) -> None:
    async with Runner(dsn, tasks={"work": print}, health_port=0) as runner:
        await eventually(lambda: runner.health().ready)
        assert await ask(runner.health_url, "GET /livez HTTP/1.1") == (200, "ok\n")
        assert await ask(runner.health_url, "GET /readyz?verbose HTTP/1.0") == (200, "ok\n")
        assert await ask(runner.health_url, "HEAD /readyz HTTP/1.1") == (200, "")
        status, body = await ask(runner.health_url)
        assert status == 200
        detail = json.loads(body)
        assert detail["ready"] is True
        assert detail["state"] == "running"
        assert datetime.fromisoformat(detail["started_at"]).tzinfo is not None
        assert set(detail) > {"listening", "running_jobs", "locked_jobs", "last_error"}


async def test_without_its_database_a_worker_is_live_and_not_ready(dsn: str) -> None:
    async with (
        Proxy(dsn).running() as proxy,
        Runner(proxy.dsn, tasks={"work": print}, poll_interval=0.1, health_port=0) as runner,
    ):
        await eventually(lambda: runner.health().ready)
        proxy.refuse()
        await eventually(lambda: not runner.health().ready)
        assert (await ask(runner.health_url, "GET /livez HTTP/1.1"))[0] == 200
        assert await ask(runner.health_url, "GET /readyz HTTP/1.1") == (503, "not connected\n")
        status, body = await ask(runner.health_url)
        assert status == 503
        assert json.loads(body)["last_error"] is not None
        proxy.accept()
        await eventually(lambda: runner.health().ready, timeout=10)
        assert (await ask(runner.health_url, "GET /readyz HTTP/1.1"))[0] == 200


async def test_a_worker_that_stops_is_live_and_not_ready(dsn: str) -> None:
    jobs, told, finish = Jobs(dsn), Told(), asyncio.Event()

    async def work(_payload: Any, ctx: JobContext) -> None:
        await finish.wait()

    jobs.add("work")
    async with Runner(dsn, tasks={"work": work}, health_port=0, events=told.events) as runner:
        await told.seen(JobStart)
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.stop())
            await eventually(lambda: runner.health().state is State.STOPPING)
            assert await ask(runner.health_url, "GET /readyz HTTP/1.1") == (503, "stopping\n")
            assert (await ask(runner.health_url, "GET /livez HTTP/1.1"))[0] == 200
            finish.set()
    with pytest.raises(ConnectionRefusedError):
        await ask(runner.health_url)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /livez HTTP/1.1", 200),
        ("GET /readyz HTTP/1.1", 503),
        ("GET /healthz HTTP/1.1", 503),
        ("GET / HTTP/1.1", 404),
        ("GET /livez/../../etc/passwd HTTP/1.1", 404),
        ("POST /livez HTTP/1.1", 405),
        ("\x00\x01\x02", 405),
        ("", 405),
        ("GET /livez HTTP/1.1\r\nX: " + "x" * 100_000, 400),
    ],
)
async def test_odd_requests_are_answered_in_few_words(request_line: str, status: int) -> None:
    async with health_server(lambda: None, host="127.0.0.1", port=0) as url:
        # Where the answer comes before the request ends, the connection may be reset.
        with contextlib.suppress(ConnectionError):
            found, body = await ask(url, request_line)
            assert found == status
            assert len(body) < 100
        assert (await ask(url, "GET /livez HTTP/1.1"))[0] == 200


@pytest.mark.parametrize("said", [b"", b"GET /livez HTTP/1.1\r\n"])
async def test_slow_clients_keep_no_probe_from_its_answer(said: bytes) -> None:
    async with health_server(lambda: None, host="127.0.0.1", port=0) as url:
        host, port = url.removeprefix("http://").split(":")
        slow: list[asyncio.StreamWriter] = []
        for _ in range(2 * MOST_CLIENTS):
            slow.append((await asyncio.open_connection(host, port))[1])
            slow[-1].write(said)
            assert (await ask(url, "GET /livez HTTP/1.1"))[0] == 200
    for writer in slow:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_port_that_is_taken_is_an_error_at_the_start(dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)):
            async with Runner(dsn, tasks={"work": print}, health_port=port):
                pass


async def test_a_host_without_address_is_named_at_the_start(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="health_host 'no such host' has no address: "):
        async with Runner(dsn, tasks={"work": print}, health_port=0, health_host="no such host"):
            pass


@pytest.mark.parametrize(
    "options", [{"health_port": -1}, {"health_port": 65536}, {"health_host": ""}]
)
def test_an_address_that_makes_no_sense_is_refused(options: Any) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=name):
        Runner("", tasks={"work": print}, **options)


Call = Callable[..., click.testing.Result]


@pytest.fixture
def call(dsn: str) -> Call:
    """Run the `health` command on the test's database."""

    def run(*args: str, code: int = 0) -> click.testing.Result:
        environment = {**os.environ, "DATABASE_URL": dsn}
        result = click.testing.CliRunner().invoke(main, ["health", *args], env=environment)
        assert result.exit_code == code, result.output
        return result

    return run


def test_the_command_looks_at_the_database(call: Call, dsn: str) -> None:
    jobs = Jobs(dsn)
    told = json.loads(call("--json").stdout)
    assert (told["due_jobs"], told["oldest_due"], told["stale_jobs"]) == (0, 0, 0)
    assert told["troubles"] == []
    jobs.add("work", run_at="2020-01-01T00:00:00Z")
    assert json.loads(call("--json").stdout)["due_jobs"] == 1
    result = call("--max-age", "60", code=1)
    assert "Trouble: a job has been due for" in result.output
    assert " d: job 1 (work); no live worker has its task" in result.output


def test_the_command_fails_where_locks_are_older_than_any_worker_would_leave_them(
    call: Call, dsn: str
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("work")
    jobs.change(job_id, "locked_at = now() - interval '5 hours', locked_by = 'somebody'")
    result = call(code=1)
    assert "Trouble: 1 job(s) and 0 queue(s) have been locked for more than four hours" in (
        result.output
    )
    assert f": job {job_id} (work), locked by somebody; no live worker has it" in result.output


def test_the_command_names_recurring_jobs_that_wait_for_a_wrong_clock(call: Call, dsn: str) -> None:
    know(dsn, "nightly", datetime.now(UTC), datetime.now(UTC) + timedelta(hours=1))
    assert "Trouble: cron item 'nightly' last ran at " in call(code=1).output


def test_the_command_fails_without_schema_or_database(call: Call, dsn: str) -> None:
    assert "is not installed" in call("--schema", "elsewhere", code=1).output
    assert "Error: " in call("-c", "host=127.0.0.1 port=1 password=hunter2", code=1).output


async def test_the_command_asks_a_worker(call: Call, dsn: str) -> None:
    jobs = Jobs(dsn)
    async with Runner(dsn, tasks={"work": print}, poll_interval=0.1, health_port=0) as runner:
        await eventually(lambda: runner.health().ready)
        assert runner.health_url is not None
        port = runner.health_url.rpartition(":")[2]
        said = json.loads((await asyncio.to_thread(call, "--port", port, "--json")).stdout)
        assert said["pool_id"] == runner.pool_id
        assert said["troubles"] == []
        url = f"{runner.health_url}/healthz"
        assert "running" in (await asyncio.to_thread(call, "--url", url)).stdout
        await jobs.in_thread("drop schema graphile_worker cascade")
        await eventually(lambda: not runner.health().ready)
        result = await asyncio.to_thread(lambda: call("--port", port, code=1))
        assert "Trouble: not ready (running); " in result.output
    await asyncio.to_thread(lambda: call("--port", port, code=1))


def test_the_command_takes_no_other_servers_word(call: Call) -> None:
    call("--url", "ftp://127.0.0.1/", code=2)
    call("--url", "http://127.0.0.1:1", "--port", "1", code=2)
    call("--port", "1", code=1)
    for url in ("http://[::1", "http://127.0.0.1:abc", "http://a\x01b"):
        assert f"--url {url!r} is not an address" in call("--url", url, code=2).output
    for wrong in (("--port", "65536"), ("--port", "0"), ("--max-age", "nan"), ("--max-age", "-1")):
        assert wrong[0] in call(*wrong, code=2).output


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "RemoteDisconnected: "),
        (b"garbage\r\n\r\n", "BadStatusLine: garbage"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "IncompleteRead: "),
        (b"HTTP/1.1 200 OK\r\n\r\n\xff", "is not the page of a worker"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "404 Not Found"),
    ],
)
async def test_the_command_says_in_a_line_what_an_odd_server_does(
    call: Call, answer: bytes, said: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        result = await asyncio.to_thread(lambda: call("--port", str(port), code=1))
    assert result.output.startswith(f"Error: http://127.0.0.1:{port}/healthz")
    assert said in result.output
