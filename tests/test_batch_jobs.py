"""A payload that is a list may fail item by item: only what failed is tried again."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from graphile_worker_py import run_once, task
from graphile_worker_py.errors import TaskTimeoutError
from graphile_worker_py.events import JobError, JobSuccess
from tests import process_tasks
from tests.support.running import Jobs, Told


async def fail(message: str) -> None:
    """An item that fails."""
    raise ValueError(message)


async def succeed() -> str:
    """An item that succeeds."""
    return "done"


async def test_items_that_fail_are_tried_again_alone_and_in_order(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", [{"n": n} for n in range(6)], queue_name="q")
    told = Told()

    async def batch(payload: list[Any]) -> list[Any]:
        return [fail(f"no {item['n']}") if item["n"] % 2 else succeed() for item in payload]

    await run_once(dsn, tasks={"batch": batch}, events=told.events)
    job = jobs.one(job_id)
    assert job["payload"] == [{"n": 1}, {"n": 3}, {"n": 5}]
    assert job["last_error"] == "Batch failures:\nno 1\nno 3\nno 5"
    assert job["attempts"] == 1
    assert jobs.locked() == []
    (event,) = told.of(JobError)
    assert event.batch_job_errors is not None
    assert [str(error) for error in event.batch_job_errors] == ["no 1", "no 3", "no 5"]
    jobs.make_due()
    await run_once(dsn, tasks={"batch": batch})
    assert jobs.one(job_id)["payload"] == [{"n": 1}, {"n": 3}, {"n": 5}]
    assert jobs.one(job_id)["attempts"] == 2


@pytest.mark.parametrize("executor", [None, "process"])
async def test_failed_items_keep_their_own_json_text(dsn: str, executor: str | None) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("fail_all_but_first", [])
    items = [
        "1",
        "12345678901234567.89",
        "100.10",
        "1e400",
        "-0.0",
        '{ "b" : 1.0,"a":[1.50 , "],[\\"" ],"b":2}',
        '"\\u00e4, \\ud800 ]"',
        "123456789012345678901234567890",
        "null",
        f"{'9' * 5000}.{'1' * 5000}",
    ]
    jobs.change(job_id, f"payload = $json$[{' , '.join(items)}]$json$::json")

    async def fail_all_but_first(payload: list[Any]) -> list[Any]:
        return [None, *(fail(str(at)) for at in range(1, len(payload)))]

    await run_once(
        dsn,
        tasks=[process_tasks.fail_all_but_first]
        if executor
        else {"fail_all_but_first": fail_all_but_first},
    )
    assert jobs.one(job_id)["json"] == f"[{','.join(items[1:])}]"


if sys.version_info >= (3, 12):  # there are eager tasks

    async def test_items_that_end_as_soon_as_they_begin_work_with_eager_tasks(dsn: str) -> None:
        jobs = Jobs(dsn)
        job_id = jobs.add("batch", [1, 2, 3])

        async def batch(payload: list[int]) -> list[Any]:
            return [succeed(), fail("no"), succeed()]

        loop = asyncio.get_running_loop()
        loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
        try:
            async with asyncio.timeout(15):
                await run_once(dsn, tasks={"batch": batch})
        finally:
            loop.set_task_factory(None)
        assert jobs.one(job_id)["json"] == "[2]"


async def test_a_batch_of_which_nothing_fails_is_done(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("batch", [1, 2, 3])

    async def batch(payload: list[int]) -> list[Any]:
        # Values count as success, errors that are returned instead of raised, too.
        return [succeed(), None, ValueError("a value")]

    await run_once(dsn, tasks={"batch": batch})
    assert jobs.ids() == []


async def test_a_batch_that_raises_is_tried_again_as_a_whole(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", [1, 2])

    async def batch(payload: list[int]) -> list[Any]:
        payload.clear()
        raise ValueError("all")

    await run_once(dsn, tasks={"batch": batch})
    assert jobs.one(job_id)["payload"] == [1, 2]
    assert jobs.one(job_id)["last_error"] == "all"


@pytest.mark.parametrize(
    ("payload", "results"), [({"a": 1}, [1]), ([1, 2], [1]), ([1], {"a": 1}), ([], []), ([1], None)]
)
async def test_results_that_do_not_match_the_payload_mean_success(
    dsn: str, payload: Any, results: Any, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(dsn)
    jobs.add("batch", payload)

    async def batch(payload: Any) -> Any:
        return results

    with caplog.at_level(logging.WARNING):
        await run_once(dsn, tasks={"batch": batch})
    assert jobs.ids() == []
    warned = [record.getMessage() for record in caplog.records]
    if payload == [1, 2]:
        assert warned == ["Task 'batch' returned 1 results for 2 payload items; taken as success"]
    else:
        assert warned == []


UNFIT: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "too few": ([1, 2], lambda _: [succeed()], "returned 1 results for 2 payload items"),
    "too many": ([1], lambda _: (succeed(), None), "returned 2 results for 1 payload items"),
    "no list": ({"a": 1}, lambda _: [succeed()], "for a payload that is no list"),
    "a generator": ([1], lambda payload: (succeed() for _ in payload), "returned a generator"),
    "a map": ([1], lambda payload: map(fail, payload), "returned a map"),
    "an object": ([1], lambda payload: {n: succeed() for n in payload}, "awaitables in a dict"),
    "a set": ([1], lambda payload: {succeed() for _ in payload}, "awaitables in a set"),
}


@pytest.mark.parametrize(("payload", "answer", "message"), UNFIT.values(), ids=UNFIT.keys())
async def test_awaitables_that_belong_to_no_item_fail_the_job(
    dsn: str, payload: Any, answer: Callable[[Any], Any], message: str
) -> None:
    """Nobody would run them: done as it is, the job would be lost without a word."""
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", payload)
    await run_once(dsn, tasks={"batch": answer})
    job = jobs.one(job_id)
    assert job["payload"] == payload
    assert job["attempts"] == 1
    assert message in job["last_error"]


async def test_asyncio_tasks_that_belong_to_no_item_are_cancelled(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", [1, 2])
    begun: list[asyncio.Task[Any]] = []

    async def batch(payload: list[int]) -> list[Any]:
        async with asyncio.TaskGroup() as group:
            group.create_task(succeed())
        begun.append(asyncio.ensure_future(asyncio.Event().wait()))
        return begun

    await run_once(dsn, tasks={"batch": batch})
    assert "returned 1 results for 2" in jobs.one(job_id)["last_error"]
    await asyncio.wait(begun, timeout=15)
    assert begun[0].cancelled()


async def test_a_tuple_of_results_is_taken_as_a_list(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", ["good", "bad"])

    async def batch(payload: list[str]) -> tuple[Awaitable[Any], ...]:
        return succeed(), fail("no")

    await run_once(dsn, tasks={"batch": batch})
    assert jobs.one(job_id)["payload"] == ["bad"]


async def test_an_awaitable_that_a_task_returns_is_awaited(dsn: str) -> None:
    """As promises of promises are: `return send()` does what `return await send()` does."""
    jobs = Jobs(dsn)
    done, failed = jobs.add("good"), jobs.add("bad")

    async def good(payload: Any) -> Any:
        return succeed()

    async def bad(payload: Any) -> Any:
        return fail("inner")

    await run_once(dsn, tasks={"good": good, "bad": bad})
    assert done not in jobs.ids()
    assert jobs.one(failed)["last_error"] == "inner"


async def test_a_plain_function_may_answer_with_a_list_as_well(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", ["good", "bad"])

    def batch(payload: list[str]) -> list[Awaitable[Any]]:
        return [succeed() if item == "good" else fail("no") for item in payload]

    await run_once(dsn, tasks={"batch": batch})
    assert jobs.one(job_id)["payload"] == ["bad"]


async def test_what_the_task_does_to_its_payload_does_not_change_what_is_tried_again(
    dsn: str,
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", [{"n": 1}, {"n": 2}])

    async def batch(payload: list[Any]) -> list[Any]:
        results = [fail("no") for _ in payload]
        for item in payload:
            item["n"] = "changed"
        payload.append("more")
        return results

    await run_once(dsn, tasks={"batch": batch})
    assert jobs.one(job_id)["payload"] == [{"n": 1}, {"n": 2}]


async def test_numbers_and_text_of_the_items_survive_being_rewritten(dsn: str) -> None:
    jobs = Jobs(dsn)
    text = (
        f'["good", {2**64}, {-(10**30)}, {{"k": {2**63}}}, 0.1, "\\ud800", "\\u0000",'
        ' "\N{SNOWMAN}", true, null]'
    )
    job_id = jobs.add("batch", payload_json=text)

    async def batch(payload: list[Any]) -> list[Any]:
        return [None, *(fail("no") for _ in payload[1:])]

    await run_once(dsn, tasks={"batch": batch})
    stored = jobs.one(job_id)["json"]
    assert json.loads(stored) == json.loads(text)[1:]
    assert str(2**64) in stored
    assert str(-(10**30)) in stored


async def test_items_that_can_be_read_and_not_rewritten_fail_as_a_whole(dsn: str) -> None:
    """Reading and writing JSON have different limits of nesting."""
    jobs = Jobs(dsn)
    deep = "[" * 1000 + "]" * 1000
    job_id = jobs.add("batch", payload_json=f'[{deep}, "other"]')
    jobs.add("work", priority=1)
    ran = []

    async def batch(payload: list[Any]) -> list[Any]:
        ran.append("batch")
        return [fail("no"), succeed()]

    async def work(payload: Any) -> None:
        ran.append("work")

    await run_once(dsn, tasks={"batch": batch, "work": work})
    assert "work" in ran
    left = jobs.query("select id, attempts, last_error from graphile_worker._private_jobs")
    assert [row["id"] for row in left] == [job_id]
    assert left[0]["attempts"] == 1
    assert left[0]["last_error"] == "Batch failures:\nno"
    assert jobs.locked() == []


@pytest.mark.parametrize(
    ("error", "stored"),
    [
        (SystemExit(2), "SystemExit: 2"),
        (asyncio.CancelledError(), "CancelledError"),
        (KeyError("k"), "KeyError: 'k'"),
        (BaseException("bare"), "bare"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_item_may_fail_with_anything(dsn: str, error: BaseException, stored: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", [1, 2, 3])
    jobs.add("work")

    async def item() -> None:
        raise error

    async def batch(payload: list[int]) -> list[Any]:
        return [succeed(), item(), succeed()]

    await run_once(dsn, tasks={"batch": batch, "work": print})
    assert jobs.ids() == [job_id]
    assert jobs.one(job_id)["payload"] == [2]
    assert jobs.one(job_id)["last_error"] == f"Batch failures:\n{stored}"


async def test_an_item_that_cancels_itself_has_failed(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", [1, 2])

    async def cancel() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(0)

    async def batch(payload: list[int]) -> list[Any]:
        return [cancel(), succeed()]

    await run_once(dsn, tasks={"batch": batch})
    assert jobs.one(job_id)["payload"] == [1]


async def test_items_run_side_by_side(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("batch", [1, 2, 3])
    told = Told()

    async def batch(payload: list[int]) -> list[Any]:
        together = asyncio.Barrier(len(payload))
        return [together.wait() for _ in payload]

    await asyncio.wait_for(run_once(dsn, tasks={"batch": batch}, events=told.events), 10)
    assert len(told.of(JobSuccess)) == 1


async def test_at_the_time_limit_only_items_that_have_not_ended_well_are_tried_again(
    dsn: str,
) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", ["done", "bad", "slow", "late"])
    told = Told()

    async def late() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass  # in the last moment it ends well

    @task(timeout=0.05)
    async def batch(payload: list[str]) -> list[Any]:
        return [succeed(), fail("no"), asyncio.Event().wait(), late()]

    await asyncio.wait_for(run_once(dsn, tasks=[batch], events=told.events), 10)
    assert jobs.one(job_id)["payload"] == ["bad", "slow"]
    assert jobs.one(job_id)["last_error"] == (
        "Batch failures:\nno\ntask 'batch' ran longer than its timeout of 0.05 s"
    )
    (event,) = told.of(JobError)
    assert [type(error) for error in event.batch_job_errors or ()] == [ValueError, TaskTimeoutError]


async def test_items_that_never_began_within_the_time_limit_are_tried_again(dsn: str) -> None:
    jobs = Jobs(dsn)
    job_id = jobs.add("batch", [1, 2])

    @task(timeout=0.05)
    async def batch(payload: list[int]) -> list[Any]:
        time.sleep(0.1)  # noqa: ASYNC251  # it holds the loop, so that no time is left
        return [asyncio.Event().wait(), None]

    await asyncio.wait_for(run_once(dsn, tasks=[batch]), 10)
    assert jobs.one(job_id)["payload"] == [1]
    assert "longer than its timeout" in jobs.one(job_id)["last_error"]


async def test_arrays_added_under_one_key_run_as_one_batch(dsn: str) -> None:
    jobs = Jobs(dsn)
    for n in range(4):
        jobs.add("batch", [{"n": n}], job_key="all")
    seen = []

    async def batch(payload: list[Any]) -> list[Any]:
        seen.append(payload)
        return [succeed() if item["n"] else fail("zero") for item in payload]

    await run_once(dsn, tasks={"batch": batch})
    assert seen == [[{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}]]
    (left,) = jobs.all()
    assert left["payload"] == [{"n": 0}]
    assert left["key"] == "all"
    # What is added before the retry joins what failed.
    jobs.add("batch", [{"n": 7}], job_key="all")
    await run_once(dsn, tasks={"batch": batch})
    assert seen[1] == [{"n": 0}, {"n": 7}]
