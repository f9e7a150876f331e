"""The least a worker needs: get notified, lock a job, record the time. `work_floor.py DSN`."""

import signal
import sys
import time
from typing import Any

import progress
import psycopg

LOCK = """
update graphile_worker._private_jobs as jobs
set attempts = jobs.attempts + 1, locked_by = 'floor', locked_at = now()
where jobs.id = (
  select id from graphile_worker._private_jobs
  where is_available and run_at <= now()
  order by priority, run_at limit 1
  for update skip locked
)
returning jobs.id, jobs.payload
"""
DONE = "delete from graphile_worker._private_jobs where id = %s"


def main(dsn: str) -> None:
    seen = progress.Seen()
    told = time.monotonic()

    def end(*_: Any) -> None:
        seen.tell_end()
        sys.exit()

    signal.signal(signal.SIGTERM, end)
    hears = psycopg.connect(dsn, autocommit=True)
    locks = psycopg.connect(dsn, autocommit=True)
    hears.execute('listen "jobs:insert"')
    cursor = locks.cursor()
    print("ready", flush=True)
    while True:
        list(hears.notifies(timeout=progress.INTERVAL, stop_after=1))
        while row := cursor.execute(LOCK, prepare=True).fetchone():
            if "sent" in row[1]:
                seen.timed(row[1]["sent"])
            else:
                seen.job()
            cursor.execute(DONE, row[:1], prepare=True)
        if time.monotonic() - told > progress.INTERVAL:
            told = time.monotonic()
            print("count", seen.count, seen.last, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
