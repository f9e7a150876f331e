"""A cancellation during the start is raised, even if what is awaited swallows it.

Until Python 3.12 `asyncio.wait_for`, and with it psycopg, swallows one that comes together with the
result.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from graphile_worker_py import (
    Plugin,
    Runner,
    SchemaStep,
    WorkerUtils,
    add_job_adhoc,
    run,
    run_migrations,
    run_once,
)
from tests.support.running import Jobs

pytestmark = pytest.mark.any_server


class Swallow(Plugin):
    """Loses the cancellation of a start."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def migrate(
        self, step: SchemaStep, proceed: Callable[[SchemaStep], Awaitable[None]]
    ) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        await proceed(step)


async def enter(kind: Any, dsn: str, **options: Any) -> None:
    async with kind(dsn, **options):
        pytest.fail("it has started")


async def enter_runner(dsn: str, **options: Any) -> None:
    await enter(Runner, dsn, tasks={"work": print}, **options)


async def enter_utils(dsn: str, **options: Any) -> None:
    await enter(WorkerUtils, dsn, **options)


async def run_jobs(dsn: str, **options: Any) -> None:
    await run(dsn, tasks={"work": print}, **options)


async def run_jobs_once(dsn: str, **options: Any) -> None:
    await run_once(dsn, tasks={"work": print}, **options)


@pytest.mark.parametrize(
    "start", [enter_runner, enter_utils, run_jobs, run_jobs_once, run_migrations]
)
async def test_a_cancellation_that_was_swallowed_during_the_start_is_raised(
    dsn: str, start: Callable[..., Awaitable[None]]
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("work")
    swallow = Swallow()

    async def started() -> None:
        await start(dsn, hooks=[swallow])

    starting = asyncio.create_task(started())
    await swallow.begun.wait()
    starting.cancel()
    await asyncio.wait([starting], timeout=10)
    assert starting.cancelled()
    assert jobs.ids() == [job_id]
    assert jobs.locked() == []


async def test_a_start_works_in_a_task_that_was_cancelled_before(dsn: str) -> None:
    """As in a `finally` of the caller's, which may still add a job."""
    done = asyncio.Event()

    async def clean_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await add_job_adhoc(dsn, "work")
            await run_once(dsn, tasks={"work": lambda _payload: None})
            done.set()

    cleaning = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    cleaning.cancel()
    await asyncio.wait([cleaning])
    assert cleaning.cancelled()
    assert done.is_set()
    assert Jobs(dsn).ids() == []
