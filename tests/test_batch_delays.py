"""Outcomes may be gathered before they are written: `complete_job_batch_delay` and its like."""

from typing import Any

import pytest

from graphile_worker_py import Runner
from graphile_worker_py.events import JobComplete
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told


@pytest.mark.parametrize("outcome", ["complete", "fail"])
async def test_outcomes_wait_for_company_and_a_stop_writes_them(dsn: str, outcome: str) -> None:
    jobs, told = Jobs(dsn), Told()
    ids = jobs.add_many(3, "work")

    async def work(payload: Any) -> None:
        if outcome == "fail":
            raise ValueError("no")

    options: dict[str, Any] = {f"{outcome}_job_batch_delay": 3600}
    async with Runner(dsn, tasks={"work": work}, events=told.events, **options):
        await told.seen(JobComplete, count=3)
        assert len(jobs.locked()) == 3
    assert jobs.locked() == []
    assert jobs.ids() == (ids if outcome == "fail" else [])


async def test_without_a_delay_an_outcome_is_written_at_once(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work")
    async with Runner(dsn, tasks={"work": print}, poll_interval=3600, events=told.events):
        await told.seen(JobComplete)
        await eventually(lambda: jobs.ids() == [])
