"""Changes of the schema while workers of both languages, or of an older Node release, run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from compat_tests.fleet import LEDGER, SIDES, Fleet
from graphile_worker_py import IncompatibleSchemaError, Runner, WorkerUtils, run_migrations
from tests.support.eventually import eventually
from tests.support.node import LATEST, Node
from tests.support.plugin import Install
from tests.support.processes import Process, Processes

INCOMPATIBLE = 57
TASKS = "from graphile_worker_py import task\n\n\n@task\nasync def step(payload): ...\n"


def newer(fleet: Fleet, *, breaking: bool) -> None:
    """Do what a migrator of a release to come will do."""
    with fleet.connection.transaction():
        fleet.query("insert into graphile_worker.migrations values (21, now(), %s)", breaking)
        payload = json.dumps({"migrationNumber": 21, "breaking": breaking})
        fleet.query("select pg_notify('worker:migrate', %s)", payload)


async def test_a_breaking_change_stops_workers_of_both_sides_after_their_jobs(
    fleet: Fleet, tmp_path: Path, processes: Processes
) -> None:
    with fleet.gate() as gate:
        for number in (1, 2):
            await fleet.add("node", payload={"name": f"job {number}", "hold": 1})
        workers = {side: fleet.start(side, batch_delay=0) for side in SIDES}
        command = start_cli(fleet.dsn, processes, tmp_path)
        await fleet.began("job 1", "job 2")
        await fleet.listening(3)
        newer(fleet, breaking=True)
        assert command.wait() == INCOMPATIBLE
        for worker in workers.values():
            await worker.seen("stopping")
        assert [worker.returncode for worker in workers.values()] == [None, None]
        gate.open()
        assert workers["node"].wait() == INCOMPATIBLE
        assert workers["python"].wait() == 1
    assert "IncompatibleSchemaError" in workers["python"].stderr.splitlines()[-1]
    assert fleet.jobs.ids() == []


def start_cli(dsn: str, processes: Processes, folder: Path) -> Process:
    """Our command with a task, in that folder."""
    (folder / "a_task.py").write_text(TASKS)
    command = [sys.executable, "-m", "graphile_worker_py", "-c", dsn, "--tasks", "a_task"]
    root = str(Path(__file__).parent.parent)
    return processes.start(command, cwd=folder, env={"PYTHONPATH": root})


async def test_a_change_that_does_not_break_stops_nobody(fleet: Fleet) -> None:
    workers = [fleet.start(side) for side in SIDES]
    await fleet.listening(2)
    newer(fleet, breaking=False)
    with fleet.gate() as gate:
        for side in SIDES:
            fleet.query(ADD_HELD, side)
        await fleet.began(*SIDES)
        gate.open()
    await fleet.drained()
    assert {run.side for run in fleet.runs()} == set(SIDES)
    assert [worker.returncode for worker in workers] == [None, None]


async def test_a_column_that_somebody_adds_keeps_node_from_fetching_and_not_python(
    fleet: Fleet,
) -> None:
    workers = {side: fleet.start(side) for side in SIDES}
    await fleet.listening(2)
    with fleet.gate() as gate:
        for side in SIDES:
            fleet.query(ADD_HELD, side)
        await fleet.began(*SIDES)
        gate.open()
    await fleet.drained()
    for table in ("_private_jobs", "_private_job_queues"):
        fleet.query(f"alter table graphile_worker.{table} add column extra text")
    after = [f"after {n}" for n in range(4)]
    for name in after:
        await fleet.add("node", payload={"name": name})
    await fleet.drained()
    assert [run.side for run in fleet.runs() if run.name in after] == ["python"] * 4
    await eventually(lambda: "cached plan must not change" in workers["node"].stderr)
    assert [worker.returncode for worker in workers.values()] == [None, None]


ADD_HELD = "select graphile_worker.add_job('step', json_build_object('name', %s::text, 'hold', 1))"


async def test_a_worker_starts_on_a_newer_schema_without_breaking_changes_and_warns(
    fleet: Fleet,
) -> None:
    newer(fleet, breaking=False)
    for side in SIDES:
        await fleet.add("python", payload={"name": side})
        process = fleet.launch(side, once=True)
        assert process.wait() == 0
        lines = process.stderr.lower().splitlines()
        assert any("warning" in line and "21" in line for line in lines)
    assert [run.side for run in fleet.runs()] == list(SIDES)


async def test_nobody_starts_on_a_newer_schema_with_a_breaking_change(
    fleet: Fleet, tmp_path: Path, processes: Processes, node: Node
) -> None:
    newer(fleet, breaking=True)
    for entry in (Runner(fleet.dsn, tasks={"step": print}), WorkerUtils(fleet.dsn)):
        with pytest.raises(IncompatibleSchemaError, match="breaking change at 21"):
            async with entry:
                pytest.fail("it has started")
    with pytest.raises(IncompatibleSchemaError, match="up to 20"):
        await run_migrations(fleet.dsn)
    assert start_cli(fleet.dsn, processes, tmp_path).wait() == 1
    done = node.cli(LATEST, "--schema-only", "--connection", fleet.dsn, check=False)
    assert done.returncode == 1


async def test_installing_another_schema_with_node_stops_node_and_not_python(
    fleet: Fleet, install: Install
) -> None:
    workers = {side: fleet.start(side) for side in SIDES}
    await fleet.listening(2)
    install("node", fleet.dsn, "another")
    assert workers["node"].wait() == INCOMPATIBLE
    await fleet.add("python", payload={"name": "after"})
    await fleet.ended("after")
    assert workers["python"].returncode is None


async def test_installing_another_schema_with_python_stops_nobody(fleet: Fleet) -> None:
    workers = {side: fleet.start(side) for side in SIDES}
    await fleet.listening(2)
    await run_migrations(fleet.dsn, schema="another")
    with fleet.gate() as gate:
        for side in SIDES:
            fleet.query(ADD_HELD, side)
        await fleet.began(*SIDES)
        gate.open()
    await fleet.drained()
    assert {run.side for run in fleet.runs()} == set(SIDES)
    assert [worker.returncode for worker in workers.values()] == [None, None]


@pytest.mark.parametrize(("version", "works"), [("0.16.6", False), ("0.17.3", True)])
async def test_older_releases_of_node_meet_our_install_as_they_meet_that_of_node(
    fleet: Fleet, version: str, works: bool
) -> None:
    await fleet.add("python", payload={"name": "x"})
    process = fleet.launch("node", version=version, once=True)
    assert process.wait() == (0 if works else 1)
    assert len(fleet.runs()) == (1 if works else 0)


@pytest.fixture
def old_fleet(empty_dsn: str, node: Node, processes: Processes) -> Iterator[Fleet]:
    """A database in which nobody has installed the schema yet."""
    fleet = Fleet(empty_dsn, node, processes)
    fleet.query(LEDGER)
    yield fleet
    fleet.connection.close()


async def test_an_upgrade_by_python_stops_a_worker_of_node_0_16_after_its_job(
    old_fleet: Fleet,
) -> None:
    fleet = old_fleet
    old = fleet.start("node", version="0.16.6")
    await fleet.listening(1)
    with fleet.gate() as gate:
        fleet.query(ADD_HELD, "held")
        await fleet.began("held")
        fleet.query(ADD_HELD, "waiting")
        heard = await upgrade_and_listen(fleet)
        await old.seen("stopping")
        gate.open()
        assert old.wait() == INCOMPATIBLE
    assert heard == [
        {"migrationNumber": 19, "breaking": True},
        {"migrationNumber": 20, "breaking": False},
    ]
    assert fleet.query("select payload ->> 'name' from graphile_worker._private_jobs") == [
        "waiting"
    ]
    fleet.run_once("python")
    assert [(run.name, run.side) for run in fleet.runs()] == [
        ("held", "node"),
        ("waiting", "python"),
    ]


async def test_an_upgrade_by_python_leaves_a_worker_of_node_0_17_running(
    old_fleet: Fleet,
) -> None:
    fleet = old_fleet
    old = fleet.start("node", version="0.17.3")
    await fleet.listening(1)
    assert fleet.query("select max(id) from graphile_worker.migrations") == [19]
    heard = await upgrade_and_listen(fleet)
    assert heard == [{"migrationNumber": 20, "breaking": False}]
    fleet.start("python")
    with fleet.gate() as gate:
        for side in SIDES:
            fleet.query(ADD_HELD, side)
        await fleet.began(*SIDES)
        gate.open()
    await fleet.drained()
    assert {run.side for run in fleet.runs()} == set(SIDES)
    assert old.returncode is None


async def upgrade_and_listen(fleet: Fleet) -> list[dict[str, object]]:
    """Upgrade, and return what was announced until revision 20 was."""
    heard: list[dict[str, object]] = []
    async with await psycopg.AsyncConnection.connect(fleet.dsn, autocommit=True) as conn:
        await conn.execute('listen "worker:migrate"')
        await run_migrations(fleet.dsn)
        async for notification in conn.notifies(timeout=15):
            heard.append(json.loads(notification.payload))
            if heard[-1]["migrationNumber"] == 20:
                break
    return heard
