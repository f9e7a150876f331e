"""Add jobs in a trigger: whoever inserts a row, in whatever language, the job is added with it.

Run it with a database that may be played with:

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

-- security definer: whoever may insert customers need not have rights on the job tables.
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

create or replace trigger customer_added after insert on customers
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
