"""Rows that others wrote, as odd as the tables allow: they harm no other job."""

import json
from typing import Any

import pytest

from graphile_worker_py import JobContext, run_once
from graphile_worker_py.events import JobError
from tests.support.running import Jobs, Told

INSERT_FIRST = """
insert into graphile_worker._private_jobs (task_id, payload, priority)
select id, %s::json, -1 from graphile_worker._private_tasks where identifier = 'work'
"""


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ("[" * 2000 + "]" * 2000, "nested too deeply"),
        ("9" * 5000, "Exceeds the limit"),
        ("[" + "9" * 5000 + "]", "Exceeds the limit"),
    ],
    ids=["deep", "long number", "long number in a list"],
)
async def test_a_payload_that_cannot_be_decoded_fails_its_own_job_only(
    dsn: str, payload: str, error: str
) -> None:
    jobs, told = Jobs(dsn), Told()
    jobs.add("work", "other")
    jobs.query(INSERT_FIRST, payload)
    seen: list[Any] = []

    async def work(payload: Any) -> None:
        seen.append("other" if payload == "other" else "odd")

    await run_once(dsn, tasks={"work": work}, concurrent_jobs=2, events=told.events)
    assert "other" in seen
    assert jobs.locked() == []
    left = jobs.query(
        "select attempts, last_error, payload::text as payload from graphile_worker._private_jobs"
    )
    if "odd" in seen:
        # Newer Pythons take deeper nesting than older ones, but no longer numbers.
        assert error == "nested too deeply"
        assert left == []
        return
    (job,) = left
    assert job["attempts"] == 1
    assert error in job["last_error"]
    assert job["payload"] == payload
    assert len(told.of(JobError)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "0",
        '""',
        "[]",
        '"\\u0000"',
        '{"\\ud800": "\\udfff"}',
        str(2**64),
        f'{{"n": {10**40}}}',
        '{"a": 1, "a": 2}',
        " [ 1 ] ",
        '"\N{SNOWMAN} \U0001f600"',
        json.dumps("long " * 500_000),
    ],
    ids=lambda text: text[:20].encode("ascii", "backslashreplace").decode(),
)
async def test_every_payload_that_json_allows_is_given_to_the_task(dsn: str, text: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("work", payload_json=text)
    seen: list[Any] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        seen.append(payload)
        assert ctx.job.payload_json.decode() == text

    await run_once(dsn, tasks={"work": work})
    assert seen == [json.loads(text)]


async def test_odd_columns_of_a_row_harm_nobody(dsn: str) -> None:
    jobs = Jobs(dsn)
    odd = [
        "flags = '[1, {\"a\": null}]'",
        "flags = ('{\"a\": ' || repeat('[', 1500) || repeat(']', 1500) || '}')::jsonb",
        "attempts = -32768",
        "max_attempts = 32767, attempts = 32765",
        "revision = -2147483648",
        "created_at = 'infinity', updated_at = '-infinity'",
        "created_at = '290000-01-01', updated_at = '4713-01-01 BC'",
        "last_error = repeat('x', 1000000)",
        "locked_by = 'left over'",
        "key = repeat('\N{SNOWMAN}', 512)",
    ]
    for assignments in odd:
        jobs.change(jobs.add("work"), assignments)
    seen: list[str] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        seen.append(repr(ctx.job))
        assert ctx.job.run_at.tzinfo is ctx.job.created_at.tzinfo is ctx.job.updated_at.tzinfo

    await run_once(dsn, tasks={"work": work}, concurrent_jobs=len(odd))
    assert len(seen) == len(odd)
    assert jobs.ids() == []
    assert jobs.locked() == []


async def test_odd_names_of_tasks_and_queues_work_like_any(dsn: str) -> None:
    jobs = Jobs(dsn)
    names = ["_", "a\nb", "'; drop table x; --", "\N{SNOWMAN}" * 128, "%s $1 {}"]
    for name in names:
        jobs.add(name, name, queue_name=name)
    seen: list[Any] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        assert await ctx.get_queue_name() == payload == ctx.job.task_identifier
        seen.append(payload)

    await run_once(dsn, tasks=dict.fromkeys(names, work), concurrent_jobs=3)
    assert sorted(seen) == sorted(names)


async def test_a_job_whose_queue_row_is_gone_is_left_and_harms_nobody(dsn: str) -> None:
    jobs = Jobs(dsn)
    lost = jobs.add("work", "lost", queue_name="q")
    jobs.add("work", "other")
    jobs.query("delete from graphile_worker._private_job_queues")
    seen: list[Any] = []

    async def work(payload: Any) -> None:
        seen.append(payload)

    await run_once(dsn, tasks={"work": work})
    assert seen == ["other"]
    assert jobs.ids() == [lost]


async def test_ids_of_jobs_beyond_32_bits_work_like_any(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.query("alter table graphile_worker._private_jobs alter id restart with 9007199254740993")
    good, bad = jobs.add("work", "good", queue_name="q"), jobs.add("work", "bad", queue_name="r")
    assert good == 2**53 + 1

    async def work(payload: str) -> None:
        if payload == "bad":
            raise ValueError("no")

    await run_once(dsn, tasks={"work": work}, concurrent_jobs=2)
    assert jobs.ids() == [bad]
    assert jobs.one(bad)["last_error"] == "no"
    assert jobs.locked() == []


async def test_columns_that_others_added_at_the_end_harm_nobody(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.query("alter table graphile_worker._private_jobs add extra text default 'x'")
    jobs.query("alter table graphile_worker._private_job_queues add extra text default 'x'")
    jobs.add_many(3, "work", "q")
    seen: list[Any] = []

    async def work(payload: Any, ctx: JobContext) -> None:
        seen.append(ctx.job.is_available)
        if payload["n"] == 1:
            raise ValueError("no")

    await run_once(dsn, tasks={"work": work}, concurrent_jobs=2)
    assert seen == [False] * 3
    assert [job["last_error"] for job in jobs.all()] == ["no"]
