"""Riders: what plugins add to the statements that record outcomes."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, LiteralString

import psycopg
import pytest

from graphile_worker_py import Plugin, Runner, run_once
from graphile_worker_py.events import JobComplete
from graphile_worker_py.outcomes import Settled
from graphile_worker_py.plugins import Rider
from graphile_worker_py.sql.outcomes import BoundRider
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

LOCKED_QUEUES = "select id from graphile_worker._private_job_queues where not is_available"
TABLE = "create table ridden (job_id int8 not null, outcome text not null check (outcome <> 'X'))"
INSERT: LiteralString = """
insert into ridden (job_id, outcome)
select given.job_id, given.outcome
from unnest($r1::int8[], $r2::text[]) as given (job_id, outcome)
join changed on changed.id = given.job_id
returning 1
"""


class Noting(Plugin):
    """Adds a row for each outcome."""

    def __init__(self, text: LiteralString = INSERT) -> None:
        self.text = text
        self.batches: list[Sequence[Settled]] = []

    def riders(self, pool: Any) -> Iterable[Rider]:
        """One rider."""
        return [Rider(name="notes", bind=self.bind)]

    def bind(self, batch: Sequence[Settled]) -> BoundRider | None:
        """The ids and the kinds of the outcomes."""
        self.batches.append(batch)
        ids = [settled[0].id for settled in batch]
        said = [str(settled[0].payload.get("says", type(settled[1]).__name__)) for settled in batch]
        return BoundRider(self.text, (ids, said))


class Ridden:
    """The table that the rider fills."""

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True)
        self._conn.execute(TABLE)

    def rows(self) -> list[tuple[int, str]]:
        """All rows, by job."""
        return self._conn.execute("select job_id, outcome from ridden order by 1, 2").fetchall()

    def execute(self, text: LiteralString) -> None:
        """Change it."""
        self._conn.execute(text)

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()


@pytest.fixture
def ridden(dsn: str) -> Iterator[Ridden]:
    """The table, empty."""
    table = Ridden(dsn)
    yield table
    table.close()


async def work(payload: dict[str, Any]) -> None:
    """Fail if the payload says so."""
    if payload.get("fails"):
        raise ValueError("failed")


TASKS: dict[str, Any] = {"work": work}


@pytest.mark.parametrize("queue_name", [None, "a queue"])
async def test_a_rider_is_part_of_the_statements_that_record_outcomes(
    dsn: str, ridden: Ridden, queue_name: str | None
) -> None:
    jobs = Jobs(dsn)
    done = jobs.add("work", {}, queue_name=queue_name)
    failed = jobs.add("work", {"fails": True}, queue_name=queue_name)
    await run_once(dsn, tasks=TASKS, hooks=[Noting()])
    assert ridden.rows() == [(done, "Completed"), (failed, "Failed")]
    assert jobs.ids() == [failed]
    assert jobs.query(LOCKED_QUEUES) == []


async def test_a_rider_has_no_row_for_a_job_that_was_taken_from_the_pool(
    dsn: str, ridden: Ridden
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("work", {})

    async def lose(_payload: Any) -> None:
        jobs.query("update graphile_worker._private_jobs set locked_by = 'another' returning 1")

    await run_once(dsn, tasks={"work": lose}, hooks=[Noting()])
    assert jobs.ids() == [job_id]
    assert ridden.rows() == []


async def test_without_its_table_outcomes_are_recorded_and_the_rider_is_left_out(
    dsn: str, ridden: Ridden
) -> None:
    plugin, told = Noting(), Told()
    ridden.execute("alter table ridden rename to away")
    jobs = Jobs(dsn)
    options: Any = {"hooks": [plugin], "events": told.events, "no_side_schema": True}
    async with Runner(dsn, tasks=TASKS, **options) as runner:
        jobs.add("work", {})
        await told.seen(JobComplete)
        await eventually(lambda: jobs.ids() == [])
        health = runner.health()
        assert health.rider_failures == 1
        assert health.rider_error is not None
        assert "ridden" in health.rider_error
        ridden.execute("alter table away rename to ridden")
        jobs.add("work", {})
        await told.seen(JobComplete, count=2)
        await eventually(lambda: jobs.ids() == [])
        # For a minute it is not even asked.
        assert len(plugin.batches) == 1
    assert ridden.rows() == []


async def test_a_value_that_the_rider_cannot_store_costs_the_rows_of_no_other_job(
    dsn: str, ridden: Ridden
) -> None:
    jobs = Jobs(dsn)
    ids = [jobs.add("work", {"says": says}) for says in ("a", "b\0", "c")]
    options: Any = {"concurrent_jobs": 3, "hooks": [Noting()]}
    await run_once(dsn, tasks=TASKS, **options)
    assert jobs.ids() == []
    assert ridden.rows() == [(ids[0], "a"), (ids[2], "c")]


async def test_a_rider_whose_binding_raises_is_left_out_of_that_statement(
    dsn: str, ridden: Ridden, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)
    first = jobs.add("work", {"says": "a"})
    tasks = {**TASKS, "list": lambda _: None}
    async with Runner(dsn, tasks=tasks, hooks=[Noting()]) as runner:
        await eventually(lambda: jobs.ids() == [])
        jobs.add("list", [1])
        await eventually(lambda: jobs.ids() == [])
        assert runner.health().rider_failures == 1
        last = jobs.add("work", {"says": "c"})
        await eventually(lambda: jobs.ids() == [])
    assert ridden.rows() == [(first, "a"), (last, "c")]
    assert "notes could not take part in recording 1 outcome(s)" in caplog.text


async def test_an_outcome_does_not_wait_for_a_lock_on_the_riders_table(
    dsn: str, ridden: Ridden
) -> None:
    jobs = Jobs(dsn)
    jobs.add("work", {})
    with psycopg.connect(dsn) as conn:
        conn.execute("lock table ridden in access exclusive mode")
        await run_once(dsn, tasks=TASKS, hooks=[Noting()])
        assert jobs.ids() == []
    assert ridden.rows() == []


@pytest.mark.parametrize("table", ["_private_jobs", "_private_job_queues"])
async def test_a_rider_rides_on_where_another_session_has_locked_what_the_outcome_changes(
    dsn: str, ridden: Ridden, table: str
) -> None:
    job_id = Jobs(dsn).add("work", {}, queue_name="a queue")
    with psycopg.connect(dsn) as conn:

        async def lock(_payload: Any) -> None:
            conn.execute(f"select from graphile_worker.{table} for update")
            # For longer than an outcome waits for the tables of riders.
            asyncio.get_running_loop().call_later(1.0, conn.rollback)

        await run_once(dsn, tasks={"work": lock}, hooks=[Noting()])
    assert ridden.rows() == [(job_id, "Completed")]


async def test_a_rider_that_only_selects_is_run(dsn: str, ridden: Ridden) -> None:
    ridden.execute(
        "create function note(job_id int8) returns int language sql as "
        "'insert into ridden values (job_id, ''called'') returning 1'"
    )
    text: LiteralString = (
        "select note(changed.id) from changed where $r1::int8[] is not null and $r2::text[] is not "
        "null"
    )
    job_id = Jobs(dsn).add("work", {})
    await run_once(dsn, tasks=TASKS, hooks=[Noting(text)])
    assert ridden.rows() == [(job_id, "called")]


FACTS: LiteralString = """
insert into ridden (job_id, outcome)
select changed.id, pg_catalog.concat_ws(
  ' ', changed.task_id > 0, changed.attempts, changed.created_at <= changed.run_at, changed.key,
  changed.payload ->> 'says', changed.flags, changed.job_queue_id is not null, $r2::text[]
)
from changed
where $r1::int8[] is not null
returning 1
"""


async def test_a_rider_reads_the_facts_of_the_jobs_also_when_it_is_run_alone(
    dsn: str, ridden: Ridden
) -> None:
    jobs = Jobs(dsn)
    # The text of the second one can't be stored, which leads to statements for one job each.
    first = jobs.add("work", {"says": "a"}, job_key="k", flags=["f"], queue_name="q")
    jobs.add("work", {"says": "b\0"})
    options: Any = {"concurrent_jobs": 2, "hooks": [Noting(FACTS)]}
    await run_once(dsn, tasks=TASKS, **options)
    assert jobs.ids() == []
    assert ridden.rows() == [(first, 't 1 t k a {"f": true} t {a}')]


async def test_a_batch_is_recorded_in_as_many_statements_as_a_rider_wants(
    dsn: str, ridden: Ridden
) -> None:
    class InTwos(Noting):
        def bind(self, batch: Sequence[Settled]) -> BoundRider | None:
            bound = super().bind(batch[:2])
            return None if bound is None else replace(bound, covers=len(batch[:2]))

    jobs = Jobs(dsn)
    ids = [jobs.add("work", {}) for _ in range(5)]
    options: Any = {"concurrent_jobs": 5, "complete_job_batch_delay": 0.2}
    plugin, other = InTwos(), Noting()
    hooks = [other, plugin]
    async with Runner(dsn, tasks=TASKS, hooks=hooks, **options):
        await eventually(lambda: jobs.ids() == [])
    assert ridden.rows() == sorted((job_id, "Completed") for job_id in ids for _ in hooks)
    assert max(len(batch) for batch in plugin.batches) == 2
