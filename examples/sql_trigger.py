"""Add jobs in a trigger, so that every inserted row adds a job, in any language.

Run it with a scratch database:

    DATABASE_URL=postgresql://localhost/playground python examples/sql_trigger.py
"""

import asyncio
import os

import psycopg

from graphile_worker_py import run_migrations, run_once, task

SETUP = """
create table if not exists customers (
  id int generated always as identity primary key,
  email text not null
);

-- security definer: roles that insert customers need no rights on the job tables.
create or replace function customer_added() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform graphile_worker.add_job(
    'send_welcome',
    json_build_object('id', new.id, 'email', new.email),
    job_key := 'welcome:' || new.id
  );
  return new;
end
$$;

drop trigger if exists customer_added on customers;
create trigger customer_added after insert on customers
  for each row execute function customer_added();
"""


@task
async def send_welcome(payload: dict[str, str]) -> None:
    print("Welcome", payload["email"])


async def main() -> None:
    dsn = os.environ.get("DATABASE_URL", "")
    await run_migrations(dsn)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(SETUP)
        await conn.execute("insert into customers (email) values ('ada@example.com')")
        async with conn.transaction(force_rollback=True):
            await conn.execute("insert into customers (email) values ('nobody@example.com')")
        print("One row was committed, one was rolled back")
    await run_once(dsn, tasks=[send_welcome])


asyncio.run(main())
