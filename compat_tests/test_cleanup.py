"""Cleanup leaves the same rows behind as the Node package's."""

import json
from typing import Any

import psycopg
import pytest

from graphile_worker_py import SyncWorkerUtils
from tests.support.node import LATEST, Node
from tests.support.server import Server

CLEANUP = """
import { makeWorkerUtils } from "graphile-worker";

const [connectionString, given] = process.argv.slice(2);
const utils = await makeWorkerUtils({ connectionString });
try {
  await utils.cleanup(...JSON.parse(given));
} finally {
  await utils.release();
}
"""

# Tasks and queues of each kind: with a job, without, with one that failed for good or is running.
PREPARE = """
select graphile_worker.add_job(kind, queue_name => kind)
from unnest(array['used', 'empty', 'failed', 'running', 'kept', 'locked']) as kind;
delete from graphile_worker._private_jobs using graphile_worker._private_tasks as tasks
where tasks.id = task_id and tasks.identifier in ('empty', 'kept', 'locked');
update graphile_worker._private_jobs set attempts = max_attempts
where task_id in (select id from graphile_worker._private_tasks
  where identifier in ('failed', 'running'));
update graphile_worker._private_jobs set locked_at = now(), locked_by = 'pool-1'
where task_id = (select id from graphile_worker._private_tasks where identifier = 'running');
update graphile_worker._private_job_queues set locked_at = now(), locked_by = 'pool-1'
where queue_name = 'locked';
"""
LEFT = """
select 'job', identifier from graphile_worker._private_jobs as jobs
join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
union all select 'task', identifier from graphile_worker._private_tasks
union all select 'queue', queue_name from graphile_worker._private_job_queues
order by 1, 2
"""


def left(dsn: str) -> list[tuple[Any, ...]]:
    """The names of what is there."""
    with psycopg.connect(dsn) as conn:
        return conn.execute(LEFT).fetchall()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tasks": []},
        {"tasks": ["DELETE_PERMAFAILED_JOBS"]},
        {"tasks": ["GC_TASK_IDENTIFIERS"]},
        {"tasks": ["GC_TASK_IDENTIFIERS"], "taskIdentifiersToKeep": ["kept", "Empty"]},
        {"tasks": ["GC_JOB_QUEUES"]},
        {"tasks": ["GC_JOB_QUEUES", "GC_TASK_IDENTIFIERS", "DELETE_PERMAFAILED_JOBS"]},
        {"taskIdentifiersToKeep": ["kept"]},
    ],
    ids=json.dumps,
)
def test_both_leave_the_same_rows(
    dsn: str, server: Server, node: Node, given: dict[str, list[str]]
) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(PREPARE)
    before = left(dsn)
    twin = server.create_database(template=dsn)
    try:
        node.run(LATEST, CLEANUP, twin, json.dumps([given] if given else []))
        expected = left(twin)
    finally:
        server.drop_database(twin)

    with SyncWorkerUtils(dsn) as utils:
        counts = utils.cleanup(
            given.get("tasks"), task_identifiers_to_keep=given.get("taskIdentifiersToKeep")
        )

    assert left(dsn) == expected
    assert sum(counts.values()) == len(before) - len(expected)
