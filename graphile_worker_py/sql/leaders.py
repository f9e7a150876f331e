"""The leader of a schema: the one pool that does the chores of all."""

from collections.abc import Sequence
from typing import Final, LiteralString

from graphile_worker_py.postgres.query import Query, no_result

LEAF: Final = "leaders"
"""Name under which the table is registered in the side schema."""

# One row for each schema of jobs. The leader updates it with each heartbeat; free room on the page
# keeps these updates away from the index.
MIGRATIONS: Final[Sequence[Sequence[LiteralString]]] = (
    (
        """
        create table graphile_worker_py.leaders (
          worker_schema pg_catalog.text primary key,
          pool_id pg_catalog.text not null,
          until pg_catalog.timestamptz not null
        ) with (fillfactor = 50)
        """,
    ),
)

# A pool that is not the leader only reads. Of two pools that find no leader at the same moment one
# waits for the other's row, and then finds it taken.
_LEAD: Final = """
with standing as (
  select
  from graphile_worker_py.leaders as leaders
  where leaders.worker_schema = $1::pg_catalog.text
    and leaders.pool_id <> $2::pg_catalog.text
    and leaders.until > pg_catalog.clock_timestamp()
),
taken as (
  insert into graphile_worker_py.leaders as leaders (worker_schema, pool_id, until)
  select
    $1::pg_catalog.text,
    $2::pg_catalog.text,
    pg_catalog.clock_timestamp() + $3::pg_catalog.float8 * interval '1 second'
  where not exists (select from standing)
  on conflict (worker_schema) do update
  set pool_id = excluded.pool_id,
    until = excluded.until
  where leaders.pool_id = excluded.pool_id or leaders.until <= pg_catalog.clock_timestamp()
  returning leaders.pool_id
)
select exists (select from taken)
"""


def lead(pool_id: str, *, worker_schema: str, lease: float) -> Query[bool]:
    """Take or renew the lease of the leader for some seconds; returns whether the pool leads."""
    return Query(_LEAD, (worker_schema, pool_id, lease), lambda rows: bool(rows[0][0]))


_STEP_DOWN: Final = """
delete from graphile_worker_py.leaders as leaders
where leaders.worker_schema = $1::pg_catalog.text and leaders.pool_id = $2::pg_catalog.text
"""


def step_down(pool_id: str, *, worker_schema: str) -> Query[None]:
    """Give the lease back, so that another pool can lead at once."""
    return Query(_STEP_DOWN, (worker_schema, pool_id), no_result, prepare=False)
