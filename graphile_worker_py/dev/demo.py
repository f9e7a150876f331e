"""A demonstration in a few seconds: jobs from SQL, Python and a crontab are run."""

import asyncio
import logging
import statistics
from collections import Counter
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, Final

import click
from psycopg import AsyncConnection

from graphile_worker_py import aio
from graphile_worker_py.errors import GraphileWorkerError
from graphile_worker_py.events import Events, JobError, JobStart, JobSuccess
from graphile_worker_py.job.spec import JobSpec
from graphile_worker_py.runner import Runner
from graphile_worker_py.tasks.context import JobContext
from graphile_worker_py.tasks.sync_context import SyncJobContext
from graphile_worker_py.tasks.task import Task, task
from graphile_worker_py.worker_utils import WorkerUtils

PATIENCE: Final = 25.0
"""Seconds after which the demonstration fails."""
BULK: Final = 1000
PINGS: Final = 50
LEDGER: Final = 5

CRONTAB: Final = "* * * * * rollup ?fill=10m {period: 'minute'}"

SETUP: Final = """
create table orders (id int generated always as identity primary key, customer text not null);

create function order_placed() returns trigger language plpgsql as $$
begin
  perform graphile_worker.add_job(
    'send_receipt', pg_catalog.json_build_object('order', new.id, 'customer', new.customer)
  );
  return new;
end
$$;

create trigger order_placed after insert on orders
  for each row execute function order_placed();
"""

# The item has been known for three minutes, as if the worker had been stopped since: the missed
# runs are backfilled at once.
KNOWN_CRONTAB: Final = """
insert into graphile_worker._private_known_crontabs (identifier, known_since)
values ('rollup', pg_catalog.now() - interval '3 minutes')
"""


async def demonstrate(dsn: str) -> None:
    """Run the demonstration on an empty database.

    Raises:
        GraphileWorkerError: Jobs did not run as expected.
    """
    show = _Show()
    async with await AsyncConnection.connect(dsn, autocommit=True) as conn:
        show.title(
            "PostgreSQL %s, started for this demo", conn.info.parameter_status("server_version")
        )
        began = perf_counter()
        async with WorkerUtils(dsn) as utils:
            show.line(
                "schema graphile_worker installed in %.0f ms", (perf_counter() - began) * 1000
            )
            await conn.execute(SETUP)
            await conn.execute(KNOWN_CRONTAB)
            await _add_jobs(show, conn, utils)
    await _run_jobs(dsn, show)
    show.summary()


async def _add_jobs(show: "_Show", conn: AsyncConnection[Any], utils: WorkerUtils) -> None:
    show.title("Adding jobs")
    await conn.execute("insert into orders (customer) values ('Ada'), ('Grace')")
    show.expect(send_receipt=2)
    show.line("SQL     insert into orders …            → a trigger adds 2 × send_receipt")
    began = perf_counter()
    await utils.add_jobs([JobSpec("count_words", {"text": "a few words"}) for _ in range(BULK)])
    seconds = perf_counter() - began
    show.expect(count_words=BULK)
    show.line(
        "Python  utils.add_jobs([…])             → %d × count_words in %.0f ms",
        BULK,
        seconds * 1000,
    )
    await utils.add_job("call_flaky_api", {"url": "https://api.example.com"})
    show.expect(call_flaky_api=1)
    show.line("Python  utils.add_job(…)                → call_flaky_api, which fails at first")
    for entry in range(1, LEDGER + 1):
        await utils.add_job("book", {"entry": entry}, queue_name="ledger")
    show.expect(book=LEDGER)
    show.line("Python  queue_name='ledger'             → %d × book, one after the other", LEDGER)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    for draft in ("first draft", "second draft", "final text"):
        await utils.add_job("publish", {"text": draft}, job_key="post:1", run_at=soon)
    show.expect(publish=1)
    show.line("Python  job_key='post:1', three times   → 1 × publish, with the last payload")
    show.line("cron    %s → runs missed in the last minutes", CRONTAB)


async def _run_jobs(dsn: str, show: "_Show") -> None:
    show.title("Running them: 8 at a time, in this process")
    events = Events()
    events.subscribe(JobStart, show.started)
    events.subscribe(JobSuccess, show.succeeded)
    events.subscribe(JobError.name, show.failed)
    quiet = logging.getLogger("graphile_worker_py.demo")
    quiet.setLevel(logging.CRITICAL)
    runner = Runner(
        dsn,
        tasks=_tasks(show),
        crontab=CRONTAB,
        concurrent_jobs=8,
        poll_interval=0.5,
        events=events,
        logger=quiet,
    )
    async with runner:
        if not await aio.wait_for(show.done, PATIENCE):
            raise GraphileWorkerError(f"still waiting after {PATIENCE:g} s for {show.missing}")
        await _measure_latency(runner, show)


async def _measure_latency(runner: Runner, show: "_Show") -> None:
    """Add jobs to the idle worker one by one, and time each until its task begins."""
    for _ in range(PINGS):
        show.pinged.clear()
        began = perf_counter()
        await runner.add_job("ping", {"began": began})
        if not await aio.wait_for(show.pinged, PATIENCE):
            raise GraphileWorkerError("a job added to an idle worker did not start")


def _tasks(show: "_Show") -> list[Any]:
    @task
    async def send_receipt(payload: dict[str, Any]) -> None:
        show.line("send_receipt: order %s, to %s", payload["order"], payload["customer"])

    @task
    async def count_words(payload: dict[str, Any]) -> None:
        len(payload["text"].split())

    @task
    async def call_flaky_api(payload: dict[str, Any], ctx: JobContext) -> None:
        if ctx.job.attempts == 1:
            raise ConnectionError(f"{payload['url']} did not answer")
        show.line("call_flaky_api: attempt %d succeeded", ctx.job.attempts)

    @task
    async def ping(payload: dict[str, Any]) -> None:
        show.latencies.append((perf_counter() - payload["began"]) * 1000)
        show.pinged.set()

    @task
    async def publish(payload: dict[str, Any]) -> None:
        show.line("publish: %r", payload["text"])

    @task
    async def rollup(payload: dict[str, Any]) -> None:
        show.line("rollup: the %s of %s", payload["period"], payload["_cron"]["ts"])

    return [send_receipt, count_words, call_flaky_api, _book(show), publish, rollup, ping]


def _book(show: "_Show") -> Task[Any]:
    busy = False

    @task
    def book(payload: dict[str, Any], ctx: SyncJobContext) -> None:
        # A plain function: it runs in a thread and may block.
        nonlocal busy
        if busy:
            raise GraphileWorkerError("two jobs of one queue ran at once")
        busy = True
        ctx.abort_event.wait(0.05)
        busy = False
        show.line("book: entry %s in queue %r", payload["entry"], ctx.get_queue_name())

    return book


class _Show:
    """The printed output, and the jobs that have not succeeded yet."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self._began = perf_counter()
        self._left: Counter[str] = Counter(rollup=1)
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self.pinged = asyncio.Event()
        self.latencies: list[float] = []
        self._bulk_began: float | None = None
        self._bulk_seconds = 0.0

    @property
    def missing(self) -> str:
        """The jobs that have not succeeded yet."""
        return ", ".join(f"{count} × {name}" for name, count in self._left.items() if count > 0)

    def expect(self, **jobs: int) -> None:
        """Expect this many jobs of these tasks to succeed."""
        self._left.update(jobs)

    def title(self, text: str, *values: object) -> None:
        """Print a heading."""
        click.echo(f"\n{click.style(text % values, bold=True)}")

    def line(self, text: str, *values: object) -> None:
        """Print a line."""
        click.echo(f"  {perf_counter() - self._began:6.2f} s  {text % values}")

    def started(self, event: JobStart) -> None:
        """Note when the first job of the bulk starts."""
        if event.job.task_identifier == "count_words":
            self._bulk_began = self._bulk_began or perf_counter()

    def succeeded(self, event: JobSuccess) -> None:
        """Count a success."""
        name = event.job.task_identifier
        self._outcomes[name, "completed"] += 1
        self._left[name] -= 1
        if name == "count_words" and self._left[name] == 0 and self._bulk_began is not None:
            self._bulk_seconds = perf_counter() - self._bulk_began
            rate = BULK / self._bulk_seconds
            self.line("count_words: %d jobs, %s a second", BULK, f"{rate:,.0f}")
        if all(count <= 0 for count in self._left.values()):
            self.done.set()

    def failed(self, event: JobError) -> None:
        """Count a failure."""
        self._outcomes[event.job.task_identifier, "failed"] += 1
        self.line("%s: %s (will be retried)", event.job.task_identifier, event.error)

    def summary(self) -> None:
        """Print the outcomes and the latency."""
        self.title("Summary")
        click.echo(f"  {'task':<16}{'completed':>10}{'failed':>8}")
        for name in sorted({name for name, _ in self._outcomes}):
            done, failed = self._outcomes[name, "completed"], self._outcomes[name, "failed"]
            click.echo(f"  {name:<16}{done:>10,}{failed:>8}")
        total = sum(
            count for (_, outcome), count in self._outcomes.items() if outcome == "completed"
        )
        cuts = statistics.quantiles(self.latencies, n=20)
        click.echo(
            f"\n  {total:,} jobs done in {perf_counter() - self._began:.1f} s. "
            f"From add_job to the start of its task, with the worker idle: "
            f"median {cuts[9]:.1f} ms, 95 % within {cuts[18]:.1f} ms."
        )
