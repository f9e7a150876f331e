"""A job as it is stored, and a job as it is asked for."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from graphile_worker_py import ConfigurationError, Job, JobContext, JobKeyMode, JobSpec, run_once
from graphile_worker_py.job import JOB_COLUMNS, from_timestamp
from tests.support.running import Jobs


async def fetched(dsn: str) -> list[Job]:
    """The jobs of a database, as a worker gets them."""
    seen: list[Job] = []

    async def look(payload: Any, ctx: JobContext) -> None:
        seen.append(ctx.job)

    await run_once(dsn, tasks={"look": look})
    return seen


async def test_it_has_all_columns_of_the_table_by_their_names(dsn: str) -> None:
    jobs = Jobs(dsn)
    columns = jobs.query(
        "select column_name from information_schema.columns"
        " where table_name = '_private_jobs' order by ordinal_position"
    )
    assert [row["column_name"] for row in columns] == list(JOB_COLUMNS)
    jobs.add("look")
    (job,) = await fetched(dsn)
    assert list(job.to_dict()) == [*JOB_COLUMNS, "task_identifier"]


async def test_it_is_read_only(dsn: str) -> None:
    Jobs(dsn).add("look")
    (job,) = await fetched(dsn)
    with pytest.raises(AttributeError):
        job.attempts = 7  # type: ignore[misc]
    with pytest.raises(AttributeError):
        job.anything = 7  # type: ignore[attr-defined]


async def test_its_payload_is_decoded_once_and_never_shown(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("look", payload_json='{"secret" :  "xyzzy"}', job_key="k")
    (job,) = await fetched(dsn)
    assert job.payload == {"secret": "xyzzy"}
    assert job.payload is job.payload
    assert job.payload_json == b'{"secret" :  "xyzzy"}'
    assert "xyzzy" not in repr(job)
    assert repr(job) == f"Job(id={job.id}, task_identifier='look', key='k', attempts=1/25)"


async def test_two_jobs_are_equal_if_their_rows_are(dsn: str) -> None:
    jobs = Jobs(dsn)
    jobs.add("look")
    jobs.add("look")
    one, two = await fetched(dsn)
    assert one == one
    assert one != two
    assert one != "something else"
    assert len({one, two, one}) == 2


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("2020-01-02 03:04:05.123456+00", datetime(2020, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ("1900-01-01 00:00:00+05", datetime(1899, 12, 31, 19, tzinfo=UTC)),
        ("0001-01-01 00:00:00+00", datetime(1, 1, 1, tzinfo=UTC)),
        ("-infinity", datetime.min.replace(tzinfo=UTC)),
        ("4000-01-01 00:00:00+00 BC", datetime.min.replace(tzinfo=UTC)),
    ],
)
async def test_times_are_aware_and_those_python_has_not_become_the_nearest(
    dsn: str, stored: str, read: datetime
) -> None:
    jobs = Jobs(dsn)
    jobs.add("look", run_at=stored)
    (job,) = await fetched(dsn)
    assert job.run_at == read
    assert job.run_at.tzinfo is UTC


@pytest.mark.parametrize("value", [2**63 - 1, 2**62])
def test_times_after_pythons_last_become_its_last(value: int) -> None:
    assert from_timestamp(value.to_bytes(8, "big")) == datetime.max.replace(tzinfo=UTC)


AWARE = datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=5)))
GOOD: list[dict[str, Any]] = [
    {"identifier": "x" * 128},
    {"queue_name": ""},
    {"queue_name": "\N{SNOWMAN}" * 128},
    {"job_key": "x" * 512},
    {"job_key": "k", "job_key_mode": "preserve_run_at"},
    {"job_key": "k", "job_key_mode": JobKeyMode.UNSAFE_DEDUPE},
    {"priority": -32768},
    {"priority": 32767},
    {"max_attempts": 1},
    {"run_at": AWARE},
    {"flags": []},
]
BAD: list[tuple[str, Any]] = [
    ("identifier", "x" * 129),
    ("identifier", "a\0b"),
    ("identifier", None),
    ("identifier", ""),
    ("identifier", " a"),
    ("identifier", "a\n"),
    ("queue_name", "x" * 129),
    ("queue_name", 7),
    ("job_key", ""),
    ("job_key", "x" * 513),
    ("job_key", "\udc00"),
    ("priority", 32768),
    ("priority", -32769),
    ("priority", 1.0),
    ("priority", True),
    ("max_attempts", 0),
    ("max_attempts", 32768),
    ("run_at", datetime(2020, 1, 1)),  # noqa: DTZ001  # that is the point
    ("run_at", "2020-01-01T00:00:00Z"),
    ("run_at", 1577836800),
    ("flags", "red"),
    ("flags", ["a\0b"]),
    ("flags", [None]),
]


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_a_request_with_values_that_can_be_stored_is_taken(values: dict[str, Any]) -> None:
    spec = JobSpec(**{"identifier": "task", **values})
    assert {name: getattr(spec, name) for name in values} == values


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_request_with_a_value_that_cannot_be_stored_is_refused_with_its_name(
    name: str, value: Any
) -> None:
    values: dict[str, Any] = {"identifier": "task", name: value}
    with pytest.raises(ConfigurationError, match=name):
        JobSpec(**values)


def test_an_unknown_key_mode_is_refused_if_there_is_a_key() -> None:
    with pytest.raises(ConfigurationError, match="replace, preserve_run_at, unsafe_dedupe"):
        JobSpec("task", job_key="k", job_key_mode="overwrite")


def test_a_payload_that_is_not_given_is_an_empty_object() -> None:
    assert JobSpec("task").payload_json() == "{}"
    assert JobSpec("task", 0).payload_json() == "0"
    assert JobSpec("task", []).payload_json() == "[]"
    with pytest.raises(ConfigurationError, match="payload of task 'task' is not JSON"):
        JobSpec("task", object()).payload_json()
