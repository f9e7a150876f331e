"""What is secret stays so: passwords of connection strings, and what payloads hold."""

import asyncio
import enum
import json
import logging
import re
import stat
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import msgspec
import psycopg
import pydantic
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from graphile_worker_py import (
    ConfigurationError,
    Events,
    Runner,
    SyncWorkerUtils,
    WorkerOptions,
    WorkerUtils,
    run_once,
    task,
)
from graphile_worker_py.cli.main import main as command_line
from graphile_worker_py.events import JobError, JobReturned, JobStart, JobSuccess
from graphile_worker_py.postgres.connecting import checked_conninfo
from graphile_worker_py.postgres.masking import masked, masked_text
from graphile_worker_py.workers.health import Vitals
from tests.support.eventually import eventually
from tests.support.processes import Processes
from tests.support.running import Jobs, Told

SECRET = "5ECRET"


# Connection strings.

# Letters that mean something in one form or another come often.
special = st.text("@:/?#%&='\\\" []{},;+*$5E", max_size=6)
anything = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
passwords = st.builds(
    lambda *parts: f"{parts[0]}{SECRET}{parts[1]}{SECRET}{parts[2]}",
    *[special | anything for _ in range(3)],
)
names = st.sampled_from(["password", "sslpassword"])


def quoted_word(text: str) -> str:
    """A value in quotes, as libpq reads it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def bare_word(text: str) -> str:
    """A value without quotes, as libpq reads it."""
    return re.sub(r"([\s\\'])", r"\\\1", text)


def some_encoded(name: str) -> str:
    """The name of a parameter in another spelling."""
    return "".join(f"%{ord(letter):02x}" if letter in "aw" else letter for letter in name)


RIGHT = {
    "URI": lambda name, text: f"postgresql://me:{quote(text, safe='')}@db.example.com:5432/app",
    "URI without user": lambda name, text: f"postgres://:{quote(text, safe='')}@/app",
    "URI with hosts": lambda name, text: f"postgres://me:{quote(text, safe='')}@a:1,b:2/app",
    "query": lambda name, text: f"postgres:///app?user=me&{name}={quote(text, safe='')}&port=1",
    "query, odd": lambda name, text: f"postgres:///?{some_encoded(name)}={quote(text, safe='')}",
    "query, raw @": lambda name, text: (
        f"postgres://h/a?{name}={quote(text, safe='@:/ ?')}"
        if " " not in text
        else f"postgres://h/a?{name}={quote(text, safe='@:/?')}"
    ),
    "words": lambda name, text: f"host=h {name}={quoted_word(text)} port=1",
    "words, spaces": lambda name, text: f" {name}  =  {quoted_word(text)}  host = h",
    "words, bare": lambda name, text: f"host=h {name}={bare_word(text)} user=me",
}
# What people write who do not know the rules. Some of it means something else to libpq.
WRONG = {
    "URI": lambda name, text: f"postgresql://me:{text}@db.example.com:5432/app",
    "other scheme": lambda name, text: f"mysql://me:{text}@h/app",
    "query": lambda name, text: f"postgres://h/app?{name}={text}",
    "unknown in query": lambda name, text: f"postgres://h/app?{name}={text}&pgbouncer=true",
    "words": lambda name, text: f"host=h {name}={text} port=1",
    "half quoted": lambda name, text: f"host=h {name}='{text}",
    "wrong name": lambda name, text: f"host=h {name}wd={text}",
    "upper case": lambda name, text: f"HOST=h {name.upper()}={text}",
}


def assert_nowhere(*texts: str) -> None:
    """Check that nothing of the secret is shown."""
    for text in texts:
        assert SECRET not in text


def told(dsn: str) -> str:
    """What the refusal of a connection string tells, traceback included; nothing if it is taken."""
    try:
        checked_conninfo(dsn)
    except ConfigurationError as error:
        return "".join(traceback.format_exception(error))
    return ""


@pytest.mark.parametrize("form", RIGHT)
@given(name=names, password=passwords)
def test_a_password_is_masked_in_every_form_of_a_connection_string(
    form: str, name: str, password: str
) -> None:
    dsn = RIGHT[form](name, password)
    read = conninfo_to_dict(dsn)
    assert password in (read.get("password"), read.get("sslpassword"))
    assert told(dsn) == ""
    shown = masked(dsn)
    assert_nowhere(shown)
    # And nothing else: what is left means the same.
    left = {key: value for key, value in conninfo_to_dict(shown).items() if value != "***"}
    assert left == {key: value for key, value in read.items() if value != password}


@pytest.mark.parametrize("form", WRONG)
@given(name=names, password=passwords)
def test_a_connection_string_that_went_wrong_shows_no_password_either(
    form: str, name: str, password: str
) -> None:
    dsn = WRONG[form](name, password)
    shown = masked(dsn)
    assert_nowhere(shown, told(dsn))
    assert masked(shown).count("***") == shown.count("***")


@given(st.text())
def test_any_text_can_be_masked(text: str) -> None:
    assert isinstance(masked(text), str)
    assert masked_text(masked_text(text)) == masked_text(text)


@given(st.sampled_from(["", "in 'x': ", "a\nb "]), names, passwords)
def test_a_connection_string_within_a_message_is_masked(
    before: str, name: str, password: str
) -> None:
    encoded = quote(password, safe="")
    assert_nowhere(
        masked_text(f"{before}postgresql://me:{encoded}@h/app: no"),
        masked_text(f"{before}postgresql:///app?{name}={encoded}: no"),
        masked_text(f"{before}host=h {name}={quoted_word(password)} user=me: no"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "myapp.tasks",
        "host=db.example.com user=me",
        "postgresql://me@h:5432/app?sslmode=require",
        "service=app",
        "postgres:///app?host=/tmp",
        "mysql://db.example.com/app",
        "",
    ],
)
def test_what_has_no_password_is_shown_as_it_is(text: str) -> None:
    assert masked(text) == text
    assert masked_text(text) == text
    assert masked_text("Completed job 5 (a:b@c)") == "Completed job 5 (a:b@c)"


@pytest.mark.parametrize(
    "dsn",
    [
        f" postgresql://me:{SECRET}@h/db",
        f"\tpostgresql://me:{SECRET}@h/db",
        f"me:{SECRET}@h/db",
        f"me:{SECRET}@h:5432/db",
        f"host=h pasword={SECRET}",
        f"host=h {SECRET}",
        f"pasword={SECRET} host=h",
        f"dbname=postgresql://me:{SECRET}@h/db",
        f"host=h dbname='host=h password={SECRET}'",
        f"postgresql://h/postgresql%3A%2F%2Fme%3A{SECRET}%40h%2Fdb",
        f"postgresql+psycopg://me:{SECRET}@h/db",
        f"jdbc:postgresql://h/db?user=me&password={SECRET}",
        f"postgresql//me:{SECRET}@h/db",
        f"psql 'postgresql://me:{SECRET}@h/db'",
    ],
)
def test_nothing_is_shown_that_libpq_does_not_take_as_it_was_meant(
    dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_nowhere(masked(dsn), told(dsn))
    for arguments in (["config", "show"], ["config", "show", "--json"], ["jobs"]):
        result = CliRunner().invoke(command_line, arguments, env={"DATABASE_URL": dsn})
        assert_nowhere(result.output)


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        (f"postgresql://me:p@{SECRET}@h/app", "its host has an @"),
        (f"postgresql://me:{SECRET}/p@h/app", "its port is not a number"),
        (f"host=h password=my {SECRET}", "can't be understood"),
    ],
)
def test_a_password_that_was_not_encoded_is_refused_with_the_remedy(dsn: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        checked_conninfo(dsn)
    assert_nowhere(str(refused.value), told(dsn))


@pytest.mark.parametrize("source", ["flag", "DATABASE_URL", "file", "PGPASSWORD", "service file"])
def test_no_command_shows_a_password(
    source: str, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = conninfo_to_dict(dsn)
    wrong = make_conninfo(dsn, password=f"{SECRET} '@:/ {SECRET}")
    without = make_conninfo(host=where["host"], port=where["port"], user="postgres")
    monkeypatch.chdir(tmp_path)
    words: list[str] = []
    match source:
        case "flag":
            words = ["-c", wrong]
        case "DATABASE_URL":
            monkeypatch.setenv("DATABASE_URL", wrong)
        case "file":
            (tmp_path / "graphile_worker.toml").write_text(
                f"connection = {json.dumps(wrong)}\nlisten_connection_string = {json.dumps(wrong)}"
            )
        case "PGPASSWORD":
            monkeypatch.setenv("DATABASE_URL", without)
            monkeypatch.setenv("PGPASSWORD", SECRET)
        case "service file":
            (tmp_path / "services").write_text(
                f"[app]\nhost={where['host']}\nport={where['port']}\nuser=postgres\n"
                f"password={SECRET}\n"
            )
            monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
            monkeypatch.setenv("DATABASE_URL", "service=app")
    commands = [["config", "show"], ["config", "show", "--json"]]
    if source != "file":  # a file is for workers, and for what shows it
        commands += [["jobs"], ["health"], ["migrate"], ["add-job", "work"]]
    for command in commands:
        done = CliRunner().invoke(command_line, [*command, *words])
        assert_nowhere(done.output, repr(done.exception))
        expected = 0 if command[0] == "config" else 1
        assert (command, done.exit_code) == (command, expected), done.output
        if expected:
            assert "password authentication failed" in done.output


@pytest.mark.parametrize("option", ["-c", "--listen-connection-string"])
async def test_a_worker_that_cannot_connect_logs_no_password(
    option: str, dsn: str, tmp_path: Path, processes: Processes
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "work.py").write_text("def task(payload, ctx):\n    pass\n")
    wrong = make_conninfo(dsn, password=SECRET)
    command = [sys.executable, "-m", "graphile_worker_py", "--log-level", "debug"]
    if option != "-c":
        command += ["-c", dsn]
    process = processes.start([*command, option, wrong], cwd=tmp_path)
    if option != "-c":
        await eventually(lambda: "password authentication failed" in process.stderr, timeout=15)
        process.terminate()
    process.wait(15)
    assert "password authentication failed" in process.stderr
    assert_nowhere(process.stdout, process.stderr)


async def test_objects_show_no_password(dsn: str) -> None:
    wrong = make_conninfo(dsn, password=SECRET)
    vitals = Vitals("pool-1", Events())
    vitals._keep(psycopg.OperationalError(f"no way to postgresql://me:{SECRET}@h/app"))
    assert_nowhere(
        str(vitals.last_error),
        repr(Runner(wrong, tasks={"work": print}, listen_connection_string=wrong)),
        repr(WorkerOptions(listen_connection_string=wrong)),
        repr(WorkerUtils(wrong)),
        repr(SyncWorkerUtils(wrong)),
    )
    async with WorkerUtils(dsn) as utils:
        password = str(conninfo_to_dict(dsn)["password"])
        assert password not in repr(utils) + repr(utils.pool) + repr(utils.__dict__["_opened"])


def test_a_table_in_place_of_a_connection_string_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(f'connection = {{host = "h", password = "{SECRET}"}}')
    done = CliRunner().invoke(command_line, ["config", "show", "--config", str(file)])
    assert done.exit_code == 2
    assert "connection must be a string" in done.output
    assert_nowhere(done.output)


# Payloads.


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Plain:
    colour: Colour
    count: int = 0


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["a", "b"]


class Model(pydantic.BaseModel):
    colour: Colour
    kind: Literal["a"] = "a"


@task
async def plain(payload: Plain) -> None: ...


@task
async def strict(payload: Strict) -> None: ...


@task
async def model(payload: Model) -> None: ...


@task
async def succeed(payload: Any, ctx: Any) -> None:
    await ctx.add_job("added", payload)


@task
async def added(payload: Any) -> None: ...


@task
async def fail(payload: Any) -> None:
    raise ValueError("the task's own words")


@task
async def look_up(payload: Any) -> None:
    raise KeyError


@task(timeout=0.05)
async def slow(payload: Any) -> None:
    await asyncio.Event().wait()


@task
async def hang(payload: Any) -> None:
    await asyncio.Event().wait()


@task
async def some(payload: list[Any]) -> list[Any]:
    async def each(item: Any) -> None:
        if item:
            raise ValueError("one of them")

    return [each(item) for item in payload]


@task
def in_thread(payload: Any) -> None:
    raise OSError("no")


@task
async def swallow(payload: Any) -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    raise ValueError("late")


FAILING = [fail, look_up, slow, hang, some, in_thread, swallow]
ONCE: dict[str, Any] = {"text": SECRET, SECRET: [SECRET]}
POISON = {
    "unknown": ONCE,
    "plain": {"colour": SECRET, "count": SECRET},
    "strict": {"kind": SECRET},
    "model": {"colour": SECRET, "kind": SECRET},
    "succeed": ONCE,
    "fail": ONCE,
    "look_up": ONCE,
    "slow": ONCE,
    "some": ["", SECRET],
    "in_thread": ONCE,
    "hang": ONCE,
    "swallow": ONCE,
}


@pytest.fixture
def everything(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All log records of all loggers."""
    with caplog.at_level(logging.DEBUG):
        yield caplog


def assert_logged_without_payloads(caplog: pytest.LogCaptureFixture) -> None:
    """Check messages, tracebacks and fields of all records."""
    assert len(caplog.records) > 10
    formatter = logging.Formatter()
    for record in caplog.records:
        fields = {key: value for key, value in vars(record).items() if key != "exc_info"}
        assert_nowhere(formatter.format(record), repr(fields))


async def test_payloads_are_not_logged_whatever_becomes_of_their_jobs(
    dsn: str, everything: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    for identifier, payload in POISON.items():
        jobs.add(identifier, payload, max_attempts=1)
    # Too deep, too long a number.
    jobs.add("fail", payload_json="[" * 5000 + f'"{SECRET}"' + "]" * 5000)
    jobs.add("fail", payload_json=f'["{SECRET}", {"9" * 5000}]')
    async with Runner(
        dsn,
        tasks=[plain, strict, model, succeed, added, *FAILING],
        concurrent_jobs=20,
        events=told.events,
        logger=logging.getLogger("mine"),
        graceful_shutdown_abort_timeout=0.1,
    ) as runner:
        await eventually(lambda: "slow" in [each.job.task_identifier for each in told.of(JobError)])
        await told.seen(JobError, count=10)
        await told.seen(JobSuccess, count=2)
        assert {"hang", "swallow"} <= {event.job.task_identifier for event in told.of(JobStart)}
        await runner.kill()
    returned = {event.job.task_identifier for event in told.of(JobReturned)}
    assert returned == {"hang"}
    rows = jobs.query("select task_identifier, last_error from graphile_worker.jobs")
    errors = [row["last_error"] for row in rows if row["last_error"] is not None]
    # All but the one that was returned, and the one that nobody knows.
    assert len(errors) == len(rows) - 2 == 11
    assert_nowhere(*errors)
    assert_logged_without_payloads(everything)


async def test_a_payload_that_cannot_be_added_is_not_shown(
    dsn: str, everything: pytest.LogCaptureFixture
) -> None:
    async with WorkerUtils(dsn) as utils:
        for payload in ({"x": {SECRET, 1}}, {"x": object, "y": SECRET}, [SECRET, b"x"]):
            with pytest.raises(ConfigurationError) as refused:
                await utils.add_job("work", payload)
            assert_nowhere("".join(traceback.format_exception(refused.value)))


async def test_the_output_of_an_executable_is_what_it_says_itself(
    dsn: str, tmp_path: Path, everything: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\ncat >/dev/null\necho mine\nexit 3\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    jobs = Jobs(dsn)
    job_id = jobs.add("script", ONCE)
    await run_once(dsn, task_directory=tmp_path)
    assert_nowhere(jobs.one(job_id)["last_error"])
    assert_logged_without_payloads(everything)


async def test_tasks_in_processes_tell_no_payloads(
    dsn: str, tmp_path: Path, everything: pytest.LogCaptureFixture
) -> None:
    from tests.process_tasks import typed

    jobs = Jobs(dsn)
    job_id = jobs.add("typed", {"path": str(tmp_path), "count": SECRET})
    await run_once(dsn, tasks=[typed])
    assert "$.count" in jobs.one(job_id)["last_error"]
    assert_nowhere(jobs.one(job_id)["last_error"])
    assert_logged_without_payloads(everything)
