"""The fetch under limits with a key, against a model, and by many sessions at once."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, LiteralString

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import RawCursor

from graphile_worker_py import ConcurrencyLimit, run_migrations
from graphile_worker_py.job import ID
from graphile_worker_py.postgres.query import Query, Statements
from graphile_worker_py.sql.keyed_jobs import get_keyed_jobs
from graphile_worker_py.sql.limit_permits import take_permits
from graphile_worker_py.sql.task_ids import TaskIds

SCHEMA: Final = "graphile_worker"
LIMIT = "per tenant"
POOLS = ("a", "b", "c")
TABLES = (
    f"{SCHEMA}._private_jobs",
    "graphile_worker_py.limits",
    "graphile_worker_py.limit_permits",
    "graphile_worker_py.limit_leases",
    "graphile_worker_py.pools",
)


class Session:
    """A connection that sends statements of worker pools."""

    def __init__(self, dsn: str) -> None:
        self.conn: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        self._texts = Statements(SCHEMA)
        found = self.conn.execute(f"select id from {SCHEMA}._private_tasks").fetchone()
        assert found is not None
        self._ids = TaskIds({found[0]: "work"})

    def run(self, query: Query[Any]) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        cursor = RawCursor(self.conn)
        with self.conn.transaction():
            if query.after is not None:
                cursor.execute(self._texts[query.after.text], query.after.values)
            cursor.execute(self._texts[query.text], query.values)
            return cursor.fetchall()

    def fetch(self, pool: str, count: int) -> list[int]:
        """Lock jobs for a pool; returns their ids."""
        rows = self.run(self.query(pool, count))
        return [row[ID] for row in rows if row[ID] is not None]

    def query(self, pool: str, count: int) -> Query[Any]:
        """The fetch of a pool."""
        return get_keyed_jobs(
            SCHEMA,
            [(LIMIT, "tenant")],
            0,
            pool_id=pool,
            task_ids=self._ids,
            count=count,
            forbidden_flags=None,
        )

    def declare(self, amount: int) -> None:
        """Register the pools, and the number of the limit."""
        for pool in POOLS:
            self.conn.execute(
                "insert into graphile_worker_py.pools "
                "(pool_id, worker_schema, host, pid, dead_after, lock_key) "
                "values (%s, %s, '', 0, 8, 0)",
                (pool, SCHEMA),
            )
            limit = ConcurrencyLimit(amount, key="tenant")
            self.run(
                take_permits(SCHEMA, LIMIT, limit, pool_id=pool, tasks=["work"], wanted=0, wants=0)
            )

    def add(self, tenant: str) -> int:
        """Add a job; returns its id."""
        row = self.conn.execute(
            "select id from graphile_worker.add_job('work', json_build_object('tenant', %s::text))",
            (tenant,),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def change(self, job_id: int, assignments: LiteralString) -> None:
        """Change a job."""
        self.conn.execute(
            f"update {SCHEMA}._private_jobs set {assignments} where id = %s", (job_id,)
        )

    def move(self, job_id: int, tenant: str) -> None:
        """Give a job another tenant."""
        self.conn.execute(
            f"update {SCHEMA}._private_jobs "
            "set payload = json_build_object('tenant', %s::text) where id = %s",
            (tenant, job_id),
        )

    def running(self) -> Counter[str]:
        """How many jobs of each tenant are locked."""
        rows = self.conn.execute(
            f"select payload->>'tenant' from {SCHEMA}._private_jobs where locked_by is not null"
        )
        return Counter(tenant for (tenant,) in rows)


@pytest.fixture
async def installed(dsn: str) -> str:
    """A database with the tables of limits, which knows a task."""
    await run_migrations(dsn, side_schema=True)
    with psycopg.connect(dsn) as conn:
        conn.execute("select graphile_worker.add_job('work')")
        conn.execute(f"delete from {SCHEMA}._private_jobs")
    return dsn


@pytest.fixture
def session(installed: str) -> Iterator[Session]:
    """A session of that database."""
    session = Session(installed)
    with session.conn:
        yield session


tenants = st.sampled_from("xyz")
steps = st.one_of(
    st.tuples(st.just("add"), tenants, st.integers(1, 6)),
    st.tuples(st.just("fetch"), st.sampled_from(POOLS), st.integers(1, 8)),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("unlock"), st.integers(0, 9)),
    st.tuples(st.just("move"), st.integers(0, 9), tenants),
    st.tuples(st.just("set"), st.integers(0, 4)),
)


@settings(max_examples=30)
@given(program=st.lists(steps, min_size=5, max_size=25))
def test_a_fetch_takes_all_that_the_limit_allows_and_no_more_whatever_happens(
    session: Session, program: list[tuple[Any, ...]]
) -> None:
    for table in TABLES:
        session.conn.execute(f"delete from {table}")
    amount = 2
    session.declare(amount)
    waiting: dict[int, str] = {}
    running: dict[int, str] = {}
    for step in program:
        match step:
            case ("add", tenant, count):
                waiting |= {session.add(tenant): tenant for _ in range(count)}
            case ("fetch", pool, count):
                free = {each: amount - list(running.values()).count(each) for each in "xyz"}
                allowed: list[int] = []
                for job, tenant in sorted(waiting.items()):
                    if free[tenant] > 0 and len(allowed) < count:
                        free[tenant] -= 1
                        allowed.append(job)
                fetched = session.fetch(pool, count)
                assert sorted(fetched) == allowed
                running |= {job: waiting.pop(job) for job in fetched}
            case ("end", at) if running:
                job = sorted(running)[at % len(running)]
                session.conn.execute(f"delete from {SCHEMA}._private_jobs where id = %s", (job,))
                del running[job]
            case ("unlock", at) if running:
                job = sorted(running)[at % len(running)]
                session.change(job, "locked_by = null, locked_at = null")
                waiting[job] = running.pop(job)
            case ("move", at, tenant) if waiting:
                job = sorted(waiting)[at % len(waiting)]
                session.move(job, tenant)
                waiting[job] = tenant
            case ("set", number):
                amount = number
                session.conn.execute(
                    "update graphile_worker_py.limits set set_amount = %s", (amount,)
                )
        assert session.running() == Counter(running.values())


def test_sessions_that_fetch_at_once_take_no_more_than_the_limit_allows(
    session: Session, installed: str
) -> None:
    session.declare(2)
    for tenant in "vwxyz":
        for _ in range(40):
            session.add(tenant)
    most: Counter[str] = Counter()

    def work(pool: str) -> list[int]:
        own = Session(installed)
        done: list[int] = []
        with own.conn:
            for turn in range(1000):
                fetched = own.fetch(pool, 1 + turn % 4)
                counted = own.running()
                for tenant in counted:
                    most[tenant] = max(most[tenant], counted[tenant])
                own.conn.execute(
                    f"delete from {SCHEMA}._private_jobs where id = any(%s)", (fetched,)
                )
                done += fetched
                if not counted:
                    break
        return done

    with ThreadPoolExecutor(len(POOLS)) as threads:
        done = [job for jobs in threads.map(work, POOLS) for job in jobs]
    assert len(done) == len(set(done)) == 200
    assert max(most.values()) == 2


def test_a_fetch_waits_for_the_one_before_and_then_sees_what_that_has_taken(
    session: Session, installed: str
) -> None:
    session.declare(2)
    first = [session.add("x") for _ in range(4)][:2]
    other = Session(installed)
    with ThreadPoolExecutor(1) as threads, other.conn:
        with session.conn.transaction():
            assert session.fetch("a", 8) == first
            waiting = threads.submit(other.fetch, "b", 8)
            pid = other.conn.info.backend_pid
            blocked = "select cardinality(pg_blocking_pids(%s)) > 0"
            with psycopg.connect(installed, autocommit=True) as watcher:
                while watcher.execute(blocked, (pid,)).fetchone() != (True,):
                    assert not waiting.done()
        assert waiting.result(10) == []
    assert session.running() == {"x": 2}


def test_without_the_lock_nothing_is_fetched(session: Session) -> None:
    session.declare(2)
    job = session.add("x")
    alone = replace(session.query("a", 8), after=None)
    assert [row[ID] for row in session.run(alone)] == [None]
    assert session.fetch("a", 8) == [job]
    assert [row[ID] for row in session.run(alone)] == [None]


def test_where_no_job_is_due_no_limit_is_locked(session: Session, installed: str) -> None:
    session.declare(2)
    session.change(session.add("x"), "run_at = now() + interval '1 hour'")
    other = Session(installed)
    with other.conn, other.conn.transaction():
        other.conn.execute("select from graphile_worker_py.limits for update")
        assert session.fetch("a", 8) == []  # and does not wait


def test_a_fetch_deletes_what_jobs_that_ended_have_left(session: Session) -> None:
    session.declare(1)
    ended, _ = session.add("x"), session.add("x")
    assert session.fetch("a", 8) == [ended]
    session.conn.execute(f"delete from {SCHEMA}._private_jobs where id = %s", (ended,))
    (job,) = session.fetch("b", 8)
    held = "select job_id, key, pool_id from graphile_worker_py.limit_leases"
    assert session.conn.execute(held).fetchall() == [(job, "x", "b")]
    used = session.conn.execute("select in_use from graphile_worker_py.limits").fetchall()
    assert used == [(1,)]
