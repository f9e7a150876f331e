"""Statements mean PostgreSQL's own functions, operators, types and tables, whatever is planted.

A role that may create objects in a schema of the search path could otherwise run code as the
worker's role: a function or operator with exactly the types of the arguments is preferred to a
built-in one that needs a conversion.
"""

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from graphile_worker_py.postgres.query import Statements
from graphile_worker_py.schema.migrate import read_migration
from graphile_worker_py.sql import migrations, own_schema
from tests.support.statements import Hostile, all_statements, side_migrations

INSTALLER = "python"

STATEMENTS = sorted(set(all_statements()))
SAMPLES = {
    "select exp($1::pg_catalog.int4)": "function early.exp(integer)",
    "select array_position($1::pg_catalog.int4[], 1)": "early.array_position(integer[],integer)",
    "select 1 from unnest($1::pg_catalog.text[])": "function early.unnest(text[])",
    "select $1::pg_catalog.float8 * 2": "operator public.*(double precision,integer)",
    "select $1::text": "type pg_temp",
    "select from pg_class": "relation pg_temp",
}


@pytest.fixture(scope="module")
def hostile(server: Any, template: Any) -> Iterator[Hostile]:
    """A session in whose search path everything is planted."""
    dsn = server.create_database(template("python"))
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        psycopg.connect(dsn, autocommit=True) as other,
    ):
        hostile = Hostile(conn, other)
        _install(conn)
        yield hostile
    server.drop_database(dsn)


def _install(conn: psycopg.Connection[Any]) -> None:
    """Create in this session all that the package creates."""
    conn.execute(quoted(migrations.create_schema().text))
    conn.execute(quoted(migrations.BOOTSTRAP))
    for revision in (18, 19, 20):
        conn.execute(quoted(read_migration(revision)))
    conn.execute(own_schema.create_schema().text)
    for statement in side_migrations():
        conn.execute(statement)
    conn.execute(own_schema.create_leaf_table().text)


def quoted(text: str) -> bytes:
    """A statement for the schema that this test installs."""
    return Statements("installed")[text]


@pytest.mark.parametrize("sample", SAMPLES)
def test_what_is_not_qualified_means_what_was_planted(hostile: Hostile, sample: str) -> None:
    assert any(SAMPLES[sample] in each for each in hostile.strangers(sample))


def test_nothing_that_is_created_means_anything_that_was_planted(hostile: Hostile) -> None:
    hostile.conn.execute("create table sample (flag bool default early.max('a'::text))")
    assert hostile.dependents() != []
    hostile.conn.execute("drop table sample")
    assert hostile.dependents() == []


def test_every_function_is_called_with_its_schema(hostile: Hostile) -> None:
    known = hostile.built_in_functions() - {"extract", "position"}  # which are grammar
    found = {
        f"{name}: {function}"
        for name, text in STATEMENTS
        for function in re.findall(r"(?<![.\w])(\w+)\(", text)
        if function in known
    }
    assert found == set()


@pytest.mark.timeout(60)
def test_no_statement_means_anything_that_was_planted(hostile: Hostile) -> None:
    found = {name: hostile.strangers(text) for name, text in STATEMENTS}
    hijacked = [f"{name}: {', '.join(what)}" for name, what in found.items() if what]
    assert not hijacked, "\n".join(hijacked)
    assert len(found) > 70
