"""A role with CREATE on the database makes our schemas first, to run its code as the worker."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest

from graphile_worker_py import (
    MigrationError,
    MissingTablesError,
    Runner,
    WorkerUtils,
    doctor,
    run_migrations,
)
from graphile_worker_py.events import JobSuccess
from graphile_worker_py.schema import own
from graphile_worker_py.web import Access, create_app
from tests.faults.ledger import FAST, Ledger
from tests.support.running import Jobs, Told
from tests.web.serving import client_of, served

INSTALLER = "python"

SPY = """
create table public.spied (who text not null, what text not null);
grant insert on public.spied to public;
create function public.spy() returns trigger language plpgsql as
  $$ begin insert into public.spied values (current_user, tg_table_name); return new; end $$;
"""
SPIED = "select who, what from public.spied"
SIDE = """
create table graphile_worker_py.migrations (id int4 primary key, ts timestamptz default now());
insert into graphile_worker_py.migrations (id) values (1), (2);
create table graphile_worker_py.pools (
  pool_id text primary key, worker_schema text, host text, pid int4, started_at timestamptz,
  heartbeat_at timestamptz default now(), dead_after float8, lock_key int8, lock_pid int4,
  is_stopping boolean, died_at timestamptz, recorded_at timestamptz, unlocked_at timestamptz
);
create table graphile_worker_py.suspects (
  worker_schema text, job_id int8, crashes int4, started_by text, recorded_at timestamptz
);
create trigger spy before insert or update on graphile_worker_py.pools
  for each row execute function public.spy();
grant usage, create on schema graphile_worker_py to public;
grant all on all tables in schema graphile_worker_py to public;
"""
JOBS = """
create table graphile_worker.migrations
  (id int4 primary key, ts timestamptz not null default now(), breaking boolean default false);
create trigger spy before insert on graphile_worker.migrations
  for each row execute function public.spy();
grant usage, create on schema graphile_worker to public;
grant all on all tables in schema graphile_worker to public;
"""
STRANGERS_FUNCTION = """
create function graphile_worker_py.spy() returns trigger language plpgsql as
  $$ begin insert into public.spied values (current_user, 'pools'); return new; end $$;
alter function graphile_worker_py.spy() owner to {mallory};
create trigger spy before update on {} for each row execute function graphile_worker_py.spy();
"""
VIEW = """
create function graphile_worker.spy() returns int4 language plpgsql as
  $$ begin insert into public.spied values (current_user, 'view'); return 1; end $$;
create view graphile_worker.migrations as
  select graphile_worker.spy() as id, now() as ts, false as breaking;
grant usage on schema graphile_worker to public;
grant select on graphile_worker.migrations to public;
"""

VIEWS_OF_SPIES = """
create function graphile_worker_py.spy(place text) returns text language plpgsql as
  $$ begin insert into public.spied values (current_user, place); return null; end $$;
"""
COLUMNS = """
select format(
  'create view graphile_worker_py.%1$I as select %2$s from generate_series(1, 2);'
    'grant all on graphile_worker_py.%1$I to public;',
  relname, string_agg(
    format('graphile_worker_py.spy(%L)::%s as %I', relname, type, attname), ', '
    order by attnum
  )
) as text
from (
  select classes.relname, columns.attname, columns.attnum,
    format_type(columns.atttypid, columns.atttypmod) as type
  from pg_class as classes join pg_attribute as columns on columns.attrelid = classes.oid
  where classes.relnamespace = 'graphile_worker_py'::regnamespace and columns.attnum > 0
    and classes.relkind in ('r', 'p', 'v') and not classes.relispartition
) as columns
group by relname
"""


class Roles:
    """Two roles that are no superusers: one runs jobs and may install, the other one plants.

    Attributes:
        admin: What the superuser does.
        worker_dsn: How the worker connects.
    """

    def __init__(self, dsn: str) -> None:
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        self.worker, self.mallory = f"worker_{name}", f"mallory_{name}"
        self.admin = Jobs(dsn)
        for role in (self.worker, self.mallory):
            self.admin.query(f"create role {role} login password 'secret'")
            self.admin.query(f"grant create on database {name} to {role}")
        self.worker_dsn = psycopg.conninfo.make_conninfo(dsn, user=self.worker, password="secret")
        self.script(SPY)

    def script(self, text: str, *, by: str | None = None) -> None:
        """Run statements as the superuser, or as a role."""
        with psycopg.connect(self.admin.dsn) as conn:
            if by is not None:
                conn.execute(f"set role {by}".encode())
            conn.execute(text.encode())

    def plant(self, schema: str, text: str) -> None:
        """Make a schema, and what is in it, as the other role."""
        self.script(f"create schema {schema}; {text}", by=self.mallory)

    def spied(self) -> list[dict[str, Any]]:
        """What the planted code has seen, and as whom."""
        return self.admin.query(SPIED)

    def drop(self) -> None:
        """Leave the server as it was."""
        for role in (self.worker, self.mallory):
            self.admin.query(f"drop owned by {role} cascade")
            self.admin.query(f"drop role {role}")


@pytest.fixture
def roles(empty_dsn: str) -> Iterator[Roles]:
    """The roles, in an empty database."""
    roles = Roles(empty_dsn)
    yield roles
    roles.drop()


async def run_a_job(dsn: str) -> None:
    told = Told()
    async with Runner(dsn, tasks={"work": print}, events=told.events, **FAST) as runner:
        await runner.add_job("work")
        await told.seen(JobSuccess)


async def test_a_planted_side_schema_is_not_used_and_work_goes_on(
    roles: Roles, caplog: pytest.LogCaptureFixture
) -> None:
    roles.plant("graphile_worker_py", SIDE)
    await run_a_job(roles.worker_dsn)
    assert roles.spied() == []
    assert roles.admin.query("select pool_id from graphile_worker_py.pools") == []
    (warning,) = [text for text in caplog.messages if "Working without the schema" in text]
    assert f"it belongs to the role '{roles.mallory}'" in warning
    async with WorkerUtils(roles.worker_dsn) as utils:
        assert await utils.pools() is None
    with pytest.raises(MigrationError, match="is not to be trusted"):
        await run_migrations(roles.worker_dsn, side_schema=True)


async def test_a_superuser_does_not_use_a_planted_side_schema_either(roles: Roles) -> None:
    roles.plant("graphile_worker_py", SIDE)
    await run_a_job(roles.admin.dsn)
    assert roles.spied() == []


REFUSED: list[Callable[[WorkerUtils], Awaitable[object]]] = [
    lambda utils: utils.add_job("work", awaited=True),
    lambda utils: utils.clear_limit("stripe"),
    lambda utils: utils.error_groups(),
    lambda utils: utils.forget(job_id=1),
    lambda utils: utils.handle(1).state(),
    lambda utils: utils.handle(1).wait(timeout=5.0),
    lambda utils: utils.limits(),
    lambda utils: utils.list_runs(),
    lambda utils: utils.pause(queue="mail"),
    lambda utils: utils.pauses(),
    lambda utils: utils.quiet(everything=True),
    lambda utils: utils.reset_breaker("stripe"),
    lambda utils: utils.resume(task="work"),
    lambda utils: utils.set_limit("stripe", 5),
    lambda utils: utils.task_stats(),
]
DONE_WITHOUT: list[Callable[[WorkerUtils], Awaitable[object]]] = [
    lambda utils: utils.backlog(),
    lambda utils: utils.cancel_jobs([1]),
    lambda utils: utils.cleanup(),
    lambda utils: utils.explain(1),
    lambda utils: utils.force_unlock_workers(["pool"]),
    lambda utils: utils.retry_jobs([1]),
    lambda utils: utils.workers(),
]


async def test_programs_that_look_and_steer_do_not_use_a_planted_side_schema(
    roles: Roles, dsn: str
) -> None:
    await run_migrations(dsn, side_schema=True)
    views = "".join(row["text"] for row in Jobs(dsn).query(COLUMNS))
    roles.plant("graphile_worker_py", f"{VIEWS_OF_SPIES}{views}")
    roles.script("grant all on schema graphile_worker_py to public", by=roles.mallory)
    async with WorkerUtils(roles.admin.dsn) as utils:
        for call in DONE_WITHOUT:
            await call(utils)
        for call in REFUSED:
            with pytest.raises(MissingTablesError, match=f"it belongs to .*{roles.mallory}"):
                await call(utils)
    (finding,) = [each for each in await doctor(roles.admin.dsn) if each.check == "pools"]
    assert f"it belongs to the role '{roles.mallory}'" in finding.fact
    app = create_app(roles.admin.dsn, authorize=lambda _request: Access.admin("anna"))
    async with served(app) as url, client_of(url) as client:
        for path in ("/readyz", "/", "/limits", "/api/v1/pauses", "/api/v1/audit"):
            assert (await client.get(path)).status_code == 200
    assert roles.spied() == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "create trigger spy before update on {} for each row execute function public.spy()",
            "trigger 'spy' on the table 'pools'",
        ),
        (
            STRANGERS_FUNCTION,
            "trigger 'spy' on the table 'pools'",
        ),
        ("create rule spy as on update to {} do also select 1", "rule 'spy' on the table 'pools'"),
        ("alter table {} owner to {mallory}", "table 'pools' belongs to the role"),
    ],
)  # fmt: skip
async def test_a_table_that_was_tampered_with_is_not_used(
    roles: Roles, caplog: pytest.LogCaptureFixture, text: str, fault: str
) -> None:
    await run_migrations(roles.worker_dsn, side_schema=True)
    roles.script(f"grant usage, create on schema graphile_worker_py to {roles.mallory}")
    roles.script(text.format("graphile_worker_py.pools", mallory=roles.mallory))
    await run_a_job(roles.worker_dsn)
    assert fault in caplog.text
    assert roles.spied() == []


@pytest.mark.parametrize("owner", ["the owner of the jobs", "a role it is a member of", "admin"])
async def test_a_side_schema_of_a_trusted_role_is_used(roles: Roles, owner: str) -> None:
    name = {"the owner of the jobs": roles.worker, "admin": "postgres"}.get(owner, roles.mallory)
    if owner == "a role it is a member of":
        roles.script(f"grant {roles.mallory} to {roles.worker}")
    await run_migrations(roles.worker_dsn)
    roles.script(
        f"create schema graphile_worker_py authorization {name};"
        f"grant usage, create on schema graphile_worker_py to {roles.worker}"
    )
    told = Told()
    async with Runner(
        roles.worker_dsn, tasks={"work": print}, events=told.events, **FAST
    ) as runner:
        await runner.add_job("work")
        await told.seen(JobSuccess)
        assert [row["pool_id"] for row in Ledger.pools(roles.admin).values()] == [runner.pool_id]  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [JOBS, VIEW, ""], ids=["trigger", "view", "empty"])
@pytest.mark.parametrize("superuser", [False, True])
async def test_nothing_is_installed_into_a_planted_schema(
    roles: Roles, text: str, superuser: bool
) -> None:
    roles.plant("graphile_worker", text or "grant all on schema graphile_worker to public")
    with pytest.raises(MigrationError, match=f"belongs to the role '{roles.mallory}'"):
        await run_migrations(roles.admin.dsn if superuser else roles.worker_dsn)
    assert roles.spied() == []


async def test_a_schema_that_an_administrator_has_prepared_is_installed_into(roles: Roles) -> None:
    roles.script(
        f"create schema graphile_worker; grant usage, create on schema graphile_worker"
        f" to {roles.worker}"
    )
    await run_a_job(roles.worker_dsn)


async def test_a_side_schema_planted_during_the_installation_is_not_used(
    roles: Roles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await run_migrations(roles.worker_dsn)
    check = own.check_trust
    looked: list[int] = []

    async def plant_afterwards(*given: Any) -> bool:
        exists = await check(*given)
        if not looked:
            looked.append(1)
            roles.plant("graphile_worker_py", SIDE)
        return exists

    monkeypatch.setattr(own, "check_trust", plant_afterwards)
    await run_a_job(roles.worker_dsn)
    assert looked == [1]
    assert roles.spied() == []
    assert "Working without the schema graphile_worker_py" in caplog.text
