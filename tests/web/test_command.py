"""The `web` command of docs/web.md: safe by default."""

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from graphile_worker_py.cli.main import main
from tests.support.processes import Process, Processes
from tests.web.serving import client_of, problem

pytestmark = pytest.mark.any_server

COMMAND = ("graphile-worker-py", "web", "--port", "0")
PATH = "/api/v1/jobs"


def start(processes: Processes, dsn: str, *flags: str) -> Process:
    """Start the command on a free port."""
    return processes.start(
        [sys.executable, "-m", "graphile_worker_py", *COMMAND[1:], "-c", dsn, *flags]
    )


async def test_it_prints_a_link_that_logs_in_and_ends_by_a_signal(
    dsn: str, processes: Processes
) -> None:
    command = start(processes, dsn)
    link = await command.seen("http://127.0.0.1:")
    url, _, query = link.partition("/?")
    assert query.startswith("token=")
    async with client_of(url, follow_redirects=True) as client:
        problem(await client.get(PATH), 401)
        page = await client.get(f"/?{query}", headers={"accept": "text/html"})
        assert "<h1>Overview</h1>" in page.text
        assert (await client.get(PATH)).status_code == 200
    command.terminate()
    command.wait()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "without authentication is refused: give --user with"),
        (["--user", "a"], "--user and --password-file belong together"),
        (["--trust-header", "X-User"], "--trust-header needs --trusted-proxy"),
        (["--trust-header", "X-User", "--trusted-proxy", "nowhere"], "--trusted-proxy"),
        (["--bearer-file", "/none"], "/none can't be read"),
        (["--bearer-file", "/none", "--trust-header", "X"], "give one of"),
    ],
)
def test_what_is_unsafe_or_contradictory_is_refused_at_the_start(
    dsn: str, flags: list[str], said: str
) -> None:
    result = CliRunner().invoke(main, [*COMMAND[1:], "-c", dsn, *flags])
    assert result.exit_code == 2
    assert said in result.stderr


async def test_programs_log_in_by_password_and_by_token(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    password, tokens = tmp_path / "password", tmp_path / "tokens"
    password.write_text("correct horse\n")
    tokens.write_text("0123456789abcdef\nfedcba9876543210\n")
    flags = ["--user", "anna", "--password-file", str(password)]
    url = (await start(processes, dsn, *flags).seen("http://")).rstrip("/")
    async with client_of(url) as client:
        refused = await client.get(PATH)
        problem(refused, 401)
        assert refused.headers["www-authenticate"].startswith("Basic")
        problem(await client.get(PATH, auth=("anna", "wrong")), 401)
        assert (await client.get(PATH, auth=("anna", "correct horse"))).status_code == 200
    url = (await start(processes, dsn, "--bearer-file", str(tokens)).seen("http://")).rstrip("/")
    async with client_of(url) as client:
        assert (await _with_token(client, "wrong")).status_code == 401
        assert (await _with_token(client, "fedcba9876543210")).status_code == 200


async def _with_token(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.get(PATH, headers={"authorization": f"Bearer {token}"})


async def test_a_header_counts_only_from_a_trusted_proxy(dsn: str, processes: Processes) -> None:
    for network, status in (("127.0.0.0/8", 200), ("10.0.0.0/8", 401)):
        flags = ["--trust-header", "X-User", "--trusted-proxy", network]
        url = (await start(processes, dsn, *flags).seen("http://")).rstrip("/")
        async with client_of(url) as client:
            answer = await client.get(PATH, headers={"x-user": "eva"})
            assert answer.status_code == status


async def test_read_only_changes_nothing(dsn: str, processes: Processes, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("0123456789abcdef")
    flags = ["--bearer-file", str(tokens), "--read-only"]
    url = (await start(processes, dsn, *flags).seen("http://")).rstrip("/")
    headers: dict[str, Any] = {"authorization": "Bearer 0123456789abcdef"}
    async with client_of(url, headers=headers) as client:
        problem(await client.post(PATH, json={"task": "a"}), 403)
