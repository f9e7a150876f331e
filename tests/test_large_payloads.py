"""Payloads that are too large are refused before they are sent; large ones are sent in parts."""

from typing import Any

import psycopg
import pytest

from graphile_worker_py import ConfigurationError, JobSpec, SyncWorkerUtils, WorkerUtils
from graphile_worker_py.adding.statements import CHUNK_LENGTH, LARGEST_PAYLOAD, Addition
from graphile_worker_py.postgres.query import Pipelined
from tests.support.jobs import Jobs

LENGTHS = "select pg_catalog.length(payload::text) from graphile_worker._private_jobs order by id"


def test_a_payload_that_jsonb_can_not_hold_is_refused_with_its_size(dsn: str) -> None:
    # With its quotes it is one byte too large.
    specs = [JobSpec("small"), JobSpec("large", "a" * (LARGEST_PAYLOAD - 1))]
    with SyncWorkerUtils(dsn) as utils, pytest.raises(ConfigurationError) as caught:
        utils.add_jobs(specs)
    assert str(caught.value) == (
        "jobs[1]: payload of task 'large' has 268,435,456 bytes as JSON; at most 268,435,455 are "
        "allowed: store it elsewhere, and add its address"
    )
    assert Jobs(dsn).ids() == []


def test_no_statement_has_more_than_its_share_of_large_payloads() -> None:
    half = "x" * (CHUNK_LENGTH // 2)
    payloads = [1, half, 2, half, 3, half * 3, half, 4]
    specs = [JobSpec("work", payload, job_key=f"{n}") for n, payload in enumerate(payloads)]
    step = next(Addition(specs, schema="graphile_worker").steps())
    assert isinstance(step, Pipelined)
    # Two halves do not fit together, because they have quotes.
    lengths = [len(query.values[0]) for query in step.queries]
    shares = [1, 1, 3, 1]
    assert [round(length / len(half)) for length in lengths] == shares


async def test_large_payloads_are_added_all_or_none(utils: WorkerUtils, dsn: str) -> None:
    text = "x" * (CHUNK_LENGTH // 8)
    specs = [JobSpec("work", text, job_key=f"{n}") for n in range(12)]
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "alter table graphile_worker._private_jobs add constraint last check (key <> '11')"
        )
    with pytest.raises(psycopg.errors.CheckViolation):
        await utils.add_jobs(specs)
    jobs = Jobs(dsn)
    assert jobs.ids() == []
    added = await utils.add_jobs(specs[:10])
    rows: list[dict[str, Any]] = jobs.query(LENGTHS)
    assert [row["length"] for row in rows] == [len(text) + 2] * 10
    assert [job.key for job in added] == [spec.job_key for spec in specs[:10]]
