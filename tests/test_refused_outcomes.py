"""The database refuses the outcome of a job: that job fails, and no other is affected."""

from typing import Any

import psycopg
import pytest

from graphile_worker_py import Runner
from graphile_worker_py.events import JobComplete
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

REFERENCE = """
create table invoices (
  id int primary key, job_id int8 references graphile_worker._private_jobs (id)
)
"""
TRIGGER = """
create function refuse() returns trigger language plpgsql as $$
begin
  if old.payload::text like '%precious%' then
    raise exception 'precious jobs stay';
  end if;
  return old;
end $$;
create trigger refuse before delete on graphile_worker._private_jobs
for each row execute function refuse();
"""


async def test_a_job_that_a_foreign_key_refuses_to_delete_fails_and_the_others_are_done(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, told = Jobs(dsn), Told()
    ids = jobs.add_many(20, "work")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(REFERENCE)
        conn.execute("insert into invoices values (1, %s)", [ids[7]])
    options: Any = {"concurrent_jobs": 20, "complete_job_batch_delay": 0.05}
    async with Runner(dsn, tasks={"work": lambda _: None}, events=told.events, **options):
        await told.seen(JobComplete, count=20)
        await eventually(lambda: jobs.ids() == [ids[7]])
        await eventually(lambda: jobs.one(ids[7])["locked_by"] is None)
        jobs.add("work")
        await told.seen(JobComplete, count=21)
        await eventually(lambda: jobs.ids() == [ids[7]])
    job = jobs.one(ids[7])
    assert job["attempts"] == 1
    assert "violates foreign key constraint" in job["last_error"]
    assert f"Could not complete job {ids[7]} (work), recording it as failed" in caplog.text


async def test_a_job_that_a_trigger_refuses_to_delete_fails_with_the_triggers_error(
    dsn: str,
) -> None:
    jobs, told = Jobs(dsn), Told()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(TRIGGER)
    refused = jobs.add("work", {"precious": True})
    jobs.add("work", {})
    async with Runner(dsn, tasks={"work": lambda _: None}, events=told.events):
        await told.seen(JobComplete, count=2)
        await eventually(lambda: jobs.ids() == [refused])
        await eventually(lambda: jobs.one(refused)["locked_by"] is None)
    assert "precious jobs stay" in jobs.one(refused)["last_error"]
