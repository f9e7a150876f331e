"""Installing and upgrading the schema by both sides: at once, one after the other, with few rights.

That both install the same is shown by `test_catalog.py`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from compat_tests.catalog import read_catalog
from compat_tests.fleet import LEDGER, SIDES, Fleet, Side
from graphile_worker_py import (
    IncompatibleSchemaError,
    MigrationError,
    WorkerUtils,
    run_migrations,
    run_once,
)
from tests.support.node import LATEST, Node
from tests.support.plugin import Install
from tests.support.processes import Process, Processes

BREAKING = {1, 3, 11, 13, 14, 16, 19}
REVISIONS = "select id, breaking from graphile_worker.migrations order by id"
FULL = [(revision, revision in BREAKING) for revision in range(1, 21)]

# Both wait for the same lock, so that all begin at once.
LOCK = "select pg_advisory_xact_lock_shared(1)"
PYTHON = """
import asyncio, sys
import psycopg
from graphile_worker_py import run_migrations
with psycopg.connect(sys.argv[1]) as connection:
    print("ready", flush=True)
    connection.execute(sys.argv[2])
asyncio.run(run_migrations(sys.argv[1]))
"""
NODE = """
import pg from "pg";
import { runMigrations, Logger } from "graphile-worker";
const [connectionString, lock] = process.argv.slice(2);
const client = new pg.Client({ connectionString });
await client.connect();
console.log("ready");
await client.query(lock);
await client.end();
await runMigrations({ connectionString, logger: new Logger(() => () => {}) });
"""
INSTALLERS = 5


@pytest.fixture
def bare_fleet(empty_dsn: str, node: Node, processes: Processes) -> Iterator[Fleet]:
    """An empty database."""
    fleet = Fleet(empty_dsn, node, processes)
    yield fleet
    fleet.connection.close()


async def test_many_installers_of_both_sides_at_once_all_succeed(
    bare_fleet: Fleet, node: Node, processes: Processes, template: Any
) -> None:
    fleet = bare_fleet
    with fleet.gate() as gate:
        installers = [
            start_installer(side, fleet.dsn, node, processes)
            for _ in range(INSTALLERS)
            for side in SIDES
        ]
        for process in installers:
            await process.seen("ready")
        gate.open()
        codes = [process.wait(15) for process in installers]
    assert codes == [0] * len(installers), [process.stderr for process in installers]
    assert fleet.query(REVISIONS) == FULL
    assert read_catalog(fleet.dsn) == read_catalog(template("node"))
    for side in SIDES:
        await fleet.add(side, payload={"name": "x"})
    assert len(fleet.jobs.ids()) == 2


def start_installer(side: Side, dsn: str, node: Node, processes: Processes) -> Process:
    """A process that installs the schema when the gate opens."""
    if side == "node":
        return node.start(LATEST, NODE, dsn, LOCK)
    root = Path(__file__).parent.parent
    return processes.start([sys.executable, "-c", PYTHON, dsn, LOCK], cwd=root)


@pytest.mark.parametrize(("version", "revision"), [("0.16.6", 18), ("0.17.3", 19)])
@pytest.mark.parametrize("upgrader", SIDES)
async def test_jobs_added_before_an_upgrade_are_run_after_it_by_either(
    bare_fleet: Fleet, version: str, revision: int, upgrader: Side
) -> None:
    fleet = bare_fleet
    fleet.query(LEDGER)
    payloads = [{"name": "held over"}, {"name": "failed", "fail": "no"}]
    fleet.call_node([["addJob", "step", payload] for payload in payloads], version=version)
    fleet.query("update graphile_worker._private_jobs set max_attempts = 2")
    fleet.run_once("node", version=version)
    fleet.call_node([["addJob", "step", {"name": "new", "b": 1}]], version=version)
    assert fleet.query(REVISIONS) == FULL[:revision]
    fleet.query("update graphile_worker._private_jobs set run_at = now()")
    fleet.run_once(upgrader)
    assert fleet.query(REVISIONS) == FULL
    runs = [(run.name, run.attempt) for run in fleet.runs()]
    assert sorted(runs) == sorted([("held over", 1), ("failed", 1), ("failed", 2), ("new", 1)])
    left = "select payload ->> 'name', attempts, last_error from graphile_worker._private_jobs"
    assert fleet.query(left) == [("failed", 2, "no")]


@pytest.mark.parametrize("revision", [1, 17])
async def test_a_schema_from_before_0_16_is_refused_with_the_way_out(
    bare_fleet: Fleet, revision: int
) -> None:
    fleet = bare_fleet
    fleet.query("create schema graphile_worker")
    fleet.query(
        "create table graphile_worker.migrations"
        " (id int primary key, ts timestamptz default now() not null)"
    )
    fleet.query("insert into graphile_worker.migrations select generate_series(1, %s)", revision)
    with pytest.raises(IncompatibleSchemaError) as caught:
        await run_migrations(fleet.dsn)
    assert f"revision {revision}, from before Graphile Worker 0.16" in str(caught.value)
    assert "npx graphile-worker@0.18.0 --schema-only" in str(caught.value)
    assert fleet.query("select max(id) from graphile_worker.migrations") == [revision]


@pytest.mark.parametrize("revision", [1, 5, 10])
async def test_triggers_of_the_first_revisions_are_trusted(
    bare_fleet: Fleet, node: Node, revision: int
) -> None:
    fleet = bare_fleet
    install_first_revisions(fleet.dsn, node, revision)
    with pytest.raises(IncompatibleSchemaError, match=f"at revision {revision}, from before"):
        await run_migrations(fleet.dsn)


def install_first_revisions(dsn: str, node: Node, revision: int) -> None:
    """Leave the schema as Node has it after it has installed these revisions of twenty."""
    directory = node.package() / "node_modules" / "graphile-worker" / "sql"
    scripts = sorted(directory.glob("*.sql"))[:revision]
    with psycopg.connect(dsn) as conn:
        conn.execute("create schema graphile_worker")
        conn.execute(
            "create table graphile_worker.migrations"
            " (id int primary key, ts timestamptz default now() not null)"
        )
        for script in scripts:
            text = script.read_text().replace(":GRAPHILE_WORKER_SCHEMA", "graphile_worker")
            conn.execute(text.encode())
        conn.execute(
            "insert into graphile_worker.migrations select generate_series(1, %s)", (revision,)
        )


PREPARE = """
create schema graphile_worker;
create table graphile_worker.migrations (
  id int primary key,
  ts timestamptz not null default now()
  {column}
);
grant usage, create on schema graphile_worker to {role};
alter table graphile_worker.migrations owner to {role};
"""


@contextmanager
def a_role(fleet: Fleet, name: str) -> Iterator[str]:
    """A role that may log in and nothing else; the DSN to do so."""
    fleet.query(f"create role {name} login password 'pw'")
    fleet.query(f"revoke create on database {dbname(fleet)} from public")
    parts = urlsplit(fleet.dsn)
    try:
        yield urlunsplit(parts._replace(netloc=f"{name}:pw@{parts.hostname}:{parts.port}"))
    finally:
        fleet.query(f"drop owned by {name} cascade")
        fleet.query(f"drop role {name}")


def dbname(fleet: Fleet) -> str:
    return fleet.connection.info.dbname


@pytest.mark.parametrize("column", ["", ", breaking boolean not null default false"])
async def test_a_role_without_rights_of_its_own_installs_into_a_prepared_schema_and_works(
    bare_fleet: Fleet, column: str
) -> None:
    fleet = bare_fleet
    with a_role(fleet, "installer") as dsn:
        fleet.query(PREPARE.format(column=column, role="installer"))
        await run_migrations(dsn)
        assert fleet.query(REVISIONS) == FULL
        async with WorkerUtils(dsn) as utils:
            job = await utils.add_job("step", {"name": "x"})
        seen: list[int] = []
        await run_once(dsn, tasks={"step": lambda _payload, ctx: seen.append(ctx.job.id)})
        assert seen == [job.id]


@pytest.mark.parametrize(
    ("column", "code"), [("", 1), (", breaking boolean not null default false", 0)]
)
async def test_node_needs_a_right_for_a_prepared_schema_of_the_oldest_form(
    bare_fleet: Fleet, node: Node, column: str, code: int
) -> None:
    fleet = bare_fleet
    with a_role(fleet, "installer") as dsn:
        fleet.query(PREPARE.format(column=column, role="installer"))
        done = node.cli(LATEST, "--schema-only", "--connection", dsn, check=False)
        assert done.returncode == code
        await run_migrations(dsn)
        assert fleet.query(REVISIONS) == FULL


async def test_a_role_that_may_not_install_is_told_what_it_lacks(bare_fleet: Fleet) -> None:
    fleet = bare_fleet
    with a_role(fleet, "nobody_much") as dsn:
        with pytest.raises(MigrationError) as caught:
            await run_migrations(dsn)
        for part in ("'nobody_much'", "'graphile_worker'", dbname(fleet), "permission denied"):
            assert part in str(caught.value)
        fleet.query("create schema graphile_worker")
        with pytest.raises(MigrationError, match="grant usage on schema"):
            await run_migrations(dsn)


@pytest.mark.parametrize("schema", ["Other-S", 'a "b" c', "münze"])
@pytest.mark.parametrize("first", SIDES)
async def test_both_sides_work_in_a_schema_whose_name_needs_quotes(
    bare_fleet: Fleet, install: Install, first: Side, schema: str
) -> None:
    fleet = bare_fleet
    fleet.query(LEDGER)
    install(first, fleet.dsn, schema)
    quoted = '"' + schema.replace('"', '""') + '"'
    for runner in SIDES:
        fleet.query(f"select {quoted}.add_job('step', json_build_object('name', %s::text))", runner)
        async with WorkerUtils(fleet.dsn, schema=schema) as utils:
            await utils.add_job("step", {"name": "queued"}, queue_name="q", job_key="k")
        fleet.run_once(runner, schema=schema)
    assert fleet.query(f"select count(*) from {quoted}._private_jobs") == [0]
    assert sorted((run.side, run.name) for run in fleet.runs()) == [
        ("node", "node"),
        ("node", "queued"),
        ("python", "python"),
        ("python", "queued"),
    ]
