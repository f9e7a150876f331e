"""Jobs with a forbidden flag are left for others, untouched."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from graphile_worker_py import (
    ConfigurationError,
    GraphileWorkerError,
    LocalQueueOptions,
    Runner,
    run_once,
)
from graphile_worker_py.events import JobSuccess, LocalQueueGetJobsComplete, WorkerGetJobError
from graphile_worker_py.options import ForbiddenFlags
from tests.support.running import Jobs, Told


def add_flagged(jobs: Jobs) -> None:
    """Add jobs with all sorts of flags."""
    jobs.add("work", "bare")
    jobs.add("work", "red", flags=["red"])
    jobs.add("work", "red and green", flags=["red", "green"], queue_name="q")
    jobs.add("work", "green", flags=["green"], queue_name="q")
    jobs.add("work", "empty", flags=[])


def a_list() -> ForbiddenFlags:
    return ["red", "blue"]


def a_function() -> ForbiddenFlags:
    return lambda: ["red"]


def an_async_function() -> ForbiddenFlags:
    async def flags() -> Sequence[str]:
        return ("red",)

    return flags


@pytest.mark.parametrize("make", [a_list, a_function, an_async_function])
async def test_flagged_jobs_are_left_and_the_others_run(
    dsn: str, make: Callable[[], ForbiddenFlags]
) -> None:
    jobs = Jobs(dsn)
    add_flagged(jobs)
    seen = []

    async def work(payload: str) -> None:
        seen.append(payload)

    await run_once(dsn, tasks={"work": work}, forbidden_flags=make())
    assert sorted(seen) == ["bare", "empty", "green"]
    left = jobs.all()
    assert [(job["payload"], job["attempts"]) for job in left] == [("red", 0), ("red and green", 0)]
    assert jobs.locked() == []


@pytest.mark.parametrize("flags", [[], ["unknown"], lambda: None, list, None])
async def test_without_a_flag_that_matches_all_jobs_run(dsn: str, flags: Any) -> None:
    jobs = Jobs(dsn)
    add_flagged(jobs)
    await run_once(dsn, tasks={"work": print}, forbidden_flags=flags)
    assert jobs.ids() == []


async def test_flags_that_somebody_stored_otherwise_count_by_their_names(dsn: str) -> None:
    jobs = Jobs(dsn)
    for flags in ('{"red": false}', '["red"]', '{"colours": {"red": true}}', '"green"', "7"):
        job_id = jobs.add("work", flags)
        jobs.change(job_id, f"flags = '{flags}'")
    await run_once(dsn, tasks={"work": print}, forbidden_flags=["red"])
    assert [job["payload"] for job in jobs.all()] == ['{"red": false}', '["red"]']


async def test_flags_are_asked_for_before_each_fetch(dsn: str) -> None:
    """So they can be a rate limit, with prefetching, too."""
    jobs = Jobs(dsn)
    for n in range(6):
        jobs.add("work", n, flags=["limited"])
    ran: list[int] = []

    async def work(payload: int) -> None:
        ran.append(payload)

    await run_once(
        dsn,
        tasks={"work": work},
        forbidden_flags=lambda: ["limited"] if len(ran) >= 3 else None,
        local_queue=LocalQueueOptions(size=10),
    )
    assert len(ran) == 3
    assert [job["attempts"] for job in jobs.all()] == [0, 0, 0]


async def test_with_a_list_of_flags_jobs_are_still_fetched_ahead(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    add_flagged(jobs)
    await run_once(
        dsn,
        tasks={"work": print},
        forbidden_flags=["red"],
        local_queue=LocalQueueOptions(size=10),
        events=told.events,
    )
    assert len(told.of(LocalQueueGetJobsComplete)[0].jobs) == 3
    assert [job["payload"] for job in jobs.all()] == ["red", "red and green"]


@pytest.mark.parametrize("answer", ["red", [1], 7, {"red": True}, ["\0"]])
async def test_an_answer_that_is_no_list_of_flags_is_told_and_runs_nothing(
    dsn: str, answer: Any
) -> None:
    jobs = Jobs(dsn)
    jobs.add("work")
    with pytest.raises(ConfigurationError, match="forbidden_flags"):
        await run_once(dsn, tasks={"work": print}, forbidden_flags=lambda: answer)
    assert len(jobs.ids()) == 1


def fail() -> Sequence[str]:
    raise LookupError("no flags today")


def wait_for_what_was_cancelled() -> Sequence[str]:
    raise asyncio.CancelledError


FAILING = [(fail, LookupError), (wait_for_what_was_cancelled, GraphileWorkerError)]


@pytest.mark.parametrize(("fail", "error"), FAILING)
async def test_a_function_that_fails_stops_nothing_but_the_fetch(
    dsn: str, fail: Callable[[], Sequence[str]], error: type[Exception]
) -> None:
    jobs = Jobs(dsn)
    jobs.add("work")
    answers: list[Callable[[], Sequence[str]]] = [fail, list]
    told = Told()
    async with Runner(
        dsn,
        tasks={"work": print},
        forbidden_flags=lambda: answers.pop(0)() if answers else [],
        events=told.events,
    ):
        await told.seen(JobSuccess)
    (failed,) = told.of(WorkerGetJobError)
    assert isinstance(failed.error, error)


@pytest.mark.parametrize("flags", ["red", [1], 7, ["\0"], ["\ud800"]])
async def test_forbidden_flags_that_are_no_list_of_strings_are_refused(flags: Any) -> None:
    with pytest.raises(ConfigurationError, match="forbidden_flags"):
        await run_once("postgresql://", tasks={"work": print}, forbidden_flags=flags)
