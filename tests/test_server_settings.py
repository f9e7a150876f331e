"""A round of work where a role or database has other settings than the defaults."""

from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import pytest
from psycopg import RawCursor, sql

from graphile_worker_py import (
    JobContext,
    JobSpec,
    Runner,
    SyncJobContext,
    SyncWorkerUtils,
    WorkerUtils,
)
from graphile_worker_py.events import JobComplete
from graphile_worker_py.postgres.query import Query
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

# A role that is read-only by default is not among them: hosts set it when a disk is full.
SETTINGS: Final[dict[str, dict[str, str]]] = {
    "latin": {"client_encoding": "LATIN1"},
    "ascii": {"client_encoding": "SQL_ASCII"},
    "japanese": {"client_encoding": "EUC_JP"},
    "chinese": {"client_encoding": "GB18030"},
    "german": {"DateStyle": "German, DMY", "IntervalStyle": "iso_8601", "TimeZone": "-03:30"},
    "american": {
        "DateStyle": "SQL, MDY",
        "IntervalStyle": "sql_standard",
        "TimeZone": "Asia/Kathmandu",
    },
    "verbose": {
        "DateStyle": "Postgres, YMD",
        "IntervalStyle": "postgres_verbose",
        "timezone_abbreviations": "India",
    },
    "arrays": {"array_nulls": "off"},
    "values": {"bytea_output": "escape", "extra_float_digits": "-15", "xmlbinary": "hex"},
    "quoting": {
        "standard_conforming_strings": "off",
        "backslash_quote": "off",
        "escape_string_warning": "off",
        "quote_all_identifiers": "on",
    },
    "time-outs": {
        "statement_timeout": "5s",
        "lock_timeout": "1s",
        "idle_in_transaction_session_timeout": "1s",
        "idle_session_timeout": "500ms",
    },
    "serializable": {
        "default_transaction_isolation": "serializable",
        "default_transaction_deferrable": "on",
    },
    "repeatable": {"default_transaction_isolation": "repeatable read"},
    "no path": {"search_path": "nowhere", "row_security": "off"},
    "catalog last": {"search_path": "public, graphile_worker, pg_catalog"},
    "loud": {"client_min_messages": "debug5", "log_statement": "all"},
    "silent": {"client_min_messages": "error", "track_activities": "off"},
    "replica": {"session_replication_role": "replica"},
    "compiled": {"jit": "on", "jit_above_cost": "0", "plan_cache_mode": "force_generic_plan"},
    "planned": {
        "plan_cache_mode": "force_custom_plan",
        "from_collapse_limit": "1",
        "join_collapse_limit": "1",
        "geqo_threshold": "2",
        "enable_nestloop": "off",
        "enable_indexscan": "off",
        "work_mem": "64kB",
    },
    "odd": {
        "transform_null_equals": "on",
        "check_function_bodies": "off",
        "xmloption": "document",
        "constraint_exclusion": "on",
        "synchronous_commit": "off",
        "default_text_search_config": "german",
        "lo_compat_privileges": "on",
    },
    "elsewhere": {"default_tablespace": "nowhere", "temp_tablespaces": "nowhere"},
}
LISTS: Final = ("DateStyle", "search_path", "temp_tablespaces")
TEXT: Final = "ä'\n\\"
PLAIN: Final = "?options=-c%20DateStyle%3DISO%20-c%20client_encoding%3Dutf8"


def change_settings(dsn: str, settings: dict[str, str], of: str) -> None:
    """Let sessions of a database begin with settings."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = sql.Identifier(conn.info.dbname)
        whose = {
            "database": sql.SQL("database {}").format(name),
            "role": sql.SQL("role {} in database {}").format(sql.Identifier(conn.info.user), name),
        }
        known = {row[0].lower() for row in conn.execute("select name from pg_settings")}
        for setting, value in settings.items():
            if setting.lower() not in known:  # PostgreSQL 12 lacks one
                assert setting == "idle_session_timeout"
                continue
            given = [each.strip() for each in value.split(",")] if setting in LISTS else [value]
            conn.execute(
                sql.SQL("alter {} set {} = {}").format(
                    whose[of],
                    sql.Identifier(setting),
                    sql.SQL(", ").join(map(sql.Literal, given)),
                )
            )


async def on_the_loop(payload: Any, ctx: JobContext) -> None:
    assert payload == {"text": TEXT, "n": 1.5}
    await ctx.add_job("in_a_thread", payload, queue_name="q", job_key="k", flags=["a"])
    async with ctx.connection() as conn:
        await conn.execute("select 1")


def in_a_thread(payload: Any, ctx: SyncJobContext) -> None:
    assert payload == {"text": TEXT, "n": 1.5}
    assert (ctx.job.key, ctx.get_queue_name()) == ("k", "q")
    with ctx.connection() as conn:
        conn.execute("select 1")
    ctx.add_job("batch", [1, TEXT])


async def batch(payload: list[Any]) -> list[Any]:
    async def fail() -> None:
        raise ValueError(TEXT)

    return [None, fail()]


TASKS: Final[Any] = {"on_the_loop": on_the_loop, "in_a_thread": in_a_thread, "batch": batch}


@pytest.mark.parametrize(
    ("settings", "of"),
    [*((name, "database") for name in SETTINGS), ("arrays", "role"), ("verbose", "role")],
)
async def test_a_round_of_work_is_done_under_any_setting(
    empty_dsn: str, settings: str, of: str
) -> None:
    change_settings(empty_dsn, SETTINGS[settings], of)
    jobs, told = Jobs(f"{empty_dsn}{PLAIN}"), Told()
    options: Any = {"crontab": "* * * * * recurring ?fill=1h", "events": told.events}
    async with WorkerUtils(empty_dsn) as utils, Runner(empty_dsn, tasks=TASKS, **options):
        await utils.add_job("on_the_loop", {"text": TEXT, "n": 1.5})
        await told.seen(JobComplete, count=3)
        with SyncWorkerUtils(empty_dsn) as blocking:
            blocking.add_jobs([JobSpec("many", TEXT, queue_name="many") for _ in range(250)])
        assert {job.payload for job in await utils.list_jobs(task="many", limit=None)} == {TEXT}
        (failed,) = await utils.list_jobs(task="batch")
        await eventually(lambda: jobs.one(failed.id)["locked_by"] is None)
        assert (await utils.counts()).tasks["many"].ready == 250
        (run,) = await utils.list_runs()
        assert run.error == f"Batch failures:\n{TEXT}"
    rows = {job["task_identifier"]: job for job in jobs.all()}
    assert rows["batch"]["payload"] == [TEXT]
    assert rows["batch"]["last_error"] == f"Batch failures:\n{TEXT}"
    assert rows["batch"]["run_at"] > rows["batch"]["created_at"]
    assert [rows[name]["key"] for name in rows] == [None] * len(rows)
    assert jobs.locked() == []


UNNEST: Final = """
select *
from rows from (
  unnest($1::int8[]), unnest($2::text[]), unnest($3::int4[]), unnest($4::float8[]),
  unnest($5::timestamptz[]), unnest($6::bool[]), unnest($7::text[])
) as given
"""


@pytest.mark.parametrize("array_nulls", ["on", "off"])
def test_nulls_in_arrays_are_nulls_under_any_setting(dsn: str, array_nulls: str) -> None:
    now = datetime.now(UTC)
    columns = [[1, 2], ["NULL", None], [None, 70_000], [0.5, None], [None, now], [None, True]]
    query = Query(UNNEST, (*columns, [None, None]), list)
    with psycopg.connect(dsn) as conn:
        conn.execute(f"set array_nulls = {array_nulls}")
        rows = RawCursor(conn).execute(query.text, query.values).fetchall()
    assert rows == [
        (1, "NULL", None, 0.5, None, None, None),
        (2, None, 70_000, None, now, True, None),
    ]
