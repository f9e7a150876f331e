"""Executable files as tasks, run by a real worker."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from graphile_worker_py import JobContext, Runner, WorkerUtils, run_once
from graphile_worker_py.events import JobReturned
from graphile_worker_py.executors.executable import LINE_LIMIT, STDERR_TAIL, executable_task
from tests.support.eventually import eventually
from tests.support.running import Told

pytestmark = pytest.mark.any_server

Row = tuple[Any, ...]


@pytest.fixture
async def utils(dsn: str) -> AsyncIterator[WorkerUtils]:
    async with WorkerUtils(dsn) as utils:
        yield utils


@pytest.fixture(autouse=True)
def _log_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def script(directory: Path, body: str, *, name: str = "job") -> Path:
    """Write an executable for the shell."""
    path = directory / name
    path.write_text(body if body.startswith("#!") else f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


async def last_errors(dsn: str) -> list[str | None]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        rows = await conn.execute("select last_error from graphile_worker.jobs order by id")
        return [row[0] for row in await rows.fetchall()]


async def jobs(dsn: str) -> list[Row]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        rows = await conn.execute("select attempts, locked_by from graphile_worker.jobs")
        return await rows.fetchall()


def output(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What executables wrote, as logged: level and line."""
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.pathname.endswith("executable.py")
    ]


class Alive:
    """A pipe that shell scripts hold open as `3>fifo`, and that tells when the last has ended."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "fifo"
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._said = b""

    def read(self) -> bool:
        """Read what they wrote; whether one of them is still there."""
        try:
            said = os.read(self._fd, 4096)
        except BlockingIOError:
            return True
        self._said += said
        return said != b""

    def said(self, text: str) -> bool:
        self.read()
        return text.encode() in self._said

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[Alive]:
    alive = Alive(tmp_path)
    yield alive
    alive.close()


# The protocol.


async def test_it_is_told_about_the_job_by_its_environment_and_its_input(
    dsn: str,
    utils: WorkerUtils,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("GRAPHILE_WORKER_JOB_KEY", "of a job around this worker")
    monkeypatch.setenv("OF_THE_WORKER", "inherited")
    monkeypatch.chdir(tmp_path)
    tasks = tmp_path / "tasks" / "sub"
    tasks.mkdir(parents=True)
    script(tasks, "env > env.$GRAPHILE_WORKER_JOB_ID\necho $# arguments\ncat", name="job.sh")
    job = await utils.add_job(
        "sub/job",
        {"text": "é"},
        run_at=datetime(2024, 2, 3, 4, 5, 6, 123_999, tzinfo=UTC),
        priority=-3,
        max_attempts=7,
        job_key="a key",
    )
    other = await utils.add_job("sub/job")
    await run_once(dsn, task_directory="tasks")
    environment = dict(
        line.split("=", 1) for line in (tmp_path / f"env.{job.id}").read_text().splitlines()
    )
    told = {name: value for name, value in environment.items() if name.startswith("GRAPHILE_")}
    assert int(told.pop("GRAPHILE_WORKER_PROGRESS_FD")) > 2
    assert told == {
        "GRAPHILE_WORKER_PAYLOAD_FORMAT": "json",
        "GRAPHILE_WORKER_TASK_IDENTIFIER": "sub/job",
        "GRAPHILE_WORKER_JOB_ID": str(job.id),
        "GRAPHILE_WORKER_JOB_KEY": "a key",
        "GRAPHILE_WORKER_JOB_ATTEMPTS": "1",
        "GRAPHILE_WORKER_JOB_MAX_ATTEMPTS": "7",
        "GRAPHILE_WORKER_JOB_PRIORITY": "-3",
        "GRAPHILE_WORKER_JOB_RUN_AT": "2024-02-03T04:05:06.123Z",
    }
    assert environment["OF_THE_WORKER"] == "inherited"
    assert "GRAPHILE_WORKER_JOB_KEY=" not in (tmp_path / f"env.{other.id}").read_text()
    assert output(caplog)[:2] == [("INFO", "0 arguments"), ("INFO", '{"payload":{"text":"é"}}')]


async def test_the_payload_arrives_as_it_is_stored(
    dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = '{"big":  12345678901234567890123, "precise": 0.1000000000000000055511151}'
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("select graphile_worker.add_job('job', %s::json)", [stored])
    task = executable_task(script(tmp_path, "cat"), "job")
    await run_once(dsn, tasks=[task])
    assert output(caplog) == [("INFO", f'{{"payload":{stored}}}')]


async def test_what_it_writes_is_logged_by_line_for_its_job(
    dsn: str, utils: WorkerUtils, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = await utils.add_job("job")
    body = r"printf 'one\r\n\ntwo\n100%% of it: %%s\nno end'; printf 'bad \377 byte\n' >&2"
    await run_once(dsn, tasks=[executable_task(script(tmp_path, body), "job")])
    assert sorted(output(caplog)) == [
        ("ERROR", "bad � byte"),
        ("INFO", "100% of it: %s"),
        ("INFO", "no end"),
        ("INFO", "one"),
        ("INFO", "two"),
    ]
    assert {vars(r)["job_id"] for r in caplog.records if r.getMessage() == "one"} == {job.id}


async def test_long_lines_are_logged_in_pieces(
    dsn: str, utils: WorkerUtils, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await utils.add_job("job")
    body = "head -c 300001 /dev/zero | tr '\\0' 'é' | tr '\\303' 'x'; echo; echo end"
    await run_once(dsn, tasks=[executable_task(script(tmp_path, body), "job")])
    lines = [line for _, line in output(caplog)]
    assert max(map(len, lines)) == LINE_LIMIT
    assert len("".join(lines[:-1])) == 300_001
    assert lines[-1] == "end"


async def test_a_character_that_arrives_in_two_parts_is_one_character(
    dsn: str, utils: WorkerUtils, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The second half is written only when the first has been read: the pipe is empty again.
    source = (
        "#!/usr/bin/env python3\n"
        "import array, fcntl, os, termios, time\n"
        "left = array.array('i', [1])\n"
        "os.write(1, b'caf\\xc3')\n"
        "while left[0]:\n"
        "    fcntl.ioctl(1, termios.FIONREAD, left)\n"
        "    time.sleep(0.001)\n"
        "os.write(1, b'\\xa9\\n')\n"
    )
    await utils.add_job("job")
    await run_once(dsn, tasks=[executable_task(script(tmp_path, source), "job")])
    assert output(caplog) == [("INFO", "café")]


# Outcomes.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 3", "task 'job' exited with code 3"),
        ("echo out; echo first >&2; echo boom >&2; exit 1", "exited with code 1:\nfirst\nboom"),
        ("kill -SEGV $$", "task 'job' was ended by SIGSEGV"),
        ("echo oh >&2; kill -KILL $$", "task 'job' was ended by SIGKILL:\noh"),
    ],
)
async def test_a_failure_says_how_it_ended_and_what_it_complained_about(
    dsn: str, utils: WorkerUtils, tmp_path: Path, body: str, message: str
) -> None:
    await utils.add_job("job")
    await run_once(dsn, tasks=[executable_task(script(tmp_path, body), "job")])
    [error] = await last_errors(dsn)
    assert error is not None
    assert error.endswith(message)


async def test_of_many_complaints_the_last_are_stored(
    dsn: str, utils: WorkerUtils, tmp_path: Path
) -> None:
    await utils.add_job("job")
    body = "seq 20000 >&2; printf 'the \\000 end' >&2; exit 1"
    await run_once(dsn, tasks=[executable_task(script(tmp_path, body), "job")])
    [error] = await last_errors(dsn)
    assert error is not None
    assert error.startswith("task 'job' exited with code 1:\n")
    assert "19999\n20000\nthe " in error
    assert error.endswith(" end")
    assert len(error) < STDERR_TAIL + 100


@pytest.mark.parametrize("body", ["exit 0", "exec 0<&-; sleep 0.1", "head -c 5 > /dev/null"])
async def test_a_program_need_not_read_its_input(
    dsn: str, utils: WorkerUtils, tmp_path: Path, body: str
) -> None:
    await utils.add_job("job", {"large": "x" * 10_000_000})
    await run_once(dsn, tasks=[executable_task(script(tmp_path, body), "job")])
    assert await last_errors(dsn) == []


async def test_what_it_leaves_behind_with_its_input_does_not_hold_up_the_job(
    dsn: str, utils: WorkerUtils, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await utils.add_job("job", {"large": "x" * 10_000_000})
    body = "exec 4<&0\nsleep 600 <&4 > /dev/null 2>&1 &\necho $!"
    await run_once(dsn, tasks=[executable_task(script(tmp_path, body), "job")])
    [(_, pid)] = output(caplog)
    os.kill(int(pid), signal.SIGKILL)
    assert await last_errors(dsn) == []


async def test_a_large_payload_arrives_whole(
    dsn: str, utils: WorkerUtils, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    payload = {"large": "é" * 5_000_000}
    await utils.add_job("job", payload)
    await run_once(dsn, tasks=[executable_task(script(tmp_path, "wc -c"), "job")])
    [(_, counted)] = output(caplog)
    whole = json.dumps({"payload": payload}, ensure_ascii=False, separators=(",", ":"))
    assert int(counted) == len(whole.encode())


async def test_output_of_what_it_leaves_in_the_background_belongs_to_the_job(
    dsn: str, utils: WorkerUtils, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await utils.add_job("job")
    body = "(sleep 0.3; echo late) &\necho early"
    await run_once(dsn, tasks=[executable_task(script(tmp_path, body), "job")])
    assert output(caplog) == [("INFO", "early"), ("INFO", "late")]


async def test_a_script_without_interpreter_line_is_run_by_the_shell(
    dsn: str, utils: WorkerUtils, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = script(tmp_path, "")
    path.write_text("echo by the shell")
    await utils.add_job("job")
    await run_once(dsn, tasks=[executable_task(path, "job")])
    assert output(caplog) == [("INFO", "by the shell")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.write_text("#!/no/such/shell\n"), "the interpreter that its first line"),
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.chmod(0o644), "Permission denied"),
    ],
)
async def test_a_program_that_does_not_start_is_a_failure_that_says_why(
    dsn: str, utils: WorkerUtils, tmp_path: Path, change: Any, reason: str
) -> None:
    path = script(tmp_path, "exit 0")
    task = executable_task(path, "job")
    change(path)
    await utils.add_job("job")
    await run_once(dsn, tasks=[task])
    [error] = await last_errors(dsn)
    assert error is not None
    assert error.startswith(f"task 'job' could not start {path}: {reason}")


# Being ended.

STUBBORN = "trap '' TERM\n"


@pytest.mark.parametrize("trap", ["", STUBBORN], ids=["obedient", "stubborn"])
async def test_at_its_timeout_it_is_ended_with_all_that_it_started(
    dsn: str, utils: WorkerUtils, tmp_path: Path, alive: Alive, trap: str
) -> None:
    body = f"{trap}exec 3>{alive.path}\nsleep 600 &\necho started >&3\nsleep 600\n"
    task = executable_task(script(tmp_path, body), "job", timeout=0.5)
    runs = 0
    # Now and then half a second is too short to start a program.
    while not alive.said("started"):
        await utils.add_job("job", max_attempts=1)
        await run_once(dsn, tasks=[task])
        runs += 1
        errors = await last_errors(dsn)
        assert errors == ["task 'job' ran longer than its timeout of 0.5 s"] * runs
    await eventually(lambda: not alive.read())


async def test_where_no_guard_can_be_started_it_is_not_run_and_the_error_tells_why(
    dsn: str, utils: WorkerUtils, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "upgraded away"))
    await utils.add_job("job")
    await run_once(dsn, tasks=[executable_task(script(tmp_path, f"touch {tmp_path}/ran"), "job")])
    assert await last_errors(dsn) == ["task 'job' can't be guarded: No such file or directory"]
    assert not (tmp_path / "ran").exists()


async def test_a_task_that_is_cut_off_while_it_starts_leaves_nothing_behind(
    dsn: str,
    utils: WorkerUtils,
    tmp_path: Path,
    alive: Alive,
) -> None:
    body = f"exec 3>{alive.path}\nsleep 600\n"
    await utils.add_job("job")
    # SIGTERM alone must do, although there was nobody to send it to when the time was up.
    task = executable_task(script(tmp_path, body), "job", timeout=1e-6, grace=600.0)
    await run_once(dsn, tasks=[task])
    assert await last_errors(dsn) == ["task 'job' ran longer than its timeout of 1e-06 s"]
    await eventually(lambda: not alive.read())


@pytest.mark.parametrize("trap", ["", STUBBORN], ids=["obedient", "stubborn"])
async def test_a_forced_stop_ends_it_and_gives_the_job_back(
    dsn: str, utils: WorkerUtils, tmp_path: Path, alive: Alive, trap: str
) -> None:
    # The program itself obeys; what it started may not, and does not hold its output open.
    inner = f"({trap}exec > /dev/null 2>&1; echo inner >&3; sleep 600) &\n"
    body = f"exec 3>{alive.path}\n{inner}echo outer >&3\nwait\n"
    task = executable_task(script(tmp_path, body), "job")
    async with Runner(dsn, tasks=[task]) as runner:
        await runner.add_job("job")
        await eventually(lambda: alive.said("inner") and alive.said("outer"))
        await runner.kill()
    assert await jobs(dsn) == [(0, None)]
    await eventually(lambda: not alive.read())


async def test_what_has_left_its_process_group_does_not_hold_up_a_forced_stop(
    dsn: str, utils: WorkerUtils, tmp_path: Path, alive: Alive
) -> None:
    body = (
        "#!/usr/bin/env python3\nimport os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    with open({str(alive.path)!r}, 'w') as fifo:\n"
        "        print(os.getpid(), file=fifo, flush=True)\n"
        "        time.sleep(600)\n"
    )
    task = executable_task(script(tmp_path, body), "job")
    async with Runner(dsn, tasks=[task]) as runner:
        await runner.add_job("job")
        await eventually(lambda: alive.said("\n"))
        await runner.kill()
    assert await jobs(dsn) == [(0, None)]
    assert alive.read()
    os.kill(int(alive._said), signal.SIGKILL)


async def test_a_graceful_stop_lets_it_finish(dsn: str, tmp_path: Path, alive: Alive) -> None:
    body = f"exec 3>{alive.path}\necho started >&3\nsleep 0.3\necho finished >&3"
    task = executable_task(script(tmp_path, body), "job")
    async with Runner(dsn, tasks=[task]) as runner:
        await runner.add_job("job")
        await eventually(lambda: alive.said("started"))
        await runner.stop()
    assert await jobs(dsn) == []
    assert alive.said("finished")


ASKED = "when the worker pool asked it to end"


@pytest.mark.parametrize(
    ("trap", "rows", "reasons"),
    [
        ("trap 'exit 0' TERM\n", [], []),
        # It knew what it did: an outcome like any other.
        ("trap 'exit 3' TERM\n", [(1, None, f"task 'job' exited with code 3 {ASKED}")], []),
        # Cut off by our stop, not failed: like a job at a forced one, it keeps its attempt.
        ("", [(0, None, None)], [f"task 'job' was ended by SIGTERM {ASKED}"]),
        (
            "trap 'exit 143' TERM\n",
            [(0, None, None)],
            [f"task 'job' exited with code 143 {ASKED}"],
        ),
    ],
)
async def test_the_abort_event_reaches_it_as_sigterm(
    dsn: str, tmp_path: Path, alive: Alive, trap: str, rows: list[object], reasons: list[str]
) -> None:
    # The inner shell tells when it is there, for a signal may get lost while it is being made.
    inner = "(echo inner >&3; exec sleep 600) &\n"
    body = f"{trap}exec 3>{alive.path}\n{inner}echo outer >&3\nwait\n"
    task = executable_task(script(tmp_path, body), "job")
    told = Told()
    async with Runner(
        dsn, tasks=[task], graceful_shutdown_abort_timeout=0.0, events=told.events
    ) as runner:
        await runner.add_job("job")
        await eventually(lambda: alive.said("inner") and alive.said("outer"))
        await runner.stop()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        found = await conn.execute(
            "select attempts, locked_by, last_error from graphile_worker.jobs"
        )
        assert await found.fetchall() == rows
    assert [event.reason for event in told.of(JobReturned)] == reasons
    await eventually(lambda: not alive.read())


def test_it_works_on_uvloop_too(dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import uvloop

    tasks = tmp_path / "tasks"
    tasks.mkdir()
    script(tasks, "wc -c", name="count")
    script(tasks, "exit 0", name="ignore")
    script(tasks, "echo no >&2; exit 9", name="fail")
    slow = executable_task(
        script(tmp_path, STUBBORN + "sleep 600", name="slow"), "slow", timeout=0.2
    )

    async def work() -> None:
        async with WorkerUtils(dsn) as utils:
            for name in ("count", "ignore"):
                await utils.add_job(name, {"large": "x" * 10_000_000})
            await utils.add_job("fail")
            await utils.add_job("slow")
        await run_once(dsn, task_directory=tasks, concurrent_jobs=3)
        await run_once(dsn, tasks=[slow])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())
        errors = runner.run(last_errors(dsn))
    assert ("INFO", "10000024") in output(caplog)
    assert errors == [
        "task 'fail' exited with code 9:\nno",
        "task 'slow' ran longer than its timeout of 0.2 s",
    ]


async def test_jobs_wait_for_their_next_attempt_after_a_failure(
    dsn: str, utils: WorkerUtils, tmp_path: Path
) -> None:
    before = datetime.now(UTC)
    await utils.add_job("job")
    await run_once(dsn, tasks=[executable_task(script(tmp_path, "exit 1"), "job")])
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        rows = await conn.execute("select attempts, run_at from graphile_worker.jobs")
        [(attempts, run_at)] = await rows.fetchall()
    assert attempts == 1
    assert timedelta(seconds=2) < run_at - before < timedelta(seconds=20)


async def test_it_can_be_called_without_a_worker_pool(
    dsn: str, utils: WorkerUtils, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = executable_task(script(tmp_path, "cat"), "job")
    await utils.add_job("other")
    contexts: list[JobContext] = []

    async def keep(payload: Any, ctx: JobContext) -> None:
        contexts.append(ctx)

    await run_once(dsn, tasks={"other": keep})
    await task({}, contexts[0])
    assert output(caplog) == [("INFO", '{"payload":{}}')]


@pytest.mark.parametrize(("options", "attempts"), [({"executable_exit_codes": True}, 25), ({}, 1)])
async def test_its_exit_code_can_discard_the_job(
    dsn: str, utils: WorkerUtils, tmp_path: Path, options: Any, attempts: int
) -> None:
    script(tmp_path, "echo no such page >&2; exit 65")
    await utils.add_job("job")
    done = await run_once(dsn, task_directory=tmp_path, **options)
    assert done.discarded == (1 if options else 0)
    assert [job[0] for job in await jobs(dsn)] == [attempts]
    (error,) = await last_errors(dsn)
    assert error == "task 'job' exited with code 65:\nno such page"
