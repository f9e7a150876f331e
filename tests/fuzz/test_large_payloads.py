"""Payloads of ten megabytes, and deeply nested ones: they run or fail, and hold up nobody."""

import asyncio
import gc
from typing import Any

import pytest

from graphile_worker_py import JobContext, Runner, WorkerUtils, json_codec, run_once, task
from graphile_worker_py.events import JobError, JobSuccess
from tests.support.eventually import eventually
from tests.support.running import Jobs, Told

MEGABYTES = 10
BIG = "x" * (MEGABYTES * 2**20)
DEEP = 10_000
MANY = {"rows": [{"id": n, "name": f"row {n}", "tags": ["a", "b"]} for n in range(60_000)]}


@pytest.mark.parametrize("payload", [{"text": BIG}, MANY], ids=["one text", "many values"])
async def test_megabytes_come_and_go(dsn: str, payload: Any) -> None:
    jobs, seen = Jobs(dsn), list[Any]()

    @task
    async def work(payload: Any, ctx: JobContext) -> None:
        seen.append(payload)
        if len(seen) == 1:
            await ctx.add_job("work", payload)

    async with WorkerUtils(dsn) as utils:
        await utils.add_job("work", payload)
    await run_once(dsn, tasks=[work])
    assert seen == [payload, payload]
    assert jobs.ids() == []


async def test_other_jobs_go_on_beside_large_and_deep_ones(dsn: str) -> None:
    jobs, told = Jobs(dsn), Told()
    lengths: list[int] = []

    @task
    async def big(payload: Any) -> None:
        lengths.append(len(payload["text"]))
        await asyncio.sleep(0)

    @task
    async def deep(payload: Any) -> None:
        raise AssertionError("it can't be read")

    @task
    async def small(payload: Any) -> None: ...

    nested = "[" * DEEP + "]" * DEEP
    deep_ids = [jobs.add("deep", payload_json=nested, max_attempts=1) for _ in range(2)]
    deep_ids.append(
        jobs.add("deep", payload_json='{"a":' * DEEP + "1" + "}" * DEEP, max_attempts=1)
    )
    for _ in range(4):
        jobs.add("big", {"text": BIG}, queue_name="big")
    jobs.add_many(200, "small")
    async with Runner(dsn, tasks=[big, deep, small], concurrent_jobs=4, events=told.events):
        await eventually(lambda: len(ended(told)) == 207, timeout=15)
    # They were added last, and did not have to wait until the large ones of the serial queue ended.
    order = ended(told)
    assert "small" in order[: last(order, "big")]
    assert lengths == [len(BIG)] * 4
    assert jobs.ids() == deep_ids
    rows = jobs.query("select attempts, last_error from graphile_worker.jobs")
    assert rows == [{"attempts": 1, "last_error": "JSON nested too deeply to be decoded"}] * 3
    assert jobs.locked() == []


def ended(told: Told) -> list[str]:
    """The tasks of the jobs that have ended, in that order."""
    return [
        event.job.task_identifier
        for event in told.all
        if isinstance(event, JobSuccess) or type(event) is JobError
    ]


def last(names: list[str], name: str) -> int:
    """Where a name stands for the last time."""
    return len(names) - 1 - names[::-1].index(name)


async def test_what_is_left_of_a_large_batch_is_stored(dsn: str) -> None:
    jobs = Jobs(dsn)

    @task
    async def batch(payload: list[str]) -> list[Any]:
        async def each(item: str) -> None:
            if item != "fine":
                raise ValueError("not now")

        return [each(item) for item in payload]

    job_id = jobs.add("batch", [BIG, "fine", BIG[:100], "fine"])
    await run_once(dsn, tasks=[batch])
    job = jobs.one(job_id)
    assert job["payload"] == [BIG, BIG[:100]]
    assert job["attempts"] == 1
    assert jobs.locked() == []


async def test_a_failure_of_ten_megabytes_is_recorded(dsn: str) -> None:
    jobs = Jobs(dsn)

    @task
    async def fail(payload: Any) -> None:
        raise ValueError(payload["text"])

    job_id = jobs.add("fail", {"text": BIG})
    await run_once(dsn, tasks=[fail])
    last_error = jobs.one(job_id)["last_error"]
    assert last_error.startswith(BIG[:100])
    assert jobs.locked() == []


async def test_a_task_in_a_process_gets_ten_megabytes(dsn: str, tmp_path: Any) -> None:
    from tests.process_tasks import tell

    jobs = Jobs(dsn)
    jobs.add("tell", {"path": str(tmp_path / "noted"), "text": BIG})
    await run_once(dsn, tasks=[tell])
    assert (tmp_path / "noted").read_text().split()[2] == "True"
    assert jobs.ids() == []


async def test_payloads_that_nobody_can_write_are_refused_before_they_are_sent(dsn: str) -> None:
    value: Any = 1
    for _ in range(DEEP):
        value = [value]
    async with WorkerUtils(dsn) as utils:
        with pytest.raises(ValueError, match="not JSON-serialisable"):
            await utils.add_job("work", value)
        # The connection is as good as before.
        assert (await utils.add_job("work", {})).id > 0


@pytest.mark.parametrize("kind", ["async", "inline"])
async def test_the_event_loop_has_a_turn_between_two_large_payloads(dsn: str, kind: str) -> None:
    jobs, turns = Jobs(dsn), 0
    for _ in range(6):
        jobs.add("work", "x" * 300_000)
    decoded_at: list[int] = []

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    def note(payload: Any) -> None:
        decoded_at.append(turns)

    async def modern(payload: Any) -> None:
        note(payload)

    made = task("work")(modern) if kind == "async" else task("work", executor=kind)(note)  # type: ignore[call-overload]
    counting = asyncio.create_task(count())
    try:
        await run_once(dsn, tasks=[made], concurrent_jobs=6)
    finally:
        counting.cancel()
    assert len(set(decoded_at)) == 6


def test_no_garbage_is_collected_while_a_large_payload_is_decoded() -> None:
    collected: list[str] = []
    gc.callbacks.append(lambda phase, _info: collected.append(phase))
    try:
        assert len(json_codec.loads(b"[" + b"[]," * 400_000 + b"[]]")) == 400_001
        assert collected == []
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
