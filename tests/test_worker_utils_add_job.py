"""One job can be added, replaced or left alone."""

import asyncio
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import psycopg

from graphile_worker_py import JobKeyMode, Runner, WorkerUtils, add_job_adhoc
from tests.support.jobs import Jobs
from tests.worker_utils_support import Api

LATER = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5)))
EVEN_LATER = LATER + timedelta(days=1)


async def test_what_is_given_is_stored_and_returned(utils: WorkerUtils, stored: Jobs) -> None:
    job = await utils.add_job(
        "send",
        {"to": "ä@example.com"},
        queue_name="mail",
        run_at=LATER,
        priority=-5,
        max_attempts=3,
        job_key="welcome:42",
        job_key_mode="replace",
        flags=["eu", "big"],
    )

    (row,) = stored.all()
    assert row["task_identifier"] == job.task_identifier == "send"
    assert row["queue_name"] == "mail"
    assert row["payload"] == job.payload == {"to": "ä@example.com"}
    assert row["flags"] == job.flags == {"eu": True, "big": True}
    for name, value in job.to_dict().items():
        assert row[name] == value, name
    assert (job.run_at, job.run_at.utcoffset()) == (LATER, timedelta(0))
    assert (job.priority, job.max_attempts, job.key) == (-5, 3, "welcome:42")
    assert (job.attempts, job.revision, job.last_error, job.locked_at) == (0, 0, None, None)
    assert job.is_available


async def test_what_is_not_given_has_upstreams_defaults(utils: WorkerUtils) -> None:
    job = await utils.add_job("a")
    assert job.payload == {}
    assert job.payload_json == b"{}"
    assert (job.job_queue_id, job.key, job.flags) == (None, None, None)
    assert (job.priority, job.max_attempts) == (0, 25)
    assert job.run_at == job.created_at == job.updated_at


async def test_zero_and_empty_values_are_values(utils: WorkerUtils, stored: Jobs) -> None:
    job = await utils.add_job("work", 0, queue_name="", priority=0, flags=[])
    (row,) = stored.all()
    assert (row["task_identifier"], row["queue_name"]) == ("work", "")
    assert (row["payload"], job.payload, row["flags"]) == (0, 0, None)


async def test_payloads_of_every_shape_come_back_as_they_were(utils: WorkerUtils) -> None:
    payloads: list[Any] = [
        [],
        "",
        False,
        1.5,
        -0.0,
        2**70,
        "\0",
        "\u2028 % $1 :GRAPHILE_WORKER_SCHEMA ü 😀",
        {"": {"deep": [None, {"a": [1, "2"]}]}},
        [None],
        "null",
    ]
    for payload in payloads:
        job = await utils.add_job("a", payload)
        assert json.dumps(job.payload) == json.dumps(payload)


async def test_old_time_zones_with_odd_seconds_keep_the_instant(utils: WorkerUtils) -> None:
    moment = datetime(1900, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam"))
    assert (await utils.add_job("a", run_at=moment)).run_at == moment


async def test_replace_overwrites_the_waiting_job_and_resets_what_is_not_given(
    utils: WorkerUtils, stored: Jobs
) -> None:
    first = await utils.add_job(
        "a", {"n": 1}, job_key="k", queue_name="q", priority=3, run_at=LATER, flags=["f"]
    )
    second = await utils.add_job("b", {"m": 2}, job_key="k", job_key_mode=JobKeyMode.REPLACE)

    assert (second.id, second.revision, second.task_identifier) == (first.id, 1, "b")
    (row,) = stored.all()
    assert (row["payload"], row["queue_name"], row["priority"]) == ({"m": 2}, None, 0)
    assert (row["flags"], row["max_attempts"]) == (None, 25)
    assert row["run_at"] < LATER
    assert row["created_at"] == first.created_at


async def test_preserve_run_at_keeps_the_time_until_the_job_was_tried(
    utils: WorkerUtils, stored: Jobs
) -> None:
    first = await utils.add_job("a", job_key="k", run_at=LATER)
    second = await utils.add_job(
        "a", {"n": 2}, job_key="k", run_at=EVEN_LATER, job_key_mode="preserve_run_at"
    )
    assert (second.id, second.run_at, second.payload) == (first.id, LATER, {"n": 2})

    await utils.reschedule_jobs([first.id], attempts=1)
    third = await utils.add_job("a", job_key="k", run_at=EVEN_LATER, job_key_mode="preserve_run_at")
    assert (third.id, third.run_at, third.attempts) == (first.id, EVEN_LATER, 0)
    assert len(stored.all()) == 1


async def test_unsafe_dedupe_leaves_the_job_alone_whatever_its_state(
    utils: WorkerUtils, stored: Jobs
) -> None:
    first = await utils.add_job("a", {"n": 1}, job_key="k", job_key_mode="unsafe_dedupe")
    assert first.revision == 0
    for revision, change in enumerate((lambda *_: None, stored.exhaust, stored.lock), start=1):
        change(first.id)
        again = await utils.add_job("a", {"n": 2}, job_key="k", job_key_mode="unsafe_dedupe")
        assert (again.id, again.revision, again.payload) == (first.id, revision, {"n": 1})
    assert len(stored.all()) == 1


async def test_a_running_job_loses_its_key_to_a_new_one(utils: WorkerUtils, stored: Jobs) -> None:
    first = await utils.add_job("a", {"n": 1}, job_key="k")
    stored.lock(first.id)

    second = await utils.add_job("a", {"n": 2}, job_key="k")

    assert second.id != first.id
    assert (second.key, second.revision, second.payload) == ("k", 0, {"n": 2})
    running = stored.one(first.id)
    assert (running["key"], running["attempts"], running["locked_by"]) == (None, 25, "pool-1")
    assert running["payload"] == {"n": 1}


async def test_a_failed_job_makes_way_for_a_new_one_with_its_key(
    utils: WorkerUtils, stored: Jobs
) -> None:
    first = await utils.add_job("a", job_key="k")
    stored.exhaust(first.id)
    second = await utils.add_job("a", job_key="k")
    assert second.id != first.id
    failed = stored.one(first.id)
    assert (failed["key"], failed["attempts"], failed["last_error"]) == (None, 25, "no")


async def test_array_payloads_with_one_key_are_joined(utils: WorkerUtils) -> None:
    await utils.add_job("a", [1, {"b": 2}], job_key="k")
    joined = await utils.add_job("a", [3], job_key="k")
    assert joined.payload == [1, {"b": 2}, 3]
    assert (await utils.add_job("a", {"n": 4}, job_key="k")).payload == {"n": 4}


async def test_a_worker_is_notified_for_each_job(utils: WorkerUtils, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute('listen "jobs:insert"')
        await utils.add_job("a", job_key="k", job_key_mode="unsafe_dedupe")
        await utils.add_job("a", job_key="k", job_key_mode="unsafe_dedupe")  # adds nothing
        await utils.remove_job("k")
        told = [json.loads(note.payload) for note in listener.notifies(timeout=15, stop_after=2)]
    assert [each["count"] for each in told] == [1, -1]


async def test_a_job_can_be_added_ad_hoc(dsn: str, stored: Jobs) -> None:
    job = await add_job_adhoc(dsn, "a", {"n": 1}, job_key="k", run_at=LATER)
    (row,) = stored.all()
    assert (row["id"], row["key"], row["payload"]) == (job.id, "k", {"n": 1})
    assert row["run_at"] == LATER


async def test_a_schema_of_any_name_is_installed_on_entering(api: Api, empty_dsn: str) -> None:
    schema = 'Other-S "x" $1 %s'
    async with api.opened(empty_dsn, schema=schema) as utils:
        job = await utils.add_job("a", {"n": 1}, job_key="k")
        await utils.migrate()
        assert await utils.get_job(job.id) == await utils.remove_job("k")
        assert (await utils.counts()).total == 0


async def test_run_at_is_exact_to_the_microsecond(utils: WorkerUtils, stored: Jobs) -> None:
    moment = datetime.now(UTC).replace(microsecond=123457)
    job = await utils.add_job("a", run_at=moment)
    assert job.run_at == stored.one(job.id)["run_at"] == moment


async def test_a_job_is_added_while_a_pool_runs_the_one_with_its_key(
    dsn: str, stored: Jobs
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    async def slow(payload: Any) -> None:
        seen.append(payload["n"])
        began.set()
        await go_on.wait()

    async with Runner(dsn, tasks={"slow": slow}, concurrent_jobs=2, no_handle_signals=True) as run:
        old = await run.add_job("slow", {"n": 1}, job_key="k")
        await began.wait()
        async with WorkerUtils(dsn) as utils:
            new = await utils.add_job("slow", {"n": 2}, job_key="k", run_at=LATER)
        assert new.id != old.id
        assert stored.one(old.id)["locked_by"] == run.pool_id
        go_on.set()
        await run.stop()
    assert seen == [1]
    assert [(row["id"], row["payload"], row["key"]) for row in stored.all()] == [
        (new.id, {"n": 2}, "k")
    ]
