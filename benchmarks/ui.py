"""Measure the web application on a large table: `python -m benchmarks.ui` prints a table.

With `--write` the table also goes into `docs/performance.md`.

It fills a temporary server with jobs and with runs of jobs, and asks for each page many times: how
long the server takes, how many statements it sends, and whether one of them scans the jobs.
"""

import asyncio
import gzip
import statistics
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg import sql

from graphile_worker_py import run_migrations
from graphile_worker_py.dev.postgres import EmbeddedPostgres
from graphile_worker_py.postgres.database import Database
from graphile_worker_py.postgres.query import Query
from graphile_worker_py.sql import census
from graphile_worker_py.web import Access, create_app
from graphile_worker_py.web.serving import freeze_start

JOBS = 5_000_000
ROUNDS = 30
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN = "<!-- pages: written by `python -m benchmarks.ui --write` -->"
END = "<!-- end of pages -->"
TASKS = 20
FILL = """
insert into graphile_worker._private_jobs
  (task_id, job_queue_id, payload, run_at, attempts, last_error)
select
  (array(select id from graphile_worker._private_tasks order by id))[1 + n %% %(tasks)s],
  case when n %% 10 = 0 then 1 end,
  json_build_object('customer', n),
  now() + (n %% 7 - 5) * interval '1 hour',
  case when n %% 200 = 0 then 25 else 0 end,
  case when n %% 200 = 0 then 'TimeoutError: no answer for customer ' || n end
from generate_series(1, %(jobs)s) as n
"""
RUNS = """
insert into graphile_worker_py.{table} (
  worker_schema, job_id, job_created_at, task, attempt, outcome, run_at, started_at, finished_at,
  duration, pool_id, error, error_group
)
select
  'graphile_worker', n, at - interval '2 s', 'task_' || n %% %(tasks)s, 1, %(outcome)s,
  at - interval '1 s', at - interval '0.5 s', at, 0.5, 'pool-' || n %% 8, %(error)s,
  case when %(error)s::text is not null then md5((n %% 50)::text) end
from (
  select n, now() - n * interval '7 days' / %(runs)s as at from generate_series(1, %(runs)s) as n
) as runs
"""
MINUTES = """
insert into graphile_worker_py.task_minutes
  (worker_schema, task, minute, completed, failed, wait, run)
select
  'graphile_worker', 'task_' || task, date_trunc('minute', now()) - minute * interval '1 minute',
  170, 2, '{"20": 100, "24": 70, "31": 2}', '{"18": 90, "22": 80, "30": 2}'
from generate_series(0, %(tasks)s - 1) as task, generate_series(0, 7 * 1440) as minute
where date_trunc('minute', now()) - minute * interval '1 minute'
  >= date_trunc('week', now() at time zone 'UTC') at time zone 'UTC' - interval '7 days'
"""
DAY = """
create table graphile_worker_py.{name} partition of graphile_worker_py.{table}
for values from ({begin}) to ({end})
"""
SWEEP = {census.read_sizes("any").text, census.count_chunk(0, by_queue=True).text}
SCANS = """
select seq_scan from pg_stat_user_tables
where schemaname = 'graphile_worker' and relname = '_private_jobs'
"""
PAGES = (
    "/",
    "/jobs",
    "/jobs?q=state:failed",
    "/jobs?q=task:task_3",
    "/jobs?q=no+answer",
    "/jobs/{middle}",
    "/tasks",
    "/tasks/task_3",
    "/queues",
    "/limits",
    "/workers",
    "/recurring",
    "/errors",
    "/maintenance",
)


def fill(dsn: str, jobs: int) -> None:
    """Fill the table, and let the server know what is in it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for number in range(TASKS):
            conn.execute(
                "select graphile_worker.add_job(%s, queue_name := 'q')", (f"task_{number}",)
            )
        conn.execute("truncate graphile_worker._private_jobs restart identity")
        conn.execute(FILL, {"tasks": TASKS, "jobs": jobs})
        conn.execute("vacuum analyze graphile_worker._private_jobs")
        failed = jobs // 100
        for table, runs, outcome, error in (
            ("runs_completed", jobs - failed, "completed", None),
            ("runs_failed", failed, "failed", "TimeoutError: no answer"),
        ):
            fill = sql.SQL(RUNS).format(table=sql.Identifier(table))
            _add_days(conn, table)
            about = {"tasks": TASKS, "runs": runs, "outcome": outcome, "error": error}
            conn.execute(fill, about)
            conn.execute(
                sql.SQL("vacuum analyze graphile_worker_py.{}").format(sql.Identifier(table))
            )
        conn.execute(MINUTES, {"tasks": TASKS})
        conn.execute("vacuum analyze graphile_worker_py.task_minutes")


def _add_days(conn: psycopg.Connection[Any], table: str) -> None:
    """Make the partitions of the days before yesterday, which the package makes as time passes."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for back in range(2, 8):
        begin = today - timedelta(days=back)
        conn.execute(
            sql.SQL(DAY).format(
                name=sql.Identifier(f"{table}_{begin:%Y%m%d}"),
                table=sql.Identifier(table),
                begin=sql.Literal(begin),
                end=sql.Literal(begin + timedelta(days=1)),
            )
        )


async def measure(dsn: str, jobs: int) -> list[str]:
    """Ask for each page, and tell what it took, in lines of Markdown."""
    app = create_app(dsn, authorize=lambda _request: Access.admin("anna"))
    site = app.state.web.site
    sent = _count_statements()
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await client.get("/", headers={"accept": "text/html"})
        freeze_start()  # as the command does
        began = time.perf_counter()
        while (await client.get("/api/v1/stats")).json()["kind"] == "counting":  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        swept = time.perf_counter() - began
        before = _scans(dsn)
        lines = [
            "| page | median | 95 % within | statements | compressed |",
            "| --- | --- | --- | --- | --- |",
        ]
        for each in PAGES:
            path = each.format(middle=jobs // 2)
            times, statements = [], 0
            for _ in range(ROUNDS):
                site.forget()
                sent.clear()
                began = time.perf_counter()
                page = await client.get(path, headers={"accept": "text/html"})
                times.append((time.perf_counter() - began) * 1000)
                assert page.status_code == 200, page.text
                statements = max(statements, sum(sent.values()))
            late = statistics.quantiles(times, n=20)[18]
            size = len(gzip.compress(page.content)) / 1000
            lines.append(
                f"| `{path}` | {statistics.median(times):.0f} ms | {late:.0f} ms "
                f"| {statements} | {size:.1f} kB |"
            )
        scans = _scans(dsn) - before
    await site.close()
    return [
        f"{jobs:,} jobs, and {jobs:,} runs in a week. The first sweep took {swept:.0f} s;",
        f"requests caused {scans} sequential scans of the jobs table.",
        "",
        *lines,
    ]


def _count_statements() -> Counter[str]:
    """Count the statements of requests; those of the sweep are left out."""
    sent: Counter[str] = Counter()
    run = Database.run

    async def counted(database: Database, query: Query[Any], **options: Any) -> Any:
        if query.text not in SWEEP:
            sent[query.text] += 1
        return await run(database, query, **options)

    Database.run = counted  # type: ignore[method-assign,assignment]
    return sent


def _scans(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        row = conn.execute(SCANS).fetchone()
        return 0 if row is None else int(row[0])


def main() -> None:
    """Measure with as many jobs as the argument says; without one, with five million."""
    numbers = [int(each) for each in sys.argv[1:] if each != "--write"]
    jobs = numbers[0] if numbers else JOBS
    with EmbeddedPostgres() as server:
        asyncio.run(run_migrations(server.dsn, side_schema=True))
        fill(server.dsn, jobs)
        lines = asyncio.run(measure(server.dsn, jobs))
    print("\n".join(lines))
    if "--write" in sys.argv:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        results = "\n".join(lines)
        PAGE.write_text(f"{before}{BEGIN}\n\n{results}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
