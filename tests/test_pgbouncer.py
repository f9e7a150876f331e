"""Behind PgBouncer in transaction mode all works, if the listener may go round it, or polls."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from graphile_worker_py import (
    ConcurrencyLimit,
    JobContext,
    JobSpec,
    Runner,
    SyncWorkerUtils,
    WorkerUtils,
    run_migrations,
    task,
)
from graphile_worker_py.backoff import Backoff
from graphile_worker_py.events import JobError, JobSuccess, PoolListenError
from tests.support.eventually import eventually
from tests.support.missing import missing
from tests.support.pgbouncer import PgBouncer, find_pgbouncer, running_pgbouncer
from tests.support.processes import Processes
from tests.support.running import Jobs, Told, impatient

LAST_ASKED = """
select pid from pg_stat_activity
where datname = current_database() and query = 'select pg_catalog.pg_backend_pid()'
"""
ADVISORY_LOCKS = """
select pid from pg_locks join pg_database on pg_database.oid = pg_locks.database
where locktype = 'advisory' and datname = current_database()
"""
OLD = "graphile_worker_py.runs_failed_20200101"
OLD_PARTITION = f"""
create table {OLD} partition of graphile_worker_py.runs_failed
for values from ('20200101 00:00:00+00') to ('20200102 00:00:00+00')
"""
NEWEST_PARTITION = """
select max(relid::regclass::text) as name
from pg_partition_tree('graphile_worker_py.runs_failed') where isleaf
"""
PREPARED = "select name from pg_prepared_statements"


@pytest.fixture
def pooled(processes: Processes) -> Iterator[Callable[[str], PgBouncer]]:
    """Start a PgBouncer in transaction mode before a database."""
    program = find_pgbouncer()
    if program is None:
        missing("PgBouncer is not installed; say: apt-get install pgbouncer")
    with ExitStack() as stack:

        def start(dsn: str, mode: str = "transaction") -> PgBouncer:
            return stack.enter_context(running_pgbouncer(program, dsn, processes, mode=mode))

        yield start


class Work:
    """Tasks that use what a job can use of the database."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.tasks = {"parent": self.parent, "child": self.child, "flaky": self.flaky}

    async def parent(self, payload: Any, ctx: JobContext) -> None:
        await ctx.add_job("child", payload, queue_name="children")
        async with ctx.connection() as conn:
            # More often than psycopg would, by itself, go on without preparing a statement.
            for n in range(8):
                cursor = await conn.execute("select %s::int", (n,))
                assert await cursor.fetchone() == (n,)

    async def child(self, payload: Any) -> None:
        self.seen.append(payload["n"])

    async def flaky(self, _payload: Any, ctx: JobContext) -> None:
        if ctx.job.attempts == 1:
            raise ValueError("not yet")


async def run_all(
    dsn: str,
    told: Told,
    *,
    jobs: Jobs,
    until: Callable[[], bool] = lambda: True,
    runner: type[Runner] = Runner,
    **options: Any,
) -> None:
    """Run thirty jobs and what they add, and a retry."""
    work = Work()
    async with runner(
        dsn, tasks=work.tasks, concurrent_jobs=5, poll_interval=0.2, events=told.events, **options
    ) as at_work:
        jobs.add("flaky")
        await at_work.add_jobs([JobSpec("parent", {"n": n}) for n in range(30)])
        await told.seen(JobSuccess, count=60, timeout=10)
        await told.seen(JobError)
        await eventually(lambda: jobs.all()[0]["locked_at"] is None)
        jobs.make_due()
        await eventually(lambda: jobs.all() == [], timeout=10)
        await eventually(until)
    assert sorted(work.seen) == list(range(30))
    assert jobs.locked() == []


async def test_without_a_connection_to_listen_on_it_polls_and_says_so_once(
    dsn: str,
    pooled: Callable[[str], PgBouncer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def deaf() -> list[str]:
        said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        return [message for message in said if "LISTEN has no effect" in message]

    # It is tried again often enough to be said more than once.
    often = Backoff(shortest=0.01, longest=0.01)
    told = Told()
    await run_all(
        pooled(dsn).dsn,
        told,
        jobs=Jobs(dsn),
        until=lambda: len(told.of(PoolListenError)) >= 4,
        runner=impatient(echo=0.2, late_echo=0.1, deaf=often),
    )
    assert len(deaf()) == 1
    assert "listen_connection_string" in deaf()[0]


async def test_with_a_connection_to_listen_on_jobs_start_without_a_poll(
    dsn: str, pooled: Callable[[str], PgBouncer]
) -> None:
    bouncer, jobs, told = pooled(dsn), Jobs(dsn), Told()
    async with Runner(
        bouncer.dsn,
        tasks={"work": print},
        poll_interval=3600,
        listen_connection_string=dsn,
        events=told.events,
    ) as runner:
        await eventually(lambda: runner.health().listening)
        for n in range(1, 4):
            jobs.add("work")
            await told.seen(JobSuccess, count=n)
    assert told.of(PoolListenError) == []


async def test_in_session_mode_it_listens_through_the_pooler(
    dsn: str, pooled: Callable[..., PgBouncer]
) -> None:
    bouncer, jobs, told = pooled(dsn, "session"), Jobs(dsn), Told()
    async with Runner(
        bouncer.dsn, tasks={"work": print}, poll_interval=3600, max_pool_size=3, events=told.events
    ) as runner:
        await eventually(lambda: runner.health().listening)
        jobs.add("work")
        await told.seen(JobSuccess)


async def test_statements_are_prepared_unless_there_is_a_pooler(
    dsn: str, pooled: Callable[[str], PgBouncer]
) -> None:
    bouncer = pooled(dsn)
    for where, prepares in ((dsn, True), (bouncer.dsn, False)):
        async with WorkerUtils(where) as utils, utils.pool.connection() as conn:
            await utils.add_job("work", conn=conn)
            cursor = await conn.execute(PREPARED, prepare=False)
            assert bool(await cursor.fetchall()) is prepares
        with SyncWorkerUtils(where) as sync_utils, sync_utils.pool.connection() as sync_conn:
            sync_utils.add_job("work", conn=sync_conn)
            assert bool(sync_conn.execute(PREPARED, prepare=False).fetchall()) is prepares


@pytest.mark.parametrize("limits", [[], [ConcurrencyLimit(2, key="n")]], ids=["none", "keyed"])
async def test_statements_prepared_on_demand_are_given_up_where_the_pooler_loses_them(
    dsn: str,
    pooled: Callable[[str], PgBouncer],
    caplog: pytest.LogCaptureFixture,
    limits: list[ConcurrencyLimit],
) -> None:
    await run_migrations(dsn, side_schema=True)
    bouncer, jobs, told = pooled(dsn), Jobs(dsn), Told()
    async with Runner(
        bouncer.dsn,
        tasks=[task("work", limits=limits)(print)],
        concurrent_jobs=5,
        poll_interval=0.2,
        prepared_statements=True,
        listen_connection_string=dsn,
        events=told.events,
    ) as runner:
        for n in range(30):
            await runner.add_job("work", {"n": n})
        await eventually(lambda: jobs.all() == [], timeout=10)
    assert len(told.of(JobSuccess)) == 30
    said = [message for message in caplog.messages if "no longer prepared" in message]
    # Releases that keep track of them leave nothing to be said.
    assert len(said) == (0 if bouncer.prepares else 1)


def test_without_an_event_loop_they_are_given_up_too(
    dsn: str, pooled: Callable[[str], PgBouncer], caplog: pytest.LogCaptureFixture
) -> None:
    bouncer = pooled(dsn)
    with SyncWorkerUtils(bouncer.dsn, prepared_statements=True) as utils:
        utils.add_job("work", 1)
        with psycopg.connect(bouncer.dsn) as other:
            other.execute("select 1")  # in a transaction, so that the session is not to be had
            utils.add_job("work", 2)
    assert [job["payload"] for job in Jobs(dsn).all()] == [1, 2]
    said = [message for message in caplog.messages if "no longer prepared" in message]
    assert len(said) == (0 if bouncer.prepares else 1)


async def test_the_schema_can_be_installed_through_the_pooler(
    empty_dsn: str, pooled: Callable[[str], PgBouncer]
) -> None:
    bouncer = pooled(empty_dsn)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(run_migrations(bouncer.dsn))
    assert Jobs(empty_dsn).all() == []


async def test_a_restart_of_the_pooler_under_load_loses_nothing(
    dsn: str, pooled: Callable[[str], PgBouncer]
) -> None:
    bouncer, jobs, told = pooled(dsn), Jobs(dsn), Told()
    runs: list[int] = []

    async def work(payload: Any) -> None:
        runs.append(payload["n"])
        await asyncio.sleep(0.005)

    jobs.add_many(300, "work")
    async with Runner(
        bouncer.dsn,
        tasks={"work": work},
        concurrent_jobs=5,
        poll_interval=0.2,
        listen_connection_string=dsn,
        events=told.events,
    ):
        for share in (50, 150):
            await told.seen(JobSuccess, count=share, timeout=10)
            bouncer.kill()
            await asyncio.to_thread(bouncer.start)
        await eventually(lambda: jobs.ids() == [], timeout=10)
    assert sorted(runs) == list(range(300))
    assert jobs.locked() == []


async def test_history_is_kept_and_dropped_through_the_pooler(
    dsn: str, pooled: Callable[[str], PgBouncer]
) -> None:
    await run_migrations(dsn, side_schema=True)
    bouncer, jobs = pooled(dsn), Jobs(dsn)
    jobs.query(OLD_PARTITION)
    newest = jobs.query(NEWEST_PARTITION)[0]["name"]
    await jobs.in_thread(f"drop table {newest}")
    job_id = jobs.add("work")
    async with impatient(chores=0.0)(
        bouncer.dsn,
        tasks={"work": lambda _payload: None},
        history="all",
        heartbeat_interval=0.1,
        poll_interval=0.2,
        listen_connection_string=dsn,
    ) as runner:
        await eventually(
            lambda: jobs.query("select to_regclass(%s) as part", OLD)[0]["part"] is None
        )
        await eventually(lambda: jobs.query(NEWEST_PARTITION)[0]["name"] == newest)
        await eventually(lambda: jobs.ids() == [])
        assert runner.health().plugin_failures == runner.health().rider_failures == 0
    (run,) = jobs.query("select job_id, outcome from graphile_worker_py.runs")
    assert (run["job_id"], run["outcome"]) == (job_id, "completed")
    # No session that the pooler gives to others has kept a limit.
    with ExitStack() as stack:
        for _ in range(4):
            conn = stack.enter_context(psycopg.connect(bouncer.dsn, prepare_threshold=None))
            assert conn.execute("show lock_timeout").fetchone() == ("0",)


def test_a_connection_to_listen_on_that_makes_no_sense_is_refused_without_its_password() -> None:
    with pytest.raises(ValueError, match=r"^listen_connection_string .* can't be ") as info:
        Runner("", tasks={"work": print}, listen_connection_string="postgresql://me:hunter2@%zz/db")
    assert "hunter2" not in str(info.value)


async def test_without_echoes_the_session_of_a_pooler_speaks_for_no_pool(
    dsn: str, pooled: Callable[[str], PgBouncer]
) -> None:
    """It would be given to others, with the lock."""
    told = Told()
    async with Runner(
        dsn,
        tasks={"work": print},
        listen_connection_string=pooled(dsn).dsn,
        listen_echo_interval=0,
        heartbeat_interval=0.05,
        events=told.events,
    ) as runner:
        await eventually(lambda: runner.health().listening)
        await eventually(lambda: Jobs(dsn).query(LAST_ASKED))
    # What it did there lasts: the pooler keeps the session.
    assert Jobs(dsn).query(ADVISORY_LOCKS) == []
