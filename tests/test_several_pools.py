"""Several pools in one runner: slow jobs of one keep no job of another waiting."""

import asyncio
import logging
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from graphile_worker_py import (
    Cause,
    ConfigurationError,
    LocalQueueOptions,
    Part,
    Plugin,
    Pool,
    Runner,
    WorkerUtils,
    run,
    run_migrations,
    run_once,
)
from graphile_worker_py.cli.main import main
from graphile_worker_py.events import PoolRelease
from graphile_worker_py.observing import findings
from graphile_worker_py.options.pool_flags import pools_of_flags
from graphile_worker_py.options.pools import pools_of
from graphile_worker_py.sql.backlog import RegisteredPool
from tests.support.eventually import eventually
from tests.support.processes import Processes
from tests.support.running import Jobs, Told

FAST: Final[dict[str, Any]] = {"heartbeat_interval": 0.1, "dead_after": 2, "poll_interval": 0.1}
MAIL: Final = {
    "mail": Pool(tasks=["mail/*"], concurrent_jobs=1, poll_interval=5.0),
    "default": Pool(concurrent_jobs=3),
}
LOCKED: Final = """
select locked_by from graphile_worker._private_jobs where locked_by is not null order by id
"""
BUSY: Final = "select name from graphile_worker_py.pools where running > 0"
NAMED: Final = "select name from graphile_worker_py.pools where name = 'mail'"
FILE: Final = """
tasks = "several"
[pools.mail]
tasks = ["mail/*"]
concurrent_jobs = 2
poll_interval = 5.0
local_queue = {size = 5}
[pools.default]
concurrent_jobs = 3
"""
FLAGS: Final = "--pool 'mail:2:mail/*,newsletter' --pool default:20"
PAGE: Final = Path(__file__).parent.parent / "docs" / "limits.md"
TASKS: Final = """
from graphile_worker_py import task
@task("mail/send")
async def send(payload): print("ran mail", flush=True)
@task
async def newsletter(payload): pass
@task
async def other(payload): print("ran other", flush=True)
"""


class Work:
    """Tasks that wait until they are let go, and note how many ran at the same time."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running: list[str] = []
        self.ran: list[str] = []

    async def run(self, payload: str) -> None:
        self.running.append(payload)
        await self.go.wait()
        self.ran.append(payload)

    @property
    def tasks(self) -> dict[str, Any]:
        return {"mail/send": self.run, "mail/read": self.run, "other": self.run}


@pytest.fixture
async def utils(dsn: str) -> AsyncIterator[WorkerUtils]:
    """Utilities in a database with the side schema."""
    await run_migrations(dsn, side_schema=True)
    async with WorkerUtils(dsn) as utils:
        yield utils


async def test_each_pool_runs_its_own_tasks_as_many_as_it_may(
    dsn: str, utils: WorkerUtils, caplog: pytest.LogCaptureFixture
) -> None:
    work, jobs, told = Work(), Jobs(dsn), Told()
    caplog.set_level(logging.INFO, "graphile_worker_py")
    options: dict[str, Any] = {"tasks": work.tasks, "pools": MAIL, "events": told.events}
    async with Runner(dsn, **options, **FAST) as runner:
        for number in range(5):
            await utils.add_job("mail/send", f"mail {number}")
            await utils.add_job("other", f"other {number}")
        await eventually(lambda: len(work.running) == 4)
        ids = runner.pool_ids
        assert sorted(row["locked_by"] for row in jobs.query(LOCKED)) == sorted(
            [ids["mail"], *[ids["default"]] * 3]
        )
        await eventually(lambda: len(jobs.query(BUSY)) == 2)
        pools = {pool.name: pool for pool in await utils.pools() or ()}
        assert pools["mail"].tasks == ["mail/read", "mail/send"]
        assert (pools["default"].tasks, pools["default"].running) == (["other"], 3)
        assert {name: each.running_jobs for name, each in runner.healths().items()} == {
            "mail": 1,
            "default": 3,
        }
        work.go.set()
        await eventually(lambda: len(work.ran) == 10)
    assert len(told.of(PoolRelease)) == 2
    (line,) = [text for text in caplog.messages if text.startswith("Up to ")]
    assert line.startswith(
        "Up to 11 connections: 2 to fetch, 2 to record, 1 for heartbeats, 1 to listen, 5 for up to "
        "4 running jobs and the API; the server allows "
    )


async def test_a_pause_by_name_stops_one_pool_only(dsn: str, utils: WorkerUtils) -> None:
    work = Work()
    work.go.set()
    async with Runner(dsn, tasks=work.tasks, pools=MAIL, **FAST) as runner:
        await eventually(lambda: len(runner.pool_ids) == 2)
        await eventually(lambda: Jobs(dsn).query(NAMED))
        with pytest.raises(ConfigurationError, match="'mial' is registered; names of pools are"):
            await utils.pause(pool="mial")
        await utils.pause(pool="mail")
        await eventually(lambda: "paused" in str(runner.healths()["mail"].troubles))
        await utils.add_job("mail/send", "mail")
        await utils.add_job("other", "other")
        await eventually(lambda: work.ran == ["other"])
        await utils.resume(pool="mail")
        await eventually(lambda: work.ran == ["other", "mail"])


async def test_a_quiet_pool_fetches_no_more_and_lets_its_jobs_finish(
    dsn: str, utils: WorkerUtils
) -> None:
    work, jobs = Work(), Jobs(dsn)
    pools = {**MAIL, "mail": Pool(tasks=["mail/*"], local_queue=LocalQueueOptions(size=10))}
    async with Runner(dsn, tasks=work.tasks, pools=pools, **FAST) as runner:
        await utils.add_job("mail/send", "first")
        await eventually(lambda: work.running == ["first"])
        await utils.add_job("mail/send", "second")
        await eventually(lambda: len(jobs.query(LOCKED)) == 2)
        assert await utils.quiet(pool="mail") == [runner.pool_ids["mail"]]
        await eventually(lambda: len(jobs.query(LOCKED)) == 1)
        health = runner.healths()["mail"]
        assert (health.quiet, health.live, health.ready) == (True, True, True)
        assert "quiet" in str(health.troubles)
        (waiting,) = await utils.list_jobs(state="ready")
        assert (await utils.explain(waiting.id)).reasons[0].cause is Cause.PAUSED
        work.go.set()
        await utils.add_job("other", "other")
        await eventually(lambda: work.ran == ["first", "other"])
        # A pool that begins later fetches, as after a deployment.
        result = await run_once(dsn, tasks=work.tasks, pools=pools, **FAST)
        assert (result.completed, work.ran[-1]) == (1, "second")
        with pytest.raises(ConfigurationError, match="give either pool, a name or an id, or every"):
            await utils.quiet()
        with pytest.raises(ConfigurationError, match="no worker pool of the name 'mial'"):
            await utils.quiet(pool="mial")
        said = CliRunner().invoke(main, ["quiet", "--everything", "--connection", dsn])
        assert said.output == "Told 2 worker pools to fetch no more jobs.\n"
        listed = CliRunner().invoke(main, ["workers", "--connection", dsn])
        assert listed.output.count(" quiet ") == 2


BAD: Final[list[tuple[Any, str]]] = [
    (
        {"a": Pool(tasks=["mail/*"]), "b": Pool(tasks=["mail/send", "other"])},
        "task 'mail/send' is in two pools, 'a' and 'b'",
    ),
    ({"a": Pool(tasks=["mial/send"]), "b": Pool()}, "'mial/send', which is no task; did you mean"),
    ({"a": Pool(tasks=["post/*"]), "b": Pool()}, r"'post/\*', which matches no task"),
    ({"a": Pool(tasks=["mail/*"])}, "no pool has task 'other'; add a pool without tasks"),
    ({"a": Pool(), "b": Pool()}, "pools 'a' and 'b' name no tasks"),
    ({"a": Pool(tasks=["*"]), "b": Pool()}, "pool 'b' has no task"),
    ({}, "pools must have an entry for each name"),
    ({"a": 5}, r"pools.a: it must be Pool\(...\), .*not 5"),
    ({"a": {"jobs": 5}}, "pools.a: unknown key 'jobs'; keys are tasks, concurrent_jobs"),
    ({"a": {"concurrent_jobs": 0}}, "pools.a: concurrent_jobs must be"),
    ({" a": Pool()}, "must not begin or end with spaces"),
    ({f"p{n}": Pool() for n in range(10)}, "name no tasks"),
]


@pytest.mark.parametrize(("pools", "said"), BAD, ids=[said for _, said in BAD])
def test_pools_that_do_not_divide_the_tasks_are_refused(pools: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Runner(tasks=Work().tasks, pools=pools)


def test_too_few_connections_for_the_pools_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_pool_size 2 is too small for 2 pools"):
        Runner(tasks=Work().tasks, pools=MAIL, max_pool_size=2)
    with pytest.raises(ConfigurationError, match="worker_id 'w' is for one worker"):
        Runner(tasks=Work().tasks, pools={"a": Pool(tasks=["mail/*"]), "b": Pool()}, worker_id="w")
    with pytest.raises(ConfigurationError, match="concurrent_jobs must be"):
        Pool(concurrent_jobs=0)


class Broken(Plugin):
    """Breaks one of several pools."""

    def parts(self, pool: Any) -> list[Part]:
        async def run() -> None:
            raise OSError("broken")

        return [Part(name="break", run=run)] if pool.name == "mail" else []


async def test_a_pool_that_breaks_stops_the_others_and_its_error_is_raised(dsn: str) -> None:
    told = Told()
    options: dict[str, Any] = {"hooks": [Broken], "events": told.events, **FAST}
    with pytest.raises(OSError, match="broken"):
        await run(dsn, tasks=Work().tasks, pools=MAIL, **options)
    assert len(told.of(PoolRelease)) == 2


@pytest.mark.parametrize(("flags", "number"), [("", 5), (FLAGS, 22)], ids=["file", "flags"])
def test_a_file_and_flags_that_win_over_it_divide_the_tasks_of_the_command(
    dsn: str, tmp_path: Path, processes: Processes, flags: str, number: int
) -> None:
    (tmp_path / "several.py").write_text(TASKS)
    (tmp_path / "graphile_worker.toml").write_text(FILE)
    jobs = Jobs(dsn)
    jobs.add("mail/send")
    jobs.add("other")
    command = [sys.executable, "-m", "graphile_worker_py", "run", "--connection", dsn]
    process = processes.start([*command, *shlex.split(flags)], cwd=tmp_path)
    process.wait_for("ran", count=2)
    assert f"{number} jobs at a time" in process.stderr
    assert FLAGS in PAGE.read_text(encoding="utf-8")


BAD_FLAGS: Final = [
    ["mail"],
    ["mail:"],
    [":2"],
    ["mail:two"],
    ["mail:-1"],
    ["mail:²"],
    ["mail:2:"],
    ["mail:2:a,,b"],
    ["a:1:x", "a:2"],
    ["mail:0"],
    ["mail:" + "9" * 9999],
]


@pytest.mark.parametrize("given", BAD_FLAGS, ids=lambda given: given[-1][:12])
def test_flags_that_are_no_pools_are_refused_with_their_form(given: list[str]) -> None:
    said = r"--pool must be NAME:N\[:TASK,…\]|pool 'a' twice|concurrent_jobs must be"
    with pytest.raises(ConfigurationError, match=said):
        pools_of(pools_of_flags(given))


def test_doctor_adds_up_the_connections_of_pools() -> None:
    pool = RegisteredPool(
        pool_id="pool-1",
        host="here",
        pid=1,
        heartbeat_age=1,
        overdue=False,
        stopping=False,
        age=1,
        dead_for=None,
        dead_after=8,
        version=None,
        tasks=None,
        forbidden_flags=None,
        concurrency=None,
        running=None,
        memory=None,
        loop_lag=None,
        connections=11,
    )
    assert list(findings.of_connections([pool] * 8, 97)) == []
    (found,) = findings.of_connections([pool] * 9, 97)
    assert "9 worker pool(s) may open 99 connections, and the server allows 97" in found.fact
