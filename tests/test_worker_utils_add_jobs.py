"""Many jobs can be added at once."""

import asyncio
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from graphile_worker_py import ConfigurationError, JobSpec, WorkerUtils
from tests.support.eventually import eventually
from tests.support.jobs import Jobs
from tests.worker_utils_support import Api

LATER = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def specs_of_all_kinds(count: int) -> list[JobSpec]:
    """Specs that repeat each other in everything, in an order without order."""
    choose = random.Random(20).choice
    return [
        JobSpec(
            choose(["a", "b", "nested/c", "e"]),
            choose([None, {"n": number % 7}, [number % 3], "text \0 ü 😀", 2**70]),
            queue_name=choose([None, None, "q1", "q2", ""]),
            run_at=choose([None, LATER, LATER + timedelta(microseconds=number % 2)]),
            priority=choose([None, 0, -3]),
            max_attempts=choose([None, 25, 1]),
            flags=choose([None, [], ["x"], ["x", "y"], ["y", "x"]]),
        )
        for number in range(count)
    ]


async def test_results_stand_in_the_order_of_the_specs(utils: WorkerUtils, stored: Jobs) -> None:
    specs = specs_of_all_kinds(1500)

    jobs = await utils.add_jobs(specs)

    rows = {row["id"]: row for row in stored.all()}
    assert len({job.id for job in jobs}) == len(rows) == len(specs)
    for spec, job in zip(specs, jobs, strict=True):
        row = rows[job.id]
        assert row["task_identifier"] == job.task_identifier == spec.identifier
        assert row["queue_name"] == spec.queue_name
        assert job.payload == ({} if spec.payload is None else spec.payload)
        assert row["run_at"] == (spec.run_at or row["created_at"])
        assert row["priority"] == (spec.priority or 0)
        assert row["max_attempts"] == (spec.max_attempts or 25)
        assert set(row["flags"] or ()) == set(spec.flags or ())


async def test_results_tell_keyed_and_other_jobs_apart(utils: WorkerUtils) -> None:
    specs = [
        JobSpec("b", {"n": 1}),
        JobSpec("a", {"n": 1}, job_key="2"),
        JobSpec("a", {"n": 1}),
        JobSpec("b", {"n": 1}, job_key="1"),
        JobSpec("b", {"n": 1}, job_key="0", job_key_mode="unsafe_dedupe"),
        JobSpec("a", {"n": 1}, job_key="3", job_key_mode="preserve_run_at"),
    ]
    jobs = await utils.add_jobs(specs)
    assert [(job.task_identifier, job.key) for job in jobs] == [
        ("b", None),
        ("a", "2"),
        ("a", None),
        ("b", "1"),
        ("b", "0"),
        ("a", "3"),
    ]
    for job in jobs:
        assert await utils.get_job(job.id) == job


async def test_the_last_of_several_specs_with_one_key_counts(
    utils: WorkerUtils, stored: Jobs
) -> None:
    jobs = await utils.add_jobs(
        [
            JobSpec("a", {"n": 1}, job_key="k", job_key_mode="unsafe_dedupe"),
            JobSpec("b", {"n": 2}, job_key="other"),
            JobSpec("c", {"n": 3}, job_key="k"),
        ]
    )
    assert [job.payload["n"] for job in jobs] == [3, 2, 3]
    assert jobs[0] == jobs[2]
    assert sorted(row["task_identifier"] for row in stored.all()) == ["b", "c"]


async def test_each_spec_has_a_key_mode_of_its_own(utils: WorkerUtils) -> None:
    for key in ("replace", "preserve", "dedupe"):
        await utils.add_job("a", {"old": True}, job_key=key, run_at=LATER)
    sooner = LATER - timedelta(days=1)
    jobs = await utils.add_jobs(
        [
            JobSpec("a", job_key="dedupe", run_at=sooner, job_key_mode="unsafe_dedupe"),
            JobSpec("a", job_key="preserve", run_at=sooner, job_key_mode="preserve_run_at"),
            JobSpec("a", job_key="replace", run_at=sooner),
        ]
    )
    assert [job.revision for job in jobs] == [1, 1, 1]
    assert [job.run_at for job in jobs] == [LATER, LATER, sooner]
    assert [job.payload for job in jobs] == [{"old": True}, {}, {}]


async def test_running_and_failed_jobs_make_way_for_new_ones(
    utils: WorkerUtils, stored: Jobs
) -> None:
    old = await utils.add_jobs([JobSpec("a", job_key=key) for key in ("r", "f", "w")])
    stored.lock(old[0].id)
    stored.exhaust(old[1].id)
    new = await utils.add_jobs([JobSpec("a", {"n": 2}, job_key=key) for key in ("r", "f", "w")])
    assert [each.id == before.id for each, before in zip(new, old, strict=True)] == [
        False,
        False,
        True,
    ]
    assert stored.one(old[0].id)["key"] is None
    assert stored.one(old[1].id)["key"] is None


async def test_no_specs_add_nothing_and_wake_nobody(utils: WorkerUtils, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute('listen "jobs:insert"')
        assert await utils.add_jobs([]) == []
        listener.execute("notify \"jobs:insert\", 'the end'")
        (note,) = listener.notifies(timeout=15, stop_after=1)
    assert note.payload == "the end"


async def test_specs_may_come_from_a_generator(utils: WorkerUtils) -> None:
    def specs() -> Iterator[JobSpec]:
        for number in range(3):
            yield JobSpec("a", number)

    assert [job.payload for job in await utils.add_jobs(specs())] == [0, 1, 2]


async def test_old_time_zones_with_odd_seconds_keep_the_instant(utils: WorkerUtils) -> None:
    moment = datetime(1900, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam"))
    (job,) = await utils.add_jobs([JobSpec("a", run_at=moment)])
    assert job.run_at == moment


@pytest.mark.parametrize(
    "specs",
    [
        # More than one statement is needed: for the size, for the modes.
        [*[JobSpec("a", {"n": n}) for n in range(1100)], JobSpec("forbidden")],
        [
            JobSpec("a", job_key="k"),
            JobSpec("forbidden", job_key="l", job_key_mode="unsafe_dedupe"),
        ],
    ],
)
async def test_all_are_added_or_none(
    utils: WorkerUtils, stored: Jobs, specs: list[JobSpec]
) -> None:
    await stored.in_thread(
        "alter table graphile_worker._private_tasks"
        " add constraint test_forbidden check (identifier <> 'forbidden')"
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        await utils.add_jobs(specs)
    assert stored.all() == []


async def test_payloads_are_stored_byte_for_byte(utils: WorkerUtils, stored: Jobs) -> None:
    payload: Any = {"b": 1, "a": [1.0, 1e22], "ü": "\x01\u2028"}
    one = await utils.add_job("a", payload)
    (many,) = await utils.add_jobs([JobSpec("a", payload)])
    assert many.payload_json == one.payload_json
    texts = stored.query("select payload::text as text from graphile_worker._private_jobs")
    assert {row["text"].encode() for row in texts} == {one.payload_json}


@pytest.mark.parametrize("payload", [{}, "text", None, 2**70])
async def test_equal_jobs_are_told_apart_by_their_ids(
    utils: WorkerUtils, stored: Jobs, payload: Any
) -> None:
    jobs = await utils.add_jobs([JobSpec("a", payload) for _ in range(3)])
    assert {job.id for job in jobs} == {row["id"] for row in stored.all()}
    assert len(stored.all()) == 3


async def test_jobs_that_a_trigger_changes_are_results_all_the_same(
    utils: WorkerUtils, stored: Jobs
) -> None:
    await stored.in_thread(
        "create function test_change() returns trigger language plpgsql"
        " as $$ begin new.payload := '{}'; new.priority := 7; return new; end $$"
    )
    await stored.in_thread(
        "create trigger test_change before insert on graphile_worker._private_jobs"
        " for each row execute function test_change()"
    )
    alike = await utils.add_jobs([JobSpec("a", n) for n in range(3)])
    mixed = await utils.add_jobs([JobSpec("a", 1), JobSpec("b", 2), JobSpec("b", 3, job_key="k")])
    assert {job.id for job in [*alike, *mixed]} == {row["id"] for row in stored.all()}
    assert [(job.priority, job.payload) for job in [*alike, *mixed]] == [(7, {})] * 6


@pytest.fixture(params=["pipelines", "no pipelines"])
def pipelines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what libpq brings, and as it is before version 14."""
    if request.param == "no pipelines":
        for kind in (psycopg.Pipeline, psycopg.AsyncPipeline):
            monkeypatch.setattr(kind, "is_supported", lambda: False)


@pytest.mark.usefixtures("pipelines")
async def test_many_keyed_jobs_of_all_modes_stand_in_the_order_of_the_specs(
    utils: WorkerUtils,
) -> None:
    modes = ["replace", "preserve_run_at", "unsafe_dedupe", None]
    specs = [
        JobSpec("a", n)
        if n % 10 == 0
        else JobSpec("a", n, job_key=str(n), job_key_mode=modes[n // 1000])
        for n in range(3200)
    ]
    jobs = await utils.add_jobs(specs)
    assert [job.payload for job in jobs] == list(range(3200))
    assert [job.key for job in jobs] == [spec.job_key for spec in specs]


@pytest.mark.usefixtures("pipelines")
async def test_a_payload_that_is_no_json_undoes_the_chunks_before(
    utils: WorkerUtils, stored: Jobs
) -> None:
    specs = [*[JobSpec("a", n) for n in range(2500)], JobSpec("a", object())]
    with pytest.raises(ConfigurationError, match=r"jobs\[2500\]: payload"):
        await utils.add_jobs(specs)
    assert stored.all() == []
    assert len(await utils.add_jobs(specs[:2500])) == 2500


async def test_without_prepared_statements_many_chunks_are_added_too(
    api: Api, dsn: str, stored: Jobs
) -> None:
    async with api.opened(dsn, prepared_statements=False) as utils:
        await utils.add_jobs([JobSpec("a", n) for n in range(2500)])
    assert len(stored.all()) == 2500


async def test_a_cancelled_call_adds_nothing_and_gives_its_connection_back(
    dsn: str, stored: Jobs
) -> None:
    async with WorkerUtils(dsn, max_pool_size=1) as utils:
        await utils.add_job("a", job_key="k")
        with stored.fetching("k"):  # whoever adds a job with this key waits for the row
            specs = [JobSpec("b", n) for n in range(2500)] + [JobSpec("a", job_key="k")]
            adding = asyncio.ensure_future(utils.add_jobs(specs))
            await stored.seen_waiting()
            adding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding
        assert len(stored.all()) == 1
        assert len(await utils.add_jobs(specs)) == 2501


READ = """
select seq_tup_read from pg_stat_user_tables
where schemaname = 'graphile_worker' and relname = '_private_jobs'
"""
OTHER_SESSIONS = """
select 1 from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""


@pytest.mark.parametrize("count", [1000, 2000])
async def test_jobs_that_wait_already_are_not_read_to_add_more(
    api: Api, dsn: str, stored: Jobs, count: int
) -> None:
    async with api.opened(dsn, max_pool_size=1) as utils:
        # By now this session has plans of its own within the function, made for an empty table.
        for number in range(10):
            await utils.add_job("a", number)
        stored.query(
            "insert into graphile_worker._private_jobs (task_id)"
            " select task_id from graphile_worker._private_jobs, generate_series(1, 500)"
        )
        await utils.add_jobs([JobSpec("a", n) for n in range(count)])
    # A session tells what it read when it ends, if not before.
    await eventually(lambda: not stored.query(OTHER_SESSIONS))
    assert stored.query(READ)[0]["seq_tup_read"] < 1000
