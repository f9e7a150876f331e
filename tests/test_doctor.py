"""The `doctor` command: each thing that is wrong is found, with its remedy; the exit code tells."""

import asyncio
import json
import re
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo

import graphile_worker_py
from graphile_worker_py import ConfigurationError, Runner, SyncWorkerUtils, run_migrations, task
from graphile_worker_py.cli.main import main
from graphile_worker_py.observing import findings
from graphile_worker_py.observing.doctor import examine
from graphile_worker_py.observing.findings import Finding, Severity
from graphile_worker_py.sql.checkup import Holder, ServerFacts
from graphile_worker_py.sql.table_sizes import TableSize
from tests.support.eventually import eventually
from tests.support.node import WITHOUT_SIDE_SCHEMA
from tests.support.running import Jobs

SERVER = ServerFacts(
    version=180000,
    backend_pid=1,
    now=0.0,
    in_recovery=False,
    connections=3,
    settings={
        "autovacuum": "on",
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "off",
        "max_connections": "100",
        "statement_timeout": "0",
        "synchronous_commit": "on",
        "track_counts": "on",
    },
)
TABLE = TableSize(
    schema="graphile_worker",
    name="_private_jobs",
    size=9,
    rows=9,
    dead=0,
    vacuumed=None,
    partitions=0,
)


@task
async def known_task(payload: Any) -> None: ...


def doctor(dsn: str, *flags: str, **env: str) -> Result:
    return CliRunner().invoke(main, ["doctor", "--connection", dsn, *flags], env=env)


def found(dsn: str, **env: str) -> dict[str, str]:
    """The findings of each check, with those of the same check joined.

    Those about the server of the tests, which is set to be fast and not safe, are left out.
    """
    result = doctor(dsn, "--json", **env)
    told = json.loads(result.stdout)
    joined: dict[str, str] = {}
    for each in told["findings"]:
        assert each["remedy"]
        if each["fact"].startswith(("autovacuum is off", "synchronous_commit is off")):
            continue
        line = f"{each['severity']}: {each['fact']}"
        joined[each["check"]] = "\n".join(filter(None, [joined.get(each["check"]), line]))
    problems = [each for each in told["findings"] if each["severity"] == "problem"]
    assert told["problems"] == len(problems)
    assert result.exit_code == (1 if problems else 0), result.output
    return joined


async def test_a_database_in_order_has_no_finding(dsn: str, stored: Jobs) -> None:
    await run_migrations(dsn, side_schema=True)
    async with Runner(dsn, tasks=[known_task]):
        await eventually(
            lambda: stored.query("select tasks from graphile_worker_py.pools where tasks <> '{}'")
        )
        stored.add("known_task")
        assert found(dsn) == {}


@WITHOUT_SIDE_SCHEMA
async def test_without_the_side_schema_there_is_a_notice_only(dsn: str) -> None:
    assert found(dsn, GRAPHILE_WORKER_CONCURENT_JOBS="3") == {
        "pools": "notice: worker pools do not register here",
        "settings": "notice: the variable GRAPHILE_WORKER_CONCURENT_JOBS is not read",
    }
    result = doctor(dsn)
    assert "notice: pools: worker pools do not register here\n  worker pools do" in result.stdout
    assert "graphile-worker-py migrate --side-schema" in result.stdout
    assert re.search(r"^\d problem\(s\), \d notice\(s\)$", result.stdout, re.MULTILINE)


async def test_everything_that_is_wrong_with_jobs_is_found(dsn: str, stored: Jobs) -> None:
    await run_migrations(dsn, side_schema=True)
    stored.exhaust(stored.add("given_up"), stored.add("given_up"))
    stored.lock(stored.add("held"), ago="5 hours")
    stored.add("knwon_task", run_at="2020-01-01T00:00Z")
    stored.query("""
        insert into graphile_worker._private_job_queues (queue_name)
        select 'order-' || n from generate_series(1, 10001) as n
    """)
    stored.query("""
        insert into graphile_worker._private_known_crontabs
          (identifier, known_since, last_execution) values ('nightly', now(), now() + '1 day')
    """)
    await stored.in_thread(
        "alter table graphile_worker._private_jobs set (autovacuum_enabled = false)"
    )
    stored.query("""
        insert into graphile_worker_py.pools
          (pool_id, worker_schema, host, pid, dead_after, lock_key, heartbeat_at)
        values ('pool-late', 'graphile_worker', 'web-1', 7, 8, 1, now() - interval '1 minute')
    """)
    async with Runner(dsn, tasks=[known_task], min_reset_locked_interval=480):
        await eventually(
            lambda: stored.query("select tasks from graphile_worker_py.pools where tasks <> '{}'")
        )
        told = found(dsn)
    assert "2 job(s) were given up: 2 of 'given_up'" in told["failed jobs"]
    assert (
        "'knwon_task' are due, and no live Python pool has it; did you mean 'known_task'?"
        in (told["unknown tasks"])
    )
    assert "10,001 of 10,001 queues have no jobs" in told["queues"]
    assert "cron item 'nightly' last ran at" in told["clock"]
    assert "autovacuum leaves out table graphile_worker._private_jobs" in told["vacuum"]
    assert "1 job(s) and 0 queue(s) have been locked for more than four hours" in told["locks"]
    assert "notice: 1 job(s) are due" in told["backlog"]


async def test_pools_that_are_late_or_missing_are_found(dsn: str, stored: Jobs) -> None:
    await run_migrations(dsn, side_schema=True)
    stored.add("known_task")
    stored.query("""
        insert into graphile_worker_py.pools
          (pool_id, worker_schema, host, pid, dead_after, lock_key, heartbeat_at)
        values ('pool-late', 'graphile_worker', 'web-1', 7, 8, 1, now() - interval '1 minute')
    """)
    told = found(dsn)["pools"]
    assert "pool pool-late (process 7 on web-1) was last heard of " in told
    assert "1 job(s) are due, and no Python worker pool is alive" in told


def test_open_transactions_and_poolers_are_found(dsn: str) -> None:
    with (
        SyncWorkerUtils(dsn, migrate=False) as utils,
        psycopg.connect(dsn, application_name="reports") as holding,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        holding.execute("select 1")
        steps = examine(
            "graphile_worker", backend_pid=-1, listens_directly=False, longest_transaction=0.0
        )
        told = {each.check: each for each in utils._run_steps(steps, conn)}
        pid = holding.info.backend_pid
    assert f"transaction {pid} (role " in told["transactions"].fact
    assert ", reports, idle in transaction) has been open for" in told["transactions"].fact
    assert told["transactions"].remedy == f"end it: select pg_terminate_backend({pid})"
    assert "goes through a pooler" in told["pooler"].fact
    assert list(findings.of_pooler(pooled=True, listens_directly=True)) == []


def test_missing_rights_are_found_with_the_statements_that_grant_them(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = conn.info.dbname + "_doctor"
        conn.execute(f"create role {name} login bypassrls password 'secret'")
        try:
            conn.execute(f"grant usage on schema graphile_worker to {name}")
            conn.execute(f"grant select on all tables in schema graphile_worker to {name}")
            result = doctor(make_conninfo(dsn, user=name, password="secret"))
        finally:
            conn.execute(f"drop owned by {name} cascade")
            conn.execute(f"drop role {name}")
    assert result.exit_code == 1
    assert f"problem: rights: role '{name}' lacks rights" in result.stdout
    assert f'to "{name}"' in result.stdout


def settings(**given: str) -> ServerFacts:
    return replace(SERVER, settings={**SERVER.settings, **given})


@pytest.mark.parametrize(
    ("facts", "check", "severity"),
    [
        (replace(SERVER, in_recovery=True), "settings", Severity.PROBLEM),
        (settings(default_transaction_read_only="on"), "settings", Severity.PROBLEM),
        (settings(autovacuum="off"), "vacuum", Severity.PROBLEM),
        (settings(track_counts="off"), "vacuum", Severity.PROBLEM),
        (settings(statement_timeout="5000"), "settings", Severity.NOTICE),
        (settings(default_transaction_isolation="serializable"), "settings", Severity.NOTICE),
        (settings(synchronous_commit="off"), "settings", Severity.NOTICE),
        (replace(SERVER, connections=95), "connections", Severity.PROBLEM),
    ],
)
def test_settings_of_the_server_that_hinder_workers_are_found(
    facts: ServerFacts, check: str, severity: Severity
) -> None:
    (finding,) = findings.of_server(facts)
    assert (finding.check, finding.severity) == (check, severity)


def test_a_server_in_order_has_no_finding() -> None:
    assert list(findings.of_server(SERVER)) == []


@pytest.mark.parametrize(
    ("offset", "uncertainty", "told"),
    [
        (5.0, 0.1, "the server's clock is 5.0 s ahead of this machine's"),
        (-120.0, 0.1, "the server's clock is 2.0 min behind this machine's"),
        (5.0, 4.0, None),
        (0.5, 0.0, None),
    ],
)
def test_a_clock_that_differs_by_more_than_the_answer_took_is_found(
    offset: float, uncertainty: float, told: str | None
) -> None:
    facts = [each.fact for each in findings.of_clock(offset, uncertainty)]
    assert facts == ([] if told is None else [told])


def test_dead_rows_and_large_tables_and_what_holds_vacuum_back_are_found() -> None:
    dead = replace(TABLE, dead=200_000, rows=9)
    large = replace(TABLE, schema="graphile_worker_py", name="job_runs", size=3 * 2**30)
    slot = Holder(kind="replication slot", name="old", age=None, about="without a client")
    prepared = Holder(kind="prepared transaction", name="it's", age=400.0, about="role app")
    told: list[Finding] = list(findings.of_tables([TABLE, dead, large], [], [slot, prepared]))
    assert [(each.check, each.fact.partition(":")[0]) for each in told] == [
        ("transactions", "replication slot old (without a client)"),
        ("transactions", "prepared transaction it's (role app) has been open for 6.7 min"),
        (
            "vacuum",
            "table graphile_worker._private_jobs has 200,000 dead rows beside 9 live ones",
        ),
        ("side schema", "table graphile_worker_py.job_runs takes 3.0 GiB"),
    ]


async def test_programs_get_the_same_findings_with_problems_first(dsn: str) -> None:
    Jobs(dsn).add("nobody_has_it", {})
    hasty = make_conninfo(dsn, options="-c statement_timeout=5s")
    seen = await graphile_worker_py.doctor(hasty)
    told = json.loads((await asyncio.to_thread(doctor, hasty, "--json")).stdout)["findings"]
    assert [(each.check, each.severity) for each in seen] == [
        (each["check"], each["severity"]) for each in told
    ]
    assert [each.severity for each in seen] == sorted(
        (each.severity for each in seen), key=[Severity.PROBLEM, Severity.NOTICE].index
    )
    assert {each.severity for each in seen} == set(Severity)
    with pytest.raises(ConfigurationError, match="listens_directly must be True or False"):
        await graphile_worker_py.doctor(dsn, listens_directly="no")  # type: ignore[arg-type]
