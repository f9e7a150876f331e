"""How long to wait before another try, and whether there is to be one."""

import psycopg
import psycopg_pool
import pytest
from psycopg import errors

from graphile_worker_py.backoff import CONTENTION, UNAVAILABLE, Backoff
from graphile_worker_py.postgres.outages import backoff_for


def test_delays_grow_up_to_the_longest() -> None:
    backoff = Backoff(shortest=0.2, longest=3.0, factor=2)
    for failures, raw in [(1, 0.2), (2, 0.4), (3, 0.8), (4, 1.6), (5, 3.0), (6, 3.0)]:
        delays = [backoff.delay(failures) for _ in range(200)]
        assert 0.5 * raw <= min(delays) < max(delays) <= 1.5 * raw


@pytest.mark.parametrize("failures", [0, -1])
def test_a_count_below_one_means_the_first(failures: int) -> None:
    assert 0.5 <= Backoff(shortest=1, longest=10).delay(failures) <= 1.5


def test_the_ten_thousandth_failure_is_no_overflow() -> None:
    assert Backoff(shortest=0.1, longest=7, factor=2.7).delay(10_000) <= 10.5


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_a_lost_race_is_tried_again_soon(code: str) -> None:
    assert backoff_for(errors.lookup(code)()) is CONTENTION


@pytest.mark.parametrize(
    "code",
    ["08006", "08001", "53100", "53300", "57014", "57P01", "57P03", "58030", "55P03", "25006"],
)
def test_an_outage_is_waited_for(code: str) -> None:
    assert backoff_for(errors.lookup(code)()) is UNAVAILABLE


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("server closed the connection unexpectedly"),
        psycopg_pool.PoolTimeout("no connection in time"),
        psycopg_pool.TooManyRequests("queue full"),
        ConnectionRefusedError(),
        ConnectionResetError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_connection_that_is_lost_or_refused_is_an_outage(error: Exception) -> None:
    assert backoff_for(error) is UNAVAILABLE


@pytest.mark.parametrize(
    "error",
    [
        errors.UndefinedTable(),
        errors.InsufficientPrivilege(),
        errors.UniqueViolation(),
        errors.InvalidPassword(),
        psycopg.InterfaceError("closed"),
        psycopg_pool.PoolClosed("by its owner"),
        ValueError("no"),
        FileNotFoundError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_fail_the_same_way_is_not_tried_again(error: Exception) -> None:
    assert backoff_for(error) is None
