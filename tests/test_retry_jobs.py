"""`retry_jobs`: failed jobs get all their attempts again, by ids or by a filter."""

from typing import Any

import psycopg
import pytest

from graphile_worker_py import ConfigurationError, SyncWorkerUtils, WorkerUtils
from tests.support.running import Jobs

FAIL = """
update graphile_worker._private_jobs
set attempts = %s, last_error = %s, run_at = now() + interval '1 hour'
where id = %s
returning id
"""


@pytest.fixture
def failed(dsn: str) -> dict[str, int]:
    """Jobs in several states, by name."""
    jobs = Jobs(dsn)
    made = {name: jobs.add(name.split()[0]) for name in ("invoice 1", "invoice 2", "mail", "new")}
    jobs.query(FAIL, 25, "timeout after 5 s", made["invoice 1"])
    jobs.query(FAIL, 25, "no such customer", made["invoice 2"])
    jobs.query(FAIL, 3, "timeout after 5 s", made["mail"])
    return made


async def test_jobs_are_retried_by_their_ids(dsn: str, failed: dict[str, int]) -> None:
    async with WorkerUtils(dsn) as utils:
        retried = await utils.retry_jobs([failed["invoice 1"], str(failed["mail"]), 999])
    assert [job.id for job in retried] == [failed["invoice 1"], failed["mail"]]
    assert [(job.attempts, job.last_error) for job in retried] == [(0, "timeout after 5 s")] * 2
    assert {job.task_identifier for job in retried} == {"invoice", "mail"}
    due = Jobs(dsn).query(
        "select id from graphile_worker._private_jobs where run_at <= now() order by id"
    )
    assert {row["id"] for row in due} == {failed["invoice 1"], failed["mail"], failed["new"]}


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["invoice 1", "invoice 2"]),
        ({"task": "invoice", "error": "timeout%"}, ["invoice 1"]),
        ({"task": "nothing"}, []),
        ({"state": "retrying"}, ["mail"]),
        ({"limit": 1}, ["invoice 1"]),
    ],
)
def test_jobs_are_retried_by_a_filter(
    dsn: str, failed: dict[str, int], filters: Any, names: list[str]
) -> None:
    with SyncWorkerUtils(dsn) as utils:
        assert [job.id for job in utils.retry_jobs(**filters)] == [failed[name] for name in names]


async def test_a_running_job_is_left_alone_and_workers_are_told_of_the_others(
    dsn: str, failed: dict[str, int]
) -> None:
    jobs = Jobs(dsn)
    jobs.query(
        "update graphile_worker._private_jobs set locked_by = 'w', locked_at = now() "
        "where id = %s returning id",
        failed["invoice 1"],
    )
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute('listen "jobs:insert"')
        async with WorkerUtils(dsn) as utils:
            retried = await utils.retry_jobs()
        (heard,) = conn.notifies(timeout=5, stop_after=1)
    assert [job.id for job in retried] == [failed["invoice 2"]]
    assert '"count" : 1' in heard.payload


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"job_ids": "5"}, "job_ids"),
        ({"job_ids": [-1]}, "job_ids"),
        ({"job_ids": [1], "task": "a"}, "job_ids and a filter"),
        ({"state": "ready"}, "state"),
        ({"task": 5}, "task"),
        ({"error": "a\0"}, "error"),
        ({"limit": 0}, "limit"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(dsn: str, arguments: Any, named: str) -> None:
    with SyncWorkerUtils(dsn) as utils, pytest.raises(ConfigurationError, match=named):
        utils.retry_jobs(**arguments)
