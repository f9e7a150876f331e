"""Plugins keep tables in the side schema, and release what dead pools held with their jobs."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, LiteralString

import psycopg
import pytest

from graphile_worker_py import ConfigurationError, DeadPool, Plugin, Runner
from graphile_worker_py.events import JobSuccess, PoolListenSuccess, PoolRecovered
from graphile_worker_py.schema import own
from graphile_worker_py.sql.suspects import HeldJob
from tests.faults.conftest import StartWorker
from tests.faults.ledger import FAST, Ledger
from tests.faults.test_killed_workers import begun, make_short
from tests.support.eventually import eventually
from tests.support.running import Told

INSTALLER = "python"

LEASES: Final[list[list[LiteralString]]] = [
    ["create table graphile_worker_py.leases (holder text not null)"],
    [
        "alter table graphile_worker_py.leases add column released boolean",
        "create index leases_holder on graphile_worker_py.leases (holder)",
    ],
]
APPLIED = "select leaf, id from graphile_worker_py.leaf_migrations order by leaf, id"
CORE = "select id from graphile_worker_py.migrations order by id"
HELD = "select holder from graphile_worker_py.leases order by holder"
EXISTS = "select to_regclass('graphile_worker_py.leases') is not null as exists"
NOTE = "insert into graphile_worker_py.leases (holder) values (%s)"


@pytest.fixture(autouse=True)
def no_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test what it has registered."""
    monkeypatch.setattr(own, "REGISTERED", {})


@pytest.fixture
def ledger(ledger: Ledger) -> Iterator[Ledger]:
    """A ledger of a database without a side schema, before and after the test."""
    ledger.query("drop schema if exists graphile_worker_py cascade")
    yield ledger
    ledger.query("drop schema if exists graphile_worker_py cascade")


class Note(Plugin):
    """Writes down which pools died, in the leaf's table."""

    leaf = "leases"

    async def recovered(
        self, conn: psycopg.AsyncConnection[Any], pools: Sequence[DeadPool]
    ) -> None:
        for pool in pools:
            await conn.execute(NOTE, (f"{type(self).__name__} {pool.pool_id}",))


class NoteJobs(Plugin):
    """Keeps the jobs that dead pools had locked."""

    def __init__(self) -> None:
        self.jobs: list[HeldJob] = []

    async def recovered(
        self, conn: psycopg.AsyncConnection[Any], pools: Sequence[DeadPool]
    ) -> None:
        for pool in pools:
            self.jobs.extend(pool.jobs)


class Raise(Note):
    async def recovered(
        self, conn: psycopg.AsyncConnection[Any], pools: Sequence[DeadPool]
    ) -> None:
        await super().recovered(conn, pools)
        raise LookupError("no lease")


class Swallow(Note):
    async def recovered(
        self, conn: psycopg.AsyncConnection[Any], pools: Sequence[DeadPool]
    ) -> None:
        await super().recovered(conn, pools)
        try:
            await conn.execute("select 1/0")
        except psycopg.errors.DivisionByZero:
            pass


async def test_the_migrations_of_a_leaf_are_applied_once_and_apart_from_those_of_the_core(
    dsn: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events, **FAST):
        await told.seen(PoolListenSuccess)  # the schema is there
    core = ledger.query(CORE)
    own.register_migrations("leases", LEASES[:1])
    for _ in range(2):
        async with Runner(dsn, tasks={"work": print}, **FAST) as runner:
            await eventually(lambda: runner.pool_id in ledger.pools())
        assert ledger.query(APPLIED) == [{"leaf": "leases", "id": 1}]
    monkeypatch.setattr(own, "REGISTERED", {})
    own.register_migrations("leases", LEASES)
    async with (
        Runner(dsn, tasks={"work": print}, **FAST) as one,
        Runner(dsn, tasks={"work": print}, **FAST) as two,
    ):
        await eventually(lambda: {one.pool_id, two.pool_id} <= set(ledger.pools()))
    assert ledger.query(APPLIED) == [{"leaf": "leases", "id": 1}, {"leaf": "leases", "id": 2}]
    assert ledger.query("select released from graphile_worker_py.leases") == []
    assert ledger.query(CORE) == core


async def test_plugins_release_what_a_dead_pool_held_and_one_that_fails_stops_no_recovery(
    dsn: str,
    ledger: Ledger,
    start_worker: StartWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own.register_migrations("leases", LEASES)
    told = Told()
    plugins = [Raise(), Swallow(), Note()]
    options: dict[str, Any] = {"tasks": {"work": print}, "hooks": plugins, "events": told.events}
    killed = start_worker(**FAST)
    ledger.add("work", {"seconds": 3600})
    dead = await begun(ledger, killed, 1)
    make_short(ledger)
    async with Runner(dsn, **options, **FAST), Runner(dsn, **options, **FAST):
        await told.seen(PoolListenSuccess, count=2)
        killed.kill()
        await told.seen(PoolRecovered)
        await told.seen(JobSuccess)
    (event,) = told.of(PoolRecovered)
    assert (event.dead_pool_ids, event.jobs, event.failed_plugins) == ((dead,), 1, 2)
    assert ledger.query(HELD) == [{"holder": f"Note {dead}"}]
    assert "could not release what dead pools held" in caplog.text
    assert "LookupError: no lease" in caplog.text
    assert "the plugin left the transaction failed or ended" in caplog.text
    assert ledger.locked() == []


async def test_a_plugin_learns_which_jobs_a_dead_pool_had_begun(
    dsn: str, ledger: Ledger, start_worker: StartWorker
) -> None:
    plugin, told = NoteJobs(), Told()
    ids = [ledger.add("work", {"seconds": 3600}) for _ in range(4)]
    killed = start_worker(**FAST, concurrent_jobs=2, local_queue=4)
    dead = await begun(ledger, killed, 2)
    make_short(ledger)
    async with Runner(dsn, tasks={"work": print}, hooks=[plugin], events=told.events, **FAST):
        await told.seen(PoolListenSuccess)
        killed.kill()
        await told.seen(PoolRecovered)
    assert [(job.job_id, job.pool_id, job.attempt, job.has_begun) for job in plugin.jobs] == [
        (job_id, dead, 1, at < 2) for at, job_id in enumerate(ids)
    ]
    assert all(job.run_at <= job.locked_at for job in plugin.jobs)


async def test_a_leaf_whose_tables_are_missing_sends_nothing_and_stops_no_worker(
    dsn: str,
    ledger: Ledger,
    start_worker: StartWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own.register_migrations("leases", [*LEASES, ["create table nowhere.at_all ()"]])
    told = Told()
    killed = start_worker(**FAST)
    ledger.add("work", {"seconds": 3600})
    await begun(ledger, killed, 1)
    make_short(ledger)
    async with Runner(
        dsn, tasks={"work": print}, hooks=[Raise()], events=told.events, **FAST
    ) as runner:
        await told.seen(PoolListenSuccess)
        await eventually(lambda: runner.pool_id in ledger.pools())
        killed.kill()
        await told.seen(JobSuccess)
    assert [event.failed_plugins for event in told.of(PoolRecovered)] == [0]
    assert "Could not create the tables of 'leases' in the schema graphile_worker_py" in caplog.text
    # Its migrations are applied all or none.
    assert ledger.query(EXISTS) == [{"exists": False}]


def test_a_leaf_is_registered_under_one_name_once() -> None:
    own.register_migrations("leases", LEASES)
    own.register_migrations("leases", LEASES)
    with pytest.raises(ConfigurationError, match="already registered with other migrations"):
        own.register_migrations("leases", LEASES[:1])
    for name in ("", "Leases", "leases; drop", "1st"):
        with pytest.raises(ConfigurationError, match="name of a leaf must be"):
            own.register_migrations(name, LEASES)
