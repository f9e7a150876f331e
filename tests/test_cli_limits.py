"""The command `limits`."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import click.testing

from graphile_worker_py import (
    ConcurrencyLimit,
    RateLimit,
    Runner,
    WorkerUtils,
    run_migrations,
    task,
)
from graphile_worker_py.cli.main import main
from tests.support.eventually import eventually
from tests.support.running import Jobs

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"


def call(dsn: str, *args: str, code: int = 0) -> str:
    """Run a command on the test's database, and return what it prints."""
    environment = {"DATABASE_URL": dsn, "GRAPHILE_WORKER_SCHEMA": ""}
    result = click.testing.CliRunner().invoke(main, ["limits", *args], env=environment)
    assert result.exit_code == code, result.output
    return result.output


async def test_limits_are_listed_set_and_cleared_as_the_page_shows(dsn: str) -> None:
    await run_migrations(dsn, side_schema=True)
    assert call(dsn) == "No limits: no worker pool has had one.\n"

    @task("charge", limits=[ConcurrencyLimit(50, name="stripe"), RateLimit(5, name="stripe")])
    async def charge(_payload: Any) -> None:
        pass

    async with Runner(dsn, tasks=[charge]), WorkerUtils(dsn) as utils:
        await utils.add_job("charge")

        async def used() -> bool:
            return len(await utils.limits()) == 2

        await eventually(used)
    assert re.findall(r"graphile-worker-py limits (\w+)", PAGE.read_text()) == [
        "set",
        "clear",
        "breakers",
        "reset",
    ]
    assert "operator (code: 50)" in call(dsn, "set", "stripe", "20")
    assert "7 in 1 s, 1 at once" in call(dsn, "set", "stripe", "7", "--kind", "rate")
    call(dsn, "set", "stripe", "1", "--dry-run")
    listed = {each["kind"]: each for each in json.loads(call(dsn, "--json"))}
    assert [listed[kind]["amount"] for kind in ("concurrency", "rate")] == [20, 7]
    assert listed["concurrency"]["state"] == "free"
    assert "50 at once" in call(dsn, "clear", "stripe")
    assert "there is no breaker 'paypal'" in call(dsn, "reset", "paypal", code=2)
    assert "there is no limit 'paypal'" in call(dsn, "set", "paypal", "1", code=2)


async def test_a_limit_with_a_key_is_listed_with_what_each_value_may_have(dsn: str) -> None:
    await run_migrations(dsn, side_schema=True)
    go_on = asyncio.Event()

    @task("export", limits=[ConcurrencyLimit(2, key="tenant")])
    async def export(_payload: Any) -> None:
        await go_on.wait()

    async with Runner(dsn, tasks=[export], concurrent_jobs=4) as runner, WorkerUtils(dsn) as utils:
        for _ in range(3):
            await utils.add_job("export", {"tenant": "a"})

        async def reached() -> bool:
            return [limit.state for limit in await utils.limits()] == ["full"]

        await eventually(reached)
        assert "2 at once for each tenant" in call(dsn)
        (listed,) = json.loads(call(dsn, "--json"))
        assert (listed["key"], listed["values"]) == ("tenant", {"a": 2})
        assert listed["pools"] == {runner.pool_id: 2}
        go_on.set()


async def test_a_breaker_is_closed_by_its_name(dsn: str) -> None:
    await run_migrations(dsn, side_schema=True)
    opened = (
        "insert into graphile_worker_py.breakers (worker_schema, name, tasks, open_until)"
        " values ('graphile_worker', %s, '{}', now() + interval '1 hour')"
    )
    Jobs(dsn).query(opened, "stripe")
    call(dsn, "reset", "stripe", "--dry-run")
    is_open = "select open_until is not null as open from graphile_worker_py.breakers"
    assert Jobs(dsn).query(is_open) == [{"open": True}]
    assert call(dsn, "reset", "stripe") == "Breaker 'stripe' is closed.\n"
    assert Jobs(dsn).query(is_open) == [{"open": False}]
    assert json.loads(call(dsn, "reset", "stripe", "--json")) == {"closed": "stripe"}
