"""What commands and pages show can be read through WorkerUtils, which then changes nothing."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from graphile_worker_py import (
    ConfigurationError,
    MigrationError,
    MissingRightsError,
    Runner,
    SyncWorkerUtils,
    WorkerUtils,
)
from graphile_worker_py.errors import IncompatibleSchemaError
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.support.node import WITHOUT_SIDE_SCHEMA
from tests.worker_utils_support import Api

PAST = datetime(2020, 1, 1, tzinfo=UTC)
POOLS = "select pool_id from graphile_worker_py.pools"


async def test_looking_only_refuses_a_schema_that_is_missing_and_installs_nothing(
    api: Api, empty_dsn: str
) -> None:
    with pytest.raises(MigrationError, match=r"'jobs' is not installed .*graphile-worker-py migr"):
        async with api.opened(empty_dsn, schema="jobs", migrate=False):
            pass
    assert Jobs(empty_dsn).query("select to_regnamespace('jobs') as found") == [{"found": None}]


async def test_looking_only_refuses_a_newer_schema(api: Api, dsn: str, stored: Jobs) -> None:
    stored.query("insert into graphile_worker.migrations (id, breaking) values (1000, true)")
    with pytest.raises(IncompatibleSchemaError, match="breaking change at 1000"):
        async with api.opened(dsn, migrate=False):
            pass


async def test_looking_only_leaves_an_older_schema_as_it_is(
    api: Api, dsn: str, stored: Jobs
) -> None:
    stored.query("delete from graphile_worker.migrations where id = 20")
    async with api.opened(dsn, migrate=False) as utils:
        assert await utils.revision() == 19
    async with api.opened(dsn) as utils:
        assert await utils.revision() == 20


async def test_looking_only_names_the_rights_that_a_role_lacks(
    api: Api, dsn: str, stored: Jobs
) -> None:
    name = f"{conninfo_to_dict(dsn)['dbname']}_poor"
    stored.query(f"create role {name} login password 'secret'")
    try:
        with pytest.raises(MissingRightsError, match="grant usage on schema"):
            async with api.opened(make_conninfo(dsn, user=name, password="secret"), migrate=False):
                pass
    finally:
        stored.query(f"drop role {name}")


@pytest.mark.parametrize("kind", [WorkerUtils, SyncWorkerUtils])
def test_whether_to_migrate_is_true_or_false(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="migrate must be True or False, not 'no'"):
        kind(migrate="no")


async def test_the_backlog_counts_due_jobs_and_old_locks(utils: WorkerUtils, stored: Jobs) -> None:
    due = await utils.add_job("a", run_at=datetime.now(UTC) - timedelta(seconds=100))
    stale = await utils.add_job("a", queue_name="q")
    await utils.add_job("a", run_at=datetime.now(UTC) + timedelta(days=1))
    stored.lock(stale.id, ago="5 hours")
    backlog = await utils.backlog()
    assert (backlog.due_jobs, backlog.stale_jobs, backlog.stale_queues) == (1, 1, 1)
    assert 100 <= backlog.oldest_due < 200
    await utils.complete_jobs([due.id])
    assert (await utils.backlog()).oldest_due == 0


async def test_known_crontabs_are_read_by_identifier(utils: WorkerUtils, stored: Jobs) -> None:
    stored.query(
        "insert into graphile_worker._private_known_crontabs values"
        " ('b', '2020-01-01 00:00Z', null), ('a', '2020-01-01 00:00Z', '2020-01-02 00:00Z')"
    )
    known = await utils.known_crontabs()
    assert [(each.identifier, each.known_since, each.last_execution) for each in known] == [
        ("a", PAST, PAST + timedelta(days=1)),
        ("b", PAST, None),
    ]


async def test_pools_that_register_are_read(api: Api, dsn: str) -> None:
    async with (
        Runner(dsn, tasks={"work": print}) as runner,
        api.opened(dsn) as utils,
        api.opened(dsn, schema="elsewhere") as others,
    ):
        pools = await eventually(utils.pools)
        assert pools is not None
        assert [(pool.pool_id, pool.overdue, pool.stopping) for pool in pools] == [
            (runner.pool_id, False, False)
        ]
        assert await others.pools() == []


@WITHOUT_SIDE_SCHEMA
async def test_where_pools_do_not_register_there_is_no_list_of_them(
    api: Api, dsn: str, utils: WorkerUtils
) -> None:
    assert await utils.pools() is None
    async with api.connection(dsn) as conn:
        assert await utils.pools(conn=conn) is None
        job = await utils.add_job("a", conn=conn)  # the transaction has not failed
        await api.on(conn, "commit")
    assert await utils.get_job(job.id) is not None


async def test_a_role_that_may_not_read_the_pools_gets_no_list_of_them(
    api: Api, dsn: str, stored: Jobs
) -> None:
    async with Runner(dsn, tasks={"work": print}):
        async with api.opened(dsn) as owner:
            await eventually(owner.pools)
        name = f"{conninfo_to_dict(dsn)['dbname']}_reader"
        await stored.in_thread(f"create role {name} login password 'secret' bypassrls")
        try:
            stored.query(f"grant usage on schema graphile_worker to {name}")
            stored.query(f"grant select on graphile_worker.migrations to {name}")
            reader = make_conninfo(dsn, user=name, password="secret")
            with pytest.raises(psycopg.errors.InsufficientPrivilege), psycopg.connect(reader) as c:
                c.execute(POOLS)
            async with api.opened(reader, migrate=False) as utils:
                assert await utils.pools() is None
        finally:
            await stored.in_thread(f"drop owned by {name}")
            await stored.in_thread(f"drop role {name}")
