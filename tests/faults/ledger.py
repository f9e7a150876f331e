"""A record of every run of every job, kept in the database by the tasks themselves."""

from typing import Any, Final

import psycopg

from tests.support.jobs import Jobs

FAST: Final[dict[str, Any]] = {"heartbeat_interval": 0.1, "dead_after": 0.5, "poll_interval": 3600}
"""Options with which a death is found within a second, and nothing by polling."""
FASTER: Final = {"heartbeat_interval": 0.025, "dead_after": 0.05}
"""And with these, one whose session speaks for it is dead after two seconds."""

MAKE: Final = """
create table public.runs (
  id bigint generated always as identity primary key,
  job_id bigint not null,
  pool_id text not null,
  started_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz
)
"""
HELD: Final = """
select 1 from pg_locks, graphile_worker_py.pools
where locktype = 'advisory' and granted and pool_id = %s and pg_locks.pid = lock_pid
  and (classid::bigint << 32) | objid::bigint = lock_key
"""
BEGIN: Final = "insert into public.runs (job_id, pool_id) values (%s, %s) returning id"
END: Final = "update public.runs set ended_at = clock_timestamp() where id = %s"


class Ledger(Jobs):
    """Jobs that record their runs."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.query(MAKE)

    def runs(self, job_id: int | None = None) -> list[dict[str, Any]]:
        """The runs of a job, or of all jobs, in order."""
        return self.query(
            "select * from public.runs where %s::bigint is null or job_id = %s order by id",
            job_id,
            job_id,
        )

    def running(self, pool_id: str) -> int:
        """How many runs of a pool have begun and not ended."""
        return len(
            [run for run in self.runs() if run["pool_id"] == pool_id and run["ended_at"] is None]
        )

    def pools(self) -> dict[str, dict[str, Any]]:
        """The registered pools by their ids."""
        rows = self.query("select * from graphile_worker_py.pools order by started_at")
        return {row["pool_id"]: row for row in rows}

    def has_lock(self, pool_id: str) -> bool:
        """Whether a session holds the lock that speaks for a pool."""
        return bool(self.query(HELD, pool_id))

    def suspects(self) -> dict[int, int]:
        """How often a worker died under a job, by the job's id."""
        rows = self.query("select job_id, crashes from graphile_worker_py.suspects")
        return {row["job_id"]: row["crashes"] for row in rows}

    def session(self) -> psycopg.Connection[Any]:
        """A connection of one's own."""
        return psycopg.connect(self.dsn, autocommit=True)
