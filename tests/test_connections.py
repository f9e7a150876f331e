"""How many connections there are, where they lead, and what is prepared on them."""

from typing import Any
from urllib.parse import urlsplit

import pytest

from graphile_worker_py import JobContext, WorkerUtils, run_once
from graphile_worker_py.postgres.masking import masked
from tests.support.eventually import eventually
from tests.support.running import Jobs

CONNECTED = """
select count(*) from pg_stat_activity
where datname = current_database() and application_name = 'graphile_worker_py'
"""
PREPARED = "select statement from pg_prepared_statements"


@pytest.mark.parametrize("prepared", [True, False])
async def test_statements_are_prepared_unless_told_otherwise(dsn: str, prepared: bool) -> None:
    async with WorkerUtils(dsn, max_pool_size=1, prepared_statements=prepared) as utils:
        await utils.add_job("work")
        async with utils.pool.connection() as conn:
            rows = await (await conn.execute(PREPARED, prepare=False)).fetchall()
    assert any("add_job" in row[0] for row in rows) is prepared


@pytest.mark.parametrize("allowed", [2, 3, 4])
async def test_there_are_no_more_connections_than_allowed(dsn: str, allowed: int) -> None:
    jobs = Jobs(dsn)
    jobs.add_many(16, "work")
    seen: list[int] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        async with ctx.connection() as conn:

            async def all_are_there() -> bool:
                row = await (await conn.execute(CONNECTED)).fetchone()
                assert row is not None
                seen.append(row[0])
                return bool(row[0] >= allowed)

            # The one for outcomes is made when the first job has ended. From then on whoever has
            # one keeps it until there are as many as there may be.
            if seen:
                await eventually(all_are_there)
            else:
                await all_are_there()

    await run_once(
        dsn,
        tasks={"work": work},
        concurrent_jobs=8,
        max_pool_size=allowed,
        # If it can't have one of these, a heartbeat makes one of its own.
        heartbeat_interval=600,
        dead_after=3600,
    )
    assert jobs.ids() == []
    assert len(seen) >= 16
    assert max(seen) == allowed


@pytest.mark.parametrize("said", ["connection string", "DATABASE_URL", "libpq"])
async def test_the_database_is_named_by_code_or_by_the_environment(
    dsn: str, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    parts = urlsplit(dsn)
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    variables = {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port),
        "PGUSER": parts.username or "",
        "PGPASSWORD": parts.password or "",
        "PGDATABASE": parts.path.lstrip("/"),
    }
    monkeypatch.delenv("DATABASE_URL", raising=False)
    if said == "libpq":
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    else:
        monkeypatch.setenv("PGPORT", "1")
        monkeypatch.setenv("DATABASE_URL", dsn if said == "DATABASE_URL" else nowhere)
    async with WorkerUtils(dsn if said == "connection string" else None) as utils:
        await utils.add_job("work")
    assert len(Jobs(dsn).ids()) == 1


@pytest.mark.parametrize(
    "scheme", ["postgresql+psycopg", "postgresql+asyncpg", "postgres+psycopg2"]
)
async def test_the_driver_in_a_connection_string_is_left_out(dsn: str, scheme: str) -> None:
    other = dsn.replace("postgresql://", f"{scheme}://", 1)
    assert other.startswith(scheme)
    async with WorkerUtils(other) as utils:
        await utils.add_job("work")
    assert (await run_once(other, tasks={"work": print})).completed == 1
    assert masked(f"{scheme}://me:secret@h/db") == f"{scheme}://me:***@h/db"
