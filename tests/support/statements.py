"""All statements of the package, and what a server understands by them."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import psycopg

import graphile_worker_py
from graphile_worker_py.job import Job
from graphile_worker_py.postgres.query import SCHEMA_PLACEHOLDER
from graphile_worker_py.sql import cleanup, own_schema
from graphile_worker_py.sql.cleanup import CleanupTask
from graphile_worker_py.sql.complete_jobs import complete_jobs
from graphile_worker_py.sql.fail_jobs import Failure, fail_jobs
from graphile_worker_py.sql.keyed_jobs import get_keyed_jobs
from graphile_worker_py.sql.keyed_values import value_of
from graphile_worker_py.sql.outcomes import BoundRider
from graphile_worker_py.sql.return_jobs import return_jobs
from graphile_worker_py.sql.run_riders import completed_runs, failed_runs
from graphile_worker_py.sql.task_ids import TaskIds
from tests.contrib.django_support import set_up

SCHEMA = "graphile_worker"
PLANNED = re.compile(r"\s*(select|with|insert|update|delete)\b")
FIRST_OF_USERS = 16384
"""Object ids from here on are not PostgreSQL's own."""
OBJECTS = re.compile(
    r":(?:opno|opfuncid|funcid|aggfnoid|winfnoid|relid|vartype|consttype|resulttype"
    r"|funcresulttype|opresulttype|aggtype|wintype|paramtype|array_typeid|element_typeid"
    r"|casetype|coalescetype|minmaxtype|eqOperator|sortOperator|inputcollid) (\d+)"
)
"""Names of objects within the tree of a parsed statement."""
NAMED = """
select 'function ' || oid::regprocedure::text from pg_proc where oid = %(oid)s
union all
select 'operator ' || oid::regoperator::text from pg_operator where oid = %(oid)s
union all
select 'type ' || oid::regtype::text from pg_type where oid = %(oid)s
union all
select 'relation ' || oid::regclass::text from pg_class where oid = %(oid)s
"""
OURS = """
select oid from (
  select oid, pronamespace as namespace from pg_proc
  union all
  select oid, typnamespace from pg_type
  union all
  select oid, relnamespace from pg_class
) as objects
where namespace::regnamespace::text in ('graphile_worker', 'graphile_worker_py')
"""


DEPENDENT = """
with planted as materialized (
  select oid from (
    select oid, pronamespace as namespace from pg_proc
    union all
    select oid, oprnamespace from pg_operator
    union all
    select oid, typnamespace from pg_type
    union all
    select oid, relnamespace from pg_class
  ) as objects
  where namespace::regnamespace::text ~ '^(early|public|pg_temp_.*)$'
)
select distinct
  pg_describe_object(classid, objid, objsubid)
  || ' means ' || pg_describe_object(refclassid, refobjid, refobjsubid)
from pg_depend
where refobjid in (select oid from planted)
  and objid not in (select oid from planted)
  and objid not in (select typarray from pg_type)
"""
"""What depends on planted objects and is not planted itself."""


PARTS = {
    "sql.cancel_jobs._CHANGE",
    "sql.cleanup._COUNT_WITH_AGE",
    "sql.cleanup._DELETE",
    "sql.keyed_jobs._FETCH",
    "sql.keyed_values._VALUE",
}
"""Constants that are only a part of a statement."""


def modules() -> Iterator[ModuleType]:
    """All modules of the package that are not programs."""
    set_up()  # modules for Django read its settings
    for found in pkgutil.walk_packages(graphile_worker_py.__path__, "graphile_worker_py."):
        if not found.name.endswith((".__main__", ".interpreter", ".guard")):
            yield importlib.import_module(found.name)


def side_migrations() -> Iterator[str]:
    """The statements that create the tables of the side schema, the core's first."""
    leaves = [
        module.MIGRATIONS
        for module in modules()
        if "MIGRATIONS" in vars(module) and module is not own_schema
    ]
    for revisions in (own_schema.MIGRATIONS, *leaves):
        for statements in revisions:
            yield from statements


def all_statements() -> Iterator[tuple[str, str]]:
    """Each statement that is a constant of a module, with a name for it."""
    for module in modules():
        for name, value in vars(module).items():
            place = f"{module.__name__.removeprefix('graphile_worker_py.')}.{name}"
            if not isinstance(value, str) or not PLANNED.match(value) or place in PARTS:
                continue
            if "from changed" not in value:
                yield place, value.replace("%s", "$1")
    for task in CleanupTask:
        for query in (cleanup._delete, cleanup._preview):  # the whole statements
            yield f"{query.__name__} {task}", query(task, [], None).text
    limits = [("of a field", "tenant"), ("of a flag", "flag:tenant=")]
    fetch: dict[str, Any] = {"task_ids": TaskIds({}), "count": 1, "forbidden_flags": None}
    yield "keyed", get_keyed_jobs("s", limits, 0, pool_id="p", **fetch).text
    for _, key in limits:
        yield f"value {key}", value_of(1, key).text
    job = Job((1, 1, 1, b"{}", *[None] * 13), "a")
    rider = BoundRider(
        "select changed.id from changed where changed.id = $r1::pg_catalog.int8", [1]
    )
    about: dict[str, Any] = {"worker_schema": "s", "pool_id": "p", "awaited": True}
    array: dict[str, Any] = {"ids": "{}", "durations": "{}", "ages": "{}", "attempts": "{}"}
    completed = completed_runs(**about, **array, payloads=True, tasks=TaskIds({}))
    failed = failed_runs([], **about)
    yield "complete", complete_jobs([job], pool_id="p", riders=[rider, completed]).text
    yield "fail", fail_jobs([Failure(job, "no")], pool_id="p", riders=[rider, failed]).text
    yield "return", return_jobs([job], pool_id="p", riders=[rider]).text


class NotUnderstoodError(Exception):
    """The server refused a statement."""


def understood(conn: psycopg.Connection[Any], statement: str) -> set[int]:
    """The ids of all objects that a statement means on a connection; it is not run."""
    trees: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        trees.append(diagnostic.message_detail or "")

    conn.execute("set client_min_messages = log")
    conn.execute("set debug_print_parse = on")
    conn.add_notice_handler(note)
    try:
        text = statement.replace(SCHEMA_PLACEHOLDER, SCHEMA)
        result = conn.pgconn.prepare(b"", text.encode())
        if result.error_message:
            raise NotUnderstoodError(result.error_message.decode())
    finally:
        conn.remove_notice_handler(note)
        conn.execute("reset debug_print_parse")
        conn.execute("reset client_min_messages")
    assert trees, "the server has sent no tree"
    return {int(oid) for tree in trees for oid in OBJECTS.findall(tree)}


class Hostile:
    """A session in whose search path much is planted.

    Args:
        conn: The session.
        other: Another one of the same database, which reads the catalogs.
    """

    def __init__(self, conn: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> None:
        self.conn = conn
        self._other = other
        other.execute("set search_path = pg_catalog")
        conn.execute("create schema early")
        conn.execute("set search_path = early, public")
        conn.execute(PLANT)
        conn.execute(PLANTED_TYPES)
        conn.execute(PLANTED_TABLES)

    def built_in_functions(self) -> set[str]:
        """Names of PostgreSQL's own functions."""
        names = "select proname::text from pg_proc where pronamespace = 'pg_catalog'::regnamespace"
        return {row[0] for row in self._other.execute(names).fetchall()}

    def dependents(self) -> list[str]:
        """What was created and means something that was planted."""
        return [row[0] for row in self._other.execute(DEPENDENT).fetchall()]

    def strangers(self, statement: str) -> list[str]:
        """What a statement means that is neither PostgreSQL's nor of our schemas."""
        ours = {row[0] for row in self._other.execute(OURS).fetchall()}
        try:
            meant = understood(self.conn, statement)
        except NotUnderstoodError as error:
            return [str(error)]
        found = {oid for oid in meant if oid >= FIRST_OF_USERS}
        names = [
            self._other.execute(NAMED, {"oid": oid}).fetchall() for oid in sorted(found - ours)
        ]
        return [rows[0][0] if rows else "?" for rows in names]


PLANT = """
do $plant$
declare
  types text[] := array[
    'int2', 'int4', 'int8', 'float8', 'numeric', 'oid', 'text', 'varchar', 'name', '"char"',
    'bool', 'timestamptz', 'interval', 'json', 'jsonb', 'regclass',
    'text[]', 'int4[]', 'int8[]', 'oid[]', 'bool[]', 'timestamptz[]'
  ];
  function record;
  symbol text;
  l text;
  r text;
begin
  for function in
    select distinct proname as name, pronargs as arity
    from pg_proc
    where pronamespace = 'pg_catalog'::regnamespace and pronargs in (1, 2)
      and proname in (
        'array_agg', 'array_position', 'count', 'exp', 'format', 'generate_series',
        'has_schema_privilege', 'has_sequence_privilege', 'has_table_privilege',
        'json_to_recordset', 'lower', 'max', 'min', 'nextval', 'obj_description',
        'pg_advisory_xact_lock', 'pg_get_serial_sequence', 'pg_get_userbyid', 'pg_has_role',
        'pg_notify', 'pg_stat_get_activity', 'pg_terminate_backend',
        'pg_try_advisory_lock_shared', 'pg_try_advisory_xact_lock',
        'row_security_active', 'sum', 'to_regclass', 'to_regnamespace', 'unnest'
      )
  loop
    foreach l in array types loop
      if function.arity = 1 then
        execute format('create function early.%I(%s) {body}', function.name, l);
        continue;
      end if;
      foreach r in array types loop
        execute format('create function early.%I(%s, %s) {body}', function.name, l, r);
      end loop;
    end loop;
  end loop;
  foreach l in array types loop
    foreach r in array types loop
      execute format('create function public.planted(%s, %s) {body}', l, r);
      foreach symbol in array array[
        '=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '||', '?|', '@>'
      ] loop
        if not exists (
          select from pg_operator
          where oprnamespace = 'pg_catalog'::regnamespace and oprname = symbol
            and oprleft = l::regtype and oprright = r::regtype
        ) then
          execute format(
            'create operator public.%s (function = public.planted, leftarg = %s, rightarg = %s)',
            symbol, l, r
          );
        end if;
      end loop;
    end loop;
  end loop;
end
$plant$
""".replace("{body}", "returns bool language sql as ''select true''")
"""Plants functions in one schema of the search path, and operators in another.

For each name that our statements use there is one for every type, or pair of types, for which
PostgreSQL itself has none: an exact match is preferred in any schema of the search path.
"""
HIDING = ("bool", "float8", "int2", "int4", "int8", "interval", "json", "jsonb", "oid", "regclass")
PLANTED_TYPES = "".join(
    f"create domain pg_temp.{name} as pg_catalog.{name};"
    for name in (*HIDING, "regnamespace", "text", "timestamptz")
)
PLANTED_TABLES = "".join(
    f"create temp table {name} ();"
    for name in (
        "pg_class",
        "pg_namespace",
        "pg_policy",
        "pg_proc",
        "pg_rewrite",
        "pg_roles",
        "pg_stat_activity",
        "pg_trigger",
    )
)
"""Schema pg_temp comes before all others for types and tables, PostgreSQL's own included."""
