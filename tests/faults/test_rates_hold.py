"""A rate holds for processes whose clocks are far apart: the clock of the database counts."""

import bisect
import json
import sys
from collections.abc import Sequence
from itertools import accumulate

import pytest

from graphile_worker_py import run_migrations
from tests.faults.conftest import ROOT
from tests.support.eventually import eventually
from tests.support.processes import Process, Processes
from tests.support.running import Jobs

ADD = """
select graphile_worker.add_job('work', '{"seconds": 0}') from generate_series(1, %s)
"""
# `full_at` moves ahead by a token's time with each token, and back with each that is given back.
LOG = """
create table public.granted (
  at float8 not null default extract(epoch from clock_timestamp()),
  tokens int4 not null
);
create function public.log_tokens() returns trigger language plpgsql as $$
begin
  insert into public.granted (tokens) values (
    round((new.full_at - greatest(old.full_at, new.reset_at)) * new.rate / new.per)
  );
  return null;
end
$$;
create trigger log_tokens after update on graphile_worker_py.limit_rates
for each row execute function public.log_tokens();
"""
POOLS = "select pool_id from graphile_worker_py.pools"
GRANTED = "select at, tokens from granted where tokens <> 0 order by at"
RATE, BURST = 200, 20
HOURS = (-1, 0, 1)


def times(worker: Process) -> list[float]:
    """When its jobs began, by the clock that all processes share."""
    return [float(line.split()[2]) for line in worker.lines("begin")]


def most_in_a_second(at: Sequence[float], counts: Sequence[int]) -> int:
    """How many there were in the second in which there were most."""
    until = [0, *accumulate(counts)]
    return max(
        until[bisect.bisect_left(at, begin + 1)] - until[place] for place, begin in enumerate(at)
    )


@pytest.mark.timeout(180)  # with `--long`
async def test_processes_whose_clocks_are_hours_apart_keep_a_rate_and_use_it(
    dsn: str,
    processes: Processes,
    pytestconfig: pytest.Config,
) -> None:
    is_long = pytestconfig.getoption("--long")
    count = RATE * (30 if is_long else 3) + BURST
    await run_migrations(dsn, side_schema=True)
    options = json.dumps({"concurrent_jobs": 10, "poll_interval": 0.5})
    worker = ["tests.faults.limited_worker", dsn, f"{RATE},{BURST}", options]
    command = [sys.executable, "-m", "tests.support.shifted"]
    workers = [processes.start([*command, str(hours), *worker], cwd=ROOT) for hours in HOURS]
    for each in workers:
        await each.seen("up")
    clocks = [[float(value) for value in each.lines("up")[0].split()[2:]] for each in workers]
    for which in range(2):
        values = [clock[which] for clock in clocks]
        assert [round((value - values[1]) / 3600, 1) for value in values] == list(HOURS)

    # They would not trust a schema in which they found a trigger at their start.
    await eventually(lambda: len(Jobs(dsn).query(POOLS)) == len(workers))
    await Jobs(dsn).in_thread(LOG)
    Jobs(dsn).query(ADD, count)
    await eventually(lambda: Jobs(dsn).ids() == [], timeout=count / RATE * 3 + 10, interval=0.05)
    assert all(times(each) for each in workers)
    begun = sorted(at for each in workers for at in times(each))
    granted = Jobs(dsn).query(GRANTED)
    tokens = [row["tokens"] for row in granted]
    assert len(begun) == count
    # Each worker may give back ten tokens that it had taken before they were counted.
    assert sum(tokens) >= count - 10 * len(workers)
    assert most_in_a_second([row["at"] for row in granted], tokens) <= RATE + BURST
    used = (count - BURST) / (begun[-1] - begun[0]) / RATE
    assert used >= (0.95 if is_long else 0.5)
    if is_long:  # a busy machine begins jobs late, and then more of them at once
        assert most_in_a_second(begun, [1] * count) <= RATE + BURST
