"""When the scheduler adds which jobs: on a clock that the test moves."""
from datetime import UTC, datetime
import asyncio
from graphile_worker_py.cron import *
from graphile_worker_py.db import Database, opened_pool
from graphile_worker_py.events import *
import psycopg

async def test_x(dsn):
    now=[datetime(2026,1,1,10,2,30,tzinfo=UTC)]
    from datetime import timedelta
    async def wait(ev,t):
        now[0]+=timedelta(seconds=t)
        if now[0]>datetime(2026,1,1,10,12,tzinfo=UTC): cron.close()
        await asyncio.sleep(0)
        return ev.is_set()
    ev=Events()
    ev.subscribe(Event, print)
    async with opened_pool(dsn,max_size=2) as pool:
        cron=Cron(Database(pool,schema="graphile_worker"), parse_crontab("*/5 * * * * t {a:1}\n*/2 * * * * u ?jobKey=x&max=3&queue=q&priority=2"), events=ev, clock=lambda: now[0], wait=wait)
        await cron.run()
    with psycopg.connect(dsn) as c:
        for r in c.execute("select j.*, payload from graphile_worker.jobs j join graphile_worker._private_jobs using (id) order by id"): print(r)
        for r in c.execute("select * from graphile_worker._private_known_crontabs"): print(r)
    assert 0
