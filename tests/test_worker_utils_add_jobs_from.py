"""Any number of jobs can be added from a stream, in little memory."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from graphile_worker_py import ConfigurationError, JobSpec, WorkerUtils
from tests.support.jobs import Jobs
from tests.worker_utils_support import Api

COUNT = "select count(*) from graphile_worker._private_jobs"
STREAMER = Path(__file__).parent / "streamer.py"


def count_of(stored: Jobs) -> int:
    """How many jobs are committed."""
    return int(stored.query(COUNT)[0]["count"])


def forbid(stored: Jobs) -> None:
    """Make the database refuse one task."""
    stored.query(
        "alter table graphile_worker._private_tasks"
        " add constraint test_forbidden check (identifier <> 'forbidden')"
    )


async def test_all_jobs_of_a_generator_are_added_and_counted(
    utils: WorkerUtils, stored: Jobs
) -> None:
    added = await utils.add_jobs_from((JobSpec("a", n) for n in range(25)), chunk_size=10)
    assert added == 25
    assert sorted(row["payload"] for row in stored.all()) == list(range(25))


async def test_an_async_generator_is_a_stream_too(dsn: str, stored: Jobs) -> None:
    async def specs() -> AsyncIterator[JobSpec]:
        for number in range(25):
            yield JobSpec("a", number)

    async with WorkerUtils(dsn) as utils:
        assert await utils.add_jobs_from(specs(), chunk_size=10) == 25
    assert sorted(row["payload"] for row in stored.all()) == list(range(25))


async def test_an_empty_stream_adds_nothing(utils: WorkerUtils, stored: Jobs) -> None:
    assert await utils.add_jobs_from(iter([])) == 0
    assert stored.all() == []


async def test_more_is_asked_for_once_a_chunk_is_committed(
    utils: WorkerUtils, stored: Jobs
) -> None:
    committed = []

    def specs() -> Iterator[JobSpec]:
        for number in range(6):
            committed.append(count_of(stored))
            yield JobSpec("a", number)

    await utils.add_jobs_from(specs(), chunk_size=2)
    assert committed == [0, 0, 2, 2, 4, 4]


async def test_a_chunk_is_added_or_not_and_the_ones_before_stay(
    utils: WorkerUtils, stored: Jobs
) -> None:
    forbid(stored)
    specs = [JobSpec("a"), JobSpec("a"), JobSpec("a"), JobSpec("forbidden"), JobSpec("a")]
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        await utils.add_jobs_from(specs, chunk_size=2)
    assert "added the 2 jobs before this chunk" in caught.value.__notes__[0]
    assert count_of(stored) == 2


async def test_in_a_callers_transaction_all_are_added_or_none(
    api: Api, utils: WorkerUtils, dsn: str, stored: Jobs
) -> None:
    specs = [JobSpec("a", n) for n in range(5)]
    async with api.connection(dsn) as conn:
        assert await utils.add_jobs_from(specs, chunk_size=2, conn=conn) == 5
        assert count_of(stored) == 0
        await api.on(conn, "rollback")
        assert await utils.add_jobs_from(specs, chunk_size=2, conn=conn) == 5
        await api.on(conn, "commit")
    assert count_of(stored) == 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (JobSpec("a", object()), r"jobs\[3\]: payload of task 'a' is not JSON-serialisable"),
        ({"identifier": "a"}, r"jobs\[3\] must be a JobSpec, not {'identifier': 'a'}"),
    ],
)
async def test_the_place_of_a_bad_spec_is_told(
    utils: WorkerUtils, stored: Jobs, bad: Any, message: str
) -> None:
    specs = [JobSpec("a"), JobSpec("a"), JobSpec("a"), bad]
    with pytest.raises(ConfigurationError, match=message):
        await utils.add_jobs(specs)
    assert count_of(stored) == 0
    with pytest.raises(ConfigurationError, match=message):
        await utils.add_jobs_from(specs, chunk_size=2)
    assert count_of(stored) == 2


async def test_what_the_stream_raises_comes_out_with_a_note_of_what_is_added(
    utils: WorkerUtils, stored: Jobs
) -> None:
    def specs() -> Iterator[JobSpec]:
        yield from [JobSpec("a")] * 3
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="the file ends here") as caught:
        await utils.add_jobs_from(specs(), chunk_size=2)
    assert "added the 2 jobs before this chunk" in caught.value.__notes__[0]
    assert count_of(stored) == 2


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "10", 2**64])
async def test_a_chunk_size_that_makes_no_sense_is_refused(utils: WorkerUtils, size: Any) -> None:
    with pytest.raises(ConfigurationError, match="chunk_size must be "):
        await utils.add_jobs_from([JobSpec("a")], chunk_size=size)


async def test_what_is_no_stream_is_refused(utils: WorkerUtils) -> None:
    for wrong in (5, "text", {"identifier": "a"}, JobSpec("a")):
        with pytest.raises(ConfigurationError, match="jobs must be"):
            await utils.add_jobs_from(wrong)  # type: ignore[arg-type]


async def test_later_chunks_replace_the_waiting_jobs_of_earlier_ones(
    utils: WorkerUtils, stored: Jobs
) -> None:
    specs = (JobSpec("a", {"n": n}, job_key="k") for n in range(5))
    assert await utils.add_jobs_from(specs, chunk_size=2) == 5
    (row,) = stored.all()
    assert (row["payload"], row["revision"]) == ({"n": 4}, 2)


@pytest.mark.parametrize("form", ["async", "sync"])
def test_memory_does_not_grow_with_the_stream(dsn: str, stored: Jobs, form: str) -> None:
    # Two chunks are added by the time when the child first looks at its memory. In one chunk, the
    # other 180,000 jobs would be 150 MiB.
    command = [sys.executable, str(STREAMER), form, dsn, "200000", "10000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert count_of(stored) == 200_000
    assert int(done.stdout) < 10 * 2**20
