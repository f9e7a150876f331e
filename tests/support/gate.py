"""A gate between the moment when a fetch sees a job and the one when it locks it."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.eventually import eventually
from tests.support.jobs import Jobs

# In a schema that the worker's connections search before PostgreSQL's own functions: the filter
# for forbidden flags stops at a gate, between the reading of a row and its locking.
GATE = """
create schema gate;
create function gate.has_any(flags jsonb, names text[]) returns boolean language plpgsql as $$
begin
  if flags ? 'gate' then
    perform pg_advisory_lock_shared(1);
    perform pg_advisory_unlock_shared(1);
  end if;
  return pg_catalog.jsonb_exists_any(flags, names);
end $$;
create operator gate.?| (leftarg = jsonb, rightarg = text[], function = gate.has_any);
"""
AT_THE_GATE = """
select count(*) from pg_locks
where locktype = 'advisory' and not granted
  and database = (select oid from pg_database where datname = current_database())
"""


class Gate:
    """Holds up a fetch that has seen a job with the flag `gate`, and not locked it yet."""

    def __init__(self, dsn: str) -> None:
        self.jobs = Jobs(dsn)
        self.jobs.query(GATE)
        self.dsn = f"{dsn}?options=-csearch_path%3Dgate,pg_catalog"

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Hold up fetches within the block."""
        with psycopg.connect(self.jobs.dsn, autocommit=True) as conn:
            conn.execute("select pg_advisory_lock(1)")
            yield

    async def reached(self) -> None:
        """Wait until a fetch is held up."""
        await eventually(lambda: self.jobs.query(AT_THE_GATE)[0]["count"] == 1)
