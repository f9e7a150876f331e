"""What the database gives out: never more permits than a limit has, never more tokens than a rate.

Random programs of what pools and operators do are compared with a model, and many sessions take
tokens at once.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphile_worker_py import RateLimit, run_migrations
from graphile_worker_py.sql.limit_permits import Tokens, return_tokens, take_tokens

NAME = "stripe"
POOLS = ("a", "b", "c")
TAKE = """
select *
from graphile_worker_py.take_permits('graphile_worker', 'stripe', %s, '{work}', %s, %s, %s)
"""
TOKENS = """
select taken.granted, extract(epoch from clock_timestamp())::float8
from graphile_worker_py.take_tokens('graphile_worker', 'api', '{work}', %s, 1, %s, %s) as taken
"""
REGISTER = """
insert into graphile_worker_py.pools (pool_id, worker_schema, host, pid, dead_after, lock_key)
values (%s, 'graphile_worker', 'here', 1, 5, 0)
"""
SUM = """
select limits.in_use, (select sum(permits) from graphile_worker_py.limit_permits)
from graphile_worker_py.limits
"""


@pytest.fixture
async def installed(dsn: str) -> str:
    """A database with the tables of limits."""
    await run_migrations(dsn, side_schema=True)
    return dsn


@pytest.fixture
def conn(installed: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to it."""
    with psycopg.connect(installed, autocommit=True) as conn:
        yield conn


class Model:
    """What each pool has to have, and may count on."""

    def __init__(self) -> None:
        self.permits: dict[str, int] = {}
        self.declared: dict[str, int] = {}
        self.dead: set[str] = set()
        self.set_amount: int | None = None

    def amount(self) -> int:
        """The number that counts."""
        return min(self.declared.values()) if self.set_amount is None else self.set_amount

    def take(self, pool: str, declared: int, wanted: int) -> int:
        """How many permits a pool has after it asked."""
        self.declared[pool] = declared
        had = self.permits.get(pool, 0)
        others = sum(self.permits.values()) - had
        if pool in self.dead:
            wanted = min(wanted, had)
        self.permits[pool] = max(min(wanted, had), min(wanted, self.amount() - others), 0)
        return self.permits[pool]

    def gone(self, pool: str) -> None:
        """A pool has left, or its jobs are freed."""
        self.permits.pop(pool, None)
        self.declared.pop(pool, None)


pools = st.sampled_from(POOLS)
steps = st.one_of(
    st.tuples(st.just("take"), pools, st.integers(0, 6), st.integers(0, 9)),
    st.tuples(st.just("die"), pools),
    st.tuples(st.just("free"), pools),
    st.tuples(st.just("leave"), pools),
    st.tuples(st.just("set"), st.none() | st.integers(0, 6)),
)


@given(program=st.lists(steps, max_size=20))
def test_permits_are_as_a_model_has_them_whatever_pools_and_operators_do(
    conn: psycopg.Connection[Any], program: list[tuple[Any, ...]]
) -> None:
    for table in ("limits", "limit_permits", "pools"):
        conn.execute(f"delete from graphile_worker_py.{table}")
    conn.cursor().executemany(REGISTER, [(pool,) for pool in POOLS])
    model, freed = Model(), set[str]()
    conn.execute(TAKE, ("a", 3, 0, 0))
    model.take("a", 3, 0)
    for step in program:
        match step:
            case ("take", pool, declared, wanted) if pool not in freed:
                row = conn.execute(TAKE, (pool, declared, wanted, wanted)).fetchone()
                assert row is not None
                had = sum(model.permits.values())
                assert row[0] == model.take(pool, declared, wanted)
                assert row[1] == model.amount()
                assert sum(model.permits.values()) <= max(had, model.amount())
                assert conn.execute(SUM).fetchone() == (row[2], sum(model.permits.values()))
            case ("die", pool):
                conn.execute(
                    "update graphile_worker_py.pools set died_at = now() where pool_id = %s",
                    (pool,),
                )
                model.dead.add(pool)
            case ("free", pool) if pool in model.dead:
                conn.execute(
                    "update graphile_worker_py.pools set unlocked_at = now() where pool_id = %s",
                    (pool,),
                )
                model.gone(pool)
                freed.add(pool)
            case ("leave", pool):
                conn.execute("delete from graphile_worker_py.pools where pool_id = %s", (pool,))
                model.gone(pool)
                freed.add(pool)
            case ("set", amount):
                conn.execute("update graphile_worker_py.limits set set_amount = %s", (amount,))
                model.set_amount = amount


def test_sessions_that_ask_at_once_get_no_more_permits_than_there_are(
    conn: psycopg.Connection[Any], installed: str
) -> None:
    names = [f"pool-{number}" for number in range(8)]
    conn.cursor().executemany(REGISTER, [(name,) for name in names])
    sums: list[int] = []

    def ask(name: str) -> None:
        with psycopg.connect(installed, autocommit=True) as own:
            for turn in range(60):
                own.execute(TAKE, (name, 20, 3 + turn % 5, 9))
                row = own.execute("select sum(permits) from graphile_worker_py.limit_permits")
                sums.extend(value for (value,) in row)

    _at_once(ask, names)
    assert max(sums) == 20


def test_sessions_that_ask_at_once_get_no_more_tokens_than_burst_and_rate_allow(
    conn: psycopg.Connection[Any], installed: str
) -> None:
    rate, burst, seconds = 400, 40, 1.5
    conn.execute(TOKENS, (rate, burst, 0))
    granted: list[tuple[float, int]] = []

    def ask(name: str) -> None:
        with psycopg.connect(installed, autocommit=True) as own:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                row = own.execute(TOKENS, (rate, burst, 1 + len(name) % 7)).fetchone()
                assert row is not None
                if row[0]:
                    granted.append((row[1], row[0]))

    _at_once(ask, ["x" * number for number in range(1, 5)])
    granted.sort()
    for start, (since, _) in enumerate(granted):
        count = 0
        for at, number in granted[start:]:
            count += number
            # The clock is read a moment after the tokens were taken.
            assert count <= burst + rate * (at - since + 0.005)
            if at > since + 0.3:
                break
    total = sum(number for _, number in granted)
    assert total >= 0.95 * rate * (granted[-1][0] - granted[0][0])


def test_tokens_that_are_given_back_after_a_quiet_time_do_not_count_twice(
    conn: psycopg.Connection[Any],
) -> None:
    def take(count: int) -> Tokens:
        limit = RateLimit(20, burst=4)
        query = take_tokens("graphile_worker", "api", limit, tasks=["work"], wanted=count)
        return query.read(psycopg.RawCursor(conn).execute(query.text, query.values).fetchall())

    def give_back(taken: Tokens) -> None:
        query = return_tokens("graphile_worker", "api", taken, count=taken.granted)
        psycopg.RawCursor(conn).execute(query.text, query.values)

    first = take(4)
    assert first.granted == 4
    assert take(4).granted == 0
    give_back(first)
    assert take(4).granted == 4  # as if they had not been taken
    time.sleep(0.3)  # until all have come back
    second = take(4)
    give_back(first)
    assert (second.granted, take(4).granted) == (4, 0)


def _at_once(ask: Any, names: list[str]) -> None:
    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
