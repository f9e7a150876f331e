"""Row-level security: a role that would see no rows is told, instead of working on nothing."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from graphile_worker_py import MissingRightsError, Runner, WorkerUtils, run_once
from graphile_worker_py.cli.main import main as command_line
from tests.support.processes import Processes
from tests.support.running import Jobs
from tests.worker_utils_support import Api

HIDDEN = "_private_job_queues, _private_jobs, _private_known_crontabs, _private_tasks"
TABLES = HIDDEN.split(", ")


@pytest.fixture
def role(dsn: str) -> Iterator[str]:
    """A role that was granted everything, and sees nothing."""
    name = f"{conninfo_to_dict(dsn)['dbname']}_bound"
    jobs = Jobs(dsn)
    jobs.query(f"create role {name} login password 'secret'")
    jobs.query(f"grant usage on schema graphile_worker to {name}")
    jobs.query(f"grant all on all tables in schema graphile_worker to {name}")
    yield name
    jobs.query(f"drop owned by {name} cascade")
    jobs.query(f"drop role {name}")


@pytest.fixture
def bound_dsn(dsn: str, role: str) -> str:
    """The database as that role reaches it."""
    return make_conninfo(dsn, user=role, password="secret")


async def enter_runner(dsn: str) -> None:
    """Start a worker, and stop it at once."""
    async with Runner(dsn, tasks={"work": print}, no_side_schema=True):
        pass


async def enter_utils(form: str, dsn: str) -> None:
    """Open `WorkerUtils` in one of its forms, and look."""
    async with Api(form).opened(dsn) as utils:
        assert len(await utils.list_jobs()) == 1


OPENERS: dict[str, Callable[[str], Any]] = {
    "Runner": enter_runner,
    "run_once": functools.partial(run_once, tasks={"work": print}, no_side_schema=True),
    "WorkerUtils": functools.partial(enter_utils, "async"),
    "SyncWorkerUtils": functools.partial(enter_utils, "sync"),
}
COMMANDS = [
    ["jobs"],
    ["jobs", "--state", "failed"],
    ["counts"],
    ["queues"],
    ["workers"],
    ["health"],
    ["complete", "1", "--yes"],
    ["reschedule", "1", "--attempts", "0", "--yes"],
    ["cleanup", "GC_JOB_QUEUES", "--yes"],
    ["unlock", "pool-1", "--yes"],
    ["add-job", "work"],
]


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_role_that_sees_no_rows_is_told_at_the_start(
    dsn: str, bound_dsn: str, role: str, opener: str
) -> None:
    jobs = Jobs(dsn)
    jobs.add("work")
    before = jobs.snapshot()
    # This is what would be worked on without an error.
    assert Jobs(bound_dsn).query("select id from graphile_worker._private_jobs") == []
    with pytest.raises(MissingRightsError) as told:
        await OPENERS[opener](bound_dsn)
    assert str(told.value) == (
        f"role {role!r} sees no rows in schema 'graphile_worker': row-level security hides those "
        f"of {HIDDEN}. Connect as the owner 'postgres', or let a superuser run: "
        f'alter role "{role}" bypassrls'
    )
    assert jobs.snapshot() == before


@pytest.mark.parametrize("opener", OPENERS)
async def test_what_the_error_says_to_do_helps(dsn: str, bound_dsn: str, opener: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("work", run_at="2040-01-01")
    with pytest.raises(MissingRightsError) as told:
        await OPENERS[opener](bound_dsn)
    jobs.query(str(told.value).partition("let a superuser run: ")[2])
    await OPENERS[opener](bound_dsn)


async def test_a_member_of_the_owner_passes_for_the_owner(dsn: str) -> None:
    jobs = Jobs(dsn)
    name = conninfo_to_dict(dsn)["dbname"]
    owner, member = f"{name}_owner", f"{name}_member"
    jobs.query(f"create role {owner}")
    jobs.query(f"create role {member} login password 'secret' in role {owner}")
    jobs.query(f"alter schema graphile_worker owner to {owner}")
    for table in (*TABLES, "migrations"):
        jobs.query(f"alter table graphile_worker.{table} owner to {owner}")
    jobs.add("work", {})
    seen: list[Any] = []
    try:
        await run_once(
            make_conninfo(dsn, user=member, password="secret"),
            tasks={"work": seen.append},
            no_side_schema=True,
        )
    finally:
        jobs.query(f"reassign owned by {owner} to postgres")
        jobs.query(f"drop role {owner}, {member}")
    assert seen == [{}]


@pytest.mark.parametrize(
    ("to", "enough"), [("{role}", True), ("public", True), ("pg_monitor", False)]
)
async def test_whoever_has_policies_of_his_own_is_left_alone(
    dsn: str, bound_dsn: str, role: str, to: str, enough: bool
) -> None:
    jobs = Jobs(dsn)
    for table in TABLES:
        await jobs.in_thread(
            f"create policy mine on graphile_worker.{table} to {to.format(role=role)} using (true)"
        )
    jobs.add("work")
    if enough:
        async with WorkerUtils(bound_dsn) as utils:
            assert len(await utils.list_jobs()) == 1
    else:
        with pytest.raises(MissingRightsError, match="sees no rows"):
            async with WorkerUtils(bound_dsn):
                pass


async def test_a_policy_for_some_of_the_tables_is_not_enough(
    dsn: str, bound_dsn: str, role: str
) -> None:
    jobs = Jobs(dsn)
    await jobs.in_thread(
        f"create policy mine on graphile_worker._private_jobs to {role} using (true)"
    )
    with pytest.raises(MissingRightsError, match="_private_job_queues, _private_known_crontabs,"):
        await enter_runner(bound_dsn)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_fail_instead_of_showing_nothing(
    dsn: str, bound_dsn: str, words: list[str]
) -> None:
    jobs = Jobs(dsn)
    jobs.add("work")
    before = jobs.snapshot()
    done = CliRunner().invoke(command_line, [*words, "-c", bound_dsn])
    assert done.exit_code == 1, done.output
    assert "row-level security hides" in done.output
    assert jobs.snapshot() == before


def test_the_worker_of_the_command_line_ends_with_an_error(
    bound_dsn: str, tmp_path: Path, processes: Processes
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "work.py").write_text("async def task(payload, ctx):\n    pass\n")
    command = [sys.executable, "-m", "graphile_worker_py", "-c", bound_dsn, "--log-format", "json"]
    process = processes.start(command, cwd=tmp_path)
    assert process.wait(15) == 1
    assert "row-level security hides" in process.stderr
    assert "Traceback" not in process.stderr
    assert "secret" not in process.stderr


def test_the_error_of_the_database_shows_what_the_check_is_for(bound_dsn: str) -> None:
    with (
        psycopg.connect(bound_dsn) as conn,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
    ):
        conn.execute("select graphile_worker.add_job('work')")
