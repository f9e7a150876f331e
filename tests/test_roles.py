"""Roles with no more rights than they need: those of docs/security.md, made as it says there."""

import asyncio
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from graphile_worker_py import (
    JobContext,
    JobSpec,
    MigrationError,
    MissingRightsError,
    Runner,
    WorkerUtils,
    run_once,
)
from graphile_worker_py.cli.main import main as command_line
from graphile_worker_py.events import JobError, JobSuccess, PoolListenSuccess, PoolRecovered
from graphile_worker_py.schema import rights
from graphile_worker_py.sql import history_tables
from tests.support.eventually import eventually
from tests.support.node import BOTH_INSTALLERS
from tests.support.pages import blocks_of
from tests.support.running import Jobs, Told
from tests.worker_utils_support import Api

INSTALLER = "python"

PAGE = Path(__file__).parent.parent / "docs" / "security.md"
ROLE = re.compile(r"\bjobs_(owner|worker|web|admin|reader)\b")
GRANT = re.compile(r"grant [\w, ]+ on .+? to \"[^\"]+\"")
PRIVILEGES = ("select", "insert", "update", "delete", "truncate", "references", "trigger")
GRANTED = """
select relname::text as name
from pg_class
where relnamespace = %s::regnamespace
  and relkind in ('r', 'p') and not relispartition and has_table_privilege(%s, oid, %s)
order by relname
"""

OLD_PARTITION = """
create table graphile_worker_py.runs_failed_20200101
partition of graphile_worker_py.runs_failed for values from ('2020-01-01') to ('2020-01-02')
"""

# What nobody but the owner may do; and the first two not even he.
ELSEWHERE = ["create schema mine", "create table public.mine (id int)"]
ALTERATIONS = [
    *ELSEWHERE,
    "create table graphile_worker.mine (id int)",
    "create function graphile_worker.mine() returns int language sql as 'select 1'",
    "alter table graphile_worker._private_jobs add column mine int",
    "alter table graphile_worker._private_jobs disable row level security",
    "alter table graphile_worker._private_jobs owner to current_user",
    "create policy mine on graphile_worker._private_jobs using (true)",
    "create index mine on graphile_worker._private_jobs (id)",
    "alter table graphile_worker._private_tasks rename to mine",
    "drop table graphile_worker._private_jobs cascade",
    "drop view graphile_worker.jobs",
    "drop function graphile_worker.remove_job",
    "drop schema graphile_worker cascade",
    "drop schema graphile_worker_py cascade",
    "truncate graphile_worker._private_jobs",
    "insert into graphile_worker.migrations (id) values (99)",
    "update graphile_worker.migrations set breaking = true",
    "delete from graphile_worker.migrations",
    "update graphile_worker._private_tasks set identifier = 'mine'",
    "insert into graphile_worker_py.migrations (id) values (99)",
    "create table graphile_worker_py.mine (id int)",
    "drop table graphile_worker_py.pools",
    "grant all on all tables in schema graphile_worker to public",
]


class Roles:
    """The roles of the page in a database of the test's, under names that no other test has."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.prefix = conninfo_to_dict(dsn)["dbname"]

    def named(self, text: str) -> str:
        """A text with the names that the roles have here."""
        return ROLE.sub(rf"{self.prefix}_\1", text)

    def as_(self, role: str) -> str:
        """The connection string of a role."""
        return f"postgresql://{self.named(role)}:secret@{self.dsn.rpartition('@')[2]}"

    def run(self, text: str) -> None:
        """Run statements as the superuser."""
        text = self.named(text)
        for role in re.findall(r"create role (\w+)", text):
            text += f";\nalter role {role} password 'secret'"
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(text.encode())

    def refused(self, role: str, statements: Sequence[str]) -> dict[str, str | None]:
        """What comes of statements that a role sends: the SQLSTATE of each; they are undone."""
        outcomes: dict[str, str | None] = {}
        with psycopg.connect(self.as_(role)) as conn:
            for text in statements:
                outcomes[text] = None
                try:
                    conn.execute(text.encode())
                except psycopg.Error as error:
                    outcomes[text] = error.sqlstate
                conn.rollback()
        return outcomes

    def drop(self) -> None:
        """Drop the roles, with all that they have here."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            found = conn.execute(
                "select quote_ident(rolname) from pg_roles where starts_with(rolname, %s)",
                (f"{self.prefix}_",),
            )
            for (role,) in found.fetchall():
                conn.execute(f"drop owned by {role} cascade; drop role {role}")


@pytest.fixture
def roles(
    empty_dsn: str, install: Callable[..., None], installer: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Roles]:
    """All that the page says is done, in its order."""
    made = Roles(empty_dsn)
    first, *others = [block for block in blocks_of(PAGE) if block.language == "sql"]
    (command,) = [block for block in blocks_of(PAGE) if block.language == "sh"]
    assert [*command.text.split()] == ["graphile-worker-py", "migrate", "--side-schema"]
    try:
        made.run(first.text)
        if installer == "node":
            # It says "create schema if not exists", for which PostgreSQL asks for this right even
            # if the schema is there.
            made.run(f"grant create on database {made.prefix} to jobs_owner")
            install("node", made.as_("jobs_owner"))
        monkeypatch.setenv("DATABASE_URL", made.as_("jobs_owner"))
        done = CliRunner().invoke(command_line, ["migrate", "--side-schema"])
        assert done.exit_code == 0, done.output
        monkeypatch.delenv("DATABASE_URL")
        for block in others:
            made.run(block.text)
        yield made
    finally:
        made.drop()


@pytest.fixture
def told() -> Told:
    """Remembers events."""
    return Told()


def granted(roles: Roles, schema: str, role: str) -> dict[str, list[str]]:
    """What a role may do with the tables of a schema."""
    found: dict[str, list[str]] = {}
    for privilege in PRIVILEGES:
        for row in Jobs(roles.dsn).query(GRANTED, schema, roles.named(role), privilege):
            found.setdefault(row["name"], []).append(privilege)
    return found


@BOTH_INSTALLERS
async def test_a_worker_role_does_all_that_a_worker_does(
    roles: Roles, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(roles.dsn)
    added: list[Any] = []

    async def succeed(payload: Any, ctx: JobContext) -> None:
        await ctx.add_job("added", payload, job_key="key", queue_name="new")
        await ctx.add_jobs([JobSpec("added", {}), JobSpec("added", {})])

    async def fail() -> None:
        raise ValueError("on purpose")

    async def batch(payload: list[Any]) -> list[Any]:
        return [None, asyncio.sleep(0)]

    failing = jobs.add("fail", queue_name="serial")
    jobs.add("succeed", {}, queue_name="serial", job_key="old")
    jobs.add("batch", [1, 2])
    jobs.query(
        "insert into graphile_worker_py.pools"
        " (pool_id, worker_schema, host, pid, heartbeat_at, dead_after, lock_key)"
        " values ('pool-dead', 'graphile_worker', 'elsewhere', 1, now() - interval '1 min', 0.2, 7)"
    )
    orphan = jobs.add("orphan", queue_name="orphans")
    jobs.query(
        "update graphile_worker._private_job_queues set locked_by = 'pool-dead', locked_at = now()"
        " where queue_name = 'orphans'"
    )
    jobs.change(orphan, "locked_by = 'pool-dead', locked_at = now(), attempts = 1")
    stale = jobs.add("stale")
    jobs.change(stale, "locked_by = 'pool-gone', locked_at = now() - interval '5 hours'")
    async with Runner(
        roles.as_("jobs_worker"),
        tasks={
            "succeed": succeed,
            "fail": fail,
            "batch": batch,
            "added": added.append,
            "orphan": print,
            "stale": print,
            "cron": print,
        },
        crontab="* * * * * cron ?fill=2m",
        concurrent_jobs=3,
        poll_interval=0.2,
        heartbeat_interval=0.1,
        dead_after=10,
        min_reset_locked_interval=0.05,
        max_reset_locked_interval=0.1,
        events=told.events,
    ):
        await told.seen(PoolListenSuccess)
        await told.seen(PoolRecovered)
        await eventually(lambda: len(added) == 3)
        done = {"succeed", "batch", "added", "orphan", "stale"}
        await eventually(
            lambda: done <= {event.job.task_identifier for event in told.of(JobSuccess)}
        )
        assert Jobs(roles.dsn).query("select pool_id from graphile_worker_py.pools") != []
    # When a minute has just begun there is a new job of the crontab.
    left = [job["id"] for job in jobs.all() if job["task_identifier"] != "cron"]
    assert left == [failing]
    assert [event.job.id for event in told.of(JobError)] == [failing]
    assert jobs.one(failing)["last_error"] == "on purpose"
    assert jobs.locked() == []
    # Nothing was done without, or tried in vain.
    complaints = [record.message for record in caplog.records if record.levelname == "WARNING"]
    expected = ("Pool pool-dead is dead", "Reset the locks of 1 job(s)", f"Failed job {failing} (")
    assert [line for line in complaints if not line.startswith(expected)] == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_worker_role_runs_the_crontab_that_is_behind(roles: Roles, told: Told) -> None:
    jobs = Jobs(roles.dsn)
    jobs.query(
        "insert into graphile_worker._private_known_crontabs"
        " values ('cron', now() - interval '1 day', now() - interval '1 hour')"
    )
    async with Runner(
        roles.as_("jobs_worker"),
        tasks={"cron": print},
        crontab="* * * * * cron ?fill=5m",
        events=told.events,
    ):
        await told.seen(JobSuccess)
    assert told.of(JobError) == []


@pytest.mark.parametrize("role", ["jobs_worker", "jobs_admin", "jobs_web", "jobs_reader"])
def test_no_role_but_the_owner_can_alter_anything(roles: Roles, role: str) -> None:
    outcomes = roles.refused(role, ALTERATIONS)
    assert {text: state for text, state in outcomes.items() if state != "42501"} == {}
    # The statements are right: it is for want of rights that they fail.
    undone = roles.refused("jobs_owner", [text for text in ALTERATIONS if text not in ELSEWHERE])
    assert {text: state for text, state in undone.items() if state is not None} == {}


def test_a_worker_role_has_the_rights_that_a_worker_needs_and_no_more(roles: Roles) -> None:
    needed = {table: sorted(all_) for table, all_ in rights.SCHEDULING.items()}
    has = granted(roles, "graphile_worker", "jobs_worker")
    assert {table: sorted(all_) for table, all_ in has.items()} == needed
    everything = ["select", "insert", "update", "delete"]
    assert granted(roles, "graphile_worker_py", "jobs_worker") == {
        "migrations": ["select"],
        "pools": everything,
        "suspects": everything,
        "crontab_items": ["select", "insert", "update"],
        "leaf_migrations": ["select"],
        "leaders": everything,
        "runs_completed": ["select", "insert"],
        "runs_failed": ["select", "insert"],
        "task_minutes": ["select", "insert", "update"],
        "job_state": everything,
        "awaited": everything,
        "pauses": everything,
        "changes": ["select", "insert", "update"],
        "limits": ["select", "insert", "update"],
        "limit_permits": everything,
        "limit_leases": everything,
        "limit_rates": ["select", "insert", "update"],
        "breakers": ["select", "insert", "update"],
    }


async def test_a_worker_role_without_rights_for_history_works_without_and_says_so(
    roles: Roles, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(roles.dsn)
    worker = roles.named("jobs_worker")
    jobs.query(f"revoke select on graphile_worker_py.leaf_migrations from {worker}")
    jobs.add("work")
    options: Any = {"tasks": {"work": print}, "events": told.events}
    async with Runner(roles.as_("jobs_worker"), **options) as runner:
        await told.seen(JobSuccess)
        assert [trouble.partition(":")[0] for trouble in runner.health().troubles] == [
            "history is not kept"
        ]
        assert runner.pool_id in {
            row["pool_id"] for row in jobs.query("select pool_id from graphile_worker_py.pools")
        }
    # With the right to read which tables there are, but not to write them.
    jobs.query(f"grant select on graphile_worker_py.leaf_migrations to {worker}")
    jobs.query(f"revoke insert on graphile_worker_py.runs_completed from {worker}")
    jobs.add("work")
    async with Runner(roles.as_("jobs_worker"), history="all", **options) as runner:
        await told.seen(JobSuccess, count=2)
        await eventually(lambda: jobs.ids() == [])
        assert "permission denied for table runs_completed" in str(runner.health().rider_error)
    warnings = [
        record.message
        for record in caplog.records
        # Another test may have registered tables of further leaves.
        if record.levelname == "WARNING"
        and not re.search(r"'(web|leases|pausing|limits)'", record.message)
    ]
    assert [text.partition(" (")[0] for text in warnings] == [
        "Could not create the tables of 'leaders' in the schema graphile_worker_py",
        "Could not create the tables of 'history' in the schema graphile_worker_py",
        "Recording outcomes without history for 60 s",
    ]


async def test_a_worker_role_adds_and_drops_partitions(roles: Roles, told: Told) -> None:
    jobs = Jobs(roles.dsn)
    await jobs.in_thread("drop table graphile_worker_py.runs_failed cascade")
    with psycopg.connect(roles.as_("jobs_owner"), autocommit=True) as conn:
        (failed,) = [text for text in history_tables.MIGRATIONS[0] if "runs_failed (\n" in text]
        conn.execute(failed)
        conn.execute(OLD_PARTITION)
        conn.execute(
            f"grant select, insert on graphile_worker_py.runs_failed to "
            f"{roles.named('jobs_worker')}".encode()
        )
    names = "select relname::text as name from pg_class where relname like 'runs\\_failed\\_2%'"
    options: Any = {"tasks": {"work": print}, "events": told.events, "heartbeat_interval": 0.2}
    async with Runner(roles.as_("jobs_worker"), dead_after=10, **options) as runner:
        await eventually(
            lambda: (
                len(found := {row["name"] for row in jobs.query(names)}) == 9
                and "runs_failed_20200101" not in found
            )
        )
        assert runner.health().plugin_failures == 0


async def test_a_worker_without_one_of_its_rights_names_it_and_does_not_start(
    roles: Roles,
) -> None:
    jobs = Jobs(roles.dsn)
    worker = roles.named("jobs_worker")
    checks = [(True, rights.SCHEDULING), (False, rights.WORKING)]
    for (scheduling, needs), refused in itertools.product(checks, PRIVILEGES[:4]):
        for table in [table for table, all_ in needs.items() if refused in all_]:
            jobs.query(f"revoke {refused} on graphile_worker.{table} from {worker}")
            with pytest.raises(MissingRightsError) as told:
                await start(roles.as_("jobs_worker"), "0 4 * * * work" if scheduling else None)
            (grant,) = GRANT.findall(str(told.value))
            assert grant == f'grant {refused} on "graphile_worker"."{table}" to "{worker}"'
            jobs.query(grant)
    await start(roles.as_("jobs_worker"), "0 4 * * * work")


async def start(dsn: str, crontab: str | None = None) -> None:
    """Start a worker, and stop it at once."""
    async with Runner(dsn, tasks={"work": print}, crontab=crontab, no_side_schema=True):
        pass


async def test_without_crontab_and_jobs_to_add_a_worker_needs_less(
    roles: Roles, told: Told
) -> None:
    jobs = Jobs(roles.dsn)
    worker = roles.named("jobs_worker")
    jobs.query(f"revoke insert on graphile_worker._private_jobs from {worker}")
    jobs.query(f"revoke insert on graphile_worker._private_job_queues from {worker}")
    jobs.query(f"revoke all on graphile_worker._private_known_crontabs from {worker}")
    job_id = jobs.add("work", queue_name="q")
    await run_once(roles.as_("jobs_worker"), tasks={"work": print}, events=told.events)
    assert [event.job.id for event in told.of(JobSuccess)] == [job_id]
    assert jobs.ids() == []


async def test_an_add_only_role_adds_by_the_function_and_in_no_other_way(
    roles: Roles, told: Told
) -> None:
    payload = {"to": "ada@example.com"}
    with psycopg.connect(roles.as_("jobs_web")) as conn:
        text = "select jobs_api.add_job(%s, %s::json, job_key => 'welcome', queue_name => 'mail')"
        (row,) = conn.execute(text, ("send_email", json.dumps(payload))).fetchall()
    (job,) = Jobs(roles.dsn).all()
    key = "web:send_email:welcome"
    assert (job["id"], job["payload"], job["key"]) == (row[0], payload, key)
    assert job["queue_name"] == "web:mail"
    outcomes = roles.refused(
        "jobs_web",
        [
            "select jobs_api.add_job('drop_database')",
            "select jobs_api.add_job(null)",
            "select graphile_worker.add_job('send_email')",
            "select graphile_worker.remove_job('welcome')",
            "select graphile_worker.complete_jobs(array[1])",
            "select * from graphile_worker.jobs",
            "select * from graphile_worker._private_jobs",
            "select * from graphile_worker_py.pools",
            "alter function jobs_api.add_job set search_path = public",
            "create function jobs_api.mine() returns int language sql as 'select 1'",
        ],
    )
    assert set(outcomes.values()) == {"42501"}, outcomes
    seen: list[Any] = []
    await run_once(roles.as_("jobs_worker"), tasks={"send_email": seen.append}, events=told.events)
    assert seen == [payload]


# Functions of the caller's, of the names that PostgreSQL's have, that tell who runs them.
TRAP = """
create schema trap authorization {web};
grant usage on schema trap to public;
create table trap.caught (role name);
grant all on trap.caught to public;
create function trap.now() returns timestamptz language sql as $$
  insert into trap.caught select current_user;
  select pg_catalog.now()
$$;
create function trap.pg_notify(text, text) returns void language sql as $$
  insert into trap.caught select current_user
$$;
create function trap.json_build_object(text, bigint) returns json language sql as $$
  insert into trap.caught select current_user;
  select '{{}}'::json
$$;
"""


@pytest.mark.parametrize("safe", [True, False], ids=["as on the page", "without search_path"])
def test_a_caller_cannot_have_code_of_his_own_run_by_the_owner(roles: Roles, safe: bool) -> None:
    jobs = Jobs(roles.dsn)
    roles.run(TRAP.format(web="jobs_web"))
    if not safe:
        jobs.query("alter function jobs_api.add_job reset search_path")
    with psycopg.connect(roles.as_("jobs_web"), autocommit=True) as conn:
        conn.execute("set search_path = trap, pg_catalog")
        conn.execute("select jobs_api.add_job('send_email', '{}', 'q')")
    caught = {row["role"] for row in jobs.query("select role from trap.caught")}
    # Without it the trap works, or this test would show nothing.
    assert caught == (set() if safe else {roles.named("jobs_owner")})


async def test_an_add_only_role_that_opens_worker_utils_is_told_what_it_lacks(
    roles: Roles,
) -> None:
    with pytest.raises(MissingRightsError) as told:
        async with WorkerUtils(roles.as_("jobs_web")):
            pass
    web, owner = roles.named("jobs_web"), roles.named("jobs_owner")
    assert str(told.value) == (
        f"role {web!r} lacks rights in schema 'graphile_worker'. Connect as its owner {owner!r}, "
        f'or let the owner run: grant usage on schema "graphile_worker" to "{web}"; '
        f'grant select on "graphile_worker"."migrations" to "{web}"'
    )


@pytest.mark.parametrize("form", ["async", "sync"])
async def test_an_admin_role_does_all_that_worker_utils_can_do(roles: Roles, form: str) -> None:
    jobs = Jobs(roles.dsn)
    async with Api(form).opened(roles.as_("jobs_admin")) as utils:
        await utils.migrate()
        one = await utils.add_job("one", {"n": 1}, queue_name="q", job_key="one")
        assert (await utils.add_job("one", {"n": 2}, job_key="one")).revision == 1
        two, three, four = await utils.add_jobs([JobSpec("two", {}, queue_name="q")] * 3)
        assert [job.id for job in await utils.complete_jobs([two.id])] == [two.id]
        assert [job.id for job in await utils.permanently_fail_jobs([three.id], "no")] == [three.id]
        assert (await utils.reschedule_jobs([four.id], attempts=3))[0].attempts == 3
        found = await utils.get_job(four.id)
        assert found is not None
        assert found.attempts == 3
        assert len(await utils.list_jobs()) == 3
        assert (await utils.counts()).failed == 1
        assert [queue.name for queue in await utils.queues()] == ["q"]
        jobs.change(four.id, "locked_by = 'pool-1', locked_at = now()")
        assert [worker.pool_id for worker in await utils.workers()] == ["pool-1"]
        assert (await utils.force_unlock_workers(["pool-1"])).jobs == 1
        removed = await utils.remove_job("one")
        assert removed is not None
        assert removed.id == one.id
        await utils.complete_jobs([four.id])
        done = await utils.cleanup(
            ["GC_TASK_IDENTIFIERS", "GC_JOB_QUEUES", "DELETE_PERMAFAILED_JOBS"]
        )
    assert {str(task): count for task, count in done.items()} == {
        "DELETE_PERMAFAILED_JOBS": 1,
        "GC_TASK_IDENTIFIERS": 2,
        "GC_JOB_QUEUES": 1,
    }


def test_an_admin_role_may_use_the_commands(roles: Roles) -> None:
    Jobs(roles.dsn).add("work")
    for words in (["jobs"], ["counts"], ["workers"], ["health"], ["complete", "1", "--yes"]):
        done = CliRunner().invoke(command_line, [*words, "-c", roles.as_("jobs_admin")])
        assert done.exit_code == 0, (words, done.output)


def test_a_reader_sees_jobs_and_no_payloads(roles: Roles) -> None:
    Jobs(roles.dsn).add("work", {"secret": 1})
    with psycopg.connect(roles.as_("jobs_reader")) as conn:
        cursor = conn.execute("select * from graphile_worker.jobs")
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        assert len(cursor.fetchall()) == 1
    assert "payload" not in names
    outcomes = roles.refused(
        "jobs_reader",
        [
            "select payload from graphile_worker._private_jobs",
            "select graphile_worker.add_job('work')",
            "delete from graphile_worker.jobs",
        ],
    )
    assert outcomes.pop("delete from graphile_worker.jobs") in ("42501", "55000")
    assert set(outcomes.values()) == {"42501"}


async def enter_utils(dsn: str) -> None:
    """Open `WorkerUtils`."""
    async with Api("async").opened(dsn):
        pass


async def enter_sync_utils(dsn: str) -> None:
    """Open `SyncWorkerUtils`."""
    async with Api("sync").opened(dsn):
        pass


OPENERS: dict[str, Callable[[str], Any]] = {
    "Runner": start,
    "run_once": functools.partial(run_once, tasks={"work": print}),
    "WorkerUtils": enter_utils,
    "SyncWorkerUtils": enter_sync_utils,
}


@pytest.mark.parametrize("opener", OPENERS)
async def test_what_the_error_says_to_do_helps(roles: Roles, opener: str) -> None:
    jobs = Jobs(roles.dsn)
    roles.run("create role jobs_web_2 login bypassrls".replace("jobs_web_2", '"jobs_web"" 2"'))
    name = roles.named('jobs_web" 2')
    jobs.query(f"""alter role "{name.replace('"', '""')}" password 'secret'""")
    dsn = make_conninfo(roles.dsn, user=name, password="secret")
    refusals = 0
    while refusals < 4:
        try:
            await OPENERS[opener](dsn)
        except MissingRightsError as error:
            _, _, advice = str(error).partition("let the owner run: ")
            with psycopg.connect(roles.as_("jobs_owner"), autocommit=True) as conn:
                conn.execute(advice.encode())
            refusals += 1
        else:
            break
    # At most one for what is needed to look, and one for what is needed to work.
    assert 1 <= refusals <= 2


async def test_a_role_that_may_not_upgrade_says_so_only_where_it_would_have_to(
    roles: Roles,
) -> None:
    jobs = Jobs(roles.dsn)
    async with WorkerUtils(roles.as_("jobs_worker")) as utils:
        await utils.migrate()
    jobs.query("delete from graphile_worker.migrations where id > 18")
    with pytest.raises(MigrationError, match="may not install or upgrade schema") as told:
        async with WorkerUtils(roles.as_("jobs_worker")):
            pass
    assert not isinstance(told.value, MissingRightsError)
