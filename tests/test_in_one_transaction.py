"""A part of a worker sends two statements as one transaction, in one go."""

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.own_connection import OwnConnection
from graphile_worker_py.postgres.query import Query, no_result
from graphile_worker_py.sql.planning import keep_to_indexes

FIRST = Query("select set_config('test.said', $1::text, true)", ("it",), no_result)
READ = "select current_setting('test.said', true)"
SECOND: Query[list[tuple[Any, ...]]] = Query(READ, (), list, after=FIRST)
ALONE: Query[list[tuple[Any, ...]]] = Query(READ, (), list)
FORGET = Query("do $$ begin execute 'deallocate all'; end $$", (), no_result, prepare=False)


@pytest.fixture(params=["pipelines", "no pipelines"], autouse=True)
def pipelines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what libpq brings, and as it is before version 14."""
    if request.param == "no pipelines":
        monkeypatch.setattr(psycopg.AsyncPipeline, "is_supported", lambda: False)


@pytest.fixture
async def line(dsn: str) -> AsyncIterator[OwnConnection]:
    """The connection of a part of a worker."""
    async with opened_pool(dsn, max_size=1) as pool:
        database = Database(pool, schema="graphile_worker")
        async with OwnConnection(database, begin=keep_to_indexes) as line:
            yield line


async def test_the_second_statement_is_of_the_transaction_of_the_first(
    line: OwnConnection,
) -> None:
    for _ in range(3):
        assert await line.run(SECOND) == [("it",)]
        assert await line.run(ALONE) == [("",)]  # which has ended


async def test_an_error_of_either_undoes_the_other(line: OwnConnection) -> None:
    await line.run(Query("create table numbers as select 1 as n", (), no_result))
    change = Query("update numbers set n = n + 1", (), no_result)
    fail = Query("select 1 / $1::int4", (0,), list)
    for first, second in ((change, fail), (fail, change)):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await line.run(Query(second.text, second.values, second.read, after=first))
    assert await line.run(Query("select n from numbers", (), list)) == [(1,)]


async def test_statements_that_the_session_has_lost_are_both_sent_again_unprepared(
    line: OwnConnection, caplog: pytest.LogCaptureFixture
) -> None:
    await line.run(SECOND)
    await line.run(FORGET)
    assert await line.run(SECOND) == [("it",)]
    assert await line.run(SECOND) == [("it",)]
    assert caplog.text.count("Statements are no longer prepared") == 1
