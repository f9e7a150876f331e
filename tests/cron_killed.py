"""A scheduler that is killed at a chosen statement: `python -m tests.cron_killed DSN N WHEN`."""

import asyncio
import os
import signal
import sys
from typing import Any

from graphile_worker_py.cron import Cron, parse_crontab
from graphile_worker_py.events import Events
from graphile_worker_py.postgres.connecting import opened_pool
from tests.cron_support import CountingDatabase, TestClock, at

CRONTAB = "*/10 * * * * task ?fill=1h"
START = at("10:00:30")
UNTIL = at("10:30:30")
STATEMENTS = 7
"""Register; 09:40, 09:50 and 10:00 from before the start; 10:10, 10:20 and 10:30."""


class DeadlyDatabase(CountingDatabase):
    """Sends statements up to the fatal one."""

    fatal: int
    when: str

    async def run(self, query: Any, *, conn: Any = None, within: float | None = None) -> Any:
        """Send a statement; the fatal one only if it is to be killed after it."""
        if self.sent + 1 == self.fatal and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await super().run(query, conn=conn, within=within)
        if self.sent == self.fatal and self.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result


async def main(dsn: str, fatal: int, when: str) -> None:
    """Run the scheduler over its half hour."""
    clock = TestClock(START, UNTIL)
    async with opened_pool(dsn, max_size=2) as pool:
        database = DeadlyDatabase(pool)
        database.fatal, database.when = fatal, when
        items = parse_crontab(CRONTAB)
        cron = Cron(database, items, events=Events(), clock=clock, wait=clock.wait)
        clock.close = cron.close
        await cron.run()
    print("sent", database.sent)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
