"""The examples run, and do what they say."""

import hashlib
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.contrib.django_support import TAKE_OLD_SERVERS
from tests.support.eventually import eventually
from tests.support.missing import missing
from tests.support.node import LATEST, Node
from tests.support.own_server import quiet_port
from tests.support.processes import Process, Processes

pytestmark = pytest.mark.any_server

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(processes: Processes, name: str, dsn: str) -> list[str]:
    """The lines that an example prints."""
    process = processes.start([sys.executable, str(EXAMPLES / name)], env={"DATABASE_URL": dsn})
    assert process.wait(timeout=15) == 0, process.stderr
    return process.lines()


def test_quick_start_retries_the_job_that_failed(empty_dsn: str, processes: Processes) -> None:
    lines = run_example(processes, "quick_start.py", empty_dsn)
    assert lines[:2] == ["Hello Ada, attempt 1", "3 words, in queue words"]
    assert lines[2] == "Job 2 has failed: no answer"
    assert lines[3].startswith("Next attempt at ")
    assert lines[4:] == ["Hello Grace, attempt 2"]


def test_the_game_runs_all_kinds_of_tasks_and_trains_no_unit_twice(
    empty_dsn: str, processes: Processes
) -> None:
    command = [sys.executable, str(EXAMPLES / "stress" / "game.py"), "--jobs", "300"]
    flags = ["--workers", "8", "--duration", "0", "--interval", "0.5"]
    process = processes.start([*command, *flags], env={"DATABASE_URL": empty_dsn})
    assert process.wait(timeout=15) == 0, process.stderr
    lines = process.lines()
    assert any(" done  battle/attack " in line for line in lines)
    table = {line.split()[0]: int(line.split()[1]) for line in lines[-7:-2]}
    assert list(table) == ["battle/attack", "battle/heal", "world/gather", "world/build", "train"]
    assert min(table.values()) > 0
    (asked, done) = (int(word) for word in lines[-2].split() if word.isdecimal())
    assert asked >= done == table["train"]
    assert lines[-1].startswith(f"{sum(table.values())} jobs in ")


def test_the_trigger_adds_a_job_with_the_row_or_not_at_all(
    empty_dsn: str, processes: Processes
) -> None:
    assert run_example(processes, "sql_trigger.py", empty_dsn) == [
        "One row was committed, one was rolled back",
        "Welcome ada@example.com",
    ]


def test_a_batch_job_tries_only_failed_items_again(empty_dsn: str, processes: Processes) -> None:
    assert run_example(processes, "batch_jobs.py", empty_dsn) == [
        "together: ada, grace, edsger",
        "sent to ada",
        "sent to edsger",
        "left for the next attempt: [{'to': 'grace'}]",
        "together: grace",
        "sent to grace",
    ]


def test_the_webhook_is_retried_or_given_up_by_the_answer(
    empty_dsn: str, processes: Processes
) -> None:
    assert run_example(processes, "webhook.py", empty_dsn) == [
        "delivered to /ok",
        "1 delivered, 1 given up",
        "/busy scheduled 1/25",
        "/gone failed 25/25",
        "/broken scheduled 1/25",
    ]


def test_a_transfer_happens_once_or_not_at_all(empty_dsn: str, processes: Processes) -> None:
    assert run_example(processes, "exactly_once.py", empty_dsn) == [
        "1 transferred, 1 failed",
        "ada: 70, grace: 30",
    ]


def test_the_report_shows_its_progress_and_returns_a_result(
    empty_dsn: str, processes: Processes
) -> None:
    *shown, last = run_example(processes, "report_with_progress.py", empty_dsn)
    assert last == "completed {'pages': 40}"
    assert shown
    assert shown == sorted(shown, key=lambda share: int(share.rstrip("%")))


def test_a_job_commits_with_the_session_of_sqlalchemy(empty_dsn: str, processes: Processes) -> None:
    assert run_example(processes, "sqlalchemy_session.py", empty_dsn) == [
        "waiting jobs: 1",
        "Welcome ada@example.com",
    ]


def test_typed_payloads_are_built_or_refused(empty_dsn: str, processes: Processes) -> None:
    assert run_example(processes, "typed_payloads.py", empty_dsn) == [
        "invoice 7: 40.60 until 24.12.2026",
        "reminder of invoice 7",
        "invoice 8: payload does not fit: $.lines[0].price: expected decimal, got array",
    ]


def test_a_folder_may_hold_tasks_in_any_language(empty_dsn: str, processes: Processes) -> None:
    if shutil.which("perl") is None:
        missing("one of its tasks is in Perl, which is not installed")
    needed = ["perl", "-MDigest::SHA", "-MJSON::PP", "-e", "1"]
    if subprocess.run(needed, check=False, capture_output=True).returncode != 0:
        missing("one of its tasks needs Digest::SHA and JSON::PP, which this Perl does not have")
    lines = run_example(processes, "executable/main.py", empty_dsn)
    digest = hashlib.sha256(b"some text").hexdigest()
    assert lines[0] == f"checksum: SHA-256 of some text: {digest}"
    assert "there is no text in the payload" in lines
    assert "whoami: I am whoami, attempt 1 of 3" in lines
    assert "greet: Hello Ada" in lines


async def test_the_web_app_adds_order_and_job_together(
    empty_dsn: str, processes: Processes
) -> None:
    port = quiet_port()
    process = processes.start(
        [sys.executable, str(EXAMPLES / "web_app.py")],
        env={"DATABASE_URL": empty_dsn, "PORT": str(port)},
    )

    def started() -> bool:
        assert "Uvicorn running" in process.stderr, process.stderr
        return True

    await eventually(started, timeout=15)
    assert post(port, {"item": "book"}) == (201, '{"order":1}')
    await process.seen("shipping order 1")
    assert post(port, {"item": "nothing"})[0] == 500  # rolled back
    assert post(port, {"item": "pen"}) == (201, '{"order":3}')
    await process.seen("shipping order 3")
    process.terminate()
    process.wait()
    assert process.lines("shipping") == ["shipping order 1", "shipping order 3"]
    with psycopg.connect(empty_dsn) as conn:
        assert conn.execute("select id from orders order by id").fetchall() == [(1,), (3,)]
        assert conn.execute("select count(*) from graphile_worker.jobs").fetchone() == (0,)


ORDER = """
import json
from django.test import Client
client = Client(raise_request_exception=False)
assert client.post("/orders/", {"item": "nothing"}).status_code == 500
print(client.post("/orders/", {"item": "book"}).content.decode())
"""
ASK = """
from django.test import Client
print(Client().get("/orders/%s/").content.decode())
"""


@pytest.mark.timeout(90)
def test_the_django_project_ships_orders(
    empty_dsn: str, processes: Processes, tmp_path: Path
) -> None:
    lenient = f"from project.settings import *\n{TAKE_OLD_SERVERS}"
    (tmp_path / "lenient_settings.py").write_text(lenient, encoding="utf-8")
    env = {
        "DATABASE_URL": empty_dsn,
        "DJANGO_SETTINGS_MODULE": "lenient_settings",
        "PYTHONPATH": str(tmp_path),
    }

    def manage(*arguments: str) -> list[str]:
        process = processes.start(
            [sys.executable, "manage.py", *arguments],
            env=env,
            cwd=EXAMPLES / "django_project",
        )
        assert process.wait(timeout=40) == 0, process.stderr
        return process.lines()

    manage("migrate", "--verbosity", "0")
    order = json.loads(manage("shell", "--verbosity", "0", "-c", ORDER)[-1])
    manage("graphile_worker", "run", "--once")
    answer = json.loads(manage("shell", "--verbosity", "0", "-c", ASK % order["task"])[-1])
    assert answer == {"status": "SUCCESSFUL", "result": "book is on its way"}


async def test_the_fastapi_app_shows_progress_to_the_browser(
    empty_dsn: str, processes: Processes
) -> None:
    port = quiet_port()
    process = processes.start(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)],
        env={"DATABASE_URL": empty_dsn, "PACE": "0.01"},
        cwd=EXAMPLES / "fastapi_app",
    )
    await eventually(lambda: "Uvicorn running" in process.stderr, timeout=15)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        timeout=15,
        headers={"Connection": "close"},  # the server closes it after an error
    ) as client:
        assert "EventSource" in (await client.get("/")).text
        refused = await client.post("/orders", params={"item": "nothing"})  # rolled back
        assert refused.status_code == 500
        order = (await client.post("/orders", params={"item": "book"})).json()
        async with client.stream("GET", order["progress"]) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-2] == "event: end"
    assert json.loads(lines[-1].removeprefix("data: "))["result"] == "order 2 is on its way"
    process.terminate()
    process.wait()


def post(port: int, body: object) -> tuple[int, str]:
    """Status and text of the answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/orders", json.dumps(body).encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_node_and_python_share_a_queue(dsn: str, node: Node, processes: Processes) -> None:
    directory = EXAMPLES / "side_by_side"
    env = {"DATABASE_URL": dsn, "NO_LOG_SUCCESS": "1"}
    source = (directory / "worker.mjs").read_text(encoding="utf-8")
    node_worker = node.start(LATEST, source, env=env)
    node_worker.wait_for("node   ready")
    python_worker: Process = processes.start(
        [sys.executable, str(directory / "worker.py")], env=env
    )
    assert python_worker.wait(timeout=15) == 0, python_worker.stderr
    images = ("ada.png", "grace.png", "edsger.png")
    assert node_worker.lines("node   resize") == [f"node   resize   {image}" for image in images]
    assert python_worker.lines("python caption") == [
        f"python caption  {image} (queue images)" for image in images
    ]
