"""Statements that are read together, and generators that go side by side."""

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import psycopg_pool
import pytest

from graphile_worker_py.errors import MissingTablesError
from graphile_worker_py.postgres.blocking import SyncDatabase
from graphile_worker_py.postgres.connecting import opened_pool
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Pause, Query, Steps
from graphile_worker_py.postgres.together import one, side_by_side, together


def numbers(most: int | None, note: str | None = None) -> Query[list[tuple[Any, ...]]]:
    text = (
        "with all_of as (select n, $2::text from generate_series(1, $1::int4) as n)"
        " select * from all_of order by 1 desc"
    )
    return Query(text, (most, note), list)


NO_TABLE: Query[Any] = Query("select secret from no_table where id = $1::int4", (1,), list)
SLOW: Query[Any] = Query("select pg_catalog.pg_sleep(60)", (), list)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with opened_pool(dsn, max_size=1) as pool:
        yield Database(pool, schema="graphile_worker")


def noting(steps: Steps[Any], sent: list[Any]) -> Steps[Any]:
    """The same steps, each noted."""
    step = next(steps)
    try:
        while True:
            sent.append(step)
            try:
                step = steps.send((yield step))
            except psycopg.Error as error:
                step = steps.throw(error)
    except StopIteration as end:
        return end.value


async def test_rows_of_statements_that_are_read_together_are_as_of_each(
    database: Database,
) -> None:
    raw: Query[Any] = Query("select now() = now(), null::text, '{\"a\": 1.50}'::json", (), list)
    dated: Query[Any] = Query("select timestamptz '2026-01-31 04:00:00Z', array[1, 2]", (), list)
    asked = [numbers(2, "$1"), numbers(0), raw, dated, numbers(2, "$1"), numbers(None)]
    apart = [await database.run(each) for each in asked]
    assert await database.run(together(asked)) == apart
    assert apart[0] == [(2, "$1"), (1, "$1")]


def ladder(height: int) -> Steps[int]:
    """Ask `height` times for the next number."""
    reached = 0
    for _ in range(height):
        reached += len((yield numbers(1)))
    return reached


def nested(height: int) -> Steps[list[Any]]:
    return (yield from side_by_side(ladder(height), one(numbers(2))))


async def test_generators_side_by_side_take_as_many_statements_as_the_longest(
    database: Database,
) -> None:
    sent: list[Any] = []
    steps = side_by_side(ladder(0), ladder(3), nested(2), one(numbers(3)))
    found = await database.drive(noting(steps, sent))
    assert found == [0, 3, [2, [(2, None), (1, None)]], [(3, None), (2, None), (1, None)]]
    assert len(sent) == 3


def test_programs_without_an_event_loop_read_together_too(dsn: str) -> None:
    with psycopg_pool.ConnectionPool(dsn, min_size=0, max_size=1) as pool:
        steps = side_by_side(ladder(2), ladder(1))
        assert SyncDatabase(pool, schema="graphile_worker").drive(steps) == [2, 1]


def careful(query: Query[Any]) -> Steps[str]:
    try:
        yield query
    except psycopg.errors.UndefinedTable:
        return "missing"
    return "there"


async def test_a_missing_table_is_the_error_of_the_generator_that_asked_for_it(
    database: Database,
) -> None:
    inner = side_by_side(careful(NO_TABLE), ladder(2))
    steps = side_by_side(careful(NO_TABLE), careful(numbers(1)), ladder(2), inner)
    assert await database.drive(steps) == ["missing", "there", 2, ["missing", 2]]
    with pytest.raises(psycopg.errors.UndefinedTable):
        await database.drive(side_by_side(ladder(1), one(NO_TABLE)))


async def test_what_ends_one_generator_ends_all(database: Database) -> None:
    closed = []

    def waits() -> Steps[None]:
        try:
            while True:
                yield numbers(1)
        finally:
            closed.append(True)

    def refuses() -> Steps[None]:
        yield numbers(1)
        raise MissingTablesError("there is none")

    with pytest.raises(MissingTablesError, match="there is none"):
        await database.drive(side_by_side(waits(), refuses()))
    with pytest.raises(psycopg.OperationalError, match="did not answer within"):
        await database.drive(side_by_side(waits(), one(SLOW)), within=0.2)
    with pytest.raises(TypeError, match="only statements can be sent together, not Pause"):
        await database.drive(side_by_side(waits(), (each for each in [Pause(1.0)])))
    assert closed == [True] * 3
