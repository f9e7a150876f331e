"""What a program gives its workers: `setup` before tasks are imported, and `lifespan`."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from graphile_worker_py import (
    ConfigurationError,
    GraphileWorkerError,
    JobContext,
    Resource,
    Runner,
    State,
    run_once,
    task,
)
from tests.support.eventually import eventually
from tests.support.processes import Process, Processes
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server

COMMAND = (sys.executable, "-m", "graphile_worker_py")
BOOT = """
import os
from contextlib import asynccontextmanager

from graphile_worker_py import State

class Settings:
    ready = False

settings = Settings()

def init():
    with open("noted", "a") as file:
        print("setup", os.getpid(), file=file)
    settings.ready = True
    return State(settings)

async def asynchronous(): ...

def failing():
    raise ValueError("no settings")

def wrong():
    return settings

@asynccontextmanager
async def lifespan(runner):
    await runner.add_job("noticed", {"from": "lifespan"})
    yield State("resource")
    with open("noted", "a") as file:
        print("lifespan has ended", file=file)

@asynccontextmanager
async def hanging(runner):
    yield
    print("hanging", flush=True)
    import asyncio
    await asyncio.sleep(3600)
"""
TASKS = """
import os

from graphile_worker_py import Resource, task

from boot import Settings, settings

assert settings.ready, "not set up"

@task
async def noticed(payload, ctx):
    with open("noted", "a") as file:
        print("job", payload["from"], file=file)

@task
async def wait(payload):
    print("waiting", flush=True)
    import asyncio
    await asyncio.sleep(3600)

@task(executor="process")
def compute(payload, ctx, given: Resource[Settings]):
    assert given is settings
    with open("noted", "a") as file:
        print("process", os.getppid(), file=file)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "boot.py").write_text(BOOT, encoding="utf-8")
    (tmp_path / "prepared.py").write_text(TASKS, encoding="utf-8")
    return tmp_path


@pytest.fixture
def _importable(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(project)
    monkeypatch.chdir(project)
    yield
    for name in ("boot", "prepared"):
        sys.modules.pop(name, None)


def started(processes: Processes, project: Path, dsn: str, *flags: str, **env: str) -> Process:
    return processes.start([*COMMAND, *flags], cwd=project, env={"DATABASE_URL": dsn, **env})


def noted(project: Path) -> list[list[str]]:
    path = project / "noted"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


async def test_setup_is_called_before_tasks_are_imported_in_every_process(
    processes: Processes, project: Path, dsn: str, stored: Jobs
) -> None:
    (project / "graphile_worker.toml").write_text(
        'setup = "boot:init"\ntasks = "prepared"\nconcurrent_jobs = 2\n', encoding="utf-8"
    )
    for _ in range(2):
        stored.add("compute")
    worker = started(processes, project, dsn, "--processes", "2", "--once")
    assert worker.wait() == 0, worker.stderr
    assert stored.all() == []
    lines = noted(project)
    workers = {parent for what, parent in lines if what == "process"}
    called = [pid for what, pid in lines if what == "setup"]
    assert len(called) == len(set(called)) >= 3  # two workers, and at least one process of a task
    assert workers < set(called)


def test_setup_and_lifespan_are_given_by_flags_and_variables(
    processes: Processes, project: Path, dsn: str
) -> None:
    worker = started(
        processes,
        project,
        dsn,
        *("--once", "--tasks", "prepared", "--lifespan", "boot:lifespan"),
        GRAPHILE_WORKER_SETUP="boot:init",
    )
    assert worker.wait() == 0, worker.stderr
    lines = [" ".join(line) for line in noted(project)]
    assert lines[1:] == ["job lifespan", "lifespan has ended"]


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("boot", "setup 'boot' must be MODULE:FUNCTION, as in myapp.boot:init"),
        ("boot:", "setup 'boot:' must be MODULE:FUNCTION"),
        ("nothing:init", "setup nothing:init: there is no module 'nothing'"),
        ("boot:inti", "setup boot:inti: module 'boot' has no function 'inti'"),
        ("boot:settings", r"setup boot:settings: <.*> is not a function"),
        ("boot:asynchronous", "setup boot:asynchronous must be a plain function.*lifespan"),
        ("boot:failing", r"setup boot:failing failed: ValueError: no settings \(.*boot.py, line"),
        ("boot:wrong", r"setup boot:wrong must return a State\(...\) or None, not <"),
        (7, "setup must be a function, or its path 'module:function', not 7"),
    ],
)
def test_a_setup_that_can_not_be_called_is_an_error_with_its_name(given: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Runner("", tasks="prepared", setup=given)


def test_a_failing_setup_ends_the_command_with_its_reason(
    processes: Processes, project: Path, dsn: str
) -> None:
    flags = ("--tasks", "prepared", "--setup", "boot:failing")
    worker = started(processes, project, dsn, *flags)
    assert worker.wait() == 2
    assert "Error: setup boot:failing failed: ValueError: no settings" in worker.stderr


def test_a_setup_that_no_process_finds_is_refused_with_tasks_in_processes(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project)
    monkeypatch.chdir(project)

    def init() -> None:
        import boot  # type: ignore[import-not-found]

        boot.init()

    with pytest.raises(ConfigurationError, match="process of task 'compute' calls it, too"):
        Runner("", tasks="prepared", setup=init)
    for name in ("boot", "prepared"):
        sys.modules.pop(name, None)


class Client:
    def __init__(self) -> None:
        self.seen: list[str] = []


@task
async def use(payload: Any, ctx: JobContext, client: Resource[Client]) -> None:
    client.seen.append(f"job {ctx.job.id}")


async def test_lifespan_begins_before_the_first_job_and_ends_after_the_last(
    dsn: str, stored: Jobs
) -> None:
    client, finish = Client(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(runner: Runner) -> AsyncIterator[State]:
        job = await runner.add_job("slow")
        client.seen.append("begin")
        yield State(client)
        client.seen.append("end")
        assert await runner.handle(job.id).state() is None  # its connections are open

    @task
    async def slow(payload: Any, ctx: JobContext, client: Resource[Client]) -> None:
        client.seen.append("slow")
        await finish.wait()
        client.seen.append("slow is done")

    async with Runner(dsn, tasks=[slow], lifespan=lifespan) as runner:
        await eventually(lambda: client.seen[-1] == "slow")
        stopping = asyncio.create_task(runner.stop())
        await eventually(lambda: runner.health().state == "stopping")
        finish.set()
        await stopping
        assert client.seen[-1] == "slow is done"
    assert client.seen == ["begin", "slow", "slow is done", "end"]
    assert stored.all() == []


async def test_run_once_has_a_lifespan_too_and_yielding_nothing_is_allowed(
    dsn: str, stored: Jobs
) -> None:
    told: list[str] = []

    async def lifespan(runner: Runner) -> AsyncIterator[None]:
        await runner.add_job("quiet")
        told.append("begin")
        yield
        told.append("end")

    @task
    async def quiet(payload: Any) -> None:
        told.append("job")

    await run_once(dsn, tasks=[quiet], lifespan=lifespan)
    assert told == ["begin", "job", "end"]


@asynccontextmanager
async def raising(_runner: Any) -> AsyncIterator[State]:
    if sys.argv:
        raise OSError("no route to the bank")
    yield State()


@asynccontextmanager
async def never(_runner: Any) -> AsyncIterator[State]:
    if not sys.argv:
        yield State()


@asynccontextmanager
async def twice(_runner: Any) -> AsyncIterator[State]:
    yield State(Client())
    yield State(Client())


@asynccontextmanager
async def raising_late(_runner: Any) -> AsyncIterator[State]:
    yield State(Client())
    raise OSError("the bank hung up")


@asynccontextmanager
async def yielding_text(_runner: Any) -> AsyncIterator[Any]:
    yield "client"


async def not_a_manager(_runner: Any) -> State:
    return State()


@pytest.mark.parametrize(
    ("lifespan", "message"),
    [
        (raising, r"lifespan tests.*:raising failed at the start: OSError: no route to the bank"),
        (never, "lifespan tests.*:never failed at the start: it did not yield"),
        (yielding_text, r"must yield a State\(...\) or None, not 'client'"),
        (not_a_manager, r"must be an async context manager \(@asynccontextmanager\), but"),
        ("tests.nothing:lifespan", "lifespan tests.nothing:lifespan: there is no module"),
        (print, "lifespan builtins:print must be an async context manager"),
    ],
)
async def test_a_lifespan_that_does_not_begin_stops_the_start(
    lifespan: Any, message: str, dsn: str, stored: Jobs
) -> None:
    job_id = stored.add("use")
    with pytest.raises(GraphileWorkerError, match=message):
        async with Runner(dsn, tasks=[use], lifespan=lifespan):
            pass
    (job,) = stored.all()
    assert (job["id"], job["attempts"], job["locked_by"]) == (job_id, 0, None)


@pytest.mark.parametrize(
    ("lifespan", "message"),
    [
        (twice, "lifespan tests.*:twice failed at the end: it yielded twice"),
        (raising_late, "lifespan .*:raising_late failed at the end: OSError: the bank hung up"),
    ],
)
@pytest.mark.parametrize("once", [True, False])
async def test_a_lifespan_that_fails_at_its_end_loses_no_outcome(
    lifespan: Any, message: str, once: bool, dsn: str, stored: Jobs
) -> None:
    stored.add("use")
    with pytest.raises(GraphileWorkerError, match=message):
        if once:
            await run_once(dsn, tasks=[use], lifespan=lifespan)
        else:
            async with Runner(dsn, tasks=[use], lifespan=lifespan):
                await eventually(lambda: stored.all() == [])
    assert stored.all() == []


async def test_a_second_signal_cuts_off_a_lifespan_that_does_not_end(
    processes: Processes, project: Path, dsn: str
) -> None:
    flags = ("--setup", "boot:init", "--tasks", "prepared", "--lifespan", "boot:hanging")
    worker = started(processes, project, dsn, *flags)
    await eventually(lambda: "Working as" in worker.stderr)
    worker.terminate()
    await worker.seen("hanging")

    def has_ended() -> bool:
        if worker.returncode is None:
            worker.terminate()
        return worker.returncode is not None

    # Signals that come together count as one.
    await eventually(has_ended, interval=0.5)
    assert worker.returncode == 1
